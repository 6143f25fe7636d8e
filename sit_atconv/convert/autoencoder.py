"""Autoencoders as the code of latent diffusion (LDM) stores them, to the folder of an `AutoencoderKL`.

VA-VAE (arXiv 2501.01423) and REPA-E (arXiv 2504.10483) publish such state dicts: the same network under other names,
with 1×1 convolutions in place of the linear layers of attention. The statistics of the latents are in a second file.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..models.latent_scaling import set_latent_statistics
from ..models.vae import check_vae_size, save_vae
from ..utils.torch_files import read_torch_file, writing
from .folder import new_folder
from .untrusted import read_checkpoint

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
NORM_GROUPS = 32  # of every group normalization in LDM's code
SAMPLE_SIZE = 256  # of the published ones; the side above which diffusers works in tiles, if that is switched on
# Names within an encoder or a decoder, as patterns of LDM's and what diffusers calls them.
NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"mid\.block_([12])\.", lambda found: f"mid_block.resnets.{int(found[1]) - 1}."),
    (r"mid\.attn_1\.", "mid_block.attentions.0."),
    (r"norm_out\.", "conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+\.)norm\.", r"\1group_norm."),
    (r"(attentions\.\d+\.)([qkv])\.", r"\1to_\2."),
    (r"(attentions\.\d+\.)proj_out\.", r"\1to_out.0."),
)
# What a file of statistics calls them: mean and standard deviation, or mean and reciprocal of the standard deviation.
STATISTICS_NAMES = (("mean", "std"), ("latents_mean", "latents_std"), ("latents_bias", "latents_scale"))


def is_autoencoder(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether a state dict has the names of LDM's autoencoder."""
    return {"encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"} <= state_dict.keys()


def convert_autoencoder(
    checkpoint: str | Path, output: str | Path, weights: str | None = None, statistics: str | None = None
) -> dict[str, Any]:
    """Convert an autoencoder of LDM's code to the folder of an `AutoencoderKL`, which `--vae` takes.

    Args:
        checkpoint: the file; see `read_checkpoint`. Weights of other networks in it, such as of losses, are left out.
        output: the folder to create; it must not exist, or be empty.
        weights: which of the file's weights; "vae" for the autoencoder in a training checkpoint of REPA-E.
        statistics: a file with mean and standard deviation of each channel of the latents, under the names that VA-VAE
            and REPA-E give them. If None, those in a training checkpoint are taken; without them, the folder has no
            scale, and training refuses it until train/encode_latents.py --statistics channels has computed one.

    Returns:
        What was found out, in words by the name of the property.

    Raises:
        ValueError: naming what cannot be read, or does not fit an `AutoencoderKL`; `output` is left untouched.
    """
    with new_folder("output", output) as folder:
        state_dict, _, which = read_checkpoint(checkpoint, weights)
        own = {name: tensor for name, tensor in state_dict.items() if name.startswith(PARTS)}
        others = sorted({name.partition(".")[0] for name in state_dict.keys() - own.keys()})
        vae = build_autoencoder(own)
        found = _own_statistics(checkpoint, which) if statistics is None else read_statistics(statistics)
        if found is not None:
            set_latent_statistics(vae, *found)
        with writing(output):
            save_vae(vae, folder)
    config = vae.config
    return {
        "autoencoder": f"AutoencoderKL, factor {2 ** (len(config.block_out_channels) - 1)}",
        "latent channels": str(config.latent_channels),
        "widths": ", ".join(map(str, config.block_out_channels)),
        "statistics": "of each channel" if found is not None else "none: the scale of the latents is not known",
        "left out": ", ".join(others) or "nothing",
    }


