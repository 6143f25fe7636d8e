"""Compare evaluated runs, such as SA, ATConv and hybrid with several seeds each, in one report.

    python eval/compare.py runs/duel/SA-seed0 runs/duel/ATConv-seed0 --output runs/duel/report

A run is a folder of train/train_sit.py with reports of eval/fid.py in evaluation/*.json; eval/duel.py makes both. Runs
of one model are called NAME-seed0, NAME-seed1… The first model named is the baseline. Writes report.md with its
pictures, and report.html, one page that needs no other file. Reports that cannot be compared are refused.
"""

import base64
import functools
import html
import io
import json
import math
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from PIL import Image

import sit_atconv
from sit_atconv import SiTPipeline
from sit_atconv.benchmarks.profiling import peak_memory
from sit_atconv.benchmarks.timing import measure, quartiles
from sit_atconv.evaluation.intervals import bootstrap_interval, mean_interval
from sit_atconv.evaluation.records import folder_sha256
from sit_atconv.evaluation.sampling import SamplingOptions, draw_images, load_pipeline
from sit_atconv.evaluation.scores import check_comparable
from sit_atconv.models.macs import count_macs
from sit_atconv.sharing.card import CARD_METRICS
from sit_atconv.utils.checks import check_count
from sit_atconv.utils.environment import package_versions, pick_device
from sit_atconv.utils.image_grid import save_grid

GRID_IMAGES = 40
# Options of training in which the runs of a duel are meant to differ.
MEANT_TO_DIFFER = {"mixer", "preset", "model", "seed", "output_dir", "resume"}
# What images are drawn with; where all of it is equal, they come from the same noise and labels.
SAMPLED_ALIKE = (
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "guidance_channels",
    "labels",
    "seed",
    "batch_size",
)
STAMPED = ("model_sha256", "seed", "labels", "num_inference_steps", "notes", "versions", "device")  # of every report
MADE_ALIKE = ("versions", "device", "device_name", "tf32")  # or the report of the comparison tells how they differ
SCORES = ("fid", "fid_infinity", "sfid", "kid", "inception_score", "precision", "recall", "density", "coverage")


@dataclass
class Run:
    """One trained and evaluated run.

    Attributes:
        folder: of train/train_sit.py.
        model: its name without the seed.
        seed: of training.
        config: of training.
        reports: of evaluations, by training step, then by network calls per image.
        hours: of training until each of these steps.
        final_inference_steps: solver steps of the report that is shown in tables.
    """

    folder: Path
    model: str
    seed: int
    config: dict
    reports: list[dict]
    hours: dict[int, float] = field(default_factory=dict)
    final_inference_steps: int | None = None

    @property
    def final(self) -> dict:
        """The report of the last step; of several, that of `final_inference_steps` or of the most network calls."""
        last = [report for report in self.reports if report["step"] == self.reports[-1]["step"]]
        wanted = [report for report in last if report.get("num_inference_steps") == self.final_inference_steps]
        return (wanted or last)[-1]

    @property
    def by_step(self) -> list[dict]:
        """Reports at each step, sampled as the final one."""
        return [report for report in self.reports if sampled_alike(report, self.final)]

    @property
    def by_cost(self) -> list[dict]:
        """Reports of the last step, however they were sampled."""
        return [report for report in self.reports if report["step"] == self.final["step"]]


def sampled_alike(a: dict, b: dict) -> bool:
    """Whether two reports are of images drawn in the same way."""
    return all(a.get(key) == b.get(key) for key in SAMPLED_ALIKE)


