"""The error of each sampler for a given number of network calls, against a fine solution of the same ODE.

Every sampler starts from the same noise. Its error is the root mean square difference of its result to the fine
solution, in the units of the latents (pixels in [−1, 1] without a VAE).
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tqdm.auto import tqdm

from ..flow.choices import MULTISTEP
from ..flow.tableaus import ADAPTIVE, FIXED_STEP
from ..pipelines.pipeline_sit import SiTPipeline
from ..pipelines.schedulers import with_scheduler
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..utils.checks import check_count
from ..utils.randomness import image_generator
from ..utils.tables import markdown_table
from .sampling_options import balanced_labels

BUDGETS = (10, 20, 30, 50, 100, 200)  # network calls
TOLERANCES = (1e-2, 1e-3, 1e-4)
FINE = {"solver": "dopri8", "rtol": 1e-6, "atol": 1e-7}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DIFFUSERS: dict[str, tuple[Any, dict]] = {
    "FlowMatchEuler": (FlowMatchEulerDiscreteScheduler, {}),
    "FlowMatchHeun": (FlowMatchHeunDiscreteScheduler, {}),
    "DPMSolverMultistep": (DPMSolverMultistepScheduler, FLOW),
    "UniPCMultistep": (UniPCMultistepScheduler, FLOW),
}


def compare_samplers(
    pipeline: SiTPipeline,
    num_images: int = 16,
    budgets: list[int] | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> list[dict]:
    """Sample the same noise with each sampler.

    Args:
        pipeline: pipeline of a model of the linear path, the only one that diffusers' schedulers support.
        num_images: number of images in the batch; their labels are balanced over the classes.
        budgets: the largest numbers of network calls for the fixed-step samplers, one row each. If None, `BUDGETS`.
        guidance_scale: guidance scale of every sampler.
        seed: seed of the noise; image i depends on (seed, i).

    Returns:
        One dictionary per sampler: "sampler", "setting", "network_calls" and "rms_error".

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    check_count("num_images", num_images)
    labels = balanced_labels(range(num_images), pipeline.transformer.config.num_classes)
    config = dict(pipeline.scheduler.config)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def sample(scheduler: Any, num_inference_steps: int = 1) -> torch.Tensor:
        nonlocal calls
        calls = 0
        return with_scheduler(pipeline, scheduler)(
            labels,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=[image_generator(seed, i) for i in range(num_images)],
            output_type="latent",
        ).images

    handle = pipeline.transformer.register_forward_hook(count)
    try:
        fine = sample(InterpolantODEScheduler.from_config(config, **FINE))
        rows = []
        for name, scheduler, steps in tqdm(list(samplers(config, budgets or BUDGETS)), desc="samplers", unit="run"):
            setting = f"rtol {scheduler.config.rtol:g}" if steps is None else f"{steps} steps"
            error = (sample(scheduler, steps or 1) - fine).square().mean().sqrt().item()
            rows.append({"sampler": name, "setting": setting, "network_calls": calls, "rms_error": error})
    finally:
        handle.remove()
    return rows


def samplers(config: dict, budgets: list[int] | tuple[int, ...]) -> Iterator[tuple[str, Any, int | None]]:
    """The samplers to compare: name, scheduler, and number of steps; None for adaptive solvers.

    Args:
        config: config of the pipeline's own scheduler.
        budgets: the largest numbers of network calls; one that is smaller than the cost of one step is left out.
    """
    for solver in (*FIXED_STEP, *MULTISTEP):
        scheduler = InterpolantODEScheduler.from_config(config, solver=solver)
        yield from ((solver, scheduler, n // scheduler.order) for n in budgets if n >= scheduler.order)
    for solver in ADAPTIVE:
        for rtol in TOLERANCES:
            yield solver, InterpolantODEScheduler.from_config(config, solver=solver, rtol=rtol, atol=rtol / 10), None
    if config.get("noise_scale", 1) != 1:
        return  # diffusers' schedulers know noise of scale 1 only
    for name, (scheduler_class, options) in DIFFUSERS.items():
        scheduler = scheduler_class(**options)
        scheduler.register_to_config(path=config["path"], prediction=config["prediction"])
        yield from ((f"diffusers {name}", scheduler, n // scheduler.order) for n in budgets if n >= scheduler.order)


def error_table(rows: list[dict]) -> str:
    """The rows of `compare_samplers` as a Markdown table."""
    cells = [[row["sampler"], row["setting"], row["network_calls"], f"{row['rms_error']:.2e}"] for row in rows]
    return markdown_table(["sampler", "setting", "network calls", "RMS error"], cells, text_columns=2)
