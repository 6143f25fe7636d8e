"""The error that each of diffusers' caches makes, and what it saves, for several numbers of network calls.

Every solve starts from the same noise and uses the pipeline's scheduler, without guidance. The error is the root mean
square difference to a fine solution without a cache, in the units of the latents (pixels in [−1, 1] without a VAE).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from tqdm.auto import tqdm

from ..models.caching import TAYLOR_LAYERS
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from ..utils.checks import check_count
from ..utils.randomness import image_generator
from ..utils.tables import markdown_table
from .sampling_options import balanced_labels

BUDGETS = (8, 16, 24, 32, 50)  # network calls
FINE_CALLS = 400
FIRST_BLOCK_THRESHOLDS = (0.02, 0.05, 0.1, 0.2)
MAGNITUDE_THRESHOLDS = (0.02, 0.06, 0.2)
TAYLOR_INTERVALS = (2, 3, 5)


def compare_caches(
    pipeline: SiTPipeline, num_images: int = 100, budgets: list[int] | None = None, seed: int = 0
) -> list[dict]:
    """Sample the same noise with each cache.

    Args:
        pipeline: a pipeline, which is left without a cache.
        num_images: number of images in the batch; their labels are balanced over the classes.
        budgets: numbers of network calls. If None, `BUDGETS`.
        seed: seed of the noise; image i depends on (seed, i).

    Returns:
        One dictionary per cache and budget: "cache", "setting", "network_calls", "computed" (the share of the blocks'
        MLPs that were computed) and "rms_error".

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    check_count("num_images", num_images)
    check_scheduler(pipeline.scheduler)
    order = pipeline.scheduler.order
    for budget in budgets or ():
        check_count("budgets", budget, least=order)
    numbers_of_steps = dict.fromkeys(budget // order for budget in budgets or BUDGETS)
    labels = balanced_labels(range(num_images), pipeline.transformer.config.num_classes)

    def sample(steps: int) -> torch.Tensor:
        generators = [image_generator(seed, i) for i in range(num_images)]
        return pipeline(labels, num_inference_steps=steps, generator=generators, output_type="latent").images

    if pipeline.transformer.is_cache_enabled:
        pipeline.transformer.disable_cache()
    fine, rows = sample(FINE_CALLS // order), []
    for steps in tqdm(numbers_of_steps, desc="caches", unit="number of calls"):
        with residual_norms(pipeline.transformer) as norms:
            without = sample(steps)
        calls = len(norms)
        rows.append(_row("none", "", calls, 1.0, without - fine))
        ratios = [1.0, *(float((norm / before).mean()) for before, norm in zip(norms, norms[1:], strict=False))]
        for cache, setting, config in caches(ratios, bool(pipeline.transformer.config.middle_layers)):
            pipeline.transformer.enable_cache(config)
            try:
                with counting_calls(pipeline.transformer) as computed:
                    error = sample(steps) - fine
            finally:
                pipeline.transformer.disable_cache()
            share = computed[0] / (calls * len(pipeline.transformer.blocks))
            rows.append(_row(cache, setting, calls, share, error))
    return rows


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for a scheduler whose solves with more calls do not come closer to one solution."""
    name = type(scheduler).__name__
    if isinstance(scheduler, InterpolantSDEScheduler):
        raise ValueError(
            f"scheduler={name} draws other noise in each solve; give the pipeline an InterpolantODEScheduler"
        )
    if getattr(scheduler, "is_adaptive", False):
        raise ValueError(
            f"scheduler={name}: the solver {scheduler.config.solver!r} chooses its own number of network calls; take "
            "one of fixed steps, such as 'midpoint'"
        )


def _row(cache: str, setting: str, calls: int, computed: float, error: torch.Tensor) -> dict:
    rms_error = error.square().mean().sqrt().item()
    return {"cache": cache, "setting": setting, "network_calls": calls, "computed": computed, "rms_error": rms_error}


def caches(ratios: list[float], is_hourglass: bool = False) -> Iterator[tuple[str, str, Any]]:
    """The caches to compare: name, setting and config.

    Args:
        ratios: for each network call, by how much the sum of the blocks' residuals has grown since the call before.
        is_hourglass: leave out those that `enable_cache` refuses for an hourglass.
    """
    for threshold in () if is_hourglass else FIRST_BLOCK_THRESHOLDS:
        yield "first block", f"threshold {threshold:g}", FirstBlockCacheConfig(threshold=threshold)
    for threshold in () if is_hourglass else MAGNITUDE_THRESHOLDS:
        config = MagCacheConfig(threshold=threshold, mag_ratios=ratios, num_inference_steps=len(ratios))
        yield "magnitudes", f"threshold {threshold:g}", config
    for interval in TAYLOR_INTERVALS:
        options: Any = dict(cache_interval=interval, taylor_factors_dtype=torch.float32)
        yield "Taylor", f"interval {interval}", TaylorSeerCacheConfig(**options, cache_identifiers=TAYLOR_LAYERS)


@contextmanager
def residual_norms(transformer: Any) -> Iterator[list[torch.Tensor]]:
    """Collect, for each network call, the norm of what all blocks add to each token: (B, N)."""
    norms: list[torch.Tensor] = []
    first: list[torch.Tensor] = []

    def enter(block, args):
        first[:] = args[:1]

    def leave(block, args, output):
        norms.append((output - first[0]).float().norm(dim=-1))

    handles = [
        transformer.blocks[0].register_forward_pre_hook(enter),
        transformer.blocks[-1].register_forward_hook(leave),
    ]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counting_calls(transformer: Any) -> Iterator[list[int]]:
    """Count how often an MLP of the blocks is computed: a list whose only entry grows."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    handles = [block.mlp.fc1.register_forward_hook(count) for block in transformer.blocks]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def cache_table(rows: list[dict]) -> str:
    """The rows of `compare_caches` as a Markdown table: for each number of calls, the share computed and the error."""
    budgets = dict.fromkeys(row["network_calls"] for row in rows)
    cells: dict[str, list[str]] = {}
    for row in rows:  # in the order of the numbers of calls
        name = ", ".join(filter(None, (row["cache"], row["setting"])))
        cells.setdefault(name, [name]).extend((f"{row['computed']:.2f}", f"{row['rms_error']:.2e}"))
    head = [text for calls in budgets for text in (f"{calls} calls: share", "error")]
    return markdown_table(["cache", *head], cells.values())
