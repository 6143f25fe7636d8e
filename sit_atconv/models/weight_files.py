"""The files in which diffusers stores the weights of a model, and the hashes by which damage to them is found."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..utils.bounded_text import read_json_object
from ..utils.hashing import file_sha256
from .latent_scaling import STATISTICS

STEM = "diffusion_pytorch_model"
# In the folder of a model, beside its weights: {"sha256": {name of a file: its hash}}. diffusers does not read it. An
# autoencoder's has "latent_statistics", too: the hash of the numbers in its config.json that normalize its latents.
HASHES_FILE = "weights.json"
_VERIFIED = ContextVar("_VERIFIED", default=True)


def weight_patterns(variant: str | None) -> list[str]:
    """Return patterns of one variant's files: a single file, shards, and the index of the shards."""
    suffix = f".{variant}" if variant else ""
    return [
        f"{STEM}{suffix}.safetensors",
        f"{STEM}{suffix}-?????-of-?????.safetensors",
        f"{STEM}.safetensors.index{suffix}.json",
    ]


def stored_variants(folder: Path) -> set[str | None]:
    """Return the variants of the weights in a model's folder; None stands for weights without a variant."""
    names = [file.name.removesuffix(".safetensors").split(".") for file in folder.glob("*.safetensors")]
    return {parts[1].split("-")[0] if len(parts) > 1 else None for parts in names}


def superseded_weights(staging: Path, folder: Path, variant: str | None) -> list[Path]:
    """Return a variant's files in a model's folder that do not belong to the weights in `staging`, which replace them.

    A folder must end with a single file or with shards and their index: diffusers would load what is left over.
    """
    if not any(staging.glob("*.safetensors")):
        return []
    files = [file for pattern in weight_patterns(variant) for file in folder.glob(pattern)]
    return [file for file in files if not (staging / file.name).exists()]


def publication_rank(file: Path) -> int:
    """Return the place of a file in the order in which a folder is updated.

    Hashes come first and weights last: if the process is killed in between, the hashes show that the folder is neither
    the old one nor the new one.
    """
    return 0 if file.name == HASHES_FILE else 2 if file.suffix == ".safetensors" else 1


def stored_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of weights as it was saved, {} for a folder that says nothing of them.

    Raises:
        ValueError: if the file of the hashes is damaged.
    """
    file = folder / HASHES_FILE
    if not file.is_file():
        return {}
    try:
        hashes = json.loads(file.read_text(encoding="utf-8"))["sha256"]
        return {Path(name).name: str(value) for name, value in hashes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged, so the weights cannot be verified; get the folder again, or leave out the check with "
            "verify_weights=False"
        ) from error


def record_hashes(staging: Path, folder: Path, superseded: list[Path]) -> None:
    """Write the hashes of the weights in `staging`, and of those of other variants that stay in `folder`."""
    known = stored_hashes(staging)
    hashes = {file.name: known.get(file.name) or file_sha256(file) for file in staging.glob("*.safetensors")}
    staying = {file.name for file in folder.glob("*.safetensors") if file not in superseded}
    with contextlib.suppress(ValueError):  # a damaged file is replaced
        hashes = {name: value for name, value in stored_hashes(folder).items() if name in staying} | hashes
    if hashes:
        statistics = statistics_sha256(staging)
        record = {"sha256": dict(sorted(hashes.items()))} | ({"latent_statistics": statistics} if statistics else {})
        text = json.dumps(record, indent=2) + "\n"
        (staging / HASHES_FILE).write_text(text, encoding="utf-8")


def statistics_sha256(folder: Path) -> str | None:
    """Return the hash of the numbers in an autoencoder's config.json that normalize its latents; None for other models.

    Raises:
        ValueError: if the file is damaged.
    """
    file = folder / "config.json"
    config = read_json_object(file) if file.is_file() else {}
    if not any(name in config for name in STATISTICS):
        return None
    numbers = json.dumps([config.get(name) for name in STATISTICS])
    return hashlib.sha256(numbers.encode()).hexdigest()


def verify_statistics(folder: Path) -> None:
    """Raise ValueError if the numbers that normalize an autoencoder's latents are not those that were saved with it."""
    recorded = json.loads((folder / HASHES_FILE).read_text(encoding="utf-8")).get("latent_statistics")
    if recorded is not None and statistics_sha256(folder) != recorded:
        raise ValueError(
            f"{folder} is not as it was saved: {', '.join(STATISTICS)} in its config.json have another SHA-256, and "
            "no model was trained on latents of other statistics; get it again. If you changed them "
            f"yourself, pass verify_weights=False, or remove its {HASHES_FILE}"
        )


def verify_weights(folder: Path, variant: str | None = None, every_variant: bool = False) -> int:
    """Compare the weights in a model's folder with the hashes that were stored when they were saved.

    Args:
        folder: the folder of the model. If it stores no hashes, as folders of other programs, nothing is compared.
        variant: the variant to compare; if there is none, as in loading, the weights without a variant.
        every_variant: compare all files that have a hash, and miss those that are not there.

    Returns:
        The number of files that were compared.

    Raises:
        ValueError: naming the files that are not as they were saved, or for other statistics of latents.
    """
    if not (hashes := stored_hashes(folder)):
        return 0
    verify_statistics(folder)
    if every_variant:
        names = list(hashes)
    else:
        patterns = [weight_patterns(each)[:2] for each in (variant, None)]
        found = [[file.name for pattern in each for file in folder.glob(pattern)] for each in patterns]
        names = [name for name in found[0] or found[1] if name in hashes]
    missing = [name for name in names if not (folder / name).is_file()]
    changed = [name for name in names if name not in missing and file_sha256(folder / name) != hashes[name]]
    if missing or changed:
        faults = [f"{name} is missing" for name in missing] + [f"{name} has another SHA-256" for name in changed]
        raise ValueError(
            f"{folder} is not as it was saved: {', '.join(faults)}; get it again. If you changed it yourself, pass "
            f"verify_weights=False, or remove its {HASHES_FILE}"
        )
    return len(names)


@contextmanager
def verifying(wanted: bool) -> Iterator[None]:
    """Whether models that are loaded in this context are compared with their hashes."""
    token = _VERIFIED.set(wanted)
    try:
        yield
    finally:
        _VERIFIED.reset(token)


def is_verifying() -> bool:
    """Whether models are to be compared with their hashes when they are loaded; see `verifying`."""
    return _VERIFIED.get()
