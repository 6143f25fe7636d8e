"""Any of the averaged weights of a run, while it trains or afterwards, and a pipeline folder with them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import load_vae
from ..pipelines.pipeline_sit import SiTPipeline
from .build import build_pipeline
from .checkpoints import checkpoint_steps, read_state, verify_checkpoint
from .ema_profiles import profile_weights
from .finish import save_pipeline
from .posthoc_ema import reconstruct
from .state import AVERAGE_PREFIX, AVERAGES
from .stored_config import load_config


def average_names(run: Path, checkpoint: Path) -> list[str]:
    """The names of the averages in a checkpoint, such as decay-0.999. The first one is the pipeline's."""
    state = read_state(checkpoint)
    if AVERAGES not in state:  # a checkpoint of an earlier version; config.yaml has the same order
        config = load_config(run)
        return list(profile_weights(config.ema_decays, config.ema_stds))
    return state[AVERAGES]


def average_file(run: Path, checkpoint: Path, average: str | None = None) -> Path:
    """The file of a checkpoint that holds one of the averages.

    Args:
        run: the run folder.
        checkpoint: one of its checkpoints.
        average: name of the average; the first one if None.

    Raises:
        ValueError: if the checkpoint does not hold it.
    """
    names = average_names(run, checkpoint)
    average = names[0] if average is None else average
    file = checkpoint / f"{AVERAGE_PREFIX}{average}.safetensors"
    if average not in names or not file.is_file():
        raise ValueError(f"average={average!r}: {checkpoint} tracks {', '.join(sorted(names))}")
    return file


class Averaged(NamedTuple):
    """Averaged weights of a run."""

    weights: dict[str, torch.Tensor]
    checkpoint: Path  # the one that says what the model is
    state: dict[str, Any]  # of that checkpoint
    description: str  # what the weights are, in words


def read_average(run: Path, average: str | None = None, std: float | None = None, step: int | None = None) -> Averaged:
    """Read or reconstruct averaged weights of a run of any task.

    Args:
        run: the run folder.
        average: name of an average that the run tracks. If neither this nor `std` is given, the first average is used.
        std: relative standard deviation of a power-function average, reconstructed from the run's snapshots.
        step: step of the checkpoint (or of the last snapshot) to use; the newest one if None.

    Raises:
        ValueError: naming what the run does not hold.
    """
    checkpoints = dict(checkpoint_steps(run / "checkpoints"))
    if not checkpoints:
        raise ValueError(f"{run} holds no checkpoints")
    if average is not None and std is not None:
        raise ValueError(f"average={average!r} and std={std} are two different things; give one")
    if std is None and step is not None and step not in checkpoints:
        raise ValueError(f"step={step}: {run} holds the checkpoints {sorted(checkpoints)}")
    checkpoint = checkpoints[max(checkpoints) if std is not None or step is None else step]
    verify_checkpoint(checkpoint)
    weights: dict[str, torch.Tensor]
    if std is not None:
        weights = reconstruct(run / "ema", std, step)
    else:
        weights = load_file(average_file(run, checkpoint, average))
    state = read_state(checkpoint)
    description = f"{average or 'the first average'} at step {state['step']} of {run}"
    if std is not None:
        last = state["step"] if step is None else step
        description = f"the power-function average of length {std:g} at step {last} of {run}"
    return Averaged(weights, checkpoint, state, description)


def average_pipeline(run: Path, averaged: Averaged) -> SiTPipeline:
    """Build a pipeline with averaged weights of a run of train/train_sit.py.

    Raises:
        ValueError: if they are not those of the model that the checkpoint names.
    """
    weights, checkpoint, state, _ = averaged
    if "adapter" in state:
        raise ValueError(
            f"{run} trains an adapter, which is no pipeline; its first average is in {run / state['adapter']} once the "
            "run is finished, for pipe.load_lora_weights"
        )
    if "transformer" not in state:
        raise ValueError(f"{checkpoint} is no checkpoint of train/train_sit.py: its state names no transformer")
    try:
        transformer = SiTTransformer2DModel(**state["transformer"])
        transformer.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:  # unknown arguments, or tensors of another model
        raise ValueError(f"{checkpoint} does not hold the weights of the model that it names: {error}") from error
    config = load_config(run)
    vae = None if config.vae is None else load_vae(config.vae)
    return build_pipeline(config, transformer, vae, state["classes"])


def export_pipeline(run: Path, averaged: Averaged, out: Path) -> None:
    """Write a pipeline folder with averaged weights of a run of train/train_sit.py.

    Raises:
        ValueError: if they are not those of the model that the checkpoint names.
        OSError: if it cannot be written.
    """
    save_pipeline(average_pipeline(run, averaged), out, lineage=averaged.state.get("lineage"))
