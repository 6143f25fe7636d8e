"""Infer a reference model from its tensors and, where they do not determine it, from the saved training options."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..flow.interpolants import PATHS, PREDICTIONS
from ..models.embeddings import sincos_position_embedding
from ..models.presets import MIXER_NAMES, PRESET_SIZES, mixer_per_block, preset_name
from ..utils.checks import check_choice, check_count
from .layouts import LAYOUTS, PATH_AND_PREDICTION, REFERENCE_PATHS, REFERENCE_PREDICTIONS, detect_layout
from .names import CLASS_EMBEDDING, LAST_LAYER, PATCH_EMBEDDING, POSITION_EMBEDDING, block_numbers, check_names
from .weights import last_layer_halves

StateDict = dict[str, torch.Tensor]

MAX_OPTION = 10**6  # numbers of classes, pixels or heads above this are mistakes
DEFAULT_CLASS_DROPOUT = 0.1  # of SiT, DiT and REPA
DEFAULT_SAMPLE_SIZE = 32  # latent pixels, of 256×256 images
REFERENCE_VAE_CHANNELS, REFERENCE_VAE_FACTOR = 4, 8
# How far a position embedding may be from the computed one: averages of weights include it, and round at every step.
EMBEDDING_TOLERANCE = 1e-3


@dataclass
class Reference:
    """What the tensors of a checkpoint, and the options saved with them, show of the model."""

    layout: str
    config: dict[str, Any]  # arguments of SiTTransformer2DModel
    path: str
    prediction: str
    learn_sigma: bool
    sample_size_known: bool
    image_size: int | None = None  # in pixels, if known only from the options; `set_vae` converts it
    weights: str = "only"
    vae: str = "none"
    assumed: tuple[str, ...] = ()  # of layout, path and prediction, those that nothing in the file showed

    def set_vae(self, name: str, scale_factor: int) -> None:
        """Record the VAE, and convert an image side in pixels to latent pixels by its scale factor."""
        self.vae = name
        if self.image_size is not None:
            self.config["sample_size"] = self.image_size // scale_factor

    def describe(self) -> dict[str, str]:
        """Describe the model: a text for each property, by the property's name."""
        config = self.config
        mixers = config["mixer"] if isinstance(config["mixer"], str) else ", ".join(config["mixer"])
        null = "and a null class" if config["class_dropout_prob"] else "no null class"
        size = f"{config['in_channels']} × {config['sample_size']} × {config['sample_size']}"
        assumed = {name: "; assumed" if name in self.assumed else "" for name in ("layout", "path", "prediction")}
        noise = {"sit": "t=0", "repa": "t=1", "dit": "step 999"}[self.layout]
        return {
            "weights": {"ema": "EMA", "model": "raw", "only": "those in the file"}[self.weights],
            "layout": f"{self.layout}: noise is at {noise}{assumed['layout']}",
            "preset": preset_name(config) or "none",
            "mixers": f"{config['num_layers']} × {mixers}" if isinstance(config["mixer"], str) else mixers,
            "heads": f"{config['num_attention_heads']} of {config['attention_head_dim']}",
            "classes": f"{config['num_classes']}, {null}",
            "input": f"{size}, patch {config['patch_size']}"
            + ("" if self.sample_size_known else "; the size is assumed"),
            "learn_sigma": "yes; the unused half is sliced off" if self.learn_sigma else "no",
            "path": f"{self.path}{assumed['path']}",
            "prediction": f"{self.prediction}{assumed['prediction']}",
            "VAE": self.vae,
        }


