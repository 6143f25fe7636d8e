"""What options of training and sampling may be, without what implements it, which imports PyTorch."""

from ..utils.checks import check_float32, check_non_negative, check_positive, is_number, is_whole
from .tableaus import ADAPTIVE, FIXED_STEP

WEIGHTINGS = ("none", "velocity", "likelihood")
TIME_SAMPLINGS = ("uniform", "logit-normal")
MAX_LOGIT = 10.0  # beyond it, times are those of the ends
MULTISTEP = ("explicit_adams", "implicit_adams")
ODE_SOLVERS = (*FIXED_STEP, *ADAPTIVE, *MULTISTEP)
SDE_SOLVERS = ("euler_maruyama", "heun")
SAMPLING_DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_time_options(time_sampling: str, time_mean: float, time_std: float) -> None:
    """Raise ValueError unless training times can have this mean and standard deviation; see `InterpolantLoss`."""
    check_positive("time_std", time_std)
    if not is_number(time_mean) or not abs(time_mean) <= MAX_LOGIT or time_std > MAX_LOGIT:
        raise ValueError(
            f"time_mean={time_mean!r}, time_std={time_std!r}: a logit has numbers of at most {MAX_LOGIT:g}, such as "
            "-0.8 and 0.8"
        )
    if time_sampling != "logit-normal" and (time_mean, time_std) != (0, 1):
        raise ValueError(
            f"time_mean={time_mean}, time_std={time_std} are those of logit-normal times; also give "
            "time_sampling=logit-normal"
        )


def check_sigma_floor(sigma_floor: float, path: str, prediction: str, weighting: str) -> None:
    """Raise ValueError unless this loss can have this floor of the noise level; see `InterpolantLoss`."""
    if not is_number(sigma_floor) or not 0 <= sigma_floor < 1:
        raise ValueError(f"sigma_floor={sigma_floor!r} must be at least 0 and below 1, such as 0.05")
    if sigma_floor and (path == "vp" or (prediction, weighting) != ("data", "velocity")):
        raise ValueError(
            f"sigma_floor={sigma_floor} bounds the error of prediction=data, weighting=velocity on path=linear or gvp, "
            f"not of prediction={prediction}, weighting={weighting} on path={path}; leave it out, or use those"
        )


def check_noise_scale(noise_scale: float, prediction: str) -> None:
    """Raise ValueError unless the noise of a path can have this standard deviation; see `Interpolant`."""
    check_positive("noise_scale", noise_scale)
    check_float32("noise_scale", noise_scale)
    if noise_scale != 1 and prediction == "score":
        raise ValueError(
            f"noise_scale={noise_scale}: prediction=score is that of noise of scale 1; use velocity, noise or data, "
            "or leave it out"
        )


def check_guidance(scale: float, interval: tuple[float, float], channels: int | None) -> None:
    """Raise ValueError unless guidance can have this scale, time interval and number of channels; see `Guidance`."""
    check_non_negative("guidance_scale", scale)
    check_float32("guidance_scale", scale)
    is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(is_number, interval))
    if not is_pair or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"guidance_interval={interval} must be (start, end) with 0 ≤ start ≤ end ≤ 1")
    if channels is not None and (not is_whole(channels) or channels < 1):
        raise ValueError(f"guidance_channels={channels!r} must be a whole number of at least 1, or None")
