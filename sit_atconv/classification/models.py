"""Classifiers: models of timm by name, AttNet among them, with fresh weights or those of a folder."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..models import attnet_variants  # noqa: F401  registers AttNet with timm
from ..models.timm_encoders import check_timm_model
from ..utils.bounded_text import read_json_object
from ..utils.text import one_line
from .config import ClassifierConfig

WEIGHTS, CONFIG_FILE = "model.safetensors", "config.json"  # timm's names


def build_classifier(config: ClassifierConfig, channels: int, num_classes: int) -> nn.Module:
    """Create the model of a run, freshly initialized from `seed` or with the weights in `init_from`.

    Args:
        config: the configuration of the run.
        channels: channels of the images.
        num_classes: number of classes.

    Raises:
        ValueError: naming the model, the argument or the weights that cannot be used.
    """
    assert config.model is not None  # ClassifierConfig fills it in
    check_timm_model("model", config.model, config.model)
    if fixed := sorted({"num_classes", "in_chans", "pretrained", "img_size"} & config.model_args.keys()):
        raise ValueError(f"model_args: {', '.join(fixed)} follow from the other options; leave them out")
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels, **config.model_args}
    if config.drop_path is not None:
        arguments["drop_path_rate"] = config.drop_path
    if getattr(timm.get_pretrained_cfg(config.model), "fixed_input_size", False):
        arguments["img_size"] = config.image_size
    if config.init_from is not None:
        arguments |= dict(pretrained=True, pretrained_cfg_overlay=stored_weights(config.init_from))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            return timm.create_model(config.model, **arguments)
        except (TypeError, AttributeError) as error:  # an argument that the model does not have
            reason = one_line(str(error)).rpartition("__init__() ")[2]
            raise ValueError(f"model={config.model!r} with model_args={config.model_args}: {reason}") from error
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"model={config.model!r} with model_args={config.model_args}, init_from={config.init_from!r} cannot be "
                f"created: {one_line(str(error))}"
            ) from error


def weights_file(source: str) -> Path:
    """The safetensors file of a folder of timm, or the file itself.

    Raises:
        ValueError: if there is none.
    """
    file = Path(source) / WEIGHTS if Path(source).is_dir() else Path(source)
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(
            f"init_from={source!r} is neither a folder with {WEIGHTS} nor a .safetensors file; make one of a "
            "checkpoint with: sit-atconv convert CHECKPOINT FOLDER"
        )
    return file


def stored_weights(source: str) -> dict[str, Any]:
    """Where weights are, and what timm must know to fit them to other channels and classes: entries of its config.

    Raises:
        ValueError: if there are none.
    """
    entries: dict[str, Any] = {"file": str(weights_file(source))}
    config = Path(source) / CONFIG_FILE
    if config.is_file():
        stored = read_json_object(config)
        entries["num_classes"] = stored.get("num_classes")
        entries["input_size"] = (stored.get("pretrained_cfg") or {}).get("input_size")
    return {name: value for name, value in entries.items() if value is not None}


def image_statistics(model: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which pixels in [0, 1] are normalized, for RGB pictures.

    They are those of timm for models of colour images, and 0.5 for others.
    """
    if channels != 3:
        return (0.5,) * 3, (0.5,) * 3
    config = resolve_model_data_config(model)
    return tuple(config["mean"]), tuple(config["std"])


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply–accumulate operations of the matrix products and convolutions for one image of this shape (C, H, W)."""
    was_training = model.training
    counter = FlopCounterMode(display=False)
    device = next(model.parameters()).device
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape, device=device))
    model.train(was_training)
    return counter.get_total_flops() // 2


def number_of_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
