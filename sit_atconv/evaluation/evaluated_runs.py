"""Trained and evaluated runs: what a comparison reads from their folders, and which of them can be compared."""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..training.config import TrainConfig
from ..training.references import check_run_folder
from ..utils.bounded_text import load_json, read_json, read_yaml
from ..utils.checks import MAX_COUNT, is_number, is_whole
from ..utils.text import joined_lines, one_line
from .records import folder_sha256, in_full
from .report_entries import misshapen_entries, shortened
from .score_report import check_comparable
from .validation_loss import ValidationLoss, validation_file

# Training options in which the runs of a comparison are meant to differ.
MEANT_TO_DIFFER = {"mixer", "preset", "model", "seed", "output_dir", "resume"}
# What determines how images are drawn: if all of it is equal, they come from the same noise and labels.
SAMPLED_ALIKE = (
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "guidance_channels",
    "labels",
    "seed",
    "batch_size",
    "dtype",
)
NEEDED_OPTIONS = ("max_steps", "seed", "batch_size")  # of the training
REQUIRED = (  # in every report
    "model_sha256",
    "seed",
    "labels",
    "num_inference_steps",
    "notes",
    "versions",
    "device",
    "samples",
    "num_samples",
    "reference",
    "extractor",
    "num_features",
    "resize",
)
# Where scores were computed: if it differs, the comparison says so.
COMPUTED_ALIKE = ("versions", "device", "device_name", "tf32")


@dataclass
class Run:
    """One trained and evaluated run.

    Attributes:
        folder: the run folder of train/train_sit.py.
        model: name of the model: the folder's name without the seed.
        seed: seed of the training.
        config: options of the training.
        reports: reports of eval/fid.py, sorted by training step, then by network calls per image.
        hours: hours of training until each step that was evaluated.
        validation: losses on held-out images after each step that was evaluated, if they were computed.
        final_inference_steps: number of solver steps of the report that tables show. If None, the report of the most
            network calls is shown.
        final_like: a report of another run; the one that tables show was sampled in the same way. If None, see
            `final_inference_steps`.
    """

    folder: Path
    model: str
    seed: int
    config: dict
    reports: list[dict]
    hours: dict[int, float] = field(default_factory=dict)
    validation: dict[int, ValidationLoss] = field(default_factory=dict)
    final_inference_steps: int | None = None
    final_like: dict | None = None

    @property
    def final(self) -> dict:
        """The report of the last step; if there are several, see `final_inference_steps` and `final_like`."""
        last = self.reports_of_last_step
        wanted = [report for report in last if report.get("num_inference_steps") == self.final_inference_steps]
        if self.final_like is not None:
            wanted = [report for report in last if sampled_alike(report, self.final_like)]
        return (wanted or last)[-1]

    @property
    def reports_by_step(self) -> list[dict]:
        """The reports of all steps whose samples were drawn as those of the final report."""
        return [report for report in self.reports if sampled_alike(report, self.final)]

    @property
    def reports_of_last_step(self) -> list[dict]:
        """The reports of the last step, however its samples were drawn."""
        return [report for report in self.reports if report["step"] == self.reports[-1]["step"]]


def sampled_alike(a: dict, b: dict) -> bool:
    """Whether the samples of two reports were drawn in the same way."""
    return all(a.get(key) == b.get(key) for key in SAMPLED_ALIKE)


def model_names(runs: Iterable[Run]) -> list[str]:
    """The models of these runs, each once, the baseline first."""
    return list(dict.fromkeys(run.model for run in runs))


