"""Configurations and the disk: the options that a run has saved; options checked against files and packages."""

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..utils.bounded_text import read_yaml
from .checkpoints import checkpoint_steps, read_state
from .config import CommonConfig, TrainConfig
from .references import check_references, pipeline_vae

CONFIG = "config.yaml"


def resolve_config(config: TrainConfig) -> TrainConfig:
    """Check a configuration against the disk and the installed packages, and return it with the VAE filled in.

    Fine-tuning takes over the VAE of the pipeline folder in `init_from`, unless another one is given.

    Raises:
        ValueError: by `check_references`.
    """
    check_references(config)
    if config.init_from is not None and config.vae is None:
        config = dataclasses.replace(config, vae=pipeline_vae(config.init_from))
    return config


def load_options(run: Path, kind: type[CommonConfig] = TrainConfig) -> dict[str, Any]:
    """Return the options that a run has saved.

    They are those of the newest checkpoint, which is protected by hashes. config.yaml shows them to people, and is
    read if there is no checkpoint, or only checkpoints of earlier versions, which do not contain the options.

    Args:
        run: the run folder.
        kind: the class of the options.

    Raises:
        FileNotFoundError: if the folder holds no config.yaml.
        ValueError: if it is damaged, or holds options of another kind of run.
    """
    for _, checkpoint in reversed(checkpoint_steps(run / "checkpoints")):
        options = None
        with suppress(ValueError):  # a damaged checkpoint, which is reported when the run is continued
            options = read_state(checkpoint).get("config")
        if isinstance(options, dict) and options:
            return _known_options(options, checkpoint, kind)
    options = read_yaml(run / CONFIG)
    if not isinstance(options, dict):
        raise ValueError(f"{run / CONFIG} is damaged, or no configuration of a run; restore it, or remove the folder")
    return _known_options(options, run / CONFIG, kind)


def _known_options(options: dict[str, Any], source: Path, kind: type[CommonConfig]) -> dict[str, Any]:
    known = {each.name for each in dataclasses.fields(kind)}
    if unknown := sorted(map(str, options.keys() - known)):
        raise ValueError(
            f"{source} has options that do not exist: {', '.join(unknown)}; it is damaged, or of a newer version of "
            "sit_atconv, which you can install, or of another training script"
        )
    return options


def load_config(run: Path) -> TrainConfig:
    """Open the configuration that a run has saved. Options that did not exist yet take their defaults.

    Raises:
        FileNotFoundError: if the folder holds no config.yaml.
        ValueError: if it is damaged.
    """
    return TrainConfig(**load_options(run))
