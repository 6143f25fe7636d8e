"""A folder of precomputed latents: what train/encode_latents.py writes and training reads.

    shard-00000.safetensors …   mean, std (n, c, s, s), the same of mirrored images, label (n,), index (n,)
    manifest.json               written last: a folder with it is complete

While it is being written, the folder holds `encoding.json` with the settings in place of the manifest, and beside each
shard a small JSON file about it. All files are staged and renamed, so that a visible one is whole.

c latent channels, s latent side. Mean and standard deviation are the VAE's own, not yet shifted and scaled.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from ..models.vae import latent_shift, vae_scale_factor
from ..utils.files import write_atomically
from ..utils.hashing import file_sha256, tensors_sha256
from .base import ImageDataset, cached_index, hash_of

MANIFEST, SETTINGS = "manifest.json", "encoding.json"
FORMAT = 1
THREADS = 8  # that hash shards at the same time
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def describe_vae(vae: torch.nn.Module, name: str) -> dict:
    """What a manifest says of the VAE, so that another one is noticed."""
    return {
        "name": name,
        "class": type(vae).__name__,
        "sha256": tensors_sha256(vae.state_dict()),
        "scaling_factor": vae.config.scaling_factor,
        "shift_factor": latent_shift(vae),
    }


def describe_encoding(
    dataset: ImageDataset, vae: torch.nn.Module, vae_name: str, flip: bool, dtype: str, shard_size: int
) -> dict:
    """Everything that decides what the shards hold.

    Raises:
        ValueError: where the images do not fit the VAE.
    """
    factor = vae_scale_factor(vae)
    if dataset.image_size % factor:
        raise ValueError(f"image_size={dataset.image_size} must be divisible by {factor}, the factor of the VAE")
    if vae.config.in_channels != dataset.channels:
        raise ValueError(
            f"vae={vae_name!r} takes {vae.config.in_channels} channels, the images of data={dataset.source!r} have "
            f"{dataset.channels}"
        )
    side = dataset.image_size // factor
    return {
        "format": FORMAT,
        "name": dataset.name,
        "source": dataset.source,
        "source_fingerprint": dataset.fingerprint(),
        "source_images": len(dataset),
        "classes": dataset.classes,
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "vae": describe_vae(vae, vae_name),
        "latents": {
            "shape": [vae.config.latent_channels, side, side],
            "dtype": dtype,
            "std": not type(vae).__name__.endswith("Tiny"),
            "flip": flip,
        },
        "shard_size": shard_size,
    }


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard; the JSON file about it, while encoding, has the same stem."""
    return folder / f"shard-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor], broken: list[str]) -> None:
    """Publish a shard: first what is known of it, then the file itself."""
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file = shard_path(folder, number)
    about = {
        "file": file.name,
        "images": len(tensors["label"]),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "broken": broken,
    }
    write_atomically(file.with_suffix(".json"), json.dumps(about))
    write_atomically(file, data)


def published_shards(folder: Path, settings: dict) -> dict[int, dict]:
    """What is known of the shards that are done, by number."""
    count = -(-settings["source_images"] // settings["shard_size"])
    files = {number: shard_path(folder, number) for number in range(count)}
    return {
        number: json.loads(file.with_suffix(".json").read_text())
        for number, file in files.items()
        if file.is_file() and file.with_suffix(".json").is_file()
    }


def begin_folder(folder: Path, settings: dict, writing: bool) -> bool:
    """Check that the folder is new or holds this very encoding, begun or done; return whether it is done.

    Args:
        folder: of the latents.
        settings: of `describe_encoding`.
        writing: this process, one of all, also creates the folder and removes what a killed one has left.

    Raises:
        ValueError: where the folder holds anything else.
    """
    for name in (MANIFEST, SETTINGS):
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text())
            if changes := differences(found, settings):
                raise ValueError(
                    f"output_dir={str(folder)!r} holds other latents: {'; '.join(changes)}; choose another folder"
                )
            if name == MANIFEST:
                if writing:
                    _remove(folder, settings)
                return True
            break
    else:
        # Another process may have just created the folder; only what is none of ours forbids its use.
        if folder.exists() and any(entry.name[0] != "." for entry in folder.iterdir()):
            raise ValueError(f"output_dir={str(folder)!r} is not empty; choose another folder")
    if writing:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".staging-*"):
            leftover.unlink()
        write_atomically(folder / SETTINGS, json.dumps(settings, indent=2))
    return False


def differences(found: dict, wanted: dict, prefix: str = "") -> list[str]:
    """What sets two descriptions apart, for messages; entries that only `found` has do not count."""
    changes = []
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            changes += differences(found[key], value, f"{prefix}{key}.")
        elif found.get(key) != value:
            shown = [text if len(text) <= 60 else text[:57] + "…" for text in (repr(found.get(key)), repr(value))]
            changes.append(f"{prefix}{key}: {shown[0]} -> {shown[1]}")
    return changes


