"""What options of training and sampling may be, without what implements it, which imports PyTorch."""

from ..utils.checks import check_float32, check_non_negative, is_number, is_whole
from .tableaus import ADAPTIVE, FIXED_STEP

WEIGHTINGS = ("none", "velocity", "likelihood")
TIME_SAMPLINGS = ("uniform", "logit-normal")
MULTISTEP = ("explicit_adams", "implicit_adams")
ODE_SOLVERS = (*FIXED_STEP, *ADAPTIVE, *MULTISTEP)
SDE_SOLVERS = ("euler_maruyama", "heun")


def check_guidance(scale: float, interval: tuple[float, float], channels: int | None) -> None:
    """Raise ValueError unless guidance can have this scale, time interval and number of channels; see `Guidance`."""
    check_non_negative("guidance_scale", scale)
    check_float32("guidance_scale", scale)
    is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2 and all(map(is_number, interval))
    if not is_pair or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"guidance_interval={interval} must be (start, end) with 0 ≤ start ≤ end ≤ 1")
    if channels is not None and (not is_whole(channels) or channels < 1):
        raise ValueError(f"guidance_channels={channels!r} must be a whole number of at least 1, or None")
