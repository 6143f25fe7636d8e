"""Statistics of reference images, kept in a .npz file under the names of ADM's reference batches.

N images, F features each. The file may hold mu, sigma (of the features), mu_s, sigma_s (of the spatial features),
features, and "stamp", a record in JSON of how they were made. Files from elsewhere have no such record.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..utils.files import check_new_file, staged

ARRAYS = ("mu", "sigma", "mu_s", "sigma_s", "features")


@dataclass
class ReferenceStatistics:
    """What a file holds of a reference.

    Attributes:
        mu, sigma: mean (F,) and covariance (F, F) of the features; None if the file does not hold them.
        mu_s, sigma_s: mean and covariance of the spatial features, likewise.
        features: features (N, F) of the images, likewise.
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
        ValueError: if the file cannot be read, or its arrays do not fit together.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ARRAYS if name in arrays}
            record = json.loads(str(arrays["stamp"])) if "stamp" in arrays else {}
            has_images = "arr_0" in arrays
    except Exception as error:  # zipfile, NumPy and JSON each have their own
        raise ValueError(f"reference={str(file)!r} cannot be read as .npz: {error}") from error
    if not has_images and not {"mu", "sigma"} <= found.keys():
        raise ValueError(f"reference={str(file)!r} holds neither images (arr_0) nor statistics (mu, sigma)")
    check_moments(file, found)
    if record and extractor not in (None, record["extractor"]):
        raise ValueError(
            f"reference_extractor={extractor!r}: reference={str(file)!r} says that {record['extractor']} made it; "
            "leave the option out"
        )
    if found and not record:
        record = {"extractor": extractor or ("inception-adm" if "mu_s" in found else None)}
        record["assumed"] = extractor is None and record["extractor"] is not None
    return ReferenceStatistics(**found, record=record)


def check_moments(file: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless each mean has a covariance of its size, and all numbers are finite."""
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean in arrays:
            F = len(arrays[mean])
            if covariance not in arrays or arrays[covariance].shape != (F, F):
                raise ValueError(f"reference={str(file)!r}: {covariance} is missing or does not fit {mean} ({F},)")
            if not (np.isfinite(arrays[mean]).all() and np.isfinite(arrays[covariance]).all()):
                raise ValueError(f"reference={str(file)!r}: {mean} and {covariance} hold numbers that are not finite")


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