def finish_folder(folder: Path, settings: dict) -> dict:
    """Write the manifest of a folder whose shards are all there, and return it.

    Raises:
        ValueError: where a shard is missing.
    """
    published = published_shards(folder, settings)
    count = -(-settings["source_images"] // settings["shard_size"])
    if missing := sorted(set(range(count)) - set(published)):
        raise ValueError(f"output_dir={str(folder)!r}: shards {missing[:5]} are missing; start the same command again")
    shards = [published[number] for number in range(count)]
    manifest = settings | {
        "num_images": sum(shard["images"] for shard in shards),
        "broken": [reason for shard in shards for reason in shard["broken"]],
        "shards": [{key: value for key, value in shard.items() if key != "broken"} for shard in shards],
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
    _remove(folder, settings)
    return manifest


def _remove(folder: Path, settings: dict) -> None:
    """Remove the files that a complete folder needs no more."""
    for number in range(-(-settings["source_images"] // settings["shard_size"])):
        shard_path(folder, number).with_suffix(".json").unlink(missing_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)


class LatentsDataset(ImageDataset):
    """Latents of images, as mean and standard deviation of the VAE's posterior: each look at one draws a new sample.

    Args:
        folder: that train/encode_latents.py has written, complete.
        image_size: side of the images in pixels; the folder's where None.

    Raises:
        ValueError: for a folder that is not complete or not as its manifest says, or another image size.
    """

    def __init__(self, folder: str | Path, image_size: int | None = None):
        folder = Path(folder)
        source = f"data={str(folder)!r}"
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            begun = (folder / SETTINGS).is_file()
            remedy = "start train/encode_latents.py again to finish it" if begun else "it is no folder of latents"
            raise ValueError(f"{source} has no readable {MANIFEST}: {remedy}") from error
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{source}: format {manifest.get('format')} of latents is unknown; encode the images anew")
        if image_size not in (None, manifest["image_size"]):
            raise ValueError(
                f"image_size={image_size}: {source} holds latents of images of {manifest['image_size']} pixels; encode "
                "the images at the other size, or leave image_size out"
            )
        for shard in manifest["shards"]:
            file = folder / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise ValueError(f"{source}: {shard['file']} is missing or has not the size of the manifest")
        self.name = manifest["name"]
        self.source = str(folder)
        self.manifest = manifest
        self.classes = manifest["classes"]
        self.image_size = manifest["image_size"]
        self.channels = manifest["channels"]
        self._folder = folder
        self._open = {}
        sizes = [shard["images"] for shard in manifest["shards"]]
        self._starts = np.cumsum([0, *sizes])
        parts = [self._shard(number).get_tensor("label").numpy() for number, size in enumerate(sizes) if size]
        self.labels = np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @property
    def reference(self) -> str:
        return self.manifest["source"]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def _shard(self, number: int) -> safe_open:
        if number not in self._open:
            self._open[number] = safe_open(self._folder / self.manifest["shards"][number]["file"], "pt")
        return self._open[number]

    def latents(self, index: int, flip: bool, noise: torch.Tensor) -> torch.Tensor:
        """One sample of the posterior (c, s, s), shifted and scaled as the transformer sees it, float32."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard, row = self._shard(number), int(index - self._starts[number])
        suffix = "_flipped" if flip else ""
        latents = shard.get_slice(f"mean{suffix}")[row].float()
        if self.manifest["latents"]["std"]:
            latents = latents + shard.get_slice(f"std{suffix}")[row].float() * noise
        vae = self.manifest["vae"]
        return (latents - vae["shift_factor"]) * vae["scaling_factor"]

    def training_tensors(
        self, index: int, flip: bool, posterior: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        assert posterior is not None, "each look at precomputed latents is a sample of the posterior, which needs noise"
        return {"x": self.latents(index, flip, posterior)}

    def image(self, index: int) -> np.ndarray:
        raise ValueError(self._no_images())

    def check_pixels(self, needed_by: str) -> None:
        raise ValueError(f"{needed_by} {self._no_images()}")

    def _no_images(self) -> str:
        return (
            f"data={self.source!r} holds precomputed latents, no images; give the images that they were made of: "
            f"{self.manifest['source']!r}"
        )

    def fingerprint(self) -> str:
        return hash_of([shard["sha256"] for shard in self.manifest["shards"]])

    def verify(self) -> None:
        """Compare the files with the hashes of the manifest; those whose size and time are unchanged, only once."""

        def is_whole(shard: dict) -> bool:
            file = self._folder / shard["file"]
            key = json.dumps([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
            return cached_index(key, lambda: {"sha256": file_sha256(file)})["sha256"] == shard["sha256"]

        shards = self.manifest["shards"]
        with ThreadPoolExecutor(THREADS) as pool:
            whole = list(tqdm(pool.map(is_whole, shards), "verifying latents", len(shards), leave=False, disable=None))
        if broken := [shard["file"] for shard, good in zip(shards, whole, strict=True) if not good]:
            raise ValueError(
                f"data={self.source!r}: {', '.join(broken[:5])} ({len(broken)} of {len(shards)} shards) are not as "
                "they were written, their SHA-256 differs; copy the folder again, or encode the images anew"
            )

    def check_training(self, vae: torch.nn.Module | None, horizontal_flip: bool) -> None:
        wanted = self.manifest["vae"]
        if vae is None:
            raise ValueError(f"vae must be given for the latents in data={self.source!r}: --vae {wanted['name']}")
        given = describe_vae(vae, wanted["name"])
        if changes := differences(wanted, given):
            raise ValueError(f"vae is another one than made data={self.source!r}: {'; '.join(changes)}")
        if horizontal_flip and not self.manifest["latents"]["flip"]:
            raise ValueError(
                f"horizontal_flip=True: data={self.source!r} holds no mirrored images; encode them with --flip true, "
                "or leave horizontal_flip out"
            )
