"""What sampling costs, batch by batch, in a folder that several runs and processes fill.

Each process appends to a file of its own while it samples; afterwards these notes are merged into costs.jsonl, so that
the averages cover all images, whichever run drew them.
"""

import json
from pathlib import Path

from ..utils.bounded_text import load_json
from ..utils.files import append_line, open_regular, staged
from .output_files import COSTS_RECORD

ENTRIES = ("first_image", "network_calls", "seconds")  # numbers in each line


def note_cost(folder: Path, process: int, start: int, network_calls: int, seconds: float) -> None:
    """Append the cost of one batch to the notes of this process.

    Args:
        folder: the folder of samples.
        process: index of this process.
        start: index of the first image of the batch.
        network_calls: network calls of the batch, counted once for each image that passes through.
        seconds: wall-clock time of the batch.
    """
    cost = {"first_image": start, "network_calls": network_calls, "seconds": seconds}
    append_line(folder / f".{process}.{COSTS_RECORD}", json.dumps(cost))


def collect_costs(folder: Path) -> dict[int, dict]:
    """Merge the notes of all processes into costs.jsonl, and return the cost of each batch by its first image."""
    file = folder / COSTS_RECORD
    notes = list(folder.glob(f".*.{COSTS_RECORD}"))
    costs: dict[int, dict] = {}
    for source in [file, *notes] if file.exists() else notes:
        with open_regular(source) as opened:
            content = opened.read()
        for line in content.splitlines():
            try:
                cost = load_json(line.decode(), source)
                costs[int(cost["first_image"])] = {name: cost[name] + 0 for name in ENTRIES}
            except (ValueError, TypeError, KeyError):  # empty, cut short by a crash, or damaged
                continue
    if notes:
        with staged(file) as part:
            part.write_text("".join(f"{json.dumps(costs[start])}\n" for start in sorted(costs)), encoding="utf-8")
        for note in notes:
            note.unlink()
    return costs


def cost_per_image(costs: dict[int, dict], num_samples: int, batch_size: int) -> dict[str, float]:
    """Averages over all batches, for the record of the samples; empty if the cost of a batch is not known."""
    starts = range(0, num_samples, batch_size)
    if not costs.keys() >= set(starts):
        return {}
    drawn = len(starts) * batch_size
    return {
        f"{name}_per_image": sum(costs[start][name] for start in starts) / drawn
        for name in ("seconds", "network_calls")
    }
