"""Checkpoints of a training run: tensors as safetensors, everything else as JSON; nothing in them can run code.

A checkpoint is written into a staging folder and renamed when complete, so that a visible one is a whole one.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

STAGING = ".staging-"


def checkpoint_steps(folder: Path) -> list[tuple[int, Path]]:
    """The complete checkpoints in `folder`, as (step, path), oldest first."""
    return sorted((int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*"))


def save_checkpoint(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    keep: int,
) -> Path:
    """Publish `folder`/step-…, then remove all but the newest `keep` checkpoints."""
    target = folder / f"step-{step:08d}"
    staging = folder / f"{STAGING}{target.name}"
    for leftover in folder.glob(f"{STAGING}*"):  # of saves that were killed
        shutil.rmtree(leftover)
    staging.mkdir(parents=True)
    names = [name for name, _ in model.named_parameters()]
    optimizer_state = optimizer.state_dict()["state"]
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, staging / "model.safetensors")
    save_file(dict(zip(names, ema.shadow_params, strict=True)), staging / "ema.safetensors")
    save_file(
        {f"{names[i]}|{key}": value for i, state in optimizer_state.items() for key, value in state.items()},
        staging / "optimizer.safetensors",
    )
    state = {"step": step, "ema_step": ema.optimization_step, "scaler": scaler.state_dict() if scaler else None}
    (staging / "state.json").write_text(json.dumps(state, indent=2))
    for file in staging.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    for _, old in checkpoint_steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load_checkpoint(
    path: Path,
    model: torch.nn.Module,
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
) -> int:
    """Restore everything from a checkpoint and return its step.

    Raises:
        ValueError: naming a file that is missing or cannot be read; nothing has been changed by then.
    """
    tensors = {}
    try:
        for part in ("model", "ema", "optimizer"):
            tensors[part] = load_file(path / f"{part}.safetensors")
        state = json.loads((path / "state.json").read_text())
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error

    names = [name for name, _ in model.named_parameters()]
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for part in ("model", "ema"):
        if {name: value.shape for name, value in tensors[part].items()} != shapes:
            raise ValueError(f"checkpoint {path}: {part}.safetensors holds another model")
    model.load_state_dict(tensors["model"])
    for shadow, name in zip(ema.shadow_params, names, strict=True):
        shadow.copy_(tensors["ema"][name])
    ema.optimization_step = state["ema_step"]
    optimizer_state = optimizer.state_dict()
    optimizer_state["state"] = {}
    for key, value in tensors["optimizer"].items():
        name, _, slot = key.rpartition("|")
        optimizer_state["state"].setdefault(names.index(name), {})[slot] = value
    optimizer.load_state_dict(optimizer_state)
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    return state["step"]