def load_run(folder: Path) -> Run:
    """Read a run's config, reports and times.

    Raises:
        ValueError: for a folder that is no run, was not finished, or was not evaluated.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"run={str(folder)!r} is no run folder of train/train_sit.py: it has no config.yaml")
    if not (folder / "pipeline").is_dir():
        raise ValueError(f"run={str(folder)!r} is not finished: it has no pipeline")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    reports = []
    for file in sorted((folder / "evaluation").glob("*.json")):
        report = read_report(file)
        if report is not None:
            reports.append({"step": config["max_steps"], **report, "file": str(file)})
    if not reports:
        raise ValueError(
            f"run={str(folder)!r} was not evaluated: make a report with python eval/fid.py {folder}/pipeline … "
            f"--output {folder}/evaluation/final.json, or use eval/duel.py"
        )
    reports.sort(key=lambda report: (report["step"], report.get("network_calls_per_image", 0)))
    run = Run(folder, re.sub(r"-seed\d+$", "", folder.name), config["seed"], config, reports)
    run.hours = training_hours(folder, config, [report["step"] for report in reports])
    return run


def read_report(file: Path) -> dict | None:
    """A report of eval/fid.py with its FID; None for another JSON file.

    Raises:
        ValueError: for a damaged file, or a report of images of which nothing is known.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not whole: {error}; make that report again") from None
    if not isinstance(report, dict) or "fid" not in report:
        return None
    if not isinstance(report["fid"], float) or not math.isfinite(report["fid"]):
        raise ValueError(f"{file}: fid={report['fid']} is no finite number; make that report again")
    if lacking := [name for name in STAMPED if report.get(name) is None]:
        raise ValueError(
            f"{file} does not say its {', '.join(lacking)}; score the run's pipeline, or samples of eval/sample.py"
        )
    return report


