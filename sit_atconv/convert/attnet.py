"""Checkpoints of AttNet's reference implementation to folders that timm loads, and back.

sit-atconv convert CHECKPOINT FOLDER        # then timm.create_model("local-dir:FOLDER", pretrained=True)
sit-atconv convert FOLDER OUTPUT.pth
"""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from ..models.attnet_blocks import ACTIVATIONS, GLU_NORM_RULES
from ..models.attnet_names import architecture, describe, read_arguments, to_ours, to_reference
from ..models.attnet_variants import VARIANTS
from ..utils.bounded_text import load_json
from ..utils.checks import check_choice
from ..utils.files import check_new_file, staged
from ..utils.torch_files import writing
from .folder import new_folder
from .untrusted import read_checkpoint

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # timm's names


def is_attnet_folder(folder: str | Path) -> bool:
    """Whether a folder holds an AttNet as timm stores models."""
    config = Path(folder) / CONFIG_FILE
    return config.is_file() and _read_config(config).get("architecture") in VARIANTS


def _read_config(file: Path) -> dict[str, Any]:
    config = load_json(file.read_text(encoding="utf-8", errors="replace"), file)
    return config if isinstance(config, dict) else {}


def convert_attnet(
    checkpoint: str | Path,
    output: str | Path,
    weights: str | None = None,
    act_layer: str = "GELU",
    glu_norm_rule: str = "rms",
    license: str | None = None,
) -> dict[str, str]:
    """Convert a checkpoint of AttNet to a folder that timm loads.

    Sizes, classes, channels, biases, layer scale, RMSNorm and depthwise convolutions are read from the tensors.

    Args:
        checkpoint: the file; see `read_checkpoint`. Its tensors have the reference's names or ours.
        output: the folder to create; it must not exist, or be empty.
        weights: "ema" or "model"; if None, the EMA takes precedence.
        act_layer: "GELU", as in all published sizes, or "SiLU"; tensors do not show it.
        glu_norm_rule: "rms"; or "variance" for weights that were trained with timm 1.0.10 to 1.0.12. See `GluNorm`.
        license: license of the weights, an identifier of the Hub such as "mit".

    Returns:
        What was found out about the model: a text for each property, by the property's name.

    Raises:
        ValueError: naming what cannot be read, inferred or written; `output` is left untouched.
    """
    check_choice("act_layer", act_layer, ACTIVATIONS)
    check_choice("glu_norm_rule", glu_norm_rule, GLU_NORM_RULES)
    with new_folder("output", output) as folder:
        state_dict, _, which = read_checkpoint(checkpoint, weights)
        converted = {name: tensor.contiguous() for name, tensor in to_ours(state_dict).items()}
        arguments = read_arguments(converted) | dict(act_layer=act_layer)
        if glu_norm_rule != "rms":
            arguments["glu_norm_rule"] = glu_norm_rule
        with writing(output):
            _save(folder, converted, arguments, license)
    norms = "no" if not any(arguments["glu_norm"]) else f"{arguments['glu_norm']}, rule {glu_norm_rule}"
    return {
        "model": describe(arguments),
        "weights": {"ema": "EMA", "model": "raw", "only": "those in the file"}[which],
        "classes": str(arguments["num_classes"]),
        "channels": str(arguments["in_chans"]),
        "RMSNorm": norms,
        "layer scale": "yes" if arguments["use_layer_scale"] else "no",
        "dwconv": str(arguments["glu_dconv"]),
    }


def _save(folder: Path, weights: dict[str, torch.Tensor], arguments: dict[str, Any], license: str | None) -> None:
    """Write timm's configuration, and the weights in the types that they have.

    Raises:
        ValueError: if the tensors do not fit the model; the message lists them.
    """
    name, model_args = architecture(arguments)
    with torch.device("meta"):  # no weights are drawn in vain
        model = timm.create_model(name, **model_args)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if wrong := [
        f"{key} {found.get(key, 'missing')}, not {expected.get(key, 'a parameter of this model')}"
        for key in sorted(expected.keys() | found.keys())
        if found.get(key) != expected.get(key)
    ]:
        raise ValueError(f"tensors that do not fit {describe(arguments)}: {'; '.join(wrong[:10])}")
    model.load_state_dict(weights, assign=True)
    config = {"tag": "converted", **({"license": license} if license else {})}
    save_for_hf(
        model, str(folder), model_config={"pretrained_cfg": config}, model_args=model_args, safe_serialization=True
    )


def export_attnet(folder: str | Path, output: str | Path) -> dict[str, torch.Tensor]:
    """Convert a folder of timm with an AttNet to a state dict of the reference, bit-identical to what it came from.

    Args:
        folder: a folder that `convert_attnet` or timm's `save_for_hf` wrote, with safetensors.
        output: a new .pth or .pt file, which holds {"model": state dict}, or a new .safetensors file.

    Returns:
        The state dict.

    Raises:
        ValueError: if the ending is unknown, the file exists, or the folder holds no AttNet.
    """
    folder, output = Path(folder), Path(output)
    check_choice("the ending of output", output.suffix, (".pth", ".pt", ".safetensors"))
    check_new_file("output", output)
    file = folder / WEIGHTS_FILE
    try:
        stored = load_file(file)
    except Exception as error:  # reading a damaged file may raise anything
        raise ValueError(f"{file} is missing or damaged: {error}") from error
    restored = {name: tensor.contiguous() for name, tensor in to_reference(to_ours(stored)).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with writing(output), staged(output, replace=False) as staging:  # a full disk leaves no half-written file
        if output.suffix == ".safetensors":
            save_file(restored, staging)
        else:
            torch.save({"model": restored}, staging)
    return restored
