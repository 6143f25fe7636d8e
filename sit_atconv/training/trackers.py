"""TensorBoard, W&B and trackio: what they are told about a run."""

import uuid
from dataclasses import asdict
from pathlib import Path

from ..utils.files import write_atomically


def scalars(values: dict) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl as trackers take them; loss by time as one number for each part."""
    by_time = {f"loss_by_time/{i}": value for i, value in enumerate(values["loss_by_time"])}
    return {
        key: value for key, value in (values | by_time).items() if isinstance(value, (int, float)) and value is not None
    }


def tracker_config(config) -> dict[str, int | float | str | bool]:
    """A configuration (a dataclass) as all trackers take it: what is no number becomes text."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in asdict(config).items()
    }


def tracker_options(config) -> dict[str, dict]:
    """What W&B and trackio are told besides the project's name, the run folder's: which run to start, or to continue.

    Its id is in tracker_id.txt in the run folder, which is written where it is not there.
    """
    if config.log_with not in ("wandb", "trackio"):
        return {}
    file = Path(config.output_dir) / "tracker_id.txt"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:8])
    run = file.read_text(encoding="utf-8").strip()
    if config.log_with == "wandb":
        return {"wandb": {"dir": config.output_dir, "id": run, "resume": "allow"}}
    return {"trackio": {"name": run, "resume": "allow"}}
