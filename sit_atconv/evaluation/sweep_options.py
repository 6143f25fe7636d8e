"""The options of a sweep over guidance and averages, which are read before PyTorch is imported; sweep.py obeys them."""

from dataclasses import dataclass, field
from typing import Literal

from ..flow.choices import check_guidance
from ..utils.checks import check_count, check_device, check_seed
from ..utils.files import check_writable_folder
from ..utils.source_names import check_source
from .sampling_options import SamplingOptions

FEWEST_IMAGES = 16  # of which the first round has a quarter


@dataclass(frozen=True)
class SweepOptions:
    """What is tried, and how it is judged.

    Args:
        folder: a pipeline folder; or a run folder, whose averages are part of the search.
        reference: real images: a data set such as digits, or a folder.
        output: folder for the results and the features of the images.
        scales: guidance scales; 1 is without guidance.
        intervals: of t, outside of which there is no guidance.
        averages: averages that the run tracks, such as ["decay-0.999"]. If None, all.
        stds: lengths of further averages, reconstructed from the run's snapshots of power-function averages.
        extractor: whose features are compared.
        num_samples: number of images of a setting that is not dropped. If None, as many as there are real ones.
        confirm: how many of the best settings draw images with other noise, besides the first average without guidance.
        num_inference_steps: number of solver steps. If None, the default of the pipeline.
        seed: seed of the noise; image i depends on (seed, i). The confirmation has the seed after it.
        batch_size: number of images per forward pass.
        image_size: side of the real images. If None, that of the data set, or of the pipeline.
        device: device of the pipeline and the extractor: cpu, cuda or auto.
        dtype: data type of the networks: float32, bfloat16 or float16. auto is bfloat16 on a CPU with AMX where a few
            images with the strongest guidance differ by at most a grey level of 255 on average, and float32 otherwise.
    """

    folder: str
    reference: str
    output: str
    scales: list[float] = field(default_factory=lambda: [1.0, 1.25, 1.5, 2.0, 3.0])
    intervals: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 1.0), (0.2, 0.8)])
    averages: list[str] | None = None
    stds: list[float] | None = None
    extractor: str = "pixels"
    num_samples: int | None = None
    confirm: int = 3
    num_inference_steps: int | None = None
    seed: int = 0
    batch_size: int = 500
    image_size: int | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @property
    def sampling(self) -> SamplingOptions:
        """How images are drawn, but for their number and guidance."""
        return SamplingOptions(
            seed=self.seed,
            batch_size=self.batch_size,
            num_inference_steps=self.num_inference_steps,
            dtype=self.dtype,
        )

    def check(self) -> None:
        """Raise ValueError for an option that no pipeline can use, naming it."""
        for name in ("scales", "intervals"):
            if not getattr(self, name):
                raise ValueError(f"{name}=[] leaves nothing to try; leave the option out for the default")
        if self.averages == [] and not self.stds:
            raise ValueError("averages=[] leaves nothing to try; leave the option out for all, or give --stds")
        for scale in self.scales:
            check_guidance(scale, (0.0, 1.0), None)
        for interval in self.intervals:
            check_guidance(1.0, interval, None)
        if self.num_samples is not None:
            check_count("num_samples", self.num_samples, FEWEST_IMAGES)
        if self.image_size is not None:
            check_count("image_size", self.image_size)
        check_count("confirm", self.confirm)
        self.sampling.check()
        check_seed("seed, plus 1 for the confirmation,", self.seed + 1)
        check_device("device", self.device)
        check_source("reference", self.reference)
        check_writable_folder("output", self.output)