def build_autoencoder(state_dict: dict[str, torch.Tensor]) -> AutoencoderKL:
    """Return the `AutoencoderKL` with these weights, without statistics of its latents.

    Raises:
        ValueError: if names or shapes are not those of an autoencoder of LDM; the error lists them.
    """
    if not is_autoencoder(state_dict):
        raise ValueError(f"the weights are not those of an autoencoder of LDM's code; they begin {_some(state_dict)}")
    config = infer_config(state_dict)
    check_vae_size(config)
    try:
        with torch.device("meta"):
            vae = AutoencoderKL(**config)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the weights are not those of an autoencoder of LDM's code: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    levels = len(config["block_out_channels"])
    converted = {}
    for name, tensor in state_dict.items():
        new = diffusers_name(name, levels)
        is_linear = ".attentions." in new and tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
        converted[new] = (tensor[:, :, 0, 0] if is_linear else tensor).contiguous()
    unknown = converted.keys() - expected.keys()
    missing = expected.keys() - converted.keys()
    misshapen = [name for name in expected.keys() & converted.keys() if converted[name].shape != expected[name]]
    if unknown or missing or misshapen:
        kinds = (("unknown", unknown), ("missing", missing), ("of another shape", misshapen))
        listed = [f"{kind}: {_some(names)}" for kind, names in kinds if names]
        raise ValueError(f"the weights do not fit an AutoencoderKL, under diffusers' names; {'; '.join(listed)}")
    vae.load_state_dict(converted, assign=True)
    return vae.float().eval().requires_grad_(False)


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def infer_config(state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Read the arguments of an `AutoencoderKL` from the names and shapes of LDM's weights."""

    def count(pattern: str) -> int:
        """One more than the largest number in the place of the group among the names that begin so; 0 without any."""
        return max([int(found[1]) + 1 for name in state_dict if (found := re.match(pattern, name))], default=0)

    def attends(level: str) -> bool:
        return f"{level}.attn.0.q.weight" in state_dict

    levels = range(count(r"encoder\.down\.(\d{1,3})\."))
    widths = [_size(state_dict, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in levels]
    up = ["AttnUpDecoderBlock2D" if attends(f"decoder.up.{i}") else "UpDecoderBlock2D" for i in reversed(levels)]
    return {
        "in_channels": _size(state_dict, "encoder.conv_in.weight", 1),
        "out_channels": _size(state_dict, "decoder.conv_out.weight", 0),
        "latent_channels": _size(state_dict, "decoder.conv_in.weight", 1),
        "block_out_channels": widths,
        "down_block_types": [
            "AttnDownEncoderBlock2D" if attends(f"encoder.down.{i}") else "DownEncoderBlock2D" for i in levels
        ],
        "up_block_types": up,
        "layers_per_block": count(r"encoder\.down\.0\.block\.(\d{1,3})\."),
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state_dict,
        "use_quant_conv": "quant_conv.weight" in state_dict,
        "use_post_quant_conv": "post_quant_conv.weight" in state_dict,
        "norm_num_groups": NORM_GROUPS,
        "sample_size": SAMPLE_SIZE,
        "scaling_factor": None,
    }


def _size(state_dict: dict[str, torch.Tensor], name: str, axis: int) -> int:
    if name not in state_dict or state_dict[name].ndim != 4:
        raise ValueError(f"the weights are not those of an autoencoder of LDM's code: {name} is no convolution in it")
    return state_dict[name].shape[axis]


def diffusers_name(name: str, levels: int) -> str:
    """Return what diffusers calls a weight of LDM's autoencoder; its decoder counts the levels from the other end."""

    def level(found: re.Match) -> str:
        direction, number = found[1], int(found[2])
        number = levels - 1 - number if direction == "up" else number
        parts = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers.0", "upsample": "upsamplers.0"}
        return f"{direction}_blocks.{number}.{parts[found[3]]}."

    name = re.sub(r"\b(down|up)\.(\d+)\.(block|attn|downsample|upsample)\.", level, name)
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def read_statistics(file: str | Path) -> tuple[list[float], list[float]]:
    """Read mean and standard deviation of each channel from a .pt or .safetensors file; nothing in it can run.

    Raises:
        ValueError: if it holds no such tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"statistics={str(file)!r} is not a file; name the one with mean and std of the latents")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else read_torch_file(file)
    except SafetensorError as error:
        raise ValueError(f"statistics={str(file)!r} cannot be read: {error}; fetch it again") from error
    held = content if isinstance(content, dict) else {}
    for mean, std in STATISTICS_NAMES:
        if isinstance(held.get(mean), torch.Tensor) and isinstance(held.get(std), torch.Tensor):
            spread = held[std].double().flatten()
            spread = 1 / spread if std == "latents_scale" else spread
            return held[mean].double().flatten().tolist(), spread.tolist()
    raise ValueError(
        f"statistics={str(file)!r} holds {_some(list(map(str, held))) or 'no names'}; it needs tensors named "
        + "; ".join(" and ".join(names) for names in STATISTICS_NAMES)
    )


def _own_statistics(checkpoint: str | Path, which: str) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation from the batch normalization of REPA-E, in the checkpoint of a training."""
    if which != "vae":
        return None
    try:
        trained = read_checkpoint(checkpoint, "ema")[0]
    except ValueError:  # only the autoencoder
        return None
    if not {"bn.running_mean", "bn.running_var"} <= trained.keys():
        return None
    return trained["bn.running_mean"].double().tolist(), trained["bn.running_var"].double().sqrt().tolist()
