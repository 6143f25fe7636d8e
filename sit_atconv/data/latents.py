"""Precomputed latents as training reads them. latent_shards.py describes the format of their folder.

c latent channels, s latent side; N tokens, Z features of an encoder.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from tqdm.auto import tqdm

from ..models.codecs import codec_of
from ..models.latent_scaling import check_latent_statistics, normalize_latents
from ..utils.bounded_text import read_json_object
from ..utils.files import check_regular
from ..utils.hashing import file_sha256
from .base import ImageDataset, cached_index, hash_of
from .latent_shards import FORMAT, MANIFEST, SETTINGS, SHARD_FIELDS, check_fields, describe_vae, differences

# Where the standard deviation of normalized latents may lie, and their mean, without a note: it should be 1, and 0.
USUAL_STD, USUAL_MEAN = (0.4, 2.5), 2.0
THREADS = 8  # that hash shards at the same time

# What a manifest must hold, and each of its shards.
FIELDS: dict[str, type] = {
    "name": str,
    "source": str,
    "classes": list,
    "image_size": int,
    "channels": int,
    "vae": dict,
    "latents": dict,
    "shards": list,
}
TARGETS_FIELDS: dict[str, type] = {"encoder": str, "weights": str, "sha256": str, "grid": list, "features": int}


class LatentsDataset(ImageDataset):
    """Precomputed latents: mean and standard deviation of the VAE's posterior, of which each look draws a new sample.

    Args:
        folder: folder that train/encode_latents.py wrote, complete.
        image_size: side of the images in pixels. If None, that of the folder.

    Raises:
        ValueError: if the folder is not complete or does not match its manifest, or for another image size.
    """

    is_encoded = True

    def __init__(self, folder: str | Path, image_size: int | None = None):
        folder = Path(folder)
        self.manifest = manifest = read_manifest(folder)
        if image_size not in (None, manifest["image_size"]):
            raise ValueError(
                f"image_size={image_size}: data={str(folder)!r} holds latents of images of {manifest['image_size']} "
                "pixels; encode the images at the other size, or leave image_size out"
            )
        self.name = manifest["name"]
        self.source = str(folder)
        self.classes = manifest["classes"]
        self.image_size = manifest["image_size"]
        self.channels = manifest["channels"]
        self.targets = manifest.get("targets")
        self._folder = folder
        self._open: dict[int, Any] = {}
        sizes = [shard["images"] for shard in manifest["shards"]]
        self._starts = np.cumsum([0, *sizes])
        parts = [self._read_labels(number, size) for number, size in enumerate(sizes) if size]
        self.labels = np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _read_labels(self, number: int, size: int) -> np.ndarray:
        """Return the class ids of the images in a shard; raise ValueError if it holds others than the manifest says."""
        name = self.manifest["shards"][number]["file"]
        try:
            labels = self._shard(number).get_tensor("label").numpy()
        except Exception as error:  # of safetensors
            raise ValueError(f"data={self.source!r}: {name} cannot be read: {error}; copy the folder again") from error
        if labels.shape != (size,) or labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"data={self.source!r}: the labels in {name} are not those of {size} images of {self.num_classes} "
                "classes; copy the folder again, or encode the images again"
            )
        return labels

    @property
    def reference(self) -> str:
        return self.manifest["source"]

    @property
    def notes(self) -> list[str]:
        return self._unusual_scale() + super().notes

    def _unusual_scale(self) -> list[str]:
        """A note if the manifest says that the latents are far from zero mean and unit variance."""
        found = self.manifest.get("statistics") or {}
        if not found.get("mean") or codec_of(self.manifest["vae"]).statistics == "encoder":
            return []
        mean, std = (torch.tensor(found[name])[:, None, None] for name in ("mean", "std"))  # (c, 1, 1)
        centre = normalize_latents(self.manifest["vae"], mean)
        std = normalize_latents(self.manifest["vae"], mean + std) - centre
        low, high, off = std.min().item(), std.max().item(), centre.abs().max().item()
        if USUAL_STD[0] <= low and high <= USUAL_STD[1] and off <= USUAL_MEAN:
            return []
        return [
            f"latents have the standard deviation {low:.2g} to {high:.2g} and a mean of up to ±{off:.2g} per channel, "
            "where 1 and 0 train best; encode with --statistics channels to normalize them"
        ]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}  # open files cannot be sent to data workers

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            file = self._folder / self.manifest["shards"][number]["file"]
            check_regular(file)
            self._open[number] = safe_open(file, "pt")
        return self._open[number]

    def latents(self, index: int, flip: bool, noise: torch.Tensor) -> torch.Tensor:
        """Draw a sample of the posterior with this noise, shifted and scaled for the transformer: float32 (c, s, s)."""
        latents = self._stored("mean", index, flip).float()
        if self.manifest["latents"]["std"]:
            latents = latents + self._stored("std", index, flip).float() * noise
        return normalize_latents(self.manifest["vae"], latents)

    def target_features(self, index: int, flip: bool) -> torch.Tensor:
        return super().target_features(index, flip) if self.targets is None else self._stored("targets", index, flip)

    def _stored(self, name: str, index: int, flip: bool) -> torch.Tensor:
        """What the shards hold of one image, of the mirrored one if `flip`."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shard(number).get_slice(f"{name}{'_flipped' if flip else ''}")[int(index - self._starts[number])]

    def training_tensors(
        self, index: int, flip: bool, posterior: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        assert posterior is not None, "precomputed latents are drawn from the posterior, which needs noise"
        return {"x": self.latents(index, flip, posterior)}

    def image(self, index: int) -> np.ndarray:
        raise ValueError(self._no_images())

    def check_pixels(self, needed_by: str) -> None:
        raise ValueError(f"{needed_by} {self._no_images()}")

    def _no_images(self) -> str:
        return (
            f"data={self.source!r} holds precomputed latents, no images; give the images that they were made of: "
            f"{self.reference!r}"
        )

    def fingerprint(self) -> str:
        return hash_of([shard["sha256"] for shard in self.manifest["shards"]])

    def verify(self) -> None:
        """Raise ValueError if a shard does not have the SHA-256 of the manifest.

        A shard whose size and time of modification have not changed since is hashed only once.
        """
        shards = self.manifest["shards"]
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(self._sha256, shards)
            hashes = list(tqdm(found, "verifying latents", len(shards), leave=False, disable=None))
        broken = [shard["file"] for shard, sha256 in zip(shards, hashes, strict=True) if shard["sha256"] != sha256]
        if broken:
            raise ValueError(
                f"data={self.source!r}: {', '.join(broken[:5])} ({len(broken)} of {len(shards)} shards) are not as "
                "they were written: their SHA-256 differs; copy the folder again, or encode the images again"
            )

    def _sha256(self, shard: dict) -> str:
        file = self._folder / shard["file"]
        key = json.dumps([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
        return cached_index(key, lambda: {"sha256": file_sha256(file)})["sha256"]

    @property
    def vae_name(self) -> str:
        """The VAE to train with: this folder, if it holds the VAE with the statistics of these latents."""
        return vae_of_latents(self._folder, self.manifest)

    def check_training(self, vae: torch.nn.Module | None, horizontal_flip: bool) -> None:
        recorded = self.manifest["vae"]
        if vae is None:
            raise ValueError(f"vae must be given for the latents in data={self.source!r}: --vae {self.vae_name}")
        if changes := differences(recorded, describe_vae(vae, recorded["name"])):
            raise ValueError(
                f"vae is not the one that encoded data={self.source!r}: {'; '.join(changes)}; give --vae "
                f"{self.vae_name}, or encode the images with the other one"
            )
        if horizontal_flip and not self.manifest["latents"]["flip"]:
            raise ValueError(
                f"horizontal_flip=True: data={self.source!r} holds no mirrored images; encode them with --flip true, "
                "or leave horizontal_flip out"
            )


def read_manifest(folder: Path) -> dict:
    """Read the manifest of a complete folder of latents.

    Raises:
        ValueError: if there is no manifest, its format is unknown, it is damaged or names files outside of the folder,
            or a shard is missing or has another size.
    """
    source = f"data={str(folder)!r}"
    try:
        manifest = read_json_object(folder / MANIFEST)
    except (OSError, ValueError) as error:
        if (folder / SETTINGS).is_file():
            remedy = "the encoding was interrupted; run train/encode_latents.py again to finish it"
        elif isinstance(error, FileNotFoundError):
            remedy = "it is not a folder of latents; give one that train/encode_latents.py wrote"
        else:
            remedy = f"{error}; give a folder that train/encode_latents.py wrote, or copy it again"
        raise ValueError(f"{source} has no readable {MANIFEST}: {remedy}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{source}: format {manifest.get('format')} of latents is unknown; encode the images again")
    check_fields(manifest, FIELDS, f"{source}: {MANIFEST}")
    check_fields(manifest["latents"], {"std": bool, "flip": bool}, f"{source}: {MANIFEST}, latents")
    check_fields(manifest["vae"], {"name": str}, f"{source}: {MANIFEST}, vae")
    channels = manifest["latents"].get("shape") or [None]
    try:
        check_latent_statistics(manifest["vae"], channels[0])
    except ValueError as error:
        raise ValueError(f"{source}: {MANIFEST} is damaged: {error}") from error
    if not all(isinstance(name, str) for name in manifest["classes"]):
        raise ValueError(f"{source}: {MANIFEST} is damaged: classes are no names; copy the folder again")
    if manifest.get("targets") is not None:
        check_fields(manifest["targets"], TARGETS_FIELDS, f"{source}: {MANIFEST}, targets")
    for shard in manifest["shards"]:
        check_fields(shard, SHARD_FIELDS, f"{source}: {MANIFEST}, shards")
        check_shard(folder, shard, source)
    return manifest


def vae_of_latents(folder: Path, settings: dict) -> str:
    """The VAE to train with on a folder of latents: the folder itself if it holds one with their own statistics."""
    return str(folder) if settings.get("normalization") == "channels" else settings["vae"]["name"]


def check_shard(folder: Path, shard: dict, source: str) -> None:
    """Check that a shard lies in the folder, as a file of its own of the recorded size.

    Raises:
        ValueError: if it does not.
    """
    name = shard["file"]
    if not re.fullmatch(r"shard-[0-9]+\.safetensors", name):
        raise ValueError(
            f"{source}: {MANIFEST} names the shard {name!r}, but shards are called shard-00000.safetensors and lie in "
            "the folder itself; use a folder that train/encode_latents.py wrote"
        )
    file = folder / name
    if file.is_symlink():
        raise ValueError(f"{source}: {name} is a link; replace it by the file it points to (cp -rL copies so)")
    if not file.is_file() or file.stat().st_size != shard["bytes"]:
        raise ValueError(
            f"{source}: {name} is missing or does not have the size recorded in {MANIFEST}; copy the folder again, or "
            "encode the images again"
        )
