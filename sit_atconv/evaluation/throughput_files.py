"""The files that eval/throughput.py reads: the same images in every form that a data set may have.

S image side in pixels, N images.
"""

import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ..benchmarks.calls import VAE_CONFIG
from ..data import FolderDataset, ImageDataset, open_dataset
from ..data.latent_shards import (
    begin_folder,
    count_shards,
    describe_encoding,
    describe_vae,
    finish_folder,
    write_shard,
)
from .throughput_options import ThroughputOptions

CLASSES = ("a", "b")  # of made pictures and of images without classes alike
MADE_SIZE = (500, 375)  # width, height: the usual size of ImageNet's photographs
QUALITY = 90  # of JPEG files
SHARD_SIZE = 256  # latents in a file


@dataclass(frozen=True)
class BenchmarkFiles:
    """Folders and files of a workspace; each form is made when it is asked for first.

    Args:
        root: an empty folder.
        options: the images, their number and their side.
    """

    root: Path
    options: ThroughputOptions

    def pictures(self) -> Path:
        """Folders of JPEG files as they were taken, one for each of two classes."""
        folder = self.root / "pictures"
        if not folder.exists():
            source = self._source()
            for name in CLASSES:
                (folder / name).mkdir(parents=True)
            for i in range(self.options.num_images):
                picture = made_picture(i) if source is None else source.picture(i % len(source))
                picture.convert("RGB").save(folder / CLASSES[i % 2] / f"{i:06d}.jpg", quality=QUALITY)
        return folder

    def pictures_to_encode(self) -> Path:
        """A folder of the first `num_drawn` pictures."""
        folder = self.root / "few"
        if not folder.exists():
            folder.mkdir()
            for file in sorted(self.pictures().rglob("*.jpg"))[: self.options.num_drawn]:
                shutil.copy(file, folder)
        return folder

    def samples(self) -> tuple[Path, Path]:
        """Two folders of half of the images each, as square PNG files: what is scored, and its reference."""
        folders = self.root / "samples", self.root / "reference"
        if not folders[0].exists():
            images = FolderDataset(self.pictures(), self.options.image_size)
            for part, folder in enumerate(folders):
                folder.mkdir()
                for i in range(part, len(images) // 2 * 2, 2):
                    Image.fromarray(images.image(i)).save(folder / f"{i:06d}.png")
        return folders

    def tar(self) -> Path:
        """A shard in the layout of WebDataset."""
        file = self.root / "pictures.tar"
        if not file.exists():
            with tarfile.open(file, "w") as opened:
                for name, (data, label) in self._encoded().items():
                    for ending, content in ("jpg", data), ("cls", str(label).encode()):
                        member = tarfile.TarInfo(f"{name}.{ending}")
                        member.size = len(content)
                        opened.addfile(member, io.BytesIO(content))
        return file

    def parquet(self) -> Path:
        """A parquet file with columns image and label. Needs the package datasets."""
        file = self.root / "parquet" / "train.parquet"
        if not file.exists():
            import datasets

            file.parent.mkdir()
            encoded = self._encoded().values()
            columns = {
                "image": [{"bytes": data, "path": None} for data, _ in encoded],
                "label": [n for _, n in encoded],
            }
            features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(CLASSES)))
            datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
        return file

    def latents(self) -> Path:
        """Precomputed latents of the pictures' size. They are random: reading them takes as long."""
        folder = self.root / "latents"
        if not folder.exists():
            images = FolderDataset(self.pictures(), self.options.image_size)
            small = VAE_CONFIG | {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
            vae = AutoencoderKL(**small)
            settings = describe_encoding(images, vae, "random", False, "float32", SHARD_SIZE)
            begin_folder(folder, settings)
            generator = torch.Generator().manual_seed(0)
            for number in range(count_shards(settings)):
                index = torch.arange(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(images)))
                shape = (len(index), *settings["latents"]["shape"])
                tensors = {name: torch.randn(shape, generator=generator) for name in ("mean", "std")}
                write_shard(
                    folder, number, {**tensors, "index": index, "label": torch.tensor(images.labels)[index]}, []
                )
            channels = settings["latents"]["shape"][0]
            statistics = {"mean": [0.0] * channels, "std": [2**0.5] * channels}  # mean + std·noise
            finish_folder(folder, settings, describe_vae(vae, "random"), statistics)
        return folder

    def vae(self) -> str:
        """The VAE that was given, or a folder with Stable Diffusion's architecture and random weights."""
        if self.options.vae is not None:
            return self.options.vae
        folder = self.root / "vae"
        if not folder.exists():
            AutoencoderKL(**VAE_CONFIG).save_pretrained(folder)
        return str(folder)

    def _source(self) -> ImageDataset | None:
        if self.options.data is None:
            return None
        source = open_dataset(self.options.data, self.options.image_size)
        source.check_pixels("images are measured, but")
        return source

    def _encoded(self) -> dict[str, tuple[bytes, int]]:
        """The bytes and the label of each picture, by its name."""
        files = sorted(self.pictures().rglob("*.jpg"))
        return {file.stem: (file.read_bytes(), CLASSES.index(file.parent.name)) for file in files}


def made_picture(index: int) -> Image.Image:
    """A picture of smooth colours with a grain, whose JPEG file is about as large as a photograph's."""
    rng = np.random.default_rng(index)
    width, height = MADE_SIZE
    colours = Image.fromarray(rng.integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize(MADE_SIZE, Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def describe_files(files: BenchmarkFiles) -> dict:
    """What a report says about the pictures."""
    pictures = sorted(files.pictures().rglob("*.jpg"))
    with Image.open(pictures[0]) as first:
        width, height = first.size
    total = sum(picture.stat().st_size for picture in pictures)
    return {"count": len(pictures), "first_size": [width, height], "bytes_per_image": total // len(pictures)}
