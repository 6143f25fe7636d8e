"""Pipelines that share their networks, but not their scheduler."""

import copy
from typing import TypeVar

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def with_scheduler(pipeline: Pipeline, scheduler: SchedulerMixin) -> Pipeline:
    """Return a pipeline of the same components with another scheduler; the given pipeline is not changed."""
    changed = copy.copy(pipeline)
    changed.scheduler = scheduler
    return changed
