"""Weights of AttNet under the reference's names and under ours, and what they show of the model.

The reference's 1×1 convolutions are linear layers here, and its `fc1` is two layers, for the gate and for the value.

Shapes: C channels, h hidden channels of the channel mixer, k kernel size.
"""

import math
import re
from typing import Any

import torch

from .attnet_blocks import hidden_channels
from .attnet_variants import STAGES, VARIANTS, variant_name

StateDict = dict[str, torch.Tensor]

# Names of layers in the reference and here; `{}` stands for the numbers of a stage and of a block in it.
RENAMES = (
    ("downsample_layers.0.0.0", "stem.conv1"),
    ("downsample_layers.0.0.1", "stem.norm1"),
    ("downsample_layers.0.2.0", "stem.conv2"),
    ("downsample_layers.0.2.1", "stem.norm2"),
    *((f"downsample_layers.{i}.{j}", f"stages.{i}.downsample.{j}") for i in range(1, STAGES) for j in range(2)),
    ("stages.{}.{}.norm_1", "stages.{}.blocks.{}.norm1"),
    ("stages.{}.{}.norm_2", "stages.{}.blocks.{}.norm2"),
    ("stages.{}.{}.layer_scale_1.gamma", "stages.{}.blocks.{}.gamma1"),
    ("stages.{}.{}.layer_scale_2.gamma", "stages.{}.blocks.{}.gamma2"),
    ("stages.{}.{}.token_mixer.difference_control", "stages.{}.blocks.{}.token_mixer.inhibition"),
    ("stages.{}.{}.token_mixer.kernel_proj", "stages.{}.blocks.{}.token_mixer.kernel_proj"),
    ("stages.{}.{}.token_mixer.kernel_gen", "stages.{}.blocks.{}.token_mixer.kernel_gen"),
    ("stages.{}.{}.token_mixer.x_proj", "stages.{}.blocks.{}.token_mixer.value_proj"),
    ("stages.{}.{}.token_mixer.proj", "stages.{}.blocks.{}.token_mixer.out_proj"),
    ("stages.{}.{}.channel_mixer.fc1", "stages.{}.blocks.{}.channel_mixer.fc1"),  # split afterwards
    ("stages.{}.{}.channel_mixer.dwconv", "stages.{}.blocks.{}.channel_mixer.dwconv"),
    ("stages.{}.{}.channel_mixer.norm_layer", "stages.{}.blocks.{}.channel_mixer.norm"),
    ("stages.{}.{}.channel_mixer.fc2", "stages.{}.blocks.{}.channel_mixer.fc2"),
    ("norm", "head.norm"),
    ("head", "head.fc"),
)
TO_OURS = dict(RENAMES)
TO_REFERENCE = {ours: reference for reference, ours in RENAMES}
POINTWISE = re.compile(r"\.(kernel_proj|value_proj|out_proj|fc1|fc2)\.weight$")  # 1×1 convolutions in the reference
FC1 = re.compile(r"\.fc1\.(weight|bias)$")
GATE, VALUE = ".fc1_g.", ".fc1_x."
REFERENCE_MARK, OUR_MARK = "downsample_layers.0.0.0.weight", "stem.conv1.weight"
HEAD = "head.fc."
# Arguments that decide on the blocks, and so must be those of the model that loads the weights.
BLOCK_ARGUMENTS = ("depths", "dims", "kernel_sizes", "hidden", "conv_bias", "use_layer_scale", "glu_dconv", "glu_norm")


def is_attnet(state_dict: StateDict) -> bool:
    """Whether these are weights of AttNet, under the reference's names or ours."""
    return REFERENCE_MARK in state_dict or OUR_MARK in state_dict