def training_hours(folder: Path, config: dict, steps: list[int]) -> dict[int, float]:
    """Hours of training until each step, from the speeds in metrics.jsonl; none where the run has no such file."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "images_per_second" in line]
    hours, total, last = {}, 0.0, 0
    for line in lines:
        total += (line["step"] - last) * config["batch_size"] / line["images_per_second"] / 3600
        last = line["step"]
        hours[last] = total
    known = np.array(sorted(hours)) if hours else np.zeros(0)
    return {step: float(np.interp(step, known, [hours[k] for k in known])) for step in steps if len(known)}


def check_runs(runs: list[Run]) -> list[str]:
    """Make sure that these runs may stand in one report; return how their recipes differ beyond the model.

    Raises:
        ValueError: where the reports cannot be compared, one is of other weights than its run's, a run is named twice,
            or there is only one model.
    """
    names = [(run.model, run.seed) for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs: {', '.join(str(run.folder) for run in runs)}: a model and seed is named twice")
    if len({run.model for run in runs}) < 2:
        raise ValueError(f"runs: all are of the model {runs[0].model!r}; name runs of at least two")
    check_comparable({report["file"]: report for run in runs for report in run.reports})
    first = runs[0]
    for run in runs[1:]:
        if differing := [key for key in SAMPLED_ALIKE if run.final.get(key) != first.final.get(key)]:
            facts = "; ".join(f"{key}: {first.final.get(key)!r} and {run.final.get(key)!r}" for key in differing)
            raise ValueError(f"{first.final['file']} and {run.final['file']} were sampled in different ways ({facts})")
    for run in runs:
        is_last = run.final["step"] == run.config["max_steps"]
        if is_last and run.final["model_sha256"] != folder_sha256(run.folder / "pipeline"):
            raise ValueError(
                f"{run.final['file']} is of other weights than {run.folder / 'pipeline'}; evaluate that pipeline again"
            )
    differences = []
    for run in runs[1:]:
        for key in sorted((run.config.keys() | first.config.keys()) - MEANT_TO_DIFFER):
            if run.config.get(key) != first.config.get(key):
                values = f"{first.config.get(key)!r} and {run.config.get(key)!r}"
                differences.append(f"{key}: {values} ({first.folder.name}, {run.folder.name})")
        for key in MADE_ALIKE:
            if run.final.get(key) != first.final.get(key):
                values = f"{first.final.get(key)!r} and {run.final.get(key)!r}"
                differences.append(f"{key} of the scores: {values} ({first.folder.name}, {run.folder.name})")
    return differences


def paired_differences(runs: list[Run]) -> list[dict]:
    """FID of each model minus the baseline's, seed by seed: the same training data, noise and labels.

    Returns:
        One dictionary a model: "model"; "per_seed": seed, difference and its bootstrap interval over the samples, where
        both reports hold resamples; "mean" and "interval" over seeds, where there are two or more.
    """
    models = list(dict.fromkeys(run.model for run in runs))
    by_name = {(run.model, run.seed): run.final for run in runs}
    rows = []
    for model in models[1:]:
        per_seed = []
        for (name, seed), report in by_name.items():
            baseline = by_name.get((models[0], seed))
            if name != model or baseline is None:
                continue
            difference = report["fid"] - baseline["fid"]
            interval = None
            resamples = [each.get("fid_resampled", []) for each in (report, baseline)]
            if resamples[0] and len(resamples[0]) == len(resamples[1]) and report["seed"] == baseline["seed"]:
                resampled = np.subtract(*resamples)
                interval = bootstrap_interval(difference, resampled)
            per_seed.append({"seed": seed, "difference": difference, "interval": interval})
        row = {"model": model, "per_seed": per_seed}
        if per_seed:
            values = [entry["difference"] for entry in per_seed]
            row["mean"] = float(np.mean(values))
            row["interval"] = mean_interval(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def check_inputs_agree(pipelines: dict[str, SiTPipeline]) -> None:
    """Raise ValueError where the models do not take the same input."""
    (first_name, first), *others = pipelines.items()
    for name, pipeline in others:
        for key in ("sample_size", "in_channels", "num_classes"):
            values = [each.transformer.config[key] for each in (first, pipeline)]
            if values[0] != values[1]:
                raise ValueError(f"{first_name} and {name} cannot be compared: {key}: {values[0]} and {values[1]}")


@torch.no_grad()
def measure_models(
    pipelines: dict[str, SiTPipeline], device: torch.device, batch_size: int, repeats: int
) -> list[dict]:
    """Parameters, GMACs, forward latency (in turns, paired) and peak memory of each model; the first is the baseline.

    Latency is of one forward pass of the transformer, in float32, of the same input (`check_inputs_agree`).
    """
    models = {name: pipeline.transformer.eval() for name, pipeline in pipelines.items()}
    config = next(iter(models.values())).config
    generator = torch.Generator().manual_seed(0)
    side = config.sample_size
    latents = torch.randn(batch_size, config.in_channels, side, side, generator=generator)
    inputs = (
        latents.to(device),
        torch.rand(batch_size, generator=generator).to(device),
        torch.randint(config.num_classes, (batch_size,), generator=generator).to(device),
    )
    calls = {name: functools.partial(model, *inputs) for name, model in models.items()}
    times = measure(calls, repeats, 3, device)
    baseline = np.array(next(iter(times.values())))
    return [
        {
            "model": name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "macs": count_macs(model, side, side),
            "ms": quartiles(times[name]),
            "ratio": quartiles(np.array(times[name]) / baseline),
            "peak_bytes": peak_memory(calls[name], device),
        }
        for name, model in models.items()
    ]


def first_samples(run: Run, device: torch.device, columns: int) -> torch.Tensor:
    """The first samples of the final report, whole rows of them, drawn again where they are not kept: (B, C, H, W)."""
    report = run.final
    count = min(GRID_IMAGES, report["num_samples"])
    count -= count % columns if count > columns else 0
    files = [Path(report["samples"]) / f"{i:06d}.png" for i in range(count)]
    if all(file.is_file() for file in files):
        images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    else:
        pipeline = load_pipeline(run.folder / "pipeline", device)
        if "scheduler" in report:
            name = report["scheduler"]["class"]
            scheduler_class = getattr(sit_atconv, name, None) or getattr(diffusers, name)
            pipeline.scheduler = scheduler_class.from_config(report["scheduler"]["config"])
        names = ("labels", "seed", "guidance_scale", "guidance_interval", "guidance_channels", "num_inference_steps")
        options = SamplingOptions(**{name: report[name] for name in names if name in report})
        images = draw_images(pipeline, range(count), options)
    return torch.from_numpy(images / 255).permute(0, 3, 1, 2)


def plot_curves(runs: list[Run]) -> dict[str, tuple[bytes, str]]:
    """FID against steps, training time and sampling time: by name, (PNG, SVG)."""
    import matplotlib
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(run.model for run in runs))
    unit, per_hour = time_unit(runs)
    curves = {
        "fid-steps": ("training steps", lambda run: [(report["step"], report["fid"]) for report in run.by_step]),
        "fid-training-time": (
            f"training time, {unit}",
            lambda run: [(run.hours[r["step"]] * per_hour, r["fid"]) for r in run.by_step if r["step"] in run.hours],
        ),
        "fid-sampling-time": (
            "sampling time, ms per image",
            lambda run: [(r["seconds_per_image"] * 1e3, r["fid"]) for r in run.by_cost if "seconds_per_image" in r],
        ),
    }
    plots = {}
    with matplotlib.rc_context({"svg.hashsalt": "sit-atconv", "font.size": 9}):
        for name, (label, points_of) in curves.items():
            figure = Figure(figsize=(4.4, 3.2), layout="constrained")
            axes = figure.subplots()
            for run in runs:
                points = sorted(points_of(run))
                if points:
                    place = models.index(run.model)
                    first_of_model = run is next(other for other in runs if other.model == run.model)
                    axes.plot(
                        *zip(*points, strict=True),
                        color=f"C{place}",
                        marker="osD^v"[place % 5],
                        markersize=3.5,
                        linewidth=1.2,
                        label=run.model if first_of_model else None,
                    )
            axes.set(xlabel=label, ylabel=f"FID ({runs[0].final['extractor']})")
            values = [y for line in axes.lines for y in line.get_ydata()]
            if values and min(values) > 0 and max(values) > 5 * min(values):
                axes.set_yscale("log")
            axes.grid(True, which="both", linewidth=0.3, alpha=0.6)
            if axes.lines:
                axes.legend(frameon=False)
            png, svg = io.BytesIO(), io.StringIO()
            figure.savefig(png, format="png", dpi=150)
            figure.savefig(svg, format="svg", metadata={"Date": None})
            plots[name] = (png.getvalue(), svg.getvalue()[svg.getvalue().index("<svg") :])
    return plots


def time_unit(runs: list[Run]) -> tuple[str, int]:
    """Hours or minutes, whatever these runs are told in best; and how many of them an hour has."""
    longest = max((hours for run in runs for hours in run.hours.values()), default=0)
    return ("hours", 1) if longest >= 1 else ("minutes", 60)


def svg_with_own_ids(svg: str, name: str) -> str:
    """An SVG whose ids no other picture on the same page has."""
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)


def with_interval(value: float, interval: list[float] | None, sign: bool = False) -> str:
    """A number and its interval in words."""
    words = f"{value:+.4g}" if sign else f"{value:.4g}"
    return words if interval is None else f"{words} [{interval[0]:.4g}, {interval[1]:.4g}]"


def name_versions(packages: dict[str, str]) -> str:
    """Packages and their versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def mean_fids(runs: list[Run]) -> str:
    """The FID of each model, or its mean over seeds, in one line."""
    by_model: dict[str, list[float]] = {}
    for run in runs:
        by_model.setdefault(run.model, []).append(run.final["fid"])
    seeds = sorted({len(values) for values in by_model.values()})
    suffix = "" if seeds == [1] else f" (means of {' or '.join(map(str, seeds))} seeds)"
    return ", ".join(f"{np.mean(values):.4g}" for values in by_model.values()) + suffix


