"""Statistics of reference images, kept in a .npz file under the names of ADM's reference batches.

N images, F features each. The file may hold mu, sigma (of the features), mu_s, sigma_s (of the spatial features),
features, and "stamp", a record in JSON of how they were made. Files from elsewhere have no such record.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..utils.bounded_text import load_json
from ..utils.files import check_new_file, staged
from .feature_statistics import check_covariance
from .npz_arrays import StoredArray, list_arrays

ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features")
MOMENTS = (("mu", "sigma"), ("mu_s", "sigma_s"))
STAMP = "stamp"
STAMP_TYPES = {"weights": str, "resize": str, "sha256": str, "num_images": int, "image_size": int}  # or None
MAX_STAMP_BYTES = 2**20


@dataclass
class ReferenceStatistics:
    """What a file holds of a reference.

    Attributes:
        mu, sigma: mean (F,) and covariance (F, F) of the features; None if the file does not hold them.
        mu_s, sigma_s: mean and covariance of the spatial features; None if there are none.
        features: features (N, F) of the images; None if there are none.
        record: how they were made: "extractor", "weights" (SHA-256), "resize", "num_images", "image_size" and "sha256"
            of the images. For a file without a record: "extractor", and whether it is "assumed".
    """

    mu: np.ndarray | None = None
    sigma: np.ndarray | None = None
    mu_s: np.ndarray | None = None
    sigma_s: np.ndarray | None = None
    features: np.ndarray | None = None
    record: dict = field(default_factory=dict)


def load_statistics(file: str | Path, extractor: str | None = None) -> ReferenceStatistics:
    """Read the statistics in a .npz file; a file that only holds images gives empty ones.

    ADM's files do not say what made them, but only they hold spatial statistics (mu_s, sigma_s), which are therefore
    taken for those of "inception-adm". clean-fid, pytorch-fid and EDM write mu and sigma only.

    Args:
        file: the .npz file.
        extractor: the extractor that made the statistics, if the file does not say so.

    Raises:
        ValueError: if the file cannot be read or is damaged, or its arrays do not fit together or are not statistics.
    """
    try:
        stored = list_arrays(file, (*ARRAYS, STAMP, "arr_0"))
        has_images = stored.pop("arr_0", None) is not None
        record = read_stamp(stored.pop(STAMP, None))
        if not has_images and not {"mu", "sigma"} <= stored.keys():
            raise ValueError("it holds neither images (arr_0) nor statistics (mu, sigma)")
        check_shapes(stored, record)
        found = {name: array.read() for name, array in stored.items()}
        for name in found.keys() - {"features"}:
            found[name] = found[name].astype(np.float64)  # the covariance of FID loses digits in float32
        check_values(found)
    except ValueError as error:
        raise ValueError(f"reference={str(file)!r} cannot be used: {error}") from error
    if record and extractor not in (None, record["extractor"]):
        raise ValueError(
            f"reference_extractor={extractor!r}: reference={str(file)!r} says that {record['extractor']} made it; "
            "leave the option out"
        )
    if found and not record:
        record = {"extractor": extractor or ("inception-adm" if "mu_s" in found else None)}
        record["assumed"] = extractor is None and record["extractor"] is not None
    return ReferenceStatistics(**found, record=record)


def read_stamp(stored: StoredArray | None) -> dict:
    """Read the record in a file of statistics; an empty one if the file has none.

    Raises:
        ValueError: if it is damaged.
    """
    if stored is None:
        return {}
    if stored.shape != () or stored.dtype.kind != "U" or stored.dtype.itemsize > MAX_STAMP_BYTES:
        raise ValueError("its record (stamp) is not text; make it again with --save_statistics")
    try:
        record = load_json(str(stored.read()), STAMP)
        is_valid = isinstance(record["extractor"], str) and all(
            isinstance(record.get(name), (kind, type(None))) for name, kind in STAMP_TYPES.items()
        )
    except (ValueError, TypeError, KeyError):
        is_valid = False
    if not is_valid:
        raise ValueError("its record (stamp) is damaged; make it again with --save_statistics")
    return record


def check_shapes(stored: dict[str, StoredArray], record: dict) -> None:
    """Check from headers alone that arrays are real numbers and fit together.

    Raises:
        ValueError: naming the array.
    """
    for name, array in stored.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} is {array.dtype}, but must be real numbers")
    for mean, covariance in MOMENTS:
        if (mean in stored) != (covariance in stored):
            raise ValueError(f"{mean} and {covariance} belong together, but it holds only one of them")
        if mean not in stored:
            continue
        shape = stored[mean].shape
        if len(shape) != 1 or not shape[0] or stored[covariance].shape != shape * 2:
            raise ValueError(
                f"{mean} is {shape} and {covariance} {stored[covariance].shape}, but must be (F,) and (F, F)"
            )
    if "features" in stored:
        shape = stored["features"].shape
        if len(shape) != 2 or not shape[0] or ("mu" in stored and shape[1:] != stored["mu"].shape):
            raise ValueError(f"features are {shape}, but must be (N, F), with F as in mu")
        if record.get("num_images") not in (None, shape[0]):
            raise ValueError(f"features are of {shape[0]} images, but the record says {record['num_images']}")


def check_values(arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless all numbers are finite, and covariances are positive semi-definite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    for _, covariance in MOMENTS:
        if covariance in arrays:
            check_covariance(covariance, arrays[covariance])


def save_statistics(file: str | Path, statistics: ReferenceStatistics) -> None:
    """Write statistics and their record to a new .npz file.

    Raises:
        ValueError: if the file exists, or cannot be written.
    """
    check_new_file("save_statistics", file)
    arrays = {name: getattr(statistics, name) for name in ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged(file) as part, part.open("wb") as opened:
        np.savez(opened, **arrays, stamp=np.array(json.dumps(statistics.record)))
