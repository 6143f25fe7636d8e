"""Checkpoints that survive kills, full disks and flipped bits: tensors as safetensors, everything else as JSON.

A checkpoint is a folder. It is written under a staging name, each file is hashed into `manifest.json` and synced to the
disk, and only then is the folder renamed to `step-…`; a visible checkpoint is therefore complete. A run resumes only
from checkpoints whose hashes have been verified, and none of the formats can run code.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..utils.bounded_text import read_json_object
from ..utils.files import STAGING, remove, sync
from ..utils.hashing import file_sha256
from ..utils.text import one_line

if TYPE_CHECKING:  # so that a command line is compared with a checkpoint before PyTorch is imported
    import torch

CHECKPOINT_MANIFEST, STATE = "manifest.json", "state.json"
CORRUPT = ".corrupt"  # suffix of a checkpoint whose hashes did not match and which was set aside
# What the state of every training holds. A folder from elsewhere may hold anything under hashes that fit.
STATE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "data": dict,
    "classes": list,
    "window": dict,
    "scaler": (dict, type(None)),
}

Tensors = Mapping[str, Mapping[str, "torch.Tensor"]]  # by file (model, optimizer, …), then by name of the tensor


def checkpoint_steps(folder: Path) -> list[tuple[int, Path]]:
    """List the visible checkpoints in `folder` as (step, path), oldest first."""
    return sorted((int(path.name[5:]), path) for path in folder.glob("step-*") if re.fullmatch(r"\d+", path.name[5:]))


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    keep: int | None = None,
    keep_every: int | None = None,
) -> Path:
    """Write and publish `folder`/step-…, then remove old checkpoints.

    Args:
        folder: the folder of all checkpoints of a run.
        step: step of this checkpoint.
        tensors: the tensors, by file and name.
        state: everything else, as JSON values.
        keep: number of newest checkpoints that are kept. If None, all are kept.
        keep_every: checkpoints at multiples of this step are milestones, which are always kept.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if it cannot be written, for example because the disk is full. Older checkpoints are left untouched.
    """
    target = folder / f"step-{step:08d}"
    staging = folder / f"{STAGING}{target.name}"
    sweep(folder)
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)  # or a power cut could lose the name of the folder, and all checkpoints with it
    try:
        _check_space(folder, sum(value.nbytes for part in tensors.values() for value in part.values()))
        _write(staging, step, tensors, state)
        if target.exists():  # a damaged checkpoint, or this step from before the run resumed from an older one
            _discard(target)
        staging.rename(target)
        sync(folder)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if keep is not None:
        rotate(folder, keep, keep_every, spared=target)
    return target


def rotate(folder: Path, keep: int, keep_every: int | None, spared: Path | None = None) -> None:
    """Remove old checkpoints, except the `keep` newest ones, those at multiples of `keep_every`, and `spared`."""
    passing = [path for at, path in checkpoint_steps(folder) if keep_every is None or at % keep_every]
    for path in passing[:-keep]:
        if path != spared:
            _discard(path)


def _write(staging: Path, step: int, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Write all files of a checkpoint and sync them to the disk."""
    staging.mkdir()
    for part, values in tensors.items():
        _save_tensors(values, staging / f"{part}.safetensors")
    (staging / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    written = sorted(staging.iterdir())
    with ThreadPoolExecutor() as pool:
        files = dict(zip((file.name for file in written), pool.map(_hash_and_sync, written), strict=True))
    (staging / CHECKPOINT_MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=2), encoding="utf-8")
    for path in (staging / CHECKPOINT_MANIFEST, staging):
        sync(path)


def sweep(folder: Path) -> None:
    """Remove staging folders that killed saves left behind."""
    for leftover in folder.glob(f"{STAGING}*"):
        remove(leftover)


