"""The files in which diffusers stores the weights of a model, and how to save over older ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEM = "diffusion_pytorch_model"


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


@contextmanager
def replacing_weights(folder: str | Path, variant: str | None) -> Iterator[None]:
    """Save a model in this context, so that its folder ends with a single file or shards with an index, never both.

    diffusers removes older shards but leaves their index, which takes precedence when it loads.
    """
    whole, _, index = weight_patterns(variant)
    (Path(folder) / index).unlink(missing_ok=True)
    yield
    if (Path(folder) / index).is_file():
        (Path(folder) / whole).unlink(missing_ok=True)
