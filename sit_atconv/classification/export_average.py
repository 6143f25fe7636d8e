"""Export a folder with any of the averaged weights of a run: a pipeline of SiT, or a classifier."""

import dataclasses
from pathlib import Path

from ..training.export import Averaged, export_pipeline, read_average
from ..training.stored_config import load_options
from ..utils.text import shell_word
from .config import ClassifierConfig
from .export import save_classifier, with_weights
from .models import build_classifier


def export_average(
    run: Path, out: Path, average: str | None = None, std: float | None = None, step: int | None = None
) -> str:
    """Write a folder with averaged weights of a run, and return in words what is in it and what to do with it.

    Args:
        run: the run folder, of SiT or of a classifier.
        out: the folder to write.
        average, std, step: see `read_average`.

    Raises:
        ValueError: naming what the run does not hold.
    """
    averaged = read_average(run, average, std, step)
    name = shell_word(str(out))
    if "classifier" in averaged.state:
        config = export_classifier(run, averaged, out)
        data = shell_word(config.validation or config.data)
        held_out = "" if config.validation else f" --held_out {config.held_out:g}"
        usage = f"evaluate it with: python eval/classify.py {name} --data {data}{held_out}"
    else:
        export_pipeline(run, averaged, out)
        usage = f"sample it with: sit-atconv sample {name}"
    return f"{averaged.description}, in {out}; {usage}"


def export_classifier(run: Path, averaged: Averaged, out: Path) -> ClassifierConfig:
    """Write a folder of timm with averaged weights of a run, and return the configuration of the run.

    Raises:
        ValueError: if they are not those of the model that the checkpoint names.
        OSError: if it cannot be written.
    """
    weights, checkpoint, state, _ = averaged
    config = ClassifierConfig(**load_options(run, ClassifierConfig))
    fresh = dataclasses.replace(config, init_from=None)
    try:
        channels = state["data"]["channels"]
        model = with_weights(build_classifier(fresh, channels, len(state["classes"])), weights)
    except (KeyError, RuntimeError) as error:  # no channels, or tensors of another model
        raise ValueError(f"{checkpoint} does not hold the weights of the model that it names: {error}") from error
    save_classifier(model, config, channels, state["classes"], out, scores=None)
    return config