def recover_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that passes verification, or None if there is none, and set aside newer ones.

    A warning names each newer checkpoint, which is damaged. It is renamed to step-….corrupt, which keeps it but
    excludes it from rotation.

    Raises:
        ValueError: if there are checkpoints but all are damaged, naming the damaged file of each.
    """
    broken: dict[Path, str] = {}
    good = None
    for _, path in reversed(checkpoint_steps(folder)):
        try:
            verify_checkpoint(path)
        except ValueError as error:
            broken[path] = str(error)
            continue
        good = path
        break
    if broken and good is None:
        raise ValueError("; ".join(broken.values()) + "; no checkpoint is left to continue from")
    for path, reason in broken.items():
        warnings.warn(f"{one_line(reason)}; falling back to {good}", stacklevel=2)
        aside = path.with_name(path.name + CORRUPT)
        remove(aside)
        path.rename(aside)
    return good


def verify_checkpoint(path: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        ValueError: naming the first file that is missing, truncated or changed.
    """
    files = _manifest(path)
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"checkpoint {path}: {name} is missing")
        if file.stat().st_size != entry["bytes"]:
            raise ValueError(f"checkpoint {path}: {name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(file_sha256, [path / name for name in files])
        for (name, entry), found in zip(files.items(), hashes, strict=True):
            if found != entry["sha256"]:
                raise ValueError(f"checkpoint {path}: {name} has changed since it was written: its SHA-256 differs")


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, "torch.Tensor"]], dict[str, Any]]:
    """Read a verified checkpoint.

    Returns:
        The tensors on the CPU, by file and name, and the content of state.json.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    from safetensors.torch import load_file

    tensors: dict[str, dict[str, torch.Tensor]] = {}
    state: dict[str, Any] = {}
    for name in _manifest(path):
        try:
            if name == STATE:
                state = read_json_object(path / name)
            else:
                tensors[name.removesuffix(".safetensors")] = load_file(path / name)
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"checkpoint {path}: {name} cannot be read: {error}") from error
    return tensors, state


def read_state(path: Path) -> dict[str, Any]:
    """Read the state.json of a checkpoint, of which nothing else is verified.

    Raises:
        ValueError: if it is missing, has changed since it was written, or is not that of a training.
    """
    entry = _manifest(path)[STATE]
    try:
        if file_sha256(path / STATE) != entry["sha256"]:
            raise ValueError("its SHA-256 differs")
        state = read_json_object(path / STATE)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint {path}: {STATE} is missing or has changed since it was written: {error}"
        ) from error
    fields = STATE_FIELDS | {"classifier" if "classifier" in state else "transformer": dict}
    if wrong := [name for name, kind in fields.items() if not isinstance(state.get(name, ...), kind)]:
        raise ValueError(f"checkpoint {path}: {STATE} does not say {', '.join(wrong)} as a training does")
    return state


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        files = read_json_object(path / CHECKPOINT_MANIFEST)["files"]
        well_formed = STATE in files and all(
            re.fullmatch(r"[\w.-]+\.(safetensors|json)", name) and {"bytes", "sha256"} <= entry.keys()
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path}: {CHECKPOINT_MANIFEST} is missing or cannot be read: {error}") from error
    if not well_formed:
        raise ValueError(f"checkpoint {path}: {CHECKPOINT_MANIFEST} does not list the files of a checkpoint")
    return files


def _hash_and_sync(file: Path) -> dict[str, Any]:
    entry = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    sync(file)
    return entry


def _save_tensors(values: Mapping[str, "torch.Tensor"], file: Path) -> None:
    from safetensors.torch import save_file

    try:
        save_file({name: value.contiguous() for name, value in values.items()}, file)
    except SafetensorError as error:  # how safetensors reports I/O errors
        raise OSError(f"{file.name} cannot be written: {error}") from error


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"the disk is full: {folder} has {free / 1e9:.2f} GB left, but a checkpoint takes {needed / 1e9:.2f} GB"
        )


def _discard(path: Path) -> None:
    """Remove a visible checkpoint. It is renamed first, so that a kill never leaves half of it visible."""
    hidden = path.with_name(f"{STAGING}old-{path.name}")
    path.rename(hidden)
    remove(hidden)