def inspect_reference(
    state_dict: StateDict,
    args: dict | None = None,
    layout: str | None = None,
    num_attention_heads: int | None = None,
    num_classes: int | None = None,
    sample_size: int | None = None,
    path: str | None = None,
    prediction: str | None = None,
    name: str = "",
) -> Reference:
    """Infer the model from its tensors and, where they do not determine it, from the saved training options.

    Args:
        state_dict: tensors under the reference's names.
        args: options of the training, as far as they are known.
        layout: see `LAYOUTS`. If None, inferred from the tensors, `args` and `name`.
        num_attention_heads: number of heads; needed for attention of a width that no preset has.
        num_classes: number of classes, which determines whether there is a null class. If None, taken from `args`; by
            default, the last row of the label table is the null class.
        sample_size: side of the input. If None, taken from the position embedding or `args`, or 32.
        path: path of the training. If None, taken from `args`, or the default of the layout.
        prediction: what the network predicts. If None, taken from `args`, or the default of the layout.
        name: name of the file, which may show the layout.

    Raises:
        ValueError: if tensors are unknown or missing (the error lists them), or if something does not fit together.
    """
    args = args or {}
    check_names(state_dict)
    assumed = []
    if layout is None and (layout := detect_layout(state_dict, args, name)) is None:
        layout = "sit"
        assumed.append("layout")
    check_choice("layout", layout, LAYOUTS)
    config = {
        **_architecture(state_dict),
        **LAYOUTS[layout],
        **_classes(state_dict, args, num_classes),
        **_heads(state_dict, args, num_attention_heads),
    }
    size, image_size = _sample_size(state_dict, args, sample_size)
    config["sample_size"] = DEFAULT_SAMPLE_SIZE if size is None else size
    path, prediction, usual = _path_and_prediction(args, layout, path, prediction)
    return Reference(
        layout,
        config,
        path,
        prediction,
        learn_sigma=last_layer_halves(state_dict)[LAST_LAYER[0]][1] is not None,
        sample_size_known=size is not None,
        image_size=image_size,
        assumed=(*assumed, *usual),
    )


def _architecture(state_dict: StateDict) -> dict[str, Any]:
    """Return the arguments of the model that tensors show: sizes, and the mixer of each block."""
    dim, in_channels, patch_size, _ = state_dict[PATCH_EMBEDDING].shape
    depth = len(block_numbers(state_dict))
    mixers = ["attention" if f"blocks.{i}.attn.qkv.weight" in state_dict else "atconv" for i in range(depth)]
    named = (name for name in MIXER_NAMES if mixer_per_block(name, depth) == mixers)
    config = dict(
        patch_size=patch_size,
        in_channels=in_channels,
        num_layers=depth,
        mlp_ratio=len(state_dict["blocks.0.mlp.fc1.bias"]) / dim,
        mixer=next(named, mixers),
        position_embedding="sincos" if POSITION_EMBEDDING in state_dict else "none",
    )
    if "atconv" in mixers:
        config["kernel_size"] = math.isqrt(len(state_dict[f"blocks.{mixers.index('atconv')}.attn.kernel_gen.bias"]))
    return config


def _classes(state_dict: StateDict, args: dict, num_classes: int | None) -> dict[str, Any]:
    """Return the number of classes and the class dropout, 0 for a model without a null class."""
    rows = len(state_dict[CLASS_EMBEDDING])
    dropout = _option(args, "class_dropout_prob", float) or _option(args, "cfg_prob", float)
    if num_classes is None:
        num_classes = _option(args, "num_classes", int)
    classes = rows - 1 if num_classes is None else num_classes
    if classes not in (rows, rows - 1):
        raise ValueError(
            f"num_classes={classes} does not fit a label table of {rows} rows, which is {rows - 1} classes and a null "
            f"class, or {rows} classes"
        )
    return dict(num_classes=classes, class_dropout_prob=(dropout or DEFAULT_CLASS_DROPOUT) * (rows > classes))


