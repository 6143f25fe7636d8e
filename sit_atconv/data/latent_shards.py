"""The format of a folder of precomputed latents, and how it is written.

    shard-00000.safetensors …   mean, std (n, c, s, s), the same for the mirrored images, label (n,), index (n,);
                                if there are targets, these (n, N, Z) float16, and those of the mirrored images
    vae/                        if latents are normalized by their own statistics: the VAE, which holds them
    manifest.json               written last: a folder with a manifest is complete

Until the folder is complete, it holds `encoding.json`, the settings of the encoding, in place of the manifest, and a
small JSON file about each shard. All files are staged and renamed, so every visible file is whole.

n images of a shard, c latent channels, s latent side; N tokens, Z features of an encoder. Mean and standard deviation
are the VAE's own, neither shifted nor scaled. latent_statistics.py computes those of each channel over all images,
which the manifest holds, too.
"""

import hashlib
import json
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors.torch import save

from ..models.codecs import check_vae_image_size, codec_of, vae_image_channels, vae_latent_channels, vae_scale_factor
from ..models.latent_scaling import check_latent_statistics, check_statistics_can_be_set, latent_statistics
from ..utils.bounded_text import read_json_object
from ..utils.files import STAGING, remove, write_atomically
from ..utils.hashing import tensors_sha256
from .base import ImageDataset
from .latent_statistics import shard_moments

MANIFEST, SETTINGS = "manifest.json", "encoding.json"
FORMAT = 1
# What the record of a shard must hold, and its entry in the manifest.
SHARD_FIELDS: dict[str, type] = {"file": str, "images": int, "bytes": int, "sha256": str}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def describe_vae(vae: ModelMixin, name: str) -> dict:
    """Return what a manifest records of the VAE, so that another VAE is noticed."""
    return {
        "name": name,
        "class": type(vae).__name__,
        "sha256": tensors_sha256(vae.state_dict()),
        **latent_statistics(vae),
    }


def describe_encoding(
    dataset: ImageDataset,
    vae: ModelMixin,
    vae_name: str,
    flip: bool,
    dtype: str,
    shard_size: int,
    statistics: str = "vae",
) -> dict:
    """Return the settings that determine the content of the shards.

    Raises:
        ValueError: if the images do not fit the VAE, or it has no statistics and none are to be computed.
    """
    described = describe_vae(vae, vae_name)
    if statistics == "channels":
        check_statistics_can_be_set(vae)
        described = {name: described[name] for name in ("name", "class", "sha256")}
    else:
        check_latent_statistics(vae)
    check_vae_image_size(vae, dataset.image_size)
    factor = vae_scale_factor(vae)
    if dataset.image_size % factor:
        raise ValueError(f"image_size={dataset.image_size} must be divisible by {factor}, the factor of the VAE")
    if (channels := vae_image_channels(vae)) != dataset.channels:
        raise ValueError(
            f"vae={vae_name!r} takes {channels} channels, but the images of data={dataset.source!r} have "
            f"{dataset.channels}; give other images or another VAE"
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
        "vae": described,
        **({"normalization": statistics} if statistics == "channels" else {}),
        "latents": {
            "shape": [vae_latent_channels(vae), side, side],
            "dtype": dtype,
            "std": codec_of(vae).has_posterior,
            "flip": flip,
        },
        "shard_size": shard_size,
    }


def differences(found: dict, wanted: dict, prefix: str = "") -> list[str]:
    """List the entries of `wanted` that are missing or different in `found`, for error messages."""
    changes = []
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            changes += differences(found[key], value, f"{prefix}{key}.")
        elif found.get(key) != value:
            shown = [text if len(text) <= 60 else text[:57] + "…" for text in (repr(found.get(key)), repr(value))]
            changes.append(f"{prefix}{key}: {shown[0]} -> {shown[1]}")
    return changes


