"""The options of sampling for evaluations, which are read before PyTorch is imported; sampling.py obeys them."""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..flow.choices import ODE_SOLVERS, SAMPLING_DTYPES, SDE_SOLVERS, check_guidance
from ..utils.checks import MAX_SOLVER_STEPS, check_choice, check_count, check_seed

if TYPE_CHECKING:
    from ..flow.guidance import Guidance
    from ..pipelines.pipeline_sit import SiTPipeline

LABELINGS = ("balanced", "random")


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn from a pipeline. Image i depends on its label and on (seed, i) only.

    Args:
        num_samples: number of images to draw. If None, as many as there are reference images.
        labels: how classes are assigned to images: "balanced" (the classes take turns) or "random" (uniformly, as a
            function of (seed, i)).
        seed: seed of the noise and the random labels.
        batch_size: number of images per forward pass.
        guidance_scale: scale of classifier-free guidance; 1 disables guidance.
        guidance_interval: apply guidance only while start ≤ t ≤ end; t=0 is noise, t=1 is data.
        guidance_channels: number of leading channels that are guided. If None, all channels are.
        num_inference_steps: number of solver steps. If None, the default of the pipeline.
        sampler: "ode" or "sde", to replace the scheduler of the pipeline. If None, that scheduler is used.
        solver: solver of the sampler, such as heun or dopri5. If None, the one of the scheduler.
        dtype: data type of the networks: float32, bfloat16 or float16. auto is bfloat16 on a CPU with AMX where a few
            images differ by at most a grey level of 255 on average, and float32 otherwise.
    """

    num_samples: int | None = None
    labels: Literal["balanced", "random"] = "balanced"
    seed: int = 0
    batch_size: int = 64
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_channels: int | None = None
    num_inference_steps: int | None = None
    sampler: Literal["ode", "sde"] | None = None
    solver: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @property
    def guidance(self) -> "Guidance":
        """The options of guidance, checked.

        Raises:
            ValueError: if one of them is out of range.
        """
        from ..flow.guidance import Guidance

        return Guidance(self.guidance_scale, self.guidance_interval, self.guidance_channels)

    def check(self) -> None:
        """Raise ValueError for an option that no pipeline can use."""
        check_choice("labels", self.labels, LABELINGS)
        if self.num_samples is not None:
            check_count("num_samples", self.num_samples)
        if self.num_inference_steps is not None:
            check_count("num_inference_steps", self.num_inference_steps, most=MAX_SOLVER_STEPS)
        check_count("batch_size", self.batch_size)
        check_seed("seed", self.seed)
        check_choice("dtype", self.dtype, SAMPLING_DTYPES)
        check_guidance(self.guidance_scale, self.guidance_interval, self.guidance_channels)
        if self.solver is not None:
            solvers = {"ode": ODE_SOLVERS, "sde": SDE_SOLVERS, None: (*ODE_SOLVERS, *SDE_SOLVERS)}
            check_choice("solver", self.solver, dict.fromkeys(solvers[self.sampler]))

    def configure(self, pipeline: "SiTPipeline") -> "SiTPipeline":
        """Return a pipeline of the same components with the requested sampler; the given pipeline is not changed.

        Raises:
            ValueError: if the scheduler has no such solver.
        """
        if self.sampler is None and self.solver is None:
            return pipeline
        from ..pipelines.schedulers import with_scheduler
        from .sampling import SAMPLERS

        current = pipeline.scheduler
        scheduler_class = type(current) if self.sampler is None else SAMPLERS[self.sampler]
        if scheduler_class not in SAMPLERS.values():
            raise ValueError(
                f"solver={self.solver!r}: {scheduler_class.__name__} has no solvers; also give --sampler ode or sde"
            )
        options = {} if self.solver is None else {"solver": self.solver}
        if scheduler_class is not type(current):
            default = inspect.signature(scheduler_class.__init__).parameters["solver"].default
            options = {"solver": default, **options}
        return with_scheduler(pipeline, scheduler_class.from_config(current.config, **options))

    def resolve(self, pipeline: "SiTPipeline") -> "SamplingOptions":
        """Check the options against a pipeline, and return them with the number of solver steps filled in.

        Raises:
            ValueError: naming the option that cannot be used.
        """
        from .sampling import image_shape

        self.check()
        pipeline = self.configure(pipeline)
        steps = pipeline.default_num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        height, width, _ = image_shape(pipeline)
        pipeline.check_inputs(self.batch_size, self.guidance, steps, height, width)
        if hasattr(pipeline.scheduler, "time_grid"):
            pipeline.scheduler.time_grid(steps)  # raises for a number of steps that the solver cannot take
        return dataclasses.replace(self, num_inference_steps=steps)

    def label_ids(self, indices: Sequence[int], num_classes: int) -> list[int]:
        """The class of each of these images; it does not depend on which other images are drawn."""
        if self.labels == "balanced":
            return balanced_labels(indices, num_classes)
        return [int(np.random.default_rng((self.seed, i)).integers(num_classes)) for i in indices]

    def record(self) -> dict:
        """What reports record of the options. Sampler and solver are part of the scheduler's config there.

        The dtype must have been resolved (`sampling_dtype.resolve_dtype`), since it differs between machines.
        """
        assert self.dtype != "auto", "a record needs the dtype that the images were drawn in"
        values = dataclasses.asdict(self)
        for name in ("sampler", "solver"):
            del values[name]
        return {**values, "guidance_interval": list(self.guidance_interval)}


def balanced_labels(indices: Sequence[int], num_classes: int) -> list[int]:
    """The class ids of these images if classes take turns: 0, 1, …, num_classes − 1, 0, 1, …"""
    return [i % num_classes for i in indices]


def split_options(options: dict, *classes: type) -> list[Any]:
    """Build one dataclass of each given type from the parsed command-line options that are its fields."""
    return [cls(**{each.name: options[each.name] for each in dataclasses.fields(cls)}) for cls in classes]
