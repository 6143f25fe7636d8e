"""The options of what a run regresses on: path, prediction, weighting and training times."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..flow.choices import TIME_SAMPLINGS, WEIGHTINGS, check_noise_scale, check_sigma_floor, check_time_options
from ..utils.checks import check_choice, check_float32, check_positive


@dataclass
class ObjectiveConfig:
    """Objective

    Args:
        objective: flow, the prediction at each time; or meanflow, the mean velocities of steps, for sampling in one to
            four network calls. The path is then linear and the prediction velocity.
        path: the interpolant between noise and data: linear, gvp or vp.
        prediction: what the network predicts: velocity, score, noise or data.
        noise_scale: standard deviation of the noise, such as 2 for images of 512 × 512 pixels (JiT). The pipeline keeps
            it. Not for score prediction.
        weighting: weighting of the loss over time: none, velocity or likelihood.
        time_sampling: distribution of the training times: uniform or logit-normal.
        time_shift: factor by which the odds of the training times are shifted towards noise; 1 leaves them unchanged.
        time_mean: mean of the logit of logit-normal times; below 0, more of them are near noise.
        time_std: standard deviation of that logit.
        sigma_floor: the least noise level by which weighting velocity divides the error of data prediction, such as
            0.05; 0 for none.
    """

    objective: Literal["flow", "meanflow"] = "flow"
    path: Literal["linear", "gvp", "vp"] = "linear"
    prediction: Literal["velocity", "score", "noise", "data"] = "velocity"
    noise_scale: float = 1.0
    weighting: str = "none"
    time_sampling: str = "uniform"
    time_shift: float = 1.0
    time_mean: float = 0.0
    time_std: float = 1.0
    sigma_floor: float = 0.0

    @property
    def path_options(self) -> dict[str, Any]:
        """Path, prediction and scale of the noise, as `Interpolant` and the schedulers take them."""
        return {name: getattr(self, name) for name in ("path", "prediction", "noise_scale")}

    @property
    def time_options(self) -> dict[str, Any]:
        """The distribution of the training times, as the losses take it."""
        return {name: getattr(self, name) for name in ("time_sampling", "time_shift", "time_mean", "time_std")}


def check_objective_options(options: Mapping[str, Any]) -> None:
    """Check the options of a run, by name.

    Raises:
        ValueError: for a value out of range, or an option that would have no effect.
    """
    check_noise_scale(options["noise_scale"], options["prediction"])
    check_choice("weighting", options["weighting"], WEIGHTINGS)
    check_choice("time_sampling", options["time_sampling"], TIME_SAMPLINGS)
    check_time_options(options["time_sampling"], options["time_mean"], options["time_std"])
    check_sigma_floor(options["sigma_floor"], options["path"], options["prediction"], options["weighting"])
    check_positive("time_shift", options["time_shift"])
    check_float32("time_shift", options["time_shift"])
