"""What the model of a run is made of: the trained pipelines that it starts from and learns from, for its card."""

from pathlib import Path
from typing import Any

from ..models.weight_files import stored_hashes
from ..sharing.card import GENERIC_NAME, run_name
from ..utils.hashing import file_sha256
from .config import TrainConfig
from .grafting import Graft


def describe_lineage(config: TrainConfig, graft: Graft | None) -> dict[str, Any]:
    """Describe the pipelines in `init_from` and `teacher`, and what a graft replaces, as JSON values."""
    lineage: dict[str, Any] = {}
    if config.init_from is not None:
        lineage["init_from"] = describe_origin(config.init_from)
    if graft is not None:
        lineage["replaced_blocks"] = graft.blocks
    if config.teacher is not None:
        lineage["teacher"] = describe_origin(config.teacher)
    return lineage


def describe_origin(folder: str) -> dict[str, Any]:
    """The name of a pipeline folder, that of its run if it has one, and the SHA-256 of the transformer's weights."""
    path = Path(folder).absolute()
    name = path.name
    if name == GENERIC_NAME and (name := run_name(path)) == GENERIC_NAME:
        name = path.parent.name  # the run folder
    stored = stored_hashes(path / "transformer")
    files = sorted((path / "transformer").glob("*.safetensors"))
    return {"name": name, "sha256": {file.name: stored.get(file.name) or file_sha256(file) for file in files}}