def _rename(name: str, renames: dict[str, str], block: str) -> str | None:
    """Return the other name of a parameter or buffer, None if it has none; `block` matches the start of a block's."""
    numbers: tuple[str, ...] = ()
    if found := re.match(block, name):
        numbers = found.groups()
        head = found[0]
        for number in numbers:
            head = head.replace(f".{number}.", ".{}.", 1)
        name = head + name[found.end() :]
    if name in renames:  # a parameter of its own, not one of a layer
        return renames[name].format(*numbers)
    stem, _, slot = name.rpartition(".")
    slots = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return f"{renames[stem].format(*numbers)}.{slot}" if stem in renames and slot in slots else None


def to_ours(state_dict: StateDict) -> StateDict:
    """Return the weights under our names; weights that have them already are returned as they are.

    Raises:
        ValueError: for tensors that AttNet does not have.
    """
    if OUR_MARK in state_dict:
        return state_dict
    if REFERENCE_MARK not in state_dict:
        raise ValueError(f"these are no weights of AttNet: there is neither {OUR_MARK} nor {REFERENCE_MARK}")
    names = {name: _rename(name, TO_OURS, r"stages\.(\d+)\.(\d+)\.") for name in state_dict}
    if unknown := sorted(name for name, ours in names.items() if ours is None):
        raise ValueError(f"not parameters of AttNet: {', '.join(unknown[:10])}")
    converted: StateDict = {}
    for name, tensor in state_dict.items():
        ours = str(names[name])
        if POINTWISE.search(ours):
            if tensor.ndim != 4 or tensor.shape[2:] != (1, 1):
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; a 1×1 convolution is needed")
            tensor = tensor[:, :, 0, 0]
        if FC1.search(ours):
            if len(tensor) % 2:
                raise ValueError(f"{name} has {len(tensor)} rows; an even number, for gate and value, is needed")
            for part, half in zip((GATE, VALUE), tensor.chunk(2), strict=True):
                converted[ours.replace(".fc1.", part)] = half
        else:
            converted[ours] = tensor
    return converted


def to_reference(state_dict: StateDict) -> StateDict:
    """Return weights under our names under the reference's names, bit-identical to those they were converted from."""
    restored: StateDict = {}
    for name, tensor in state_dict.items():
        if VALUE in name:
            continue  # goes with the gate
        if GATE in name:
            tensor = torch.cat([tensor, state_dict[name.replace(GATE, VALUE)]])
            name = name.replace(GATE, ".fc1.")
        reference = _rename(name, TO_REFERENCE, r"stages\.(\d+)\.blocks\.(\d+)\.")
        if reference is None:
            raise ValueError(f"{name} has no name in the reference")
        restored[reference] = tensor[:, :, None, None] if POINTWISE.search(name) else tensor
    return restored


def read_arguments(state_dict: StateDict) -> dict[str, Any]:
    """Return what weights under our names show of the model: arguments of `AttNet`, and `hidden`, each stage's h.

    The activation, which is not among them, leaves no trace in the weights.

    Raises:
        ValueError: if tensors that tell are missing, or blocks are not numbered from 0.
    """
    depths = [_depth(state_dict, stage) for stage in range(STAGES)]
    first = [f"stages.{stage}.blocks.0" for stage in range(STAGES)]
    dims = [_length(state_dict, f"{block}.norm1.weight") for block in first]
    taps = [_length(state_dict, f"{block}.token_mixer.kernel_gen.weight") for block in first]
    hidden = [_length(state_dict, f"{block}.channel_mixer.fc1_g.weight") for block in first]
    stem = state_dict.get(OUR_MARK)
    if stem is None or stem.ndim != 4:
        raise ValueError(f"{OUR_MARK} is missing, or no convolution")
    return dict(
        depths=depths,
        dims=dims,
        kernel_sizes=[math.isqrt(count) for count in taps],
        hidden=hidden,
        exp_rates=[expansion(dim, h) for dim, h in zip(dims, hidden, strict=True)],
        conv_bias=f"{first[0]}.token_mixer.value_proj.bias" in state_dict,
        use_layer_scale=f"{first[0]}.gamma1" in state_dict,
        glu_dconv=[f"{block}.channel_mixer.dwconv.weight" in state_dict for block in first],
        glu_norm=[f"{block}.channel_mixer.norm.weight" in state_dict for block in first],
        in_chans=stem.shape[1],
        num_classes=_length(state_dict, f"{HEAD}weight") if f"{HEAD}weight" in state_dict else 0,
    )


