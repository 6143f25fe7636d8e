"""The published model sizes by name, and which mixer each block of a model has.

A mixer is the layer of a block that mixes tokens: self-attention, attention to pooled tokens, or ATConv.
"""

from collections.abc import Mapping
from typing import Any

from ..utils.checks import check_choice
from ..utils.suggestions import did_you_mean

MIXERS = ("atconv", "attention", "pooled_attention")
# Mixtures by name: block i has the mixer i of a cycle. Two mixers complement each other (docs/cifar10.md).
MIXER_CYCLES = {
    "hybrid": ("attention", "atconv"),
    "pooled_hybrid": ("atconv", "pooled_attention", "atconv"),
}
MIXER_NAMES = (*MIXERS, *MIXER_CYCLES)
FREQUENCIES = 256  # of the sinusoidal time embedding, as in DiT and SiT

# Depths and widths of DiT and SiT (Table 1 of arXiv 2212.09748), and our own small size for CPUs.
PRESET_SIZES = {
    "Nano": dict(num_layers=6, num_attention_heads=4, attention_head_dim=24),
    "S": dict(num_layers=12, num_attention_heads=6, attention_head_dim=64),
    "B": dict(num_layers=12, num_attention_heads=12, attention_head_dim=64),
    "L": dict(num_layers=24, num_attention_heads=16, attention_head_dim=64),
    "XL": dict(num_layers=28, num_attention_heads=16, attention_head_dim=72),
}
PRESET_FAMILIES = {
    "SiT-{}": "attention",
    "SiT-ATConv-{}": "atconv",
    "SiT-ATConv-{}-Hybrid": "hybrid",
    "SiT-ATConv-{}-Pooled": "pooled_hybrid",
}
# Hourglasses of the same depths: about a third of the blocks are in the middle, half as wide again. On 256 tokens, they
# cost fewer multiplications than the others of their size, and with ATConv alone on any number.
HOURGLASSES = {
    "Nano": dict(middle_layers=2, middle_attention_heads=6),
    "S": dict(middle_layers=4, middle_attention_heads=9),
    "B": dict(middle_layers=4, middle_attention_heads=18),
    "L": dict(middle_layers=8, middle_attention_heads=24),
    "XL": dict(middle_layers=10, middle_attention_heads=24),
}
HOURGLASS_FAMILIES = {"SiT-ATConv-U-{}": "atconv", "SiT-ATConv-U-{}-Hybrid": "attention"}  # in the middle


def _patch_sizes(size: str) -> tuple[int, ...]:
    return (1, 2, 4) if size == "Nano" else (2, 4, 8)


