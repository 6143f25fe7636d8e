"""The calls that eval/latency.py times: a single operator, forward passes, training steps, sampling and SDE solves.

Shapes: B batch, C latent channels, S image side in pixels, N tokens, D model width.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import nn

from ..flow.guidance import GuidedModel
from ..models.codecs import vae_latent_channels, vae_scale_factor
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import decode, load_vae
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from .mean_flow_calls import mean_flow_calls
from .settings import PIXELS_PER_LATENT, LatencyOptions, Setting

VAE_ROW = "VAE decoding"
# The architecture of Stable Diffusion's VAE. Speed does not depend on the weights.
VAE_CONFIG: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
)


class TimedCalls(NamedTuple):
    """What takes turns in one setting.

    Attributes:
        calls: the calls by the name of their row.
        baselines: for each name, the name of the row that it is compared with.
    """

    calls: dict[str, Callable[[], object]]
    baselines: dict[str, str]


def make_calls(
    models: Mapping[str, SiTTransformer2DModel],
    setting: Setting,
    options: LatencyOptions,
    device: torch.device,
    vae: nn.Module | None = None,
) -> TimedCalls:
    """The calls of one setting.

    Args:
        models: models by preset, as `build_models` makes them.
        setting: what is measured.
        options: how to compile, and how many solver steps to take.
        device: the device that holds the models.
        vae: the VAE of "sampling". If None, Stable Diffusion's architecture with random weights.
    """
    first = next(iter(models))
    baselines = dict.fromkeys(models, first)
    if setting.measurement == "operator":
        return TimedCalls(operator_calls(models, setting, options, device), baselines)

    nets = {name: compiled(model, options, setting.cuda_graphs) for name, model in models.items()}
    inputs = make_inputs(models[first], setting, device)
    dtype = getattr(torch, setting.dtype)
    if setting.measurement == "forward":
        return TimedCalls({name: partial(net, *inputs) for name, net in nets.items()}, baselines)
    if setting.measurement == "training":
        return TimedCalls({name: partial(train_step, net, inputs, dtype) for name, net in nets.items()}, baselines)
    if setting.measurement == "meanflow":
        return TimedCalls(*mean_flow_calls(nets, inputs, dtype))
    if setting.measurement == "checkpointing":
        for model in models.values():
            model.enable_gradient_checkpointing()
        return checkpointing_calls(nets, inputs, dtype)

    latents, _, labels = inputs
    if setting.measurement == "sde":
        return sde_calls(nets, latents.float(), labels, options.sde_steps)
    vae = vae or AutoencoderKL(**VAE_CONFIG)
    vae = nn.Module.to(vae, device, dtype).eval()
    return TimedCalls(
        sampling_calls(nets, vae, latents.float(), labels, options.steps), {**baselines, VAE_ROW: VAE_ROW}
    )


def operator_calls(
    models: Mapping[str, SiTTransformer2DModel], setting: Setting, options: LatencyOptions, device: torch.device
) -> dict[str, Callable[[], object]]:
    """One call of the token mixer of each model's first block, on tokens of that model's own width and grid."""
    return {
        name: partial(compiled(first_mixer(model), options), *operator_inputs(model, setting, device))
        for name, model in models.items()
    }


def checkpointing_calls(
    nets: Mapping[str, nn.Module], inputs: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> TimedCalls:
    """Training steps of each model with gradient checkpointing, compared with the same model without it."""
    timed = TimedCalls({}, {})
    for name, net in nets.items():
        for suffix, checkpointing in ("", False), (", checkpointing", True):
            timed.calls[name + suffix] = partial(train_step, net, inputs, dtype, checkpointing)
            timed.baselines[name + suffix] = name
    return timed


def sde_calls(nets: Mapping[str, nn.Module], latents: torch.Tensor, labels: torch.Tensor, steps: int) -> TimedCalls:
    """SDE solves with one network call per step, compared with two calls, as drift and score apart would need."""
    solve = InterpolantSDEScheduler().solve
    timed = TimedCalls({}, {})
    for name, net in nets.items():
        once = GuidedModel(net, labels)
        twice = partial(_call_twice, once)
        for suffix, model_fn in (", 2 calls a step", twice), ("", once):
            generator = torch.Generator(latents.device).manual_seed(0)
            timed.calls[name + suffix] = partial(solve, model_fn, latents, steps, generator)
            timed.baselines[name + suffix] = f"{name}, 2 calls a step"
    return timed


def _call_twice(model_fn: Callable, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    model_fn(x, t)
    return model_fn(x, t)


def sampling_calls(
    nets: Mapping[str, nn.Module], vae: nn.Module, latents: torch.Tensor, labels: torch.Tensor, steps: int
) -> dict[str, Callable[[], object]]:
    """The pipeline from labels to images with each network, and the decoding of the same latents (B, C, S/8, S/8)."""
    height, width = (PIXELS_PER_LATENT * side for side in latents.shape[-2:])
    calls: dict[str, Callable[[], object]] = {}
    for name, net in nets.items():
        pipeline = SiTPipeline(net, InterpolantODEScheduler(solver="midpoint"), vae)
        pipeline.set_progress_bar_config(disable=True)
        calls[name] = partial(
            pipeline,
            labels,
            num_inference_steps=steps,
            latents=latents,
            output_type="pt",
            height=height,
            width=width,
        )
    return {**calls, VAE_ROW: partial(decode, vae, latents)}


def train_step(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], dtype: torch.dtype, checkpointing: bool = False
) -> None:
    """Forward and backward pass of the mean square of the output; the gradients stay until the next step."""
    model.zero_grad(set_to_none=True)
    module: Any = getattr(model, "_orig_mod", model)  # the model within torch.compile's wrapper
    module.gradient_checkpointing = checkpointing
    with torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32):
        loss = model(*inputs).sample.float().square().mean()
    loss.backward()
    module.gradient_checkpointing = False


def build_models(
    presets: tuple[str, ...], dtype: torch.dtype, device: torch.device, step_conditioning: str = "none"
) -> dict[str, SiTTransformer2DModel]:
    """Models in eval mode whose zero-initialised weights are replaced by small random numbers.

    As initialised, every block is switched off and the output is 0, and arithmetic on zeros may run faster than on
    trained weights.

    Args:
        presets: the models by their published names.
        dtype: data type of the weights.
        device: where they are.
        step_conditioning: see `SiTTransformer2DModel`.
    """
    models = {}
    for preset in presets:
        with torch.device(device):
            model = SiTTransformer2DModel.from_preset(preset, step_conditioning=step_conditioning).eval()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        # diffusers' own `to` warns about modules that are kept in float32, even if there are none.
        models[preset] = nn.Module.to(model, dtype)
    return models


def make_inputs(
    model: SiTTransformer2DModel, setting: Setting, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (B, C, S/8, S/8), times (B,) and labels (B,), the same in every call."""
    generator = torch.Generator().manual_seed(0)
    B, side = setting.batch_size, setting.latent_size
    latents = torch.randn(B, model.config.in_channels, side, side, generator=generator)
    times = torch.rand(B, generator=generator)
    labels = torch.randint(model.config.num_classes, (B,), generator=generator)
    return latents.to(device, model.dtype), times.to(device), labels.to(device)