def load_run(folder: Path) -> Run:
    """Read the training options, reports and training times of a run.

    Raises:
        ValueError: if the folder is not a run, or the run was not finished or not evaluated.
    """
    check_run_folder("run", folder)
    if not (folder / "pipeline").is_dir():
        raise ValueError(f"run={str(folder)!r} is not finished: it has no pipeline")
    config = read_config(folder / "config.yaml")
    reports = []
    for file in sorted((folder / "evaluation").glob("*.json")):
        report = read_report(file)
        if report is not None:
            reports.append({"step": config["max_steps"], **in_full(report), "file": str(file)})
    if not reports:
        raise ValueError(
            f"run={str(folder)!r} was not evaluated: make a report with python eval/fid.py {folder}/pipeline … "
            f"--output {folder}/evaluation/final.json, or use eval/duel.py"
        )
    reports = without_stale_reports(reports, config["max_steps"], folder_sha256(folder / "pipeline"))
    reports.sort(key=lambda report: (report["step"], report.get("network_calls_per_image") or 0))
    steps = sorted({report["step"] for report in reports})
    hours = training_hours(folder, config, steps)
    files = {step: validation_file(folder, step) for step in steps}
    validation = {step: ValidationLoss.load(file) for step, file in files.items() if file.is_file()}
    return Run(folder, model_name(folder), config["seed"], config, reports, hours, validation)


def model_name(folder: Path) -> str:
    """The name of a run folder without its seed, however the folder was given: also as "." or with ".."."""
    name = Path(os.path.abspath(folder)).name
    return one_line(re.sub(r"-seed\d+$", "", name) or name or folder)


def read_config(file: Path) -> dict:
    """Read the training options of a run. Options that did not exist yet have their defaults.

    Raises:
        ValueError: if the file is damaged, or lacks an option that a comparison needs.
    """
    try:
        config = read_yaml(file)
    except ValueError as error:
        raise ValueError(f"{joined_lines(error)}; restore it from a copy of the run") from error
    options = config if isinstance(config, dict) else {}
    if wrong := [name for name in NEEDED_OPTIONS if type(options.get(name)) is not int]:
        raise ValueError(f"{file} does not say {', '.join(wrong)}; restore it from a copy of the run")
    if odd := [name for name in options if not isinstance(name, str)]:
        raise ValueError(f"{file}: {odd[0]!r} is no name of an option; restore it from a copy of the run")
    return {**json.loads(json.dumps(asdict(TrainConfig()))), **options}  # with lists for tuples, as YAML has them


def without_stale_reports(reports: list[dict], last_step: int, model_sha256: str) -> list[dict]:
    """The reports without those of the last step that are of other weights, if one is of the run's pipeline.

    A run that was trained further, or exported again, and evaluated again has reports of both states.
    """
    if not any(report["step"] == last_step and report["model_sha256"] == model_sha256 for report in reports):
        return reports  # a comparison that needs the report refuses it
    return [report for report in reports if report["step"] != last_step or report["model_sha256"] == model_sha256]


def read_report(file: Path) -> dict | None:
    """Read a report of eval/fid.py.

    Returns:
        The report, or None if the JSON file is not a report with an FID.

    Raises:
        ValueError: if the file is damaged, or does not record how its images were made.
    """
    try:
        report = read_json(file)
    except ValueError as error:
        raise ValueError(f"{error}; make that report again") from error
    if not isinstance(report, dict) or "fid" not in report:
        return None
    if not isinstance(report["fid"], float) or not math.isfinite(report["fid"]):
        raise ValueError(f"{file}: fid={report['fid']} is not a finite number; make that report again")
    if missing := [name for name in REQUIRED if report.get(name) is None]:
        raise ValueError(
            f"{file} does not record {', '.join(missing)}; score the run's pipeline, or samples of eval/sample.py"
        )
    if wrong := misshapen_entries(report):
        entries = ", ".join(f"{name}={shortened(repr(report[name]))}" for name in wrong)
        raise ValueError(f"{file} is damaged ({entries}); make that report again")
    return report