def score_table(runs: list[Run]) -> list[list[str]]:
    """One row a run with every metric that all final reports have."""
    columns = [name for name in SCORES if all(name in run.final for run in runs)]
    unit, per_hour = time_unit(runs)
    rows = [["model", "seed", "steps", unit, *(CARD_METRICS[name] for name in columns), "calls/image", "ms/image"]]
    for run in runs:
        report = run.final
        cells = [with_interval(report[name], report.get(f"{name}_interval")) for name in columns]
        hours = run.hours.get(report["step"])
        cost = [report.get("network_calls_per_image"), report.get("seconds_per_image")]
        rows.append([run.model, run.seed, report["step"], "" if hours is None else f"{hours * per_hour:.3g}", *cells])
        rows[-1] += ["" if cost[0] is None else f"{cost[0]:.4g}", "" if cost[1] is None else f"{cost[1] * 1e3:.4g}"]
    return rows


def model_table(measured: list[dict], batch_size: int) -> list[list[str]]:
    """Parameters, GMACs, latency and memory, one row a model."""
    baseline = measured[0]["model"]
    rows = [["model", "parameters, M", "GMACs", f"forward, ms, batch {batch_size}", f"time / {baseline}", "peak, MiB"]]
    for m in measured:
        low, ms, high = m["ms"]
        ratio_low, ratio, ratio_high = m["ratio"]
        rows.append([m["model"], f"{m['parameters'] / 1e6:.3f}", f"{m['macs'] / 1e9:.4g}"])
        rows[-1] += [f"{ms:.4g} [{low:.4g}–{high:.4g}]", f"{ratio:.3f} [{ratio_low:.3f}–{ratio_high:.3f}]"]
        rows[-1] += [f"{m['peak_bytes'] / 2**20:.3g}"]
    return rows


