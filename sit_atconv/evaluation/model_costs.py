"""What models cost: parameters, multiply-accumulates, latency and memory of a forward pass, measured side by side."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..benchmarks.profiling import peak_memory
from ..benchmarks.timing import measure, quartiles
from ..models.macs import count_macs
from ..pipelines.pipeline_sit import SiTPipeline

WARMUP_ROUNDS = 3


@dataclass(frozen=True)
class ModelCost:
    """The cost of one model.

    Attributes:
        model: name of the model.
        parameters: number of parameters.
        macs: multiply-accumulates of one image.
        ms: quartiles of the milliseconds of a forward pass.
        ratio: quartiles of its ratio to the baseline's time in the same round.
        peak_bytes: bytes that a forward pass allocates at most beyond weights and inputs.
    """

    model: str
    parameters: int
    macs: int
    ms: list[float]
    ratio: list[float]
    peak_bytes: int


def check_inputs_agree(pipelines: Mapping[str, SiTPipeline]) -> None:
    """Raise ValueError unless all models take the same inputs."""
    (first_name, first), *others = pipelines.items()
    for name, pipeline in others:
        for key in ("sample_size", "in_channels", "num_classes"):
            values = [each.transformer.config[key] for each in (first, pipeline)]
            if values[0] != values[1]:
                raise ValueError(f"{first_name} and {name} cannot be compared: {key}: {values[0]} and {values[1]}")


@torch.no_grad()
def measure_models(
    pipelines: Mapping[str, SiTPipeline], device: torch.device, batch_size: int, repeats: int
) -> list[ModelCost]:
    """Measure the cost of each model: forward passes of the transformer in float32, in turn, on the same inputs.

    Args:
        pipelines: pipelines by name; the first is the baseline. Their inputs must agree (`check_inputs_agree`).
        device: the device that holds them.
        batch_size: images in a forward pass.
        repeats: number of timed forward passes of each model.
    """
    models = {name: pipeline.transformer.eval() for name, pipeline in pipelines.items()}
    config = next(iter(models.values())).config
    generator = torch.Generator().manual_seed(0)
    side = config.sample_size
    inputs = (
        torch.randn(batch_size, config.in_channels, side, side, generator=generator).to(device),
        torch.rand(batch_size, generator=generator).to(device),
        torch.randint(config.num_classes, (batch_size,), generator=generator).to(device),
    )
    calls = {name: functools.partial(model, *inputs) for name, model in models.items()}
    times = measure(calls, repeats, WARMUP_ROUNDS, device)
    baseline = np.array(next(iter(times.values())))
    return [
        ModelCost(
            model=name,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=count_macs(model, side, side),
            ms=quartiles(times[name]),
            ratio=quartiles(np.array(times[name]) / baseline),
            peak_bytes=peak_memory(calls[name], device),
        )
        for name, model in models.items()
    ]
