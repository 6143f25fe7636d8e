"""Checkpoints that a kill, a full disk or a flipped bit cannot cost: tensors as safetensors, everything else as JSON.

A checkpoint is a folder. It is written under a staging name, each file is hashed into `manifest.json` and synced to the
disk, and only then is the folder renamed to `step-…`; so a visible one is a whole one. Reading checks every hash before
anything is handed out, and no format in it can run code.
"""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..utils.files import STAGING, sync
from ..utils.hashing import file_sha256

MANIFEST, STATE = "manifest.json", "state.json"
CORRUPT = ".corrupt"  # ending of a checkpoint that failed its hashes and was passed over

Tensors = Mapping[str, Mapping[str, torch.Tensor]]  # by file (model, optimizer, …), then by name


def checkpoint_steps(folder: Path) -> list[tuple[int, Path]]:
    """The visible checkpoints in `folder`, as (step, path), oldest first."""
    return sorted((int(path.name[5:]), path) for path in folder.glob("step-*") if re.fullmatch(r"\d+", path.name[5:]))


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    keep: int | None = None,
    keep_every: int | None = None,
) -> Path:
    """Publish `folder`/step-…, then remove old checkpoints.

    Args:
        folder: of all checkpoints of a run.
        step: of this one.
        tensors: by file, then by name.
        state: all else, of what JSON can hold.
        keep: how many of the newest checkpoints stay; all where None.
        keep_every: checkpoints at multiples of this step are milestones and always stay.

    Raises:
        OSError: where it cannot be written, as on a full disk; the older checkpoints are untouched.
    """
    target = folder / f"step-{step:08d}"
    staging = folder / f"{STAGING}{target.name}"
    sweep(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _check_space(folder, sum(value.nbytes for part in tensors.values() for value in part.values()))
        staging.mkdir()
        for part, values in tensors.items():
            _save_tensors(values, staging / f"{part}.safetensors")
        (staging / STATE).write_text(json.dumps(state, indent=2))
        written = sorted(staging.iterdir())
        with ThreadPoolExecutor() as pool:
            files = dict(zip((file.name for file in written), pool.map(_hash_and_sync, written), strict=True))
        (staging / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=2))
        for path in (staging / MANIFEST, staging):
            sync(path)
        if target.exists():  # one that failed its hashes, or the same step of a run that went on from an older one
            _discard(target)
        staging.rename(target)
        sync(folder)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if keep is not None:
        passing = [path for at, path in checkpoint_steps(folder) if keep_every is None or at % keep_every]
        for path in passing[:-keep]:
            if path != target:
                _discard(path)
    return target


def sweep(folder: Path) -> None:
    """Remove what saves that were killed have left behind."""
    for leftover in folder.glob(f"{STAGING}*"):
        shutil.rmtree(leftover)


def newest_good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; None where there is no checkpoint.

    Newer ones that are not are warned about and renamed to step-….corrupt, so that they are kept but never counted.

    Raises:
        ValueError: where there are checkpoints but none is good, naming the broken file of each.
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
        warnings.warn(f"{reason}; falling back to {good}", stacklevel=2)
        if (aside := path.with_name(path.name + CORRUPT)).exists():
            shutil.rmtree(aside)
        path.rename(aside)
    return good


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest.

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
                raise ValueError(f"checkpoint {path}: {name} is not as it was written, its SHA-256 differs")


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read a verified checkpoint onto the CPU: its tensors by file and name, and the rest of its state.

    Raises:
        ValueError: naming a file that cannot be read.
    """
    tensors = {}
    for name in _manifest(path):
        try:
            if name == STATE:
                state = json.loads((path / name).read_text())
            else:
                tensors[name.removesuffix(".safetensors")] = load_file(path / name)
        except (OSError, SafetensorError, ValueError) as error:
            raise ValueError(f"checkpoint {path}: {name} cannot be read: {error}") from error
    return tensors, state


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        well_formed = STATE in files and all(
            re.fullmatch(r"[\w.-]+\.(safetensors|json)", name) and {"bytes", "sha256"} <= entry.keys()
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {path}: {MANIFEST} is missing or cannot be read: {error}") from error
    if not well_formed:
        raise ValueError(f"checkpoint {path}: {MANIFEST} does not list what a checkpoint holds")
    return files


def _hash_and_sync(file: Path) -> dict[str, Any]:
    entry = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    sync(file)
    return entry


def _save_tensors(values: Mapping[str, torch.Tensor], file: Path) -> None:
    try:
        save_file({name: value.contiguous() for name, value in values.items()}, file)
    except SafetensorError as error:  # its form of an I/O error
        raise OSError(f"{file.name} cannot be written: {error}") from error


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"the disk is full: {folder} has {free / 1e9:.2f} GB left, a checkpoint takes {needed / 1e9:.2f} GB"
        )


def _discard(path: Path) -> None:
    """Remove a visible checkpoint: first from sight, so that a kill leaves no half of one."""
    hidden = path.with_name(f"{STAGING}old-{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)
