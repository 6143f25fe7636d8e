"""What samples and their reference come from: a pipeline, images, or a file of statistics; `open_sources` opens them.

B images of H × W pixels and C channels; images are uint8 (H, W, C).
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ..pipelines.pipeline_sit import SiTPipeline
from .image_features import read_batches
from .image_sets import ImageSet
from .records import describe_pipeline, folder_sha256
from .reference_statistics import ReferenceStatistics
from .sampling import counting_rows, draw_images, image_shape
from .sampling_options import SamplingOptions


@dataclass
class ReferenceSource:
    """A reference: real images, or the statistics of a file.

    Attributes:
        name: as on the command line.
        statistics: the statistics of its file; empty if it has none.
        images: the images, which are read if the statistics are not enough; otherwise None.
        own_notes: notes on the choice between images and statistics.
    """

    name: str
    statistics: ReferenceStatistics
    images: ImageSet | None
    own_notes: list[str]

    @property
    def count(self) -> int | None:
        """The number of images, once read without those left out; None if a file of statistics does not say it."""
        if self.images is None:
            return self.statistics.record.get("num_images")
        return len(self.images) - len(self.images.broken)

    @property
    def notes(self) -> list[str]:
        """Its own notes and those on its images, which are complete once the images have been read."""
        return [*self.own_notes, *([] if self.images is None else self.images.notes)]


@dataclass
class ImageSource:
    """Samples that exist as images.

    Attributes:
        name: as on the command line.
        images: the images.
        record: what eval/sample.py recorded about them; None if it did not make them.
        max_broken_images: how many of them may be left out, because they cannot be read.
    """

    name: str
    images: ImageSet
    record: dict | None
    max_broken_images: int = 0

    @property
    def count(self) -> int:
        """The number of images, once read without those left out."""
        return len(self.images) - len(self.images.broken)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C), if the images were opened as uniform ones."""
        return self.images.shape

    @property
    def notes(self) -> list[str]:
        """Notes on the images, which are complete once they have been read."""
        return self.images.notes

    def batches(self, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[Sequence[np.ndarray]]:
        """The images in batches of `batch_size`."""
        return read_batches(self.images, batch_size, pool, self.max_broken_images)

    def describe(self, environment: dict) -> dict:
        """What a report says about how the samples were made.

        Args:
            environment: the environment of the evaluation; that of the sampling goes to an entry of its own.
        """
        if self.record is None:
            return {}
        about_files = {"complete", "num_samples", "command", *environment}
        described = {key: value for key, value in self.record.items() if key not in about_files}
        return {**described, "sampling": {key: self.record.get(key) for key in ("command", *environment)}}


@dataclass
class PipelineSource:
    """Samples that a pipeline draws while they are scored.

    Attributes:
        name: the pipeline folder, as on the command line.
        pipeline: the pipeline, with the sampler asked for.
        sampling: how it is sampled.
        count: the number of samples.
        costs: network calls and seconds per image, once all samples have been drawn.
    """

    name: str
    pipeline: SiTPipeline
    sampling: SamplingOptions
    count: int
    costs: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return image_shape(self.pipeline)

    def batches(self, batch_size: int, pool: ThreadPoolExecutor) -> Iterator[Sequence[np.ndarray]]:
        """The samples, (B, H, W, C) uint8, in batches of the sampling options."""
        seconds, step = 0.0, self.sampling.batch_size
        with counting_rows(self.pipeline.transformer) as rows:
            for start in range(0, self.count, step):
                began = time.perf_counter()
                batch = draw_images(self.pipeline, range(start, min(start + step, self.count)), self.sampling)
                seconds += time.perf_counter() - began
                yield list(batch)
        self.costs["network_calls_per_image"] = rows[0] / self.count
        self.costs["seconds_per_image"] = seconds / self.count

    def describe(self, environment: dict) -> dict:
        """What a report says about how the samples were made."""
        return {
            "model_sha256": folder_sha256(self.name),
            **self.sampling.record(),
            "num_samples": self.count,
            **describe_pipeline(self.pipeline),
            **self.costs,
        }


SampleSource: TypeAlias = ImageSource | PipelineSource
