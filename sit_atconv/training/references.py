"""What the options of a run refer to: data, folders, packages, names on the Hub. Nothing imported here takes long."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models.presets import replaced_blocks
from ..models.timm_names import check_timm_name
from ..utils.bounded_text import read_json_object
from ..utils.source_names import check_folder_or_name, check_source
from .config import TRACKERS, CommonConfig, TrainConfig
from .model_arguments import check_model
from .teacher_options import automatic_blocks


def check_references(config: CommonConfig) -> None:
    """Check what a configuration refers to, as far as that is seen without opening it.

    Raises:
        ValueError: if data or a folder does not exist, `init_from` or `teacher` was trained with another path or
            prediction, timm has no model of this name, or by `check_changes` or `check_services`.
    """
    for name in ("data", "validation"):
        if (source := getattr(config, name, None)) is not None:
            check_source(name, source)
    if isinstance(config, TrainConfig):
        for name in ("init_from", "teacher"):
            if (folder := getattr(config, name)) is not None:
                check_objective(folder, config.path, config.prediction, name, config.noise_scale)
        if config.init_from is not None:
            check_changes(config.init_from, config.mixer, config.model)
        if config.lora_rank is not None and importlib.util.find_spec("peft") is None:
            raise ValueError(f"lora_rank={config.lora_rank} needs peft: pip install 'sit-atconv[lora]'")
        if config.vae is not None:
            check_folder_or_name("vae", config.vae)
    for name in ("model", "repa"):  # the model of a classifier; that of SiT is a dictionary of arguments
        if isinstance(model := getattr(config, name, None), str):
            check_timm_name(name, model, model)
    check_services(config)


def check_objective(
    folder: str, path: str, prediction: str, field: str = "init_from", noise_scale: float = 1.0
) -> None:
    """Check that a folder is a pipeline folder and that its model was trained with this path, prediction and noise.

    Raises:
        ValueError: if the folder in the option `field` holds no transformer, or its scheduler names another path or
            prediction, or noise of another scale.
    """
    if not (Path(folder) / "transformer" / "config.json").is_file():
        raise ValueError(f"{field}={folder!r} is not a pipeline folder: it has no transformer/config.json")
    scheduler = Path(folder) / "scheduler" / "scheduler_config.json"
    trained = read_json_object(scheduler) if scheduler.is_file() else {}
    found = trained | {"noise_scale": trained.get("noise_scale", 1.0)}  # earlier folders do not name it
    for name, value in (("path", path), ("prediction", prediction), ("noise_scale", noise_scale)):
        if found.get(name, value) != value:
            raise ValueError(
                f"{name}={value}: the model in {field}={folder!r} was trained with {found[name]}; "
                f"give --{name} {found[name]}"
            )


def check_changes(folder: str, mixer: str | list[str] | None, arguments: Mapping[str, Any]) -> None:
    """Check what a run changes in the model of the pipeline folder `init_from`.

    Args:
        folder: the pipeline folder.
        mixer: the mixers that replace its self-attention; None if they stay.
        arguments: other arguments of the model.

    Raises:
        ValueError: if it has no self-attention, has these mixers already, or has not as many blocks; or for arguments
            that no model can have.
    """
    config = read_json_object(Path(folder) / "transformer" / "config.json")
    try:
        if mixer is not None:
            number = automatic_blocks(mixer)
            mixer = mixer if number is None else "atconv"
            replaced = replaced_blocks(config, mixer)
            if number is not None and number > len(replaced):
                raise ValueError(
                    f"mixer='auto:{number}': the trained model has self-attention in {len(replaced)} blocks; name at "
                    "most as many"
                )
        if arguments:
            check_model(arguments, config, config["mixer"] if mixer is None else mixer)
    except ValueError as error:
        is_option = str(error).startswith("model")
        raise error if is_option else ValueError(f"init_from={folder!r}, {error}") from error


def pipeline_vae(folder: str) -> str | None:
    """The folder itself if it holds a VAE, as `load_vae` takes it; None if the pipeline works on pixels."""
    return folder if (Path(folder) / "vae" / "config.json").is_file() else None


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
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(config.push_to_hub)
        except HFValidationError as error:
            raise ValueError(f"push_to_hub={config.push_to_hub!r} is no name on the Hub: {error}") from error


def check_run_folder(field: str, folder: str | Path) -> None:
    """Raise ValueError unless a folder is that of a run: it has a config.yaml."""
    if not (Path(folder) / "config.yaml").is_file():
        raise ValueError(f"{field}={str(folder)!r} is not a run folder of a script in train/: it has no config.yaml")
