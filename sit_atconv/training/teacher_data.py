"""Data from a trained model: `--data teacher:N` trains on N samples that a pipeline draws once, and needs no images.

The samples lie in the user's cache, as the transformer makes them:

    shard-00000.safetensors …   x (n, c, s, s) float32; sample i has the label i mod classes and the noise of (seed, i)
    shards.json                 what determines the samples, and the SHA-256 of each shard; written last

n samples of a shard, c channels and s side of what the transformer takes. A shard is written as a whole, so that a
drawing that was interrupted goes on with the next one.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from ..data import ImageDataset
from ..data.base import hash_of, parse_number
from ..models.codecs import vae_image_channels
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.bounded_text import read_json_object
from ..utils.checks import MAX_SOLVER_STEPS, check_count, check_positive, check_seed
from ..utils.files import write_atomically
from ..utils.hashing import file_sha256, tensors_sha256
from ..utils.randomness import image_generator
from ..utils.source_names import TEACHER, split_options
from .fine_tuning import have_same_latents, pretrained_classes
from .processes import on_main_process

MANIFEST = "shards.json"
SHARD_SIZE, BATCH_SIZE = 1024, 64  # samples of a file, and of a call of the pipeline
OPTIONS = ("steps", "guidance_scale", "seed")


def is_teacher_data(source: str) -> bool:
    """Whether a data source is samples of the teacher."""
    return source.startswith(TEACHER)


class TeacherDataset(ImageDataset):
    """Samples of a trained pipeline, whose classes take turns.

    Args:
        source: "teacher:N?steps=50&guidance_scale=1&seed=0"; the options may be left out.
        folder: the pipeline folder that draws them.
        image_size: None, or the side of its images.

    Raises:
        ValueError: if an option is unknown or out of range, the size is another one, or classes have no names.
    """

    is_encoded = True

    def __init__(self, source: str, folder: str, image_size: int | None = None):
        place, options = split_options(source)
        where = f"data={source!r}"
        if unknown := sorted(options.keys() - set(OPTIONS)):
            raise ValueError(f"{where}: unknown options: {', '.join(unknown)}; there are: {', '.join(OPTIONS)}")
        number = parse_number(where, place.removeprefix(TEACHER))
        check_count(f"{where}: its number of samples", number)
        self.source, self.name, self._folder = source, f"teacher-{number}", folder
        self.pipeline = self._load(where)
        config = self.pipeline.transformer.config
        self.image_size = config.sample_size * self.pipeline.vae_scale_factor
        if image_size not in (None, self.image_size):
            raise ValueError(f"image_size={image_size}: {where} is drawn at {self.image_size} pixels; leave it out")
        self.channels = config.in_channels if self.pipeline.vae is None else vae_image_channels(self.pipeline.vae)
        self.classes = pretrained_classes(folder)
        if len(self.classes) != config.num_classes and config.num_classes > 1:
            raise ValueError(
                f"{where}: the {config.num_classes} classes of {folder!r} have no names; save it with id2label"
            )
        self.labels = np.arange(number) % config.num_classes
        self.settings = self._settings(where, options)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sit_atconv" / "teacher"
        self.cache = cache / hash_of(json.dumps(self.settings, sort_keys=True))[:32]

    def _load(self, where: str) -> SiTPipeline:
        try:
            pipeline = SiTPipeline.from_pretrained(self._folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"{where}: {self._folder!r} cannot be loaded: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _settings(self, where: str, options: dict[str, str]) -> dict[str, Any]:
        """What determines the samples."""
        steps = parse_number(f"{where}: steps", options.get("steps", str(self.pipeline.default_num_inference_steps)))
        check_count(f"{where}: steps", steps, most=MAX_SOLVER_STEPS)
        seed = parse_number(f"{where}: seed", options.get("seed", "0"))
        check_seed(f"{where}: seed", seed)
        try:
            scale = float(options.get("guidance_scale", "1"))
        except ValueError as error:
            raise ValueError(f"{where}: guidance_scale={options['guidance_scale']!r} must be a number") from error
        check_positive(f"{where}: guidance_scale", scale)
        if scale != 1 and self.pipeline.transformer.config.class_dropout_prob == 0:
            raise ValueError(
                f"{where}: guidance_scale={scale:g}: the model has no null class; leave guidance_scale out"
            )
        scheduler = {name: value for name, value in self.pipeline.scheduler.config.items() if not name.startswith("_")}
        return {
            "weights_sha256": tensors_sha256(self.pipeline.transformer.state_dict()),
            "scheduler": json.loads(json.dumps([type(self.pipeline.scheduler).__name__, scheduler])),
            "samples": len(self.labels),
            "steps": steps,
            "guidance_scale": scale,
            "seed": seed,
            "shard_size": SHARD_SIZE,
        }

    @property
    def reference(self) -> str:
        return "REAL_IMAGES"  # which this run does not know

    def __getstate__(self) -> dict:
        return self.__dict__ | {"pipeline": None}  # data workers only read

    def samples(self, indices: range) -> torch.Tensor:
        """Draw the samples with these indices, (n, c, s, s) float32; each depends on its index alone."""
        return self.pipeline(
            [int(self.labels[i]) for i in indices],
            guidance_scale=self.settings["guidance_scale"],
            num_inference_steps=self.settings["steps"],
            generator=[image_generator(self.settings["seed"], i) for i in indices],
            output_type="latent",
        ).images.cpu()

    def draw(self, accelerator: Accelerator) -> None:
        """Draw what the cache lacks. All processes call this, and share the work.

        Raises:
            OSError: if the cache cannot be written.
        """
        numbers = range(-(-len(self) // SHARD_SIZE))
        if not on_main_process(accelerator, lambda: (self.cache / MANIFEST).is_file()):
            self.pipeline.to(accelerator.device)
            own = numbers[accelerator.process_index :: accelerator.num_processes]
            for number in tqdm(own, "drawing samples", unit="shard", disable=not accelerator.is_main_process):
                self._draw_shard(number)
            accelerator.wait_for_everyone()
            on_main_process(accelerator, lambda: self._finish(numbers))
        self.pipeline = self.pipeline.to("cpu")
        self._sha256 = read_json_object(self.cache / MANIFEST)["sha256"]

    def _draw_shard(self, number: int) -> None:
        file = self._shard(number)
        if file.is_file():
            return
        first = number * SHARD_SIZE
        last = min(first + SHARD_SIZE, len(self))
        parts = [self.samples(range(i, min(i + BATCH_SIZE, last))) for i in range(first, last, BATCH_SIZE)]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, save({"x": torch.cat(parts)}))

    def _finish(self, numbers: range) -> None:
        sha256 = [file_sha256(self._shard(number)) for number in numbers]
        write_atomically(self.cache / MANIFEST, json.dumps({**self.settings, "sha256": sha256}, indent=2))

    def _shard(self, number: int) -> Path:
        return self.cache / f"shard-{number:05d}.safetensors"

    def verify(self) -> None:
        for number, sha256 in enumerate(self._sha256):
            file = self._shard(number)
            if not file.is_file() or file_sha256(file) != sha256:
                raise ValueError(
                    f"data={self.source!r}: {file} is missing or not as it was written; remove the folder "
                    f"{str(self.cache)!r}, and the samples are drawn again"
                )

    def fingerprint(self) -> str:
        return hash_of(self.settings["weights_sha256"], self._sha256)

    def training_tensors(
        self, index: int, flip: bool, posterior: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        file = self._shard(index // SHARD_SIZE)
        try:
            with safe_open(file, "pt") as shard:
                x = shard.get_slice("x")[index % SHARD_SIZE]
        except (OSError, SafetensorError) as error:
            raise ValueError(f"data={self.source!r}: {file} cannot be read: {error}") from error
        return {"x": x.flip(-1) if flip else x}

    def image(self, index: int) -> np.ndarray:
        raise ValueError(self._no_images("images are asked for"))

    def check_pixels(self, needed_by: str) -> None:
        raise ValueError(self._no_images(needed_by))

    def _no_images(self, reason: str) -> str:
        return f"{reason} data={self.source!r} holds what a transformer draws, no images; give images"

    def check_training(self, vae: torch.nn.Module | None, horizontal_flip: bool) -> None:
        own = self.pipeline.vae
        if (own is None) != (vae is None) or (own is not None and vae is not None and not have_same_latents(own, vae)):
            raise ValueError(f"data={self.source!r} is drawn with another VAE than that of the run; leave --vae out")
        if horizontal_flip and own is not None:
            raise ValueError(f"horizontal_flip=True: data={self.source!r} holds latents, which cannot be mirrored")


class SampledWhenRead(TeacherDataset):
    """The same samples, each drawn when it is read: for dry runs, which write nothing and read few."""

    def draw(self, accelerator: Accelerator) -> None:
        self._sha256 = []

    def training_tensors(
        self, index: int, flip: bool, posterior: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        x = self.samples(range(index, index + 1))[0]
        return {"x": x.flip(-1) if flip else x}

    def __getstate__(self) -> dict:
        return self.__dict__