def _heads(state_dict: StateDict, args: dict, num_attention_heads: int | None) -> dict[str, Any]:
    """Return the number of heads and their width: from the query norm, or that of the preset of this width."""
    dim = len(state_dict[PATCH_EMBEDDING])
    head_dim = next((len(tensor) for name, tensor in state_dict.items() if name.endswith("q_norm.weight")), None)
    widths = {
        size["num_attention_heads"] * size["attention_head_dim"]: size["num_attention_heads"]
        for size in PRESET_SIZES.values()
    }
    heads = num_attention_heads or _option(args, "num_heads", int) or (dim // head_dim if head_dim else widths.get(dim))
    if heads is None:
        if any(name.endswith(".attn.qkv.weight") for name in state_dict):
            raise ValueError(
                f"no preset has the width {dim}, and its tensors do not show the number of heads; give "
                "--num_attention_heads"
            )
        heads = 1  # ATConv has no heads
    check_count("num_attention_heads", heads)
    if dim % heads or (head_dim and heads * head_dim != dim):
        raise ValueError(f"num_attention_heads={heads} does not fit the width {dim}, or the query norm ({head_dim})")
    qk_norm = {"qk_norm": True} if head_dim else {}
    return dict(num_attention_heads=heads, attention_head_dim=dim // heads, **qk_norm)


def _sample_size(state_dict: StateDict, args: dict, sample_size: int | None) -> tuple[int | None, int | None]:
    """Return the side of the input, None if nothing shows it; and the side of images in pixels, if that shows it."""
    _, in_channels, patch_size, _ = state_dict[PATCH_EMBEDDING].shape
    if POSITION_EMBEDDING in state_dict:
        shown = _grid_side(state_dict[POSITION_EMBEDDING]) * patch_size
        if sample_size not in (None, shown):
            raise ValueError(f"sample_size={sample_size}, but the position embedding is for size {shown}; leave it out")
        return shown, None
    image_size = _option(args, "image_size", int) or _option(args, "resolution", int)
    if sample_size is not None or not image_size:
        return sample_size, None
    return image_size // (REFERENCE_VAE_FACTOR if in_channels == REFERENCE_VAE_CHANNELS else 1), image_size


def _grid_side(pos_embed: torch.Tensor) -> int:
    """Return the side of a position embedding's grid.

    Raises:
        ValueError: if it is not the fixed sin-cos embedding, the only one that our models know.
    """
    side = math.isqrt(pos_embed.shape[1]) if pos_embed.ndim == 3 else 0
    if side and side**2 == pos_embed.shape[1] and pos_embed.shape[2] % 4 == 0:
        expected = sincos_position_embedding(pos_embed.shape[2], (side, side), torch.device("cpu")).to(pos_embed.dtype)
        if torch.allclose(pos_embed.double(), expected.double(), rtol=0, atol=EMBEDDING_TOLERANCE):
            return side
    raise ValueError(f"pos_embed {tuple(pos_embed.shape)} is not the sin-cos embedding of a square grid")


def _path_and_prediction(
    args: dict, layout: str, path: str | None, prediction: str | None
) -> tuple[str, str, tuple[str, ...]]:
    """Return the path, the prediction, and which of them are assumed."""
    usual_path, usual_prediction = PATH_AND_PREDICTION[layout]
    if path is None and args.get("path_type") is not None:
        word = str(args["path_type"]).lower()
        check_choice("path_type in the options saved with the weights", word, REFERENCE_PATHS)
        path = REFERENCE_PATHS[word]
    if prediction is None and args.get("prediction") is not None:
        word = str(args["prediction"])
        check_choice("prediction in the options saved with the weights", word, REFERENCE_PREDICTIONS)
        prediction = REFERENCE_PREDICTIONS[word]
    known = layout == "dit"  # its path and prediction are always the same
    shown = (("path", path), ("prediction", prediction))
    assumed = tuple(name for name, value in shown if value is None and not known)
    path, prediction = path or usual_path, prediction or usual_prediction
    check_choice("path", path, PATHS)
    check_choice("prediction", prediction, PREDICTIONS)
    if layout == "repa" and prediction != "velocity":
        raise ValueError(f"prediction={prediction!r}: REPA models predict the velocity")
    return path, prediction, assumed


def _option(args: dict, name: str, kind: Callable[[Any], Any]) -> Any:
    """Return a number from the options of a training, where it may be a text; None if it is not there."""
    value = args.get(name)
    if value is None:
        return None
    try:
        number = kind(value)
        if not 0 <= number < MAX_OPTION:  # nor NaN
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name}={value!r} in the options saved with the weights is not a number in [0, {MAX_OPTION}); give its "
            "state dict alone, and what its tensors do not show by options"
        ) from error
    return number
