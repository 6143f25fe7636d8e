"""The first stage of a graft: each new mixer learns what the mixer said that it replaces, block by block.

The new mixers get the inputs that the trained model's mixers have, all of which one pass of that model gives. So the
blocks learn side by side, and none has to cope with the errors of another one.

t=0 noise, t=1 data. B images, N tokens, D model width, K replaced blocks.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ..flow.losses import InterpolantLoss
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE
from .objective import Losses, Objective

SMALLEST = 1e-12  # mean square of a mixer's output by which errors are divided at least


class MixerCall(NamedTuple):
    """What a mixer of the trained model gets and says.

    Args:
        tokens: (B, N, D) input.
        grid: (H, W) with H·W = N.
        output: (B, N, D).
        gate: (B, 1, D), by which adaLN multiplies the output before it is added to the tokens.
    """

    tokens: torch.Tensor
    grid: tuple[int, int]
    output: torch.Tensor
    gate: torch.Tensor


class CallableMixers(nn.Module):
    """A transformer of which a call may run some mixers alone, so that DDP sums their gradients as all others.

    Args:
        transformer: the trained transformer, which is all that is kept after training.
    """

    _no_split_modules = SiTTransformer2DModel._no_split_modules

    def __init__(self, transformer: SiTTransformer2DModel):
        super().__init__()
        self.transformer = transformer

    def forward(self, *arguments: Any, calls: dict[int, MixerCall] | None = None, **options: Any) -> Any:
        """Call the transformer; with `calls`, return the outputs (B, N, D) of these blocks' mixers instead."""
        if calls is None:
            return self.transformer(*arguments, **options)
        # All other parameters get a gradient of 0, because DDP waits for one of each parameter.
        idle = 0.0 * sum(parameter.sum() for parameter in self.transformer.parameters())
        return [mixer_of(self.transformer, i)(call.tokens, call.grid) + idle for i, call in calls.items()]


def mixer_of(transformer: SiTTransformer2DModel, block: int) -> nn.Module:
    """The mixer of a block, counted from 0."""
    return transformer.blocks[block].get_submodule("mixer")


@contextmanager
def recorded_mixers(transformer: SiTTransformer2DModel, blocks: list[int]) -> Iterator[dict[int, MixerCall]]:
    """Record what the mixers of these blocks get and say: filled by the call of the transformer in this context."""
    calls: dict[int, MixerCall] = {}
    gates: dict[int, torch.Tensor] = {}

    def keep_gate(i: int) -> Callable:
        def hook(module: nn.Module, inputs: Any, modulation: torch.Tensor) -> None:
            gates[i] = modulation[:, None].chunk(6, dim=-1)[2]  # as SiTBlock.forward splits it

        return hook

    def keep_call(i: int) -> Callable:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, tuple[int, int]], output: torch.Tensor) -> None:
            tokens, grid = inputs
            calls[i] = MixerCall(tokens, grid, output, gates[i])

        return hook

    with ExitStack() as stack:
        for i in blocks:
            modulation = transformer.blocks[i].get_submodule("modulation")
            stack.callback(modulation.register_forward_hook(keep_gate(i)).remove)
            stack.callback(mixer_of(transformer, i).register_forward_hook(keep_call(i)).remove)
        yield calls


class MixerRegression(Objective):
    """The share of each replaced mixer's output that the new mixer leaves unexplained.

    Args:
        loss_fn: gives the path and the times.
        model: `CallableMixers`, as accelerate has prepared it.
        class_dropout_prob: as for `Objective`.
        vae: as for `Objective`.
        source: the trained transformer.
        blocks: the replaced blocks.
        autocast: makes the context of the run's precision.
    """

    def __init__(
        self,
        loss_fn: InterpolantLoss,
        model: nn.Module,
        class_dropout_prob: float,
        vae: VAE | None,
        source: SiTTransformer2DModel,
        blocks: list[int],
        autocast: Callable[[], AbstractContextManager],
    ):
        super().__init__(loss_fn, model, class_dropout_prob, vae)
        self.source = source
        self.blocks = blocks
        self.autocast = autocast

    def losses(self, batch: dict[str, torch.Tensor]) -> Losses:
        """Compute the unexplained shares of a batch, as the mean over the blocks."""
        shares, t = self.shares(batch)
        errors = shares.mean(1)
        return Losses(errors, t, torch.zeros_like(errors), torch.ones_like(errors))

    def shares(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute |gate·(new − old)|² / |gate·old|² of each image and block, (B, K) float32, and the times (B,)."""
        batch = self.on_device(batch)
        x_1 = self.latents(batch)  # (B, C, S, S)
        t = self.loss_fn.time_from_normal(batch["time"])  # (B,)
        dropped = batch["dropout"] < self.class_dropout_prob
        x_t = self.loss_fn.interpolant.interpolate(batch["noise"], x_1, t)
        with torch.no_grad(), self.autocast(), recorded_mixers(self.source, self.blocks) as calls:
            self.source(x_t, t, batch["label"], class_dropout=dropped)
        outputs = self.model(calls=calls)
        shares = []
        for output, call in zip(outputs, calls.values(), strict=True):
            gate, old = call.gate.float(), call.output.float()
            error = (gate * (output.float() - old)).square().flatten(1).mean(1)
            shares.append(error / (gate * old).square().flatten(1).mean(1).clamp(min=SMALLEST))
        return torch.stack(shares, dim=1), t


class StagedObjective:
    """One objective for the first samples of a run, and another one for all others.

    Args:
        first: the objective of the first stage.
        then: the objective of the second one.
        samples: number of samples in the first stage, a multiple of the batch size.
    """

    def __init__(self, first: Objective, then: Objective, samples: int):
        self.first = first
        self.then = then
        self.samples = samples

    def losses(self, batch: dict[str, torch.Tensor]) -> Losses:
        """Compute the losses of a batch, whose position on the CPU tells its stage."""
        is_first = bool(batch["position"][0] < self.samples)  # batches lie on one side of the limit
        return (self.first if is_first else self.then).losses(batch)