def difference_table(differences: list[dict], baseline: str) -> list[list[str]]:
    """FID minus the baseline's, by seed and over seeds."""
    rows = [["model", "seed", f"FID − FID of {baseline}", "95 % interval", "of"]]
    for row in differences:
        for entry in row["per_seed"]:
            interval = entry["interval"]
            words = "" if interval is None else f"{interval[0]:+.4g} … {interval[1]:+.4g}"
            source = "" if interval is None else "samples, paired bootstrap"
            rows.append([row["model"], entry["seed"], f"{entry['difference']:+.4g}", words, source])
        if row.get("interval"):
            low, high = row["interval"]
            rows.append([row["model"], "all", f"{row['mean']:+.4g}", f"{low:+.4g} … {high:+.4g}", "seeds, Student's t"])
        if not row["per_seed"]:
            rows.append([row["model"], "", "no seed in common", "", ""])
    return rows


def markdown_table(rows: list[list]) -> str:
    """Rows as a Markdown table, the first as its head."""
    rows = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def html_table(rows: list[list]) -> str:
    """Rows as an HTML table, the first as its head."""
    head, *body = [
        "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)
        for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True)
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in body)}</tbody></table>"


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; } .row { display: flex; flex-wrap: wrap; gap: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .45rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
figure { margin: 0; } figcaption { font-weight: 600; } figure svg, figure img { max-width: 100%; height: auto; }
.plots figure { flex: 1 1 20rem; max-width: 27rem; }
code { overflow-wrap: anywhere; }
"""


def write_comparison(
    runs: list[Run],
    output: str | Path,
    device: str = "auto",
    batch_size: int = 1,
    repeats: int = 20,
    command: str = "",
) -> Path:
    """Write report.md and report.html.

    Args:
        runs: the baseline's first.
        output: a new folder, or one that holds an earlier report of this command, which is replaced.
        device: for latency, memory and grids.
        batch_size: of latency and memory.
        repeats: timed forward passes of each model.
        command: to be quoted.

    Returns:
        The file report.html.

    Raises:
        ValueError: where the runs cannot be compared, or the folder holds other things.
    """
    check_count("batch_size", batch_size)
    check_count("repeats", repeats)
    output = Path(output)
    if output.exists() and any(output.iterdir()) and not (output / "report.md").is_file():
        raise ValueError(f"output={str(output)!r} holds other files; name a new folder")
    differences_in_recipe = check_runs(runs)
    picked_device = pick_device(device)
    first_runs = {run.model: run for run in reversed(runs)}
    first_runs = {model: first_runs[model] for model in dict.fromkeys(run.model for run in runs)}
    pipelines = {name: load_pipeline(run.folder / "pipeline", picked_device) for name, run in first_runs.items()}
    check_inputs_agree(pipelines)
    plots = plot_curves(runs)
    measured = measure_models(pipelines, picked_device, batch_size, repeats)
    num_classes = next(iter(pipelines.values())).transformer.config.num_classes
    columns = num_classes if 4 <= num_classes <= 10 else 8
    grids = {name: first_samples(run, picked_device, columns) for name, run in first_runs.items()}

    final = runs[0].final
    baseline = runs[0].model
    scores, models = score_table(runs), model_table(measured, batch_size)
    differences = difference_table(paired_differences(runs), baseline)
    facts = [
        f"Reference: {final['reference']}, {final['num_reference']} images; {final['num_samples']} samples a run, seed "
        f"{final.get('seed')}, labels {final.get('labels')}, {final.get('num_inference_steps')} solver steps of "
        f"{final.get('scheduler', {}).get('class')}, guidance {final.get('guidance_scale')}.",
        f"Features: {final['extractor']}, {final['num_features']} an image; resize: {final['resize']}; weights "
        f"{(final['weights_sha256'] or 'none')[:12]}; reference {(final['reference_sha256'] or '')[:12]}.",
        "Differences below 0 are in favour of the model in the row. The interval of one seed covers the choice of "
        "samples alone, not that of the training run.",
        f"Latency and memory: {picked_device}, float32, {torch.get_num_threads()} threads; memory is what one forward "
        "pass allocates at most beyond weights and input. "
        f"{name_versions(package_versions())}.",
        f"Scores: {final['device']}, {name_versions(final['versions'])}.",
    ]
    notes = list(dict.fromkeys(note for run in runs for note in run.final["notes"]))
    facts += [f"Note: {note}." for note in notes]
    facts += [f"The recipes differ: {difference}." for difference in differences_in_recipe]
    title = f"{' against '.join(first_runs)}: FID {mean_fids(runs)}"

    output.mkdir(parents=True, exist_ok=True)
    markdown = [f"# {title}", *facts, "## Scores", markdown_table(scores), "## Paired differences"]
    markdown += [markdown_table(differences), "## Cost", markdown_table(models), "## Curves"]
    page = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(fact)}</p>" for fact in facts)]
    page += ["<h2>Scores</h2>", f'<div class="wide">{html_table(scores)}</div>', "<h2>Paired differences</h2>"]
    page += [f'<div class="wide">{html_table(differences)}</div>', "<h2>Cost</h2>"]
    page += [f'<div class="wide">{html_table(models)}</div>', '<h2>Curves</h2><div class="row plots">']
    for name, (png, svg) in plots.items():
        (output / f"{name}.png").write_bytes(png)
        markdown.append(f"![{name}]({name}.png)")
        page.append(f"<figure>{svg_with_own_ids(svg, name)}</figure>")
    page.append('</div><h2>Samples from the same noise and labels</h2><div class="row">')
    markdown.append("## Samples from the same noise and labels")
    for name, grid in grids.items():
        file = f"samples-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.png"
        save_grid(grid, output / file, columns)
        markdown.append(f"{name}:\n\n![{name}]({file})")
        data = base64.b64encode((output / file).read_bytes()).decode()
        caption = f"<figcaption>{html.escape(name)}</figcaption>"
        page.append(f'<figure>{caption}<img alt="{html.escape(name)}" src="data:image/png;base64,{data}"></figure>')
    page.append("</div>")
    if command:
        markdown += ["## Command", f"```bash\n{command}\n```"]
        page.append(f"<h2>Command</h2><p><code>{html.escape(command)}</code></p>")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    document = f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(page)}</body>'
    (output / "report.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    (output / "report.html").write_text(document + "</html>\n", encoding="utf-8")
    return output / "report.html"


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(
        prog="compare.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s RUN RUN... --output FOLDER [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=str, nargs="+", help="evaluated run folders, the baseline's first")
    parser.add_argument("--output", type=str, required=True, help="folder for the report")
    parser.add_function_arguments(write_comparison, skip={"runs", "output", "command"})
    options = parser.parse_args(arguments).as_dict()
    try:
        runs = [load_run(Path(folder)) for folder in options.pop("runs")]
        command = shlex.join(["python", "eval/compare.py", *arguments])
        print(write_comparison(runs, command=command, **options))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
