"""The options of a run that trains a LoRA adapter and leaves the model itself as it is."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..utils.checks import check_count, check_float32, check_positive


@dataclass
class AdapterConfig:
    """Adapter

    Args:
        lora_rank: rank of a LoRA adapter of init_from, which is trained in place of the weights; the run leaves the
            adapter alone. If null, all weights are trained.
        lora_alpha: the adapter is scaled by lora_alpha / lora_rank. Defaults to lora_rank.
        lora_targets: names of the layers that are adapted, such as [qkv, out_proj]. Defaults to those of mixers and
            MLPs.
    """

    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_targets: list[str] | None = None


# What trains other weights, or changes the model that the adapter belongs to, and why.
EXCLUDED = {
    "mixer": "a graft makes new layers, which an adapter does not hold",
    "model": "an adapter fits the model in init_from as it is",
    "teacher": "an adapter is trained on the data alone",
    "repa": "a projector would be trained besides",
    "optimizer": "Muon is for whole matrices of weights",
    "ema_stds": "averages of further lengths are exported as pipelines",
    "push_to_hub": "that uploads pipelines; upload the folder adapter/ with hf upload",
}


def check_adapter(options: Mapping[str, Any]) -> None:
    """Check the options of a run, by name, and fill in nothing.

    Raises:
        ValueError: for an option without an adapter, one that does not go with an adapter, or a value out of range.
    """
    rank = options["lora_rank"]
    if rank is None:
        for each in dataclasses.fields(AdapterConfig):
            if options[each.name] is not None:
                raise ValueError(f"{each.name}={options[each.name]!r} is for an adapter; also give --lora_rank")
        return
    check_count("lora_rank", rank)
    if options["init_from"] is None:
        raise ValueError(f"lora_rank={rank}: an adapter belongs to a trained model; give --init_from PIPELINE")
    if options["objective"] != "flow":
        raise ValueError(
            f"objective={options['objective']!r} trains how the model knows the ends of steps, which an adapter does "
            "not hold; leave out --lora_rank or --objective"
        )
    for name, reason in EXCLUDED.items():
        if options[name] and options[name] != "adamw":
            raise ValueError(
                f"{name}={options[name]!r} does not go with lora_rank={rank}: {reason}; leave one of them out"
            )
    if isinstance(decays := options["ema_decay"], (list, tuple)) and len(decays) > 1:
        raise ValueError(f"ema_decay={decays!r}: the folder of an adapter holds one average; give one decay")
    if options["lora_alpha"] is not None:
        check_positive("lora_alpha", options["lora_alpha"])
        check_float32("lora_alpha", options["lora_alpha"])
    if options["lora_targets"] is not None and not options["lora_targets"]:
        raise ValueError("lora_targets=[] names no layer; leave it out for the layers of mixers and MLPs")
