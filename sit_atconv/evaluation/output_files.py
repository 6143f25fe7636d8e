"""Folders that evaluations write. This file imports nothing that takes long: the checks come first in a command."""

import os
from pathlib import Path

from ..utils.files import check_new_file, check_new_folder, check_writable

SAMPLES_RECORD = "samples.json"
COSTS_RECORD = "costs.jsonl"
LABELS_FILE = "labels.csv"
COMPANIONS = {SAMPLES_RECORD, COSTS_RECORD, LABELS_FILE}  # files beside the images of a folder of samples
REPORT_MARKDOWN, REPORT_PAGE = "report.md", "report.html"


class SamplingError(ValueError):
    """A failure in one process after sampling has begun; the other processes do not know of it."""


def check_sample_folder(folder: str | Path) -> None:
    """Raise ValueError unless samples can be written to a folder: a new one, or one with a record of samples."""
    if os.path.isfile(Path(folder) / SAMPLES_RECORD):
        check_writable("output", Path(folder) / SAMPLES_RECORD)
    else:
        check_new_folder("output", folder)


def check_batch_file(file: str | Path) -> None:
    """Raise ValueError unless a .npz batch can be written: a new file, or one with its record beside it."""
    file = Path(file)
    if file.suffix != ".npz":
        raise ValueError(f"npz={str(file)!r} must end in .npz")
    if not os.path.isfile(file.with_suffix(".json")):
        check_new_file("npz", file)
    check_writable("npz", file)


def check_report_folder(folder: str | Path) -> None:
    """Raise ValueError unless a comparison can be written to a folder: a new one, or one with an earlier report."""
    if os.path.isfile(Path(folder) / REPORT_MARKDOWN):
        check_writable("output", Path(folder) / REPORT_MARKDOWN)
    else:
        check_new_folder("output", folder)
