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
PRESETS: dict[str, dict[str, Any]] = {
    family.format(f"{size}/{patch_size}"): {**config, "patch_size": patch_size, "mixer": mixer}
    for family, mixer in PRESET_FAMILIES.items()
    for size, config in PRESET_SIZES.items()
    for patch_size in ((1, 2, 4) if size == "Nano" else (2, 4, 8))
}


def check_preset(name: str) -> None:
    """Raise ValueError unless `name` is a preset."""
    if name not in PRESETS:
        raise ValueError(
            f"preset={name!r} is unknown; presets are SiT-SIZE, SiT-ATConv-SIZE, SiT-ATConv-SIZE-Hybrid and "
            "SiT-ATConv-SIZE-Pooled with SIZE one of S, B, L, XL with /2, /4, /8, or Nano with /1, /2, /4, such as "
            "SiT-ATConv-S/2"
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
    }
    for name, preset in PRESETS.items():
        position = "none" if preset["mixer"] == "atconv" else "sincos"
        if (
            all(config[key] == value for key, value in preset.items())
            and all(config.get(key, value) == value for key, value in defaults.items())
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
