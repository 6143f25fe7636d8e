"""Compare evaluated runs, such as SA, ATConv and hybrid with several seeds each, in one report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from ..data import read_image
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.checks import check_count, check_device
from ..utils.environment import describe_environment, pick_device
from ..utils.text import counted, one_line, printable
from .comparison_data import comparison_record
from .comparison_plots import plot_curves
from .comparison_report import Comparison, write_report_files
from .comparison_tables import cost_table, difference_table, mean_fids, score_table
from .comparison_verdict import verdict
from .evaluated_runs import Run, check_runs, choose_finals, model_names
from .intervals import bootstrap_interval, mean_interval
from .model_costs import check_inputs_agree, measure_models
from .output_files import check_report_folder
from .records import OWN_SCHEDULERS
from .sampling import draw_images, load_pipeline
from .sampling_dtype import cast_pipeline
from .sampling_options import SamplingOptions
from .validation_tables import READING, loss_plot, loss_record, loss_tables, losses_of_runs

GRID_IMAGES = 40


def write_comparison(
    runs: list[Run],
    output: str | Path,
    device: str = "auto",
    batch_size: int = 1,
    repeats: int = 20,
    command: str = "",
) -> Path:
    """Compare runs, write report.md, report.html and the numbers, and print the verdict.

    Args:
        runs: evaluated runs, the baseline's first.
        output: a new folder, or one with an earlier report of this command, which is replaced.
        device: device for latency, memory and sample grids.
        batch_size: images per forward pass when latency and memory are measured.
        repeats: number of timed forward passes of each model.
        command: the command line that the report quotes.

    Returns:
        The file report.html.

    Raises:
        ValueError: if the runs cannot be compared, or the folder holds other files.
    """
    check_count("batch_size", batch_size)
    check_count("repeats", repeats)
    check_device("device", device)
    output = Path(output)
    check_report_folder(output)
    choose_finals(runs)
    recipe_differences = check_runs(runs)
    comparison = compare_runs(runs, recipe_differences, pick_device(device), batch_size, repeats, command)
    page = write_report_files(comparison, output)
    for line in comparison.verdict:
        print(printable(line))
    return page


def compare_runs(
    runs: list[Run],
    recipe_differences: list[str],
    device: torch.device,
    batch_size: int,
    repeats: int,
    command: str,
) -> Comparison:
    """Measure and draw everything that the report of these runs shows; arguments as those of `write_comparison`."""
    first_runs = {model: next(run for run in runs if run.model == model) for model in model_names(runs)}
    pipelines = {model: load_pipeline(run.folder / "pipeline", device) for model, run in first_runs.items()}
    check_inputs_agree(pipelines)
    plots = plot_curves(runs)
    losses = losses_of_runs(runs)  # by training step
    if losses:
        plots["loss-time"] = loss_plot(losses[max(losses)])
    costs = measure_models(pipelines, device, batch_size, repeats)
    num_classes = pipelines[runs[0].model].transformer.config.num_classes
    columns = num_classes if 4 <= num_classes <= 10 else 8
    grids = {model: first_samples(run, device, columns) for model, run in first_runs.items()}
    baseline, differences, environment = runs[0].model, paired_differences(runs), describe_environment(device)
    return Comparison(
        title=f"{' against '.join(first_runs)}: FID {mean_fids(runs)}",
        verdict=verdict(differences, baseline, {cost.model: cost.ratio[1] for cost in costs}),
        facts=describe_conditions(runs, recipe_differences) + ([READING] if losses else []),
        tables={
            "Scores": score_table(runs),
            "Paired differences": difference_table(differences, baseline),
            "Cost": cost_table(costs, batch_size),
            **loss_tables(losses),
        },
        plots=plots,
        grids=grids,
        columns=columns,
        classes=sample_classes(pipelines[baseline], runs[0].final, len(grids[baseline])),
        origin=describe_origin(runs[0].final, environment),
        record=comparison_record(runs, differences, costs, environment)
        | {"validation_loss": {str(step): loss_record(rows) for step, rows in losses.items()}},
        command=command,
    )


def sample_classes(pipeline: SiTPipeline, report: dict, count: int) -> list[str]:
    """The names of the classes of the first samples of a report, or their ids; none for a model without classes."""
    num_classes = pipeline.transformer.config.num_classes
    names = pipeline.config.get("id2label") or {}
    options = SamplingOptions(labels=report["labels"], seed=report["seed"])
    ids = options.label_ids(range(count), num_classes) if num_classes > 1 else []
    return [one_line(names.get(str(i), i)) for i in ids]


def describe_conditions(runs: list[Run], recipe_differences: list[str]) -> list[str]:
    """The paragraphs that say how to read the numbers of a report."""
    final = runs[0].final
    notes = dict.fromkeys(note for run in runs for note in run.final["notes"])
    return [
        f"Reference: {final['reference']}, {final.get('num_reference')} images; {final['num_samples']} samples a run, "
        f"seed {final.get('seed')}, labels {final.get('labels')}, {final.get('num_inference_steps')} solver steps of "
        f"{final.get('scheduler', {}).get('class')}, guidance {final.get('guidance_scale')}.",
        f"Features: {final['extractor']}, {final['num_features']} an image; resize: {final['resize']}; weights "
        f"{(final.get('weights_sha256') or 'none')[:12]}; reference {(final.get('reference_sha256') or '')[:12]}.",
        "Differences below 0 are in favour of the model in the row. The interval of one seed covers the choice of "
        "samples alone, not that of the training run.",
        *(f"Note: {note}." for note in notes),
        *(f"The recipes differ: {difference}." for difference in recipe_differences),
    ]


def describe_origin(final: dict, environment: dict) -> list[str]:
    """The paragraphs that say on which machines and with which versions the numbers were made."""
    versions, threads = list_versions(environment["versions"]), torch.get_num_threads()
    of_scores = list_versions(final["versions"])
    return [
        f"Latency and memory: {describe_machine(environment)}, float32, {counted(threads, 'thread')}; "
        f"memory is what one forward pass allocates at most beyond weights and input. {versions}.",
        f"Scores: {describe_machine(final)}. {'The same versions' if of_scores == versions else of_scores}.",
    ]


def describe_machine(environment: dict) -> str:
    """The processor and the commit of an environment, as reports record it."""
    name, commit = environment.get("device_name"), environment.get("git_commit")
    device = environment["device"] if name is None else f"{name} ({environment['device']})"
    return f"{device}, commit {'unknown' if commit is None else commit[:12] + '-dirty' * commit.endswith('-dirty')}"


def list_versions(versions: dict[str, str | None]) -> str:
    """Packages and their versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def paired_differences(runs: Sequence[Run]) -> list[dict]:
    """FID of each model minus the baseline's, seed by seed: with the same training data, noise and labels.

    Returns:
        One dictionary per model: "model"; "per_seed": for each seed, the difference and its bootstrap interval over the
        samples, which is None unless both reports hold resamples; "mean" over seeds; "interval" of that mean, which is
        None for a single seed.
    """
    baseline, *models = model_names(runs)
    finals = {(run.model, run.seed): run.final for run in runs}
    rows = []
    for model in models:
        per_seed = [
            {"seed": seed, **fid_difference(report, finals[baseline, seed])}
            for (name, seed), report in finals.items()
            if name == model and (baseline, seed) in finals
        ]
        row: dict = {"model": model, "per_seed": per_seed}
        if per_seed:
            values = np.array([entry["difference"] for entry in per_seed])
            row["mean"] = float(values.mean())
            row["interval"] = mean_interval(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def fid_difference(report: dict, baseline: dict) -> dict:
    """The difference of two reports' FIDs, and its paired bootstrap interval if both reports hold resamples."""
    difference, interval = report["fid"] - baseline["fid"], None
    resamples, of_baseline = report.get("fid_resampled", []), baseline.get("fid_resampled", [])
    if resamples and len(resamples) == len(of_baseline) and report["seed"] == baseline["seed"]:
        interval = bootstrap_interval(difference, np.subtract(resamples, of_baseline))
    return {"difference": difference, "interval": interval}


def first_samples(run: Run, device: torch.device, columns: int) -> torch.Tensor:
    """The first samples of the final report in whole rows, (B, C, H, W) in [0, 1].

    Samples that were not kept are drawn again, as the report says.
    """
    report = run.final
    count = min(GRID_IMAGES, report["num_samples"])
    count -= count % columns if count > columns else 0
    files = [Path(report["samples"]) / f"{i:06d}.png" for i in range(count)]
    if all(file.is_file() for file in files):
        images = np.stack([read_image(file) for file in files])
    else:
        images = draw_again(run, range(count), device)
    return torch.from_numpy(images / 255).permute(0, 3, 1, 2)


def draw_again(run: Run, indices: Sequence[int], device: torch.device) -> np.ndarray:
    """Draw samples of the final report with the scheduler and options that it records: (B, H, W, C) uint8."""
    report = run.final
    pipeline = load_pipeline(run.folder / "pipeline", device)
    if "scheduler" in report:
        name = report["scheduler"]["class"]
        scheduler_class = OWN_SCHEDULERS.get(name) or getattr(diffusers, name, None)
        if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, diffusers.SchedulerMixin):
            raise ValueError(f"{report['file']}: the scheduler {name} is unknown, so its samples cannot be drawn again")
        known: Any = scheduler_class
        pipeline.scheduler = known.from_config(report["scheduler"]["config"])
    names = (
        "labels",
        "seed",
        "guidance_scale",
        "guidance_interval",
        "guidance_channels",
        "num_inference_steps",
        "dtype",
    )
    options = SamplingOptions(**{name: report[name] for name in names if name in report})
    return draw_images(cast_pipeline(pipeline, options.dtype), indices, options)