def count_shards(settings: dict) -> int:
    """Return the number of shards of a complete folder."""
    return -(-settings["source_images"] // settings["shard_size"])


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of a shard. While encoding, the JSON file about it has the same stem."""
    return folder / f"shard-{number:05d}.safetensors"


def check_folder(folder: Path, settings: dict) -> bool:
    """Return whether the folder holds this encoding, complete; it may also be new, or hold a part of this encoding.

    Raises:
        ValueError: if the folder holds anything else.
    """
    for name in (MANIFEST, SETTINGS):
        if (folder / name).is_file():
            found = read_json_object(folder / name)
            if changes := differences(found, settings):
                raise ValueError(
                    f"output_dir={str(folder)!r} holds other latents: {'; '.join(changes)}; choose another folder"
                )
            return name == MANIFEST
    # Hidden files are ours: another process may have just created the folder and its lock.
    if folder.exists() and any(entry.name[0] != "." for entry in folder.iterdir()):
        raise ValueError(f"output_dir={str(folder)!r} is not empty; choose another folder")
    return False


def begin_folder(folder: Path, settings: dict) -> bool:
    """Make the folder ready for shards and remove what a killed process has left; return whether it is complete.

    Only one process may call this at a time.

    Raises:
        ValueError: as `check_folder`.
    """
    if check_folder(folder, settings):
        _remove_progress(folder, settings)
        return True
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{STAGING}*"):
        remove(leftover)
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=2))
    return False


def write_shard(folder: Path, number: int, tensors: dict[str, torch.Tensor], broken: list[str]) -> None:
    """Publish a shard: first the JSON file about it, then the shard itself.

    Args:
        folder: folder of the latents.
        number: number of the shard.
        tensors: content of the shard, as at the top of this file.
        broken: why images of this shard are left out, one reason per image.
    """
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file = shard_path(folder, number)
    about = {
        "file": file.name,
        "images": len(tensors["label"]),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "broken": broken,
        "moments": shard_moments(tensors),
    }
    write_atomically(file.with_suffix(".json"), json.dumps(about))
    write_atomically(file, data)


def published_shards(folder: Path, settings: dict) -> dict[int, dict]:
    """Return what `write_shard` recorded about the shards that are finished, by number."""
    files = {number: shard_path(folder, number) for number in range(count_shards(settings))}
    return {
        number: read_shard_record(file.with_suffix(".json"))
        for number, file in files.items()
        if file.is_file() and file.with_suffix(".json").is_file()
    }


def read_shard_record(file: Path) -> dict:
    """Return what `write_shard` recorded about a shard.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        record = read_json_object(file)
    except ValueError as error:
        raise ValueError(f"{error}; remove it, so that its shard is encoded again") from error
    check_fields(record, {**SHARD_FIELDS, "broken": list}, str(file), "remove it, so that its shard is encoded again")
    return record


def check_fields(entry: object, fields: dict[str, type], where: str, remedy: str = "copy the folder again") -> None:
    """Raise ValueError unless an entry of a manifest has these fields, of these types."""
    values = entry if isinstance(entry, dict) else {}
    if wrong := [name for name, kind in fields.items() if not isinstance(values.get(name), kind)]:
        raise ValueError(f"{where} is damaged: {', '.join(wrong)} are missing or of another type; {remedy}")


def finish_folder(folder: Path, settings: dict, vae: dict, statistics: dict) -> dict:
    """Write and return the manifest of a folder whose shards are all finished.

    Args:
        folder: folder of the latents.
        settings: the settings of the encoding.
        vae: what `describe_vae` says of the VAE, with the statistics that normalize its latents.
        statistics: mean and standard deviation of each channel of the latents, neither shifted nor scaled.

    Raises:
        ValueError: if a shard is missing.
    """
    published = published_shards(folder, settings)
    if missing := sorted(set(range(count_shards(settings))) - set(published)):
        raise ValueError(f"output_dir={str(folder)!r}: shards {missing[:5]} are missing; run the same command again")
    shards = [published[number] for number in sorted(published)]
    manifest = settings | {
        "vae": vae,
        "statistics": statistics,
        "num_images": sum(shard["images"] for shard in shards),
        "broken": [reason for shard in shards for reason in shard["broken"]],
        "shards": [{key: value for key, value in shard.items() if key in SHARD_FIELDS} for shard in shards],
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False))
    _remove_progress(folder, settings)
    return manifest


def _remove_progress(folder: Path, settings: dict) -> None:
    """Remove the files that a complete folder no longer needs."""
    for number in range(count_shards(settings)):
        shard_path(folder, number).with_suffix(".json").unlink(missing_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
