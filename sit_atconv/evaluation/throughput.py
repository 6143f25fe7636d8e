"""A benchmark of what surrounds the network: loading, encoding, sampling and scoring, in images per second.

In every round all calls of a measurement take turns, and ratios are taken within a round before their median.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from ..benchmarks.calls import TimedCalls
from ..benchmarks.latency import describe_machine, uninterrupted
from ..benchmarks.report import time_text
from ..benchmarks.timing import CLOCKS, measure, quartiles, summarize
from ..utils.environment import installed_versions, pick_device
from ..utils.files import write_atomically, write_json
from ..utils.tables import markdown_table
from ..utils.text import counted
from .clean_fid import check_clean_fid
from .throughput_files import BenchmarkFiles, describe_files
from .throughput_loaders import loader_calls
from .throughput_models import encoding_calls, sampling_calls
from .throughput_options import MEASUREMENTS, ThroughputOptions
from .throughput_scores import Scorer, distance_calls, feature_calls, fid_calls, load_extractor

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
PEERS = ("clean-fid", "datasets", "timm", "torch-fidelity", "torchvision", "webdataset")
HEADER = ("measurement", "what", "images", "time [quartiles]", "rounds", "images/s", "compared with", "speed")


def run_throughput(options: ThroughputOptions, command: str) -> int:
    """Measure, write the report after each measurement, and print the table.

    Args:
        options: what to measure and how.
        command: the command line that the report quotes.

    Returns:
        The exit status: 0, or 130 after an interrupt, which keeps every finished round.

    Raises:
        ValueError: for the measurements "fid" and "distance" with a SciPy that clean-fid cannot use.
    """
    if {"fid", "distance"} & set(options.measurements or MEASUREMENTS):
        check_clean_fid()
    now = datetime.now(timezone.utc)
    folder = Path(options.output or f"runs/throughput-{now:%Y%m%d-%H%M%S}")
    report: dict = {"command": command, "date": now.isoformat(timespec="seconds"), "options": asdict(options)}
    report |= {"interrupted": True, "missing": [], "results": []}
    try:
        with tempfile.TemporaryDirectory(prefix="throughput-") as root:
            # What the datasets library converts is not to stay in the user's cache. It reads this when it is imported.
            os.environ.setdefault("HF_DATASETS_CACHE", f"{root}/datasets")
            measure_all(options, BenchmarkFiles(Path(root), options), folder, report)
        report["interrupted"] = False
        write_results(folder, report)
    except KeyboardInterrupt:
        print("interrupted: what follows was not measured", file=sys.stderr)
    if report["results"]:
        print(results_table(report["results"]))
        print("\n".join(["", *report["missing"], f"In {folder}: throughput.json, throughput.md"]))
    return INTERRUPTED if report["interrupted"] else 0


def measure_all(options: ThroughputOptions, files: BenchmarkFiles, folder: Path, report: dict) -> None:
    """Make the measurements one after another; after each, add its rows to the report and write it to the folder."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    report["environment"] = {**describe_machine(device), "versions": installed_versions(PEERS)}
    report["pictures"] = describe_files(files)
    for name, images, timed in planned(options, files, device, report["missing"]):
        times: dict[str, list[float]] = {}
        try:
            measure(
                timed.calls,
                options.repeats,
                options.warmup,
                device,
                times=times,
                clock=CLOCKS[options.clock],
                deadline=time.perf_counter() + options.max_seconds,
            )
        finally:
            with uninterrupted():
                report["results"] += rows_of(name, images, timed, times)
                if report["results"]:
                    write_results(folder, report)


def planned(
    options: ThroughputOptions, files: BenchmarkFiles, device: torch.device, missing: list[str]
) -> Iterator[tuple[str, int, TimedCalls]]:
    """Name, number of images and calls of each measurement; each is prepared when its turn comes."""
    scored = options.num_images // 2
    for name in options.measurements or ():
        if name == "loaders":
            yield name, options.num_images, loader_calls(files, options, missing)
        elif name == "features":
            for each in options.extractors or ():
                extractor = load_extractor(each, options.weights, device)
                yield (
                    f"features, {extractor.name}",
                    scored,
                    feature_calls(Scorer(files, options, extractor, device), missing),
                )
        elif name == "fid":
            assert options.extractors
            extractor = load_extractor(options.extractors[0], options.weights, device)
            yield f"FID, {extractor.name}", 2 * scored, fid_calls(Scorer(files, options, extractor, device), missing)
        elif name == "distance":
            yield "distance of 2048 features", 2 * scored, distance_calls(scored, missing)
        elif name == "sampling":
            yield f"sampling, {options.steps} steps", options.num_drawn, sampling_calls(files, options, device)
        else:
            yield "encoding", options.num_drawn, encoding_calls(files, options, device)


def rows_of(name: str, images: int, timed: TimedCalls, times: dict[str, list[float]]) -> list[dict]:
    """The rows of one measurement. "speed" are quartiles of the baseline's time over the call's in the same round."""
    return [
        {
            "measurement": name,
            "name": call,
            "images": images,
            "images_per_second": images * 1e3 / summary["ms"][1],
            "speed": quartiles(np.array(times[summary["baseline"]]) / np.array(times[call])),
            **summary,
        }
        for call, summary in summarize(times, timed.baselines).items()
    ]


def write_results(folder: Path, report: dict) -> None:
    """Write throughput.json, with every single time, and throughput.md, with the table."""
    write_json(folder / "throughput.json", report)
    facts, pictures = report["environment"], report["pictures"]
    width, height = pictures["first_size"]
    packages = {"torch": facts["torch"], **facts["versions"]}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['date'][:10]}, {facts['device_name']}, {counted(facts['threads'], 'thread')}, {versions}; "
        f"clock {report['options']['clock']}; {pictures['count']} pictures, the first of {width}×{height} pixels, "
        f"{pictures['bytes_per_image'] / 1e3:.3g} kB each",
        "",
        results_table(report["results"]),
        *(f"\n{line}" for line in report["missing"]),
    ]
    write_atomically(folder / "throughput.md", "\n".join(lines) + "\n")


def results_table(results: list[dict]) -> str:
    """The results as a Markdown table, with quartiles in brackets."""
    return markdown_table(HEADER, map(_cells, results), text_columns=2)


def _cells(row: dict) -> list[str]:
    low, speed, high = (f"{value:.2f}" for value in row["speed"])
    is_baseline = row["baseline"] == row["name"]
    return [
        row["measurement"],
        row["name"],
        str(row["images"]),
        time_text(*row["ms"]),
        str(len(row["times_ms"])),
        f"{row['images_per_second']:.4g}",
        "" if is_baseline else row["baseline"],
        "" if is_baseline else f"{speed} [{low}–{high}]",
    ]
