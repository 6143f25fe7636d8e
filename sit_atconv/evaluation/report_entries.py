"""What the entries of a report of eval/fid.py must be, so that a comparison can compute with them and show them."""

from collections.abc import Callable
from typing import Any

from ..flow.choices import SAMPLING_DTYPES
from ..utils.checks import MAX_COUNT, is_number, is_whole

# The metrics that tables show, in their order.
SCORES = ("fid", "fid_infinity", "sfid", "kid", "inception_score", "precision", "recall", "density", "coverage")
LARGEST = 1e300  # numbers beyond it are damage
MAX_SHOWN = 60  # characters of a damaged entry


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return is_number(value) and -LARGEST < value < LARGEST  # not NaN either


def _is_count(value: Any) -> bool:
    return is_whole(value) and 0 <= value <= MAX_COUNT


def _is_seed(value: Any) -> bool:
    return is_whole(value) and 0 <= value < 2**63


def _is_cost(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _are_finite(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_finite, value))


def _is_interval(value: Any) -> bool:
    return _are_finite(value) and len(value) == 2


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(each is None or _is_text(each) for each in value.values())


def _is_dtype(value: Any) -> bool:
    return value in SAMPLING_DTYPES[1:]  # "auto" is none


def _is_scheduler(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("class")) and isinstance(value.get("config"), dict)


# None stands for what was not measured or does not apply; entries that every report has were looked for before.
ENTRIES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(SCORES, _is_finite),
    **dict.fromkeys((f"{name}_interval" for name in SCORES), _is_interval),
    "fid_resampled": _are_finite,
    "dtype": _is_dtype,
    **dict.fromkeys(("step", "num_samples", "num_reference", "num_features", "num_inference_steps"), _is_count),
    **dict.fromkeys(("seconds_per_image", "network_calls_per_image"), _is_cost),
    **dict.fromkeys(("model_sha256", "weights_sha256", "reference_sha256", "device", "device_name"), _is_text),
    **dict.fromkeys(("git_commit", "samples", "reference", "extractor", "resize", "labels"), _is_text),
    "seed": _is_seed,
    "batch_size": _is_count,
    "guidance_scale": _is_finite,
    "guidance_interval": _is_interval,
    "notes": _are_texts,
    "versions": _are_versions,
    "scheduler": _is_scheduler,
}


def misshapen_entries(report: dict) -> list[str]:
    """The names of the entries that are of another kind than eval/fid.py writes them."""
    return [name for name, fits in ENTRIES.items() if report.get(name) is not None and not fits(report[name])]


def shortened(text: str) -> str:
    """Text of at most `MAX_SHOWN` characters."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
