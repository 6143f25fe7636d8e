"""The options of a run that trains mean velocities (MeanFlow)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..utils.checks import check_non_negative, check_positive, check_share

# Arguments of the transformer that tell how it knows the end of a step, which fine-tuning may choose.
STEP_ARGUMENTS = ("step_conditioning", "end_time_blocks")


@dataclass
class MeanFlowConfig:
    """MeanFlow, with --objective meanflow

    Args:
        meanflow_share: share of the samples that are spans, steps from t to s > t; the others train the velocity at t.
            A span costs two to three more forward passes.
        meanflow_tangent: the velocity along which spans are differentiated: data, that between noise and image; or
            model, the network's own (iMF). A teacher's is used if there is one.
        meanflow_data_end_share: share of the spans that end at the data, s = 1; the ends of the others are drawn like
            t.
        meanflow_derivative: jvp, exact; or difference, a quotient of differences, in float32 alone.
        meanflow_adaptive_power: power p of the weight 1/(error + 0.001)^p of each sample; 0 weights all alike.
        meanflow_guidance_scale: scale of classifier-free guidance that is built into the model, which then needs none
            in sampling; 1 for none.
        meanflow_guidance_mix: share of the model's own guided velocity in what is learnt, below 1. If null,
            1 − 1/scale, as in iMF. Not for a teacher.
        meanflow_guidance_warmup_steps: number of first updates without that guidance. Without a teacher, guidance is
            unstable before the model knows its classes.
    """

    meanflow_share: float = 0.75
    meanflow_tangent: Literal["data", "model"] = "model"
    meanflow_data_end_share: float = 0.0
    meanflow_derivative: Literal["jvp", "difference"] = "jvp"
    meanflow_adaptive_power: float = 0.0
    meanflow_guidance_scale: float = 1.0
    meanflow_guidance_mix: float | None = None
    meanflow_guidance_warmup_steps: int = 100


OPTIONS = tuple(each.name for each in dataclasses.fields(MeanFlowConfig))


def check_mean_flow(options: Mapping[str, Any]) -> None:
    """Check the options of a run, by name.

    Raises:
        ValueError: for an option that the objective does not have, or a value out of range.
    """
    if options["objective"] != "meanflow":
        defaults = {each.name: each.default for each in dataclasses.fields(MeanFlowConfig)}
        if given := [name for name in OPTIONS if options[name] != defaults[name]]:
            raise ValueError(
                f"{given[0]}={options[given[0]]!r} is an option of MeanFlow; give --objective meanflow, or leave it out"
            )
        return
    check_share("meanflow_share", options["meanflow_share"])
    check_share("meanflow_data_end_share", options["meanflow_data_end_share"])
    check_non_negative("meanflow_adaptive_power", options["meanflow_adaptive_power"])
    check_positive("meanflow_guidance_scale", options["meanflow_guidance_scale"])
    check_non_negative("meanflow_guidance_warmup_steps", options["meanflow_guidance_warmup_steps"])
    if (mix := options["meanflow_guidance_mix"]) is not None and not 0 <= mix < 1:
        raise ValueError(f"meanflow_guidance_mix={mix} must be at least 0 and below 1; leave it out for 1 − 1/scale")
    for name, expected in (("path", "linear"), ("prediction", "velocity"), ("weighting", "none")):
        if options[name] != expected:
            raise ValueError(f"{name}={options[name]!r}: --objective meanflow needs {expected!r}; leave --{name} out")
    if options["meanflow_derivative"] == "difference" and options["mixed_precision"] not in (None, "no"):
        raise ValueError(
            f"meanflow_derivative='difference' needs float32, but mixed_precision={options['mixed_precision']}, which "
            "rounds differences away; use jvp"
        )
    if options["teacher"] is not None and options["meanflow_guidance_mix"] is not None:
        raise ValueError(
            f"meanflow_guidance_mix={options['meanflow_guidance_mix']}: a teacher's guided velocity is learnt as it "
            "is; leave it out"
        )
