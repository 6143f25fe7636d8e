"""The run folder: whether a run may start or continue in it, its lock, and the records of how it was started."""

import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..data import BROKEN_IMAGES_FILE, ImageDataset
from ..models.latent_scaling import latent_statistics
from ..models.vae import VAE
from ..utils.environment import device_name, git_commit, package_versions
from ..utils.files import (
    LOCK,
    append_line,
    check_no_links,
    check_writable_folder,
    folder_lock,
    remove_staged,
    write_atomically,
)
from ..utils.hashing import tensors_sha256
from .checkpoints import read_state, rotate, sweep
from .config import CommonConfig
from .continuation import continues_run
from .stored_config import CONFIG

SOURCES = ("data", "validation", "vae")  # options that name data, of those that a run has

# What a run writes in its folder, and what trackers write there.
WRITTEN = (
    LOCK,
    CONFIG,
    "starts.jsonl",
    "metrics.jsonl",
    BROKEN_IMAGES_FILE,
    "loss.png",
    "tracker_id.txt",
    "samples",
    "checkpoints",
    "ema",
    "pipeline",
    "model",
    "evaluation.jsonl",
    "graft.json",
    "graft.png",
    "tensorboard",
    "wandb",
)


def prepare_run_folder(config: CommonConfig) -> bool:
    """Check that the output folder is free or holds the run to continue; return whether it is continued.

    Raises:
        ValueError: if nothing can be written there, or as `continues_run`.
    """
    check_writable_folder("output_dir", config.run_folder)
    check_no_links(config.run_folder, WRITTEN)
    return continues_run(config)


def take_run_folder(run: Path, lock: ExitStack) -> None:
    """Create the run folder if it is missing, and lock it.

    Args:
        run: the run folder.
        lock: the lock is held until this is closed.

    Raises:
        ValueError: if another process is writing to the folder.
    """
    run.mkdir(parents=True, exist_ok=True)
    lock.enter_context(folder_lock(run))


def describe_data(dataset: ImageDataset, vae: VAE | None) -> dict[str, Any]:
    """Describe the content of a data set and its VAE, independently of where they are stored, as JSON values.

    This may read every file of the data set, so it is called once per run.
    """
    return {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "fingerprint": dataset.fingerprint(),
        "vae_sha256": None if vae is None else tensors_sha256(vae.state_dict()),
        "vae_statistics": None if vae is None else latent_statistics(vae),
    }


def check_continues(config: CommonConfig, data: dict[str, Any], checkpoint: Path) -> None:
    """Check that a verified checkpoint belongs to this data and that its step is not beyond `max_steps`.

    Args:
        config: the configuration of the run.
        data: the description of the data by `describe_data`.
        checkpoint: the checkpoint to continue from.

    Raises:
        ValueError: naming what differs.
    """
    state = read_state(checkpoint)
    saved = state["data"]
    if "vae_statistics" not in saved and (statistics := data.get("vae_statistics")) is not None:
        # Earlier versions did not record them, and knew none of single channels.
        saved = saved | {"vae_statistics": statistics | {"latents_mean": None, "latents_std": None}}
    if changed := [f"{key}: {saved.get(key)!r} -> {value!r}" for key, value in data.items() if saved.get(key) != value]:
        sources = ", ".join(f"{name}={getattr(config, name)!r}" for name in SOURCES if hasattr(config, name))
        raise ValueError(f"{sources}: {checkpoint} was trained on other data: {'; '.join(changed)}")
    if state["step"] > config.max_steps:  # at max_steps, only the pipeline is left to write
        raise ValueError(
            f"resume={config.resume}: the run in {config.output_dir} has done {state['step']} steps; raise --max_steps"
        )


def record_start(config: CommonConfig, accelerator: Accelerator, step: int) -> None:
    """Record that the run starts or continues: its options in config.yaml, and a line in starts.jsonl.

    What a kill has left behind is removed.

    Args:
        config: the resolved configuration.
        accelerator: the processes of the run.
        step: step from which the run continues; 0 for a new run.
    """
    run = config.run_folder
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    write_atomically(run / CONFIG, text)
    for folder in (run / "checkpoints", run / "ema"):
        sweep(folder)
    for folder in (run, run / "samples"):
        if folder.exists():
            remove_staged(folder)
    rotate(run / "checkpoints", config.keep_checkpoints, config.keep_every)
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "from_step": step,
        "command": shlex.join(sys.argv),
        "processes": accelerator.num_processes,
        "device": device_name(accelerator.device),
        "mixed_precision": accelerator.mixed_precision,
        "host": platform.node(),
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "versions": package_versions(),
        "commit": git_commit(),
    }
    append_line(run / "starts.jsonl", json.dumps(start))
