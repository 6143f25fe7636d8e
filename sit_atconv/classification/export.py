"""The folder that a training of a classifier leaves: weights and configuration as timm stores them."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from timm.models import save_for_hf
from torch import nn

from ..sharing.hub import HUB_ERRORS, prepare_repository
from ..training.finish import replace_folder
from ..utils.imagenet import name_synsets
from ..utils.text import shell_word
from .config import ClassifierConfig
from .models import image_statistics


def save_classifier(
    model: nn.Module,
    config: ClassifierConfig,
    channels: int,
    classes: list[str],
    folder: Path,
    scores: dict[str, Any] | None,
) -> None:
    """Write a folder from which `timm.create_model("local-dir:FOLDER", pretrained=True)` makes the model.

    Its config.json also names the classes, and how images are cropped and normalized.

    Args:
        model: the model with the weights to save.
        config: the configuration of the run.
        channels: channels of the images.
        classes: names of the classes, in the order of the logits.
        folder: the folder to write or to replace.
        scores: what the last evaluation found, for config.json.

    Raises:
        OSError: if it cannot be written. What was there is left untouched.
    """
    mean, std = image_statistics(model, channels)
    size = config.image_size
    data_config = dict(
        input_size=(channels, size, size),
        interpolation="bicubic",
        crop_pct=config.crop_pct,
        mean=mean[:channels],
        std=std[:channels],
    )
    model_config = dict(
        pretrained_cfg={"tag": "trained"},
        label_names=list(classes),
        label_descriptions=dict(zip(classes, name_synsets(classes), strict=True)),
        **({"evaluation": scores} if scores else {}),
    )

    def write(staged: Path) -> None:
        save_for_hf(model, str(staged), model_config, safe_serialization=True, data_config=data_config)

    replace_folder(folder, write)


def with_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of a model on the CPU, with some of its tensors replaced."""
    copied = copy.deepcopy(model).cpu().eval()
    copied.load_state_dict(copied.state_dict() | weights)
    return copied


def upload_classifier(folder: Path, repo_id: str) -> str:
    """Upload an exported folder to the Hugging Face Hub; return the address of the upload.

    Raises:
        ValueError: if the Hub refuses or cannot be reached. The folder is complete.
    """
    try:
        repo_id = prepare_repository(repo_id)
        return str(
            HfApi().upload_folder(
                repo_id=repo_id, folder_path=os.fspath(folder), commit_message="Upload model", ignore_patterns=[".*"]
            )
        )
    except HUB_ERRORS as error:
        raise ValueError(
            f"push_to_hub={repo_id!r}: {error}. The folder is complete; upload it with: hf upload {repo_id} {folder}"
        ) from error


def print_next_steps(config: ClassifierConfig, folder: Path) -> None:
    """Print how the trained model is loaded and evaluated."""
    name = shell_word(str(folder))
    data = shell_word(config.validation or config.data)
    print(f"\nThe trained model (EMA weights) is in {name}. Load and evaluate it with:")
    print(f'  import sit_atconv, timm; timm.create_model("local-dir:{folder}", pretrained=True)')
    print(f"  python eval/classify.py {name} --data {data}")
