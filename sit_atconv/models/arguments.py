"""Which arguments of `SiTTransformer2DModel` fit together."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..utils.checks import check_choice, check_count, check_positive, is_number, is_whole
from .costs import block_widths, model_width

if TYPE_CHECKING:  # so that options are checked before PyTorch is imported
    import torch

KERNEL_ACTIVATIONS = ("gelu_tanh", "silu", "gelu")
KERNEL_POOLS = ("strips", "grid")
POSITION_EMBEDDINGS = ("sincos", "none")
STEP_CONDITIONINGS = ("none", "span", "decoupled")
# What is far beyond any model of this kind, and would take minutes to build or all of the memory.
MAX_LAYERS = 1024
MAX_POOL = 256
MAX_DILATION = 1024  # beyond any grid of tokens
MAX_PARAMETERS = 2 * 10**10


def check_arguments(config: Mapping) -> None:
    """Raise ValueError if sizes or probabilities in the arguments of `SiTTransformer2DModel` are out of range."""
    sizes = ("patch_size", "sample_size", "in_channels", "num_layers", "num_classes")
    for field in (*sizes, "num_attention_heads", "attention_head_dim"):
        check_count(field, config[field], most=math.inf)  # `check_size` bounds all of them together
    if config["out_channels"] is not None:
        check_count("out_channels", config["out_channels"], most=math.inf)
    check_positive("mlp_ratio", config["mlp_ratio"])
    check_kernel(config["kernel_size"], config["kernel_activation"], config["kernel_pool"])
    check_middle(config)
    check_size(config)
    for dim in sorted({*block_widths(config)}):
        check_dilation("kernel_dilation", config["kernel_dilation"], dim)
        check_kernel_groups(config["kernel_groups"], dim)
    check_count("attention_pool", config["attention_pool"], most=MAX_POOL)
    if config["sample_size"] % config["patch_size"]:
        raise ValueError(f"sample_size={config['sample_size']} is not divisible by patch_size={config['patch_size']}")
    if not is_number(config["class_dropout_prob"]) or not 0 <= config["class_dropout_prob"] < 1:
        raise ValueError(f"class_dropout_prob={config['class_dropout_prob']} must be in [0, 1)")
    for field in ("timestep_at_noise", "timestep_at_data"):
        if not is_number(config[field]) or not math.isfinite(config[field]):
            raise ValueError(f"{field}={config[field]!r} must be a finite number")
    if config["timestep_at_noise"] == config["timestep_at_data"]:
        raise ValueError(f"timestep_at_data={config['timestep_at_data']} must differ from timestep_at_noise, as t does")
    check_choice("step_conditioning", config["step_conditioning"], STEP_CONDITIONINGS)
    check_positive("trained_guidance_scale", config["trained_guidance_scale"])


def check_kernel(size: int, activation: str, pool: str) -> None:
    """Raise ValueError unless ATConv can generate kernels of this size in this way."""
    if not is_whole(size) or size < 1 or size % 2 == 0:
        raise ValueError(f"kernel_size={size!r} must be odd and positive, such as 3")
    check_choice("kernel_activation", activation, KERNEL_ACTIVATIONS)
    check_choice("kernel_pool", pool, KERNEL_POOLS)


def check_dilation(field: str, dilation: int | Sequence[int], dim: int) -> list[int]:
    """Return the dilation of each group of channels of ATConv.

    Raises:
        ValueError: naming the field, if a dilation is no whole number above 0, or there are more than `dim` channels.
    """
    dilations = [dilation] if isinstance(dilation, (int, float, str)) else list(dilation)
    for each in dilations:
        check_count(field, each, most=MAX_DILATION)
    if not 1 <= len(dilations) <= dim:
        raise ValueError(f"{field} lists {len(dilations)} dilations for {dim} channels; give at most one for each")
    return dilations


def check_kernel_groups(groups: int, dim: int) -> None:
    """Raise ValueError unless `groups` is a whole number that divides the width `dim`."""
    check_count("kernel_groups", groups)
    if dim % groups:
        raise ValueError(f"kernel_groups={groups} must divide the {dim} channels, as the number of heads does")


def check_middle(config: Mapping) -> None:
    """Raise ValueError unless the blocks in the middle of an hourglass leave others, as many before as after them."""
    layers, middle, heads = config["num_layers"], config["middle_layers"], config["middle_attention_heads"]
    check_count("middle_layers", middle, least=0)
    if heads is not None:
        check_count("middle_attention_heads", heads, most=math.inf)
        if not middle:
            raise ValueError(f"middle_attention_heads={heads} is for an hourglass; give middle_layers, or leave it out")
    if middle and (middle > layers - 2 or (layers - middle) % 2):
        third = layers // 3
        remedy = f"choose {third + (layers - third) % 2}, for example" if third else "raise num_layers to 3 or more"
        raise ValueError(
            f"middle_layers={middle} of num_layers={layers} must leave as many blocks before as after them, at least "
            f"one each; {remedy}"
        )


def estimate_parameters(config: Mapping) -> float:
    """Return about how many parameters a `SiTTransformer2DModel` of this config has, without building it."""
    dim, middle = model_width(config), config["middle_layers"]
    heads = config["middle_attention_heads"] or config["num_attention_heads"]
    maps = config["kernel_groups"] * config["kernel_size"] ** 4

    def block(width: int) -> float:
        return (4 + 2 * config["mlp_ratio"]) * width**2 + 6 * width * dim + maps

    blocks = (config["num_layers"] - middle) * block(dim) + middle * block(heads * config["attention_head_dim"])
    channels = config["in_channels"] + (config["out_channels"] or config["in_channels"])
    return blocks + dim * (config["num_classes"] + 3 * dim + config["patch_size"] ** 2 * channels)


def check_size(config: Mapping) -> None:
    """Raise ValueError for a model that is too large to be meant, before any of it is built."""
    if config["num_layers"] > MAX_LAYERS:
        raise ValueError(
            f"num_layers={config['num_layers']} is more than {MAX_LAYERS}; compare the config with where it comes from"
        )
    if not (parameters := estimate_parameters(config)) <= MAX_PARAMETERS:
        sizes = ["num_attention_heads", "attention_head_dim", "mlp_ratio", "kernel_size", "num_classes", "in_channels"]
        if config["middle_layers"]:
            sizes += ["middle_layers", "middle_attention_heads"]
        raise ValueError(
            f"about {parameters:.1e} parameters, more than {MAX_PARAMETERS:.0e}, would follow from num_layers="
            f"{config['num_layers']}, {', '.join(f'{name}={config[name]}' for name in sizes)}, out_channels="
            f"{config['out_channels']}, patch_size={config['patch_size']}; compare the config with where it comes from"
        )


def choose_end_time_blocks(config: Mapping) -> int:
    """Return how many blocks at the end get the end of a step in place of its start: 0 unless it is "decoupled".

    Raises:
        ValueError: for a number that the model does not have, or one without effect.
    """
    blocks, given = config["num_layers"], config["end_time_blocks"]
    if config["step_conditioning"] != "decoupled":
        if given is not None:
            raise ValueError(
                f"end_time_blocks={given!r} is for step_conditioning='decoupled' alone; leave it out, or choose that"
            )
        return 0
    if given is None:
        return max(1, round(blocks * 2 / 7))  # 8 of 28 blocks, as in Decoupled MeanFlow
    check_count("end_time_blocks", given)
    if given > blocks:
        raise ValueError(f"end_time_blocks={given}: the model has num_layers={blocks}; choose at most that many")
    return given


def choose_position_embedding(config: Mapping, mixers: list[str]) -> str:
    """Return "sincos" or "none"; if the config has None, "sincos" if at least one block is attention, else "none".

    Raises:
        ValueError: for an unknown choice, or "sincos" with a model width that is not divisible by 4.
    """
    choice = config["position_embedding"]
    if choice is None:
        choice = "none" if set(mixers) == {"atconv"} else "sincos"
    check_choice("position_embedding", choice, POSITION_EMBEDDINGS)
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    if choice == "sincos" and heads * head_dim % 4:
        raise ValueError(
            f"num_attention_heads={heads} × attention_head_dim={head_dim} = {heads * head_dim} must be divisible by 4 "
            "for the sin-cos position embedding"
        )
    return choice


def token_grid(hidden_states: "torch.Tensor", config: Mapping) -> tuple[int, int]:
    """Return the grid (H, W) of the tokens of latents (B, C, H·p, W·p) with patches of side p.

    Raises:
        ValueError: for the wrong number of channels, or a size that the patch size does not divide.
    """
    _, C, height, width = hidden_states.shape
    p = config["patch_size"]
    if C != config["in_channels"]:
        raise ValueError(f"hidden_states has {C} channels, but in_channels={config['in_channels']}")
    if height % p or width % p:
        raise ValueError(f"height={height} and width={width} must be divisible by patch_size={p}")
    return height // p, width // p
