"""The names under which a page shows pipelines."""

from collections.abc import Sequence
from pathlib import Path


def page_names(names: Sequence[str]) -> list[str]:
    """Short names of pipelines, each of its own: runs/digits-atconv/pipeline is digits-atconv."""
    shown: list[str] = []
    for name in names:
        path = Path(name).absolute()
        short = path.parent.name if path.name == "pipeline" else path.name
        shown.append(short if short not in shown else f"{short} ({len(shown) + 1})")
    return shown
