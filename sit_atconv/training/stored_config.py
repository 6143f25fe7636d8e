"""Configurations and the disk: the options that a run has saved; options checked against files and packages."""

import dataclasses
import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..utils.bounded_text import read_yaml
from .checkpoints import checkpoint_steps, read_state
from .config import TRACKERS, CommonConfig, TrainConfig
from .fine_tuning import check_graft, check_objective, pipeline_vae

CONFIG = "config.yaml"


def resolve_config(config: TrainConfig) -> TrainConfig:
    """Check a configuration against the disk and the installed packages, and return it with the VAE filled in.

    Fine-tuning takes over the VAE of the pipeline folder in `init_from`, unless another one is given.

    Raises:
        ValueError: if `init_from` or `teacher` is not a pipeline folder or was trained with another path or prediction,
            by `check_graft`, or by `check_services`.
    """
    if config.init_from is not None:
        check_objective(config.init_from, config.path, config.prediction)
        if config.mixer is not None:
            check_graft(config.init_from, config.mixer)
        if config.vae is None:
            config = dataclasses.replace(config, vae=pipeline_vae(config.init_from))
    if config.teacher is not None:
        check_objective(config.teacher, config.path, config.prediction, "teacher")
    check_services(config)
    return config


def check_services(config: CommonConfig) -> None:
    """Check what a run uses at its side, or after hours of training.

    Raises:
        ValueError: if the package of `log_with` is not installed, or `push_to_hub` is no name of the Hub.
    """
    if config.log_with in TRACKERS and importlib.util.find_spec(config.log_with) is None:
        raise ValueError(
            f"log_with={config.log_with} needs a package that is not installed: pip install {config.log_with}"
        )
    if config.push_to_hub is not None:
        try:
            validate_repo_id(config.push_to_hub)
        except HFValidationError as error:
            raise ValueError(f"push_to_hub={config.push_to_hub!r} is no name on the Hub: {error}") from error


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