def training_hours(folder: Path, config: dict, steps: list[int]) -> dict[int, float]:
    """Hours of training until each step, from the speeds in metrics.jsonl; empty if the run has no such file."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return {}
    hours: dict[int, float] = {}
    total, last = 0.0, 0
    for line in read_log(file):
        if "images_per_second" in line:
            total += (line["step"] - last) * config["batch_size"] / line["images_per_second"] / 3600
            last = line["step"]
            hours[last] = total
    known = sorted(hours)
    return {step: float(np.interp(step, known, [hours[k] for k in known])) for step in steps if known}


def read_log(file: Path) -> list[dict]:
    """Read the lines of metrics.jsonl. A last line that was cut short by a crash or a full disk is left out.

    Raises:
        ValueError: naming the line, if another one is damaged.
    """
    text = file.read_bytes()
    lines = text.splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = load_json(line.decode(), file)
            speed = entry.get("images_per_second", 1.0)
            is_valid = is_whole(entry.get("step")) and 0 <= entry["step"] <= MAX_COUNT
            is_valid &= is_number(speed) and 1e-9 < speed < 1e18
        except (ValueError, AttributeError):
            is_valid = False
        if is_valid:
            entries.append(entry)
        elif number < len(lines) or text.endswith(b"\n"):
            raise ValueError(
                f"{file}, line {number} is damaged; remove that line, or the file to leave training times out"
            )
    return entries


def choose_finals(runs: list[Run]) -> None:
    """Let all runs show reports of the last step that were sampled in the same way, if each has one.

    Without this, a run that was also sampled with more solver steps, or another seed, than the others would be refused.
    """
    first = runs[0]
    for report in (first.final, *reversed(first.reports_of_last_step)):
        if all(any(sampled_alike(other, report) for other in run.reports_of_last_step) for run in runs):
            for run in runs:
                run.final_like = report
            return


def check_runs(runs: list[Run]) -> list[str]:
    """Check that runs can be compared in one report.

    Returns:
        How their training options and the machines of their scores differ, apart from what is meant to differ.

    Raises:
        ValueError: if reports cannot be compared, a report is of other weights than its run's, a run is named twice, or
            there is only one model.
    """
    first = runs[0]
    names = [(run.model, run.seed) for run in runs]
    if len(set(names)) < len(names):
        folders = ", ".join(str(run.folder) for run in runs)
        raise ValueError(f"runs: {folders}: two of them have the same model and seed; name each only once")
    if len(model_names(runs)) < 2:
        raise ValueError(f"runs: all are of the model {first.model!r}; name runs of at least two models")
    check_comparable({report["file"]: report for run in runs for report in run.reports})
    for run in runs[1:]:
        if differing := [key for key in SAMPLED_ALIKE if run.final.get(key) != first.final.get(key)]:
            facts = "; ".join(f"{key}: {first.final.get(key)!r} and {run.final.get(key)!r}" for key in differing)
            raise ValueError(
                f"{first.final['file']} and {run.final['file']} were sampled in different ways ({facts}); sample both "
                "with the same options"
            )
    for run in runs:
        check_weights(run)
    return differences_in_recipe(runs)


def check_weights(run: Run) -> None:
    """Raise ValueError if the report of the last training step is of other weights than the run's pipeline."""
    is_last = run.final["step"] == run.config["max_steps"]
    if is_last and run.final["model_sha256"] != folder_sha256(run.folder / "pipeline"):
        raise ValueError(
            f"{run.final['file']} is of other weights than {run.folder / 'pipeline'}, and so are all reports of this "
            f"step; make one with python eval/fid.py {run.folder / 'pipeline'} … --output "
            f"{run.folder / 'evaluation'}/NEW.json"
        )


def differences_in_recipe(runs: list[Run]) -> list[str]:
    """How runs differ from the first one in training options and in where scores were computed, one sentence each."""
    first = runs[0]
    found: dict[str, list[str]] = {}
    for run in runs[1:]:
        pairs = {
            key: (first.config.get(key), run.config.get(key))
            for key in sorted((run.config.keys() | first.config.keys()) - MEANT_TO_DIFFER)
        }
        pairs |= {f"{key} of the scores": (first.final.get(key), run.final.get(key)) for key in COMPUTED_ALIKE}
        for key, (of_first, of_run) in pairs.items():
            if of_first != of_run:
                difference = f"{key}: {of_first!r} in {first.folder.name}, {of_run!r} in"
                found.setdefault(difference, []).append(run.folder.name)
    return [f"{difference} {', '.join(names)}" for difference, names in found.items()]