def _hourglass(size: str, middle_mixer: str) -> dict[str, Any]:
    config: dict[str, Any] = {**PRESET_SIZES[size], **HOURGLASSES[size]}
    outer = ["atconv"] * ((config["num_layers"] - config["middle_layers"]) // 2)
    mixers = outer + [middle_mixer] * config["middle_layers"] + outer
    return {**config, "mixer": "atconv" if middle_mixer == "atconv" else mixers}


PRESETS: dict[str, dict[str, Any]] = {
    family.format(f"{size}/{patch_size}"): {**config, "patch_size": patch_size, "mixer": mixer}
    for family, mixer in PRESET_FAMILIES.items()
    for size, config in PRESET_SIZES.items()
    for patch_size in _patch_sizes(size)
} | {
    family.format(f"{size}/{patch_size}"): {**_hourglass(size, mixer), "patch_size": patch_size}
    for family, mixer in HOURGLASS_FAMILIES.items()
    for size in PRESET_SIZES
    for patch_size in _patch_sizes(size)
}


def check_preset(name: str) -> None:
    """Raise ValueError unless `name` is a preset."""
    if name not in PRESETS:
        raise ValueError(
            f"preset={name!r} is unknown; presets are SiT-SIZE, SiT-ATConv-SIZE, SiT-ATConv-SIZE-Hybrid, "
            "SiT-ATConv-SIZE-Pooled, SiT-ATConv-U-SIZE and SiT-ATConv-U-SIZE-Hybrid with SIZE one of S, B, L, XL with "
            "/2, /4, /8, or Nano with /1, /2, /4, such as SiT-ATConv-S/2"
            f"{did_you_mean(name, PRESETS)}"
        )


def preset_name(config: Mapping) -> str | None:
    """Return the preset that a model config was made from, or None if there is none.

    What depends on the data is not compared: sample size, channels, classes and the meaning of the timestep.
    """
    defaults = {
        "mlp_ratio": 4,
        "kernel_size": 3,
        "qk_norm": False,
        "attention_pool": 16,
        "kernel_dilation": 1,
        "channel_gate": False,
        "average_branch": False,
        "kernel_groups": 1,
        "mlp_depthwise": False,
        "middle_layers": 0,
        "middle_attention_heads": None,
    }
    for name, preset in PRESETS.items():
        position = "none" if preset["mixer"] == "atconv" else "sincos"
        if (
            all(config.get(key, defaults.get(key)) == value for key, value in preset.items())
            and all(config.get(key, value) == value for key, value in defaults.items() if key not in preset)
            and (config.get("position_embedding") or position) == position
        ):
            return name
    return None


def mixer_per_block(mixer: str | list[str], num_layers: int) -> list[str]:
    """Expand `mixer` to one name per block; see `MIXER_CYCLES`.

    Raises:
        ValueError: for an unknown mixer or a list whose length is not `num_layers`.
    """
    if isinstance(mixer, str):
        check_choice("mixer", mixer, MIXER_NAMES)
        cycle = MIXER_CYCLES.get(mixer, (mixer,))
        return [cycle[i % len(cycle)] for i in range(num_layers)]
    if len(mixer) != num_layers:
        raise ValueError(f"mixer lists {len(mixer)} blocks, but num_layers={num_layers}; name one mixer per block")
    for i, name in enumerate(mixer):
        check_choice(f"mixer[{i}]", name, MIXERS)
    return list(mixer)


def middle_blocks(config: Mapping[str, Any]) -> range:
    """The blocks in the middle of an hourglass, whose grid has half the height and width; none in other models."""
    middle = config.get("middle_layers", 0)
    first = (config["num_layers"] - middle) // 2
    return range(first, first + middle)


def coarse_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """The grid of these blocks for a grid (H, W) of the others: (⌈H/2⌉, ⌈W/2⌉)."""
    return (grid[0] + 1) // 2, (grid[1] + 1) // 2


def block_heads(config: Mapping[str, Any]) -> list[int]:
    """How many heads each block has, which times `attention_head_dim` make its width."""
    heads, middle = config["num_attention_heads"], middle_blocks(config)
    of_middle = config.get("middle_attention_heads") or heads
    return [of_middle if i in middle else heads for i in range(config["num_layers"])]


def replaced_blocks(config: Mapping[str, Any], mixer: str | list[str]) -> list[int]:
    """The blocks of a trained model whose self-attention gets another mixer, counted from 0.

    Args:
        config: the config of the trained model, which may come from its file.
        mixer: the mixers after the graft, as `SiTTransformer2DModel` takes them.

    Raises:
        ValueError: if the model has no self-attention, if nothing would change, or if another mixer would be replaced.
    """
    before = mixer_per_block(config["mixer"], config["num_layers"])
    after = mixer_per_block(mixer, config["num_layers"])
    if "attention" not in before:
        raise ValueError(f"mixer={mixer!r}: the trained model has no self-attention to replace; leave mixer out")
    if before == after:
        raise ValueError(f"mixer={mixer!r} are the mixers that the trained model has already; leave mixer out")
    replaced = [i for i in range(len(before)) if before[i] != after[i]]
    if others := [i for i in replaced if before[i] != "attention"]:
        raise ValueError(
            f"mixer={mixer!r}: block {others[0]} of the trained model has {before[others[0]]} already, and only "
            "self-attention can be replaced; leave these blocks as they are"
        )
    return replaced