def first_mixer(model: SiTTransformer2DModel) -> nn.Module:
    """The token mixer of the first block, which "operator" measures."""
    return model.blocks[0].get_submodule("mixer")


def operator_inputs(
    model: SiTTransformer2DModel, setting: Setting, device: torch.device
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens (B, N, D) and their grid, the same in every call."""
    side = setting.latent_size // model.config.patch_size
    dim = model.modulation_out.in_features
    tokens = torch.randn(setting.batch_size, side**2, dim, generator=torch.Generator().manual_seed(0))
    return tokens.to(device, model.dtype), (side, side)


def compiled(module: nn.Module, options: LatencyOptions, cuda_graphs: bool = False) -> nn.Module:
    """The module, compiled as the options say; `fullgraph` refuses graph breaks."""
    if options.compile == "none":
        return module
    mode = "reduce-overhead" if cuda_graphs or options.cuda_graphs else None
    if options.compile == "blocks" and isinstance(module, SiTTransformer2DModel):
        module.compile_repeated_blocks(fullgraph=True, mode=mode)
        if mode is not None:
            # Otherwise each block is taken for a new iteration, which frees the results of the block before it.
            module.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
        return module
    return torch.compile(module, dynamic=False, fullgraph=True, mode=mode)  # type: ignore[return-value]


def load_fitting_vae(name: str) -> nn.Module:
    """Load the VAE of "sampling" from a folder or the Hub.

    Raises:
        ValueError: if there is no VAE, or its latents do not fit the presets.
    """
    vae = load_vae(name)
    found = (vae_scale_factor(vae), vae_latent_channels(vae))
    if found != (PIXELS_PER_LATENT, VAE_CONFIG["latent_channels"]):
        raise ValueError(
            f"vae={name!r} has {found[0]} pixels per latent pixel and {found[1]} channels; the presets need "
            f"{PIXELS_PER_LATENT} and {VAE_CONFIG['latent_channels']}, as in stabilityai/sd-vae-ft-ema"
        )
    return vae