def _depth(state_dict: StateDict, stage: int) -> int:
    """Return the number of blocks of a stage, which must be numbered from 0."""
    start = re.compile(rf"stages\.{stage}\.blocks\.(\d+)\.")
    numbers = {match[1] for name in state_dict if (match := start.match(name))}
    if not numbers or numbers != {str(i) for i in range(len(numbers))}:
        found = ", ".join(sorted(numbers)[:10]) or "none"
        raise ValueError(f"the blocks of stage {stage} must be numbered from 0 without gaps; there are: {found}")
    return len(numbers)


def _length(state_dict: StateDict, name: str) -> int:
    tensor = state_dict.get(name)
    if tensor is None or tensor.ndim == 0 or len(tensor) == 0:
        raise ValueError(f"{name} is missing or empty")
    return len(tensor)


def expansion(dim: int, hidden: int) -> float:
    """Return an expansion e with which a channel mixer of `dim` channels has `hidden` ones."""
    for halves in range(1, 33):  # the published ones are whole numbers
        rate = halves // 2 if halves % 2 == 0 else halves / 2
        if hidden_channels(dim, rate) == hidden:
            return rate
    expanded = (3 * hidden + 1) // 2
    return (expanded + 0.5) / dim  # in the middle, so that rounding cannot reach a whole number


def describe(arguments: dict[str, Any]) -> str:
    """Name the variant, or the depths and dims of a model that is none."""
    name = variant_name(arguments)
    return name or f"an AttNet of depths {tuple(arguments['depths'])} and dims {tuple(arguments['dims'])}"


def check_fits(state_dict: StateDict, expected: StateDict) -> None:
    """Check that weights under our names fit a model, except for the channels of the images and the classes.

    Args:
        state_dict: the weights.
        expected: the state dict of the model.

    Raises:
        ValueError: naming the variant that the weights belong to, and the arguments with which the model would fit.
    """
    theirs = read_arguments(state_dict)
    ours = read_arguments(expected) if _is_whole(expected) else None
    if ours is None:  # a model whose last stages were removed is compared tensor by tensor when it is loaded
        return
    different = {name: theirs[name] for name in BLOCK_ARGUMENTS if theirs[name] != ours[name]}
    if different.keys() & {"depths", "dims"}:
        raise ValueError(f"these are weights of {describe(theirs)}, and the model is {describe(ours)}")
    if different:
        shown = dict(different)
        if shown.pop("hidden", None):
            shown["exp_rates"] = theirs["exp_rates"]
        arguments = ", ".join(f"{name}={value}" for name, value in shown.items())
        raise ValueError(
            f"these weights of {describe(theirs)} have other layers than the model; create it with {arguments}"
        )


def _is_whole(state_dict: StateDict) -> bool:
    return any(name.startswith(f"stages.{STAGES - 1}.") for name in state_dict)


def architecture(arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a registered name under which timm can create a model, and the arguments that differ from that name's.

    A model that is no variant gets the name of T2 and all of its arguments.
    """
    name = variant_name(arguments) or "attnet_t2"
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in VARIANTS[name].items()}
    # `hidden` is what exp_rates amount to, so rates that amount to the same are no difference.
    given = {key: value for key, value in arguments.items() if key != "hidden"}
    if [hidden_channels(d, e) for d, e in zip(arguments["dims"], known["exp_rates"], strict=True)] == arguments[
        "hidden"
    ]:
        given["exp_rates"] = known["exp_rates"]
    return name, {key: value for key, value in given.items() if key not in known or value != known[key]}
