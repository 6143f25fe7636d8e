"""Networks of timm that look at images: names, weights and the normalization of their input.

They give the features of evaluations and the targets of representation alignment.
"""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file

from ..utils.files import check_regular
from ..utils.torch_files import read_torch_file
from .timm_names import unknown_model


def check_timm_model(field: str, value: str, model_name: str) -> None:
    """Check that timm knows a model and, if the name has one, its pretrained tag.

    Args:
        field: name of the option, for the message.
        value: the option as given, for the message.
        model_name: "ARCHITECTURE" or "ARCHITECTURE.TAG".

    Raises:
        ValueError: if timm does not know it.
    """
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        raise unknown_model(field, value, architecture, timm.list_models())
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"{field}={value!r}: {architecture} has no tag {tag!r}; it has: {', '.join(tags) or 'none'}")


def normalization(model: torch.nn.Module, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and standard deviation, (C, 1, 1) each, by which a timm model wants its input in [0, 1] normalized."""
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key], device=device).view(-1, 1, 1) for key in ("mean", "std"))
    return mean, std


def fetch_timm_model(model_name: str) -> Any:
    """Create a timm model with the weights that timm offers for it, from the Hugging Face Hub or its cache.

    Raises:
        ValueError: if the weights cannot be fetched.
    """
    config = timm.get_pretrained_cfg(model_name)
    if config is None or not config.has_weights:
        raise ValueError(
            f"timm has no weights for {model_name}; timm.list_pretrained() lists the models that have some"
        )
    try:
        return timm.create_model(model_name, pretrained=True)
    except OSError as error:
        hub_id = config.hf_hub_id
        raise ValueError(
            f"the weights of {model_name} cannot be fetched: {str(error).splitlines()[0]} Get model.safetensors "
            f"from https://huggingface.co/{hub_id} and name it with --weights"
        ) from error


def read_timm_weights(weights: str) -> Any:
    """Return what a safetensors file, or a file of `torch.save`, holds. Nothing in it runs.

    Raises:
        ValueError: if the file cannot be read, or was crafted to take memory.
    """
    try:
        check_regular(weights)
        is_safetensors = Path(weights).suffix == ".safetensors"
        return load_file(weights) if is_safetensors else read_torch_file(Path(weights))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"weights={weights!r} cannot be read as safetensors or as a state dict: {reason}") from error


def load_timm_model(model_name: str, weights: str) -> Any:
    """Create a timm model with the weights of a file, which must hold all of the model's tensors and no others.

    Args:
        model_name: name of the model.
        weights: a safetensors file, or a state dict that was saved by `torch.save`.

    Raises:
        ValueError: if the file cannot be read, is not a state dict, or does not fit the model.
    """
    state_dict = read_timm_weights(weights)
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise ValueError(f"weights={weights!r} is not a state dict: it must map names to tensors, nothing else")
    # The classifier is not needed, but a strict load needs the size that it has in the file. Some files have none.
    heads = timm.get_pretrained_cfg(model_name).classifier or ()
    heads = [heads] if isinstance(heads, str) else heads
    sizes = [len(state_dict[f"{head}.weight"]) for head in heads if f"{head}.weight" in state_dict]
    model = timm.create_model(model_name, pretrained=False, num_classes=sizes[0] if sizes else 0)
    try:
        model.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        faults = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ValueError(f"weights={weights!r} do not fit {model_name}: {faults[:500]}") from error
    return model
