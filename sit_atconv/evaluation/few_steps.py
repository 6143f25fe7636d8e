"""Quality against network calls: what samplers and models of mean velocities draw in one, two, four… calls.

Each is judged by the Fréchet distance of its images to real ones and, for small labelled data, by a classifier of raw
pixels that was fitted to the real images. All start from the same noise.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import open_dataset
from ..flow.choices import SAMPLING_DTYPES
from ..pipelines.pipeline_sit import SiTPipeline
from ..pipelines.schedulers import with_scheduler
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from ..schedulers.scheduling_mean_flow import MeanFlowScheduler
from ..utils.checks import check_choice, check_count, check_device, check_seed
from ..utils.environment import pick_device
from ..utils.files import check_writable_folder, write_json
from ..utils.source_names import check_source
from ..utils.tables import markdown_table
from .class_accuracy import check_dataset, fit_classifier
from .extractor import Extractor
from .feature_statistics import FeatureStatistics
from .features import build_extractor
from .frechet import frechet_distance
from .image_features import extract_features, read_batches
from .image_sets import open_images
from .records import earlier_results, folder_sha256, recorded_dtype
from .sampling import counting_rows, flatten_pixels, generate, image_shape, load_pipeline
from .sampling_dtype import cast_pipeline, resolve_dtype
from .sampling_options import SamplingOptions, balanced_labels
from .solver_error import DIFFUSERS

BUDGETS = (1, 2, 4, 8, 16, 50)  # network calls
RESULTS = "few-steps.json"
MEAN_FLOW = "MeanFlow"
FLOW_SOLVERS = {"Euler": "euler", "midpoint": "midpoint", "heun3": "heun3"}
SAMPLERS = (*FLOW_SOLVERS, "DPM-Solver++", "SDE", MEAN_FLOW)


def measure_few_steps(
    pipelines: Sequence[tuple[str, str]],
    reference: str,
    output: str,
    extractor: str = "pixels",
    budgets: list[int] | None = None,
    samplers: list[str] | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    image_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> list[dict]:
    """Sample every pipeline with every sampler and number of network calls, and judge the images.

    Results are kept as they come; started again, the same command goes on, also with more pipelines.

    Args:
        pipelines: (name of the model, pipeline folder); the folders of one name are seeds of one model.
        reference: real images: a data set such as digits, or a folder.
        output: folder for the results.
        extractor: whose features are compared; with pixels, a classifier of pixels judges the classes as well.
        budgets: the largest numbers of network calls. If None, 1, 2, 4, 8, 16 and 50.
        samplers: which of Euler, midpoint, heun3, DPM-Solver++, SDE and MeanFlow. If None, all that fit the model.
        num_samples: number of images; their classes take turns. If None, as many as there are real ones.
        seed: seed of the noise; image i depends on (seed, i).
        batch_size: number of images per forward pass.
        image_size: side of the real images. If None, that of the data set, or of the pipelines.
        device: device of the pipelines and the extractor.
        dtype: data type of the pipelines' networks, the same for all, see `SamplingOptions`.

    Returns:
        One dictionary per measurement: "model", "pipeline", "sha256", "sampler", "steps", "network_calls", "fid",
        "class_accuracy" (or None), and "seconds_per_image", of the processor on a CPU and of the clock on a GPU.

    Raises:
        ValueError: naming what cannot be used, before any long work.
    """
    for budget in budgets or ():
        check_count("budgets", budget)
    for sampler in samplers or ():
        check_choice("samplers", sampler, SAMPLERS)
    check_count("batch_size", batch_size)
    check_seed("seed", seed)
    check_device("device", device)
    check_choice("dtype", dtype, SAMPLING_DTYPES)
    for name, value in (("num_samples", num_samples), ("image_size", image_size)):
        if value is not None:
            check_count(name, value)
    check_source("reference", reference)
    check_writable_folder("output", output)
    picked = pick_device(device)
    loaded = [(name, folder, folder_sha256(folder), load_pipeline(folder, picked)) for name, folder in pipelines]
    judge = Judge(reference, extractor, image_size, num_samples, loaded[0][3], picked)
    options = SamplingOptions(judge.num_samples, seed=seed, batch_size=batch_size, dtype=dtype)  # type: ignore[arg-type]
    results_file = Path(output) / RESULTS
    options = resolve_dtype([pipeline for *_, pipeline in loaded], recorded_dtype(options, results_file))
    record = {**judge.record(), "seed": seed, "device": picked.type, "dtype": options.dtype}
    results = Results(results_file, record)
    for *_, pipeline in loaded:
        cast_pipeline(pipeline, options.dtype)
    plan = [
        (name, folder, sha256, sampler, with_scheduler(pipeline, scheduler), steps)
        for name, folder, sha256, pipeline in loaded
        for sampler, scheduler, steps in few_step_samplers(pipeline, budgets or BUDGETS)
        if samplers is None or sampler in samplers
    ]
    for name, folder, sha256, sampler, pipeline, steps in tqdm(plan, desc="few steps", unit="measurement"):
        key = {"sha256": sha256, "sampler": sampler, "steps": steps}
        if not results.has(key):
            results.add({"model": name, "pipeline": folder, **key, **judge(pipeline, options, steps)})
        results.rename(key, name, folder)
    shas = {sha256 for _, _, sha256, *_ in plan}
    return [row for row in results.rows if row["sha256"] in shas]


def few_step_samplers(pipeline: SiTPipeline, budgets: Sequence[int]) -> Iterator[tuple[str, Any, int]]:
    """The samplers of a pipeline: name, scheduler, and number of steps.

    A model of mean velocities has one; a flow has several. Numbers of calls that a sampler cannot make are left out.
    """
    names = ("path", "prediction", "train_eps", "sample_eps", "noise_scale")
    config = {name: pipeline.scheduler.config[name] for name in names if name in pipeline.scheduler.config}
    schedulers: dict[str, Any] = {}
    if isinstance(pipeline.scheduler, MeanFlowScheduler):
        schedulers[MEAN_FLOW] = pipeline.scheduler
    else:
        for name, solver in FLOW_SOLVERS.items():
            schedulers[name] = InterpolantODEScheduler.from_config(config, solver=solver)
        if config["path"] == "linear" and config.get("noise_scale", 1) == 1:  # diffusers' schedulers know no others
            scheduler_class, options = DIFFUSERS["DPMSolverMultistep"]
            schedulers["DPM-Solver++"] = scheduler_class(**options)
            schedulers["DPM-Solver++"].register_to_config(path=config["path"], prediction=config["prediction"])
        schedulers["SDE"] = InterpolantSDEScheduler.from_config(config, solver="euler_maruyama")
    for name, scheduler in schedulers.items():
        fewest = 2 if name == "SDE" else 1  # besides its last step, it makes at least one
        steps = dict.fromkeys(budget // scheduler.order for budget in budgets)
        yield from ((name, scheduler, number) for number in steps if number >= fewest)


def reference_features(
    reference: str, extractor: str, image_size: int | None, device: torch.device
) -> tuple[Extractor, FeatureStatistics]:
    """The extractor, and what it finds in the real images: their mean, covariance and number.

    Args:
        reference, extractor, image_size, device: see `measure_few_steps`.
    """
    images = open_images("reference", reference, image_size)
    network = build_extractor(extractor, None, device)
    with ThreadPoolExecutor(1) as pool:
        real = extract_features(read_batches(images, 64, pool), len(images), network, pool, "reference", keep=False)
    return network, real.statistics["features"]


class Judge:
    """What all pipelines are compared with: the features of the real images, and a classifier.

    Args:
        reference, extractor, image_size, num_samples, device: see `measure_few_steps`.
        pipeline: the first pipeline, whose images and classes must be those of the reference.
    """

    def __init__(
        self,
        reference: str,
        extractor: str,
        image_size: int | None,
        num_samples: int | None,
        pipeline: SiTPipeline,
        device: torch.device,
    ):
        if image_size is None and reference != "digits":
            image_size = image_shape(pipeline)[0]
        self.reference = reference
        self.extractor, self.real = reference_features(reference, extractor, image_size, device)
        self.num_samples = num_samples or self.real.n
        self.classifier, self.real_accuracy = None, None
        if extractor == "pixels":
            dataset = open_dataset(reference, image_size)
            check_dataset(pipeline, dataset)
            self.classifier, self.real_accuracy, _ = fit_classifier(dataset)

    def record(self) -> dict:
        """What the results depend on."""
        return {
            "reference": self.reference,
            "extractor": self.extractor.name,
            "num_samples": self.num_samples,
            "real_accuracy": self.real_accuracy,
        }

    def __call__(self, pipeline: SiTPipeline, options: SamplingOptions, steps: int) -> dict:
        """Draw images in this number of steps and judge them."""
        labels = balanced_labels(range(self.num_samples), pipeline.transformer.config.num_classes)
        clock = time.process_time if pipeline.device.type == "cpu" else time.perf_counter
        sampling = SamplingOptions(**{**vars(options), "num_inference_steps": steps})
        with counting_rows(pipeline.transformer) as rows:
            start = clock()
            images = np.concatenate(list(generate(pipeline, labels, sampling)))
            seconds = (clock() - start) / len(labels)
        with ThreadPoolExecutor(1) as pool:
            batches = (list(images[i : i + 64]) for i in range(0, len(images), 64))
            drawn = extract_features(batches, len(images), self.extractor, pool, "samples", keep=False)
        ours = drawn.statistics["features"]
        accuracy = None
        if self.classifier is not None:
            accuracy = float((self.classifier.predict(flatten_pixels(images)) == labels).mean())
        return {
            "network_calls": rows[0] / len(labels),
            "fid": frechet_distance(ours.mean, ours.covariance, self.real.mean, self.real.covariance),
            "class_accuracy": accuracy,
            "seconds_per_image": seconds,
        }


class Results:
    """The measurements of a file, which is complete after each of them.

    Args:
        file: the JSON file; it may hold earlier measurements.
        record: what all of them depend on.

    Raises:
        ValueError: if the file holds measurements of another kind; it is left as it is.
    """

    def __init__(self, file: Path, record: Mapping):
        self.file, self.record, self.rows = file, dict(record), []
        if before := earlier_results(file, self.record):
            self.rows = before["rows"]

    def _find(self, key: Mapping) -> dict | None:
        return next((row for row in self.rows if all(row[name] == value for name, value in key.items())), None)

    def has(self, key: Mapping) -> bool:
        """Whether there is a measurement with these entries."""
        return self._find(key) is not None

    def add(self, row: dict) -> None:
        """Keep a measurement."""
        self.rows.append(row)
        write_json(self.file, {**self.record, "rows": self.rows})

    def rename(self, key: Mapping, model: str, pipeline: str) -> None:
        """Give a measurement the name and the folder that the pipeline has now."""
        row = self._find(key)
        assert row is not None
        row |= {"model": model, "pipeline": pipeline}


def label_of(row: Mapping) -> str:
    """The name of a line in the table and the plot."""
    return row["model"] if row["sampler"] == MEAN_FLOW else f"{row['model']}: {row['sampler']}"


def by_label(rows: Sequence[dict]) -> dict[str, dict[int, list[dict]]]:
    """The rows by their label and the number of network calls, each with its seeds."""
    grouped: dict[str, dict[int, list[dict]]] = {}
    for row in rows:
        grouped.setdefault(label_of(row), {}).setdefault(round(row["network_calls"]), []).append(row)
    return grouped


def quality_table(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table: the mean over the seeds, with the standard deviation, and the cost of an image."""
    cells = []
    for label, by_calls in by_label(rows).items():
        for calls, seeds in sorted(by_calls.items()):
            fids = [row["fid"] for row in seeds]
            spread = f" ± {stdev(fids):.4f}" if len(fids) > 1 else ""
            accuracies = [row["class_accuracy"] for row in seeds if row["class_accuracy"] is not None]
            cells.append(
                [
                    label,
                    calls,
                    f"{mean(fids):.4f}{spread}",
                    f"{mean(accuracies):.3f}" if accuracies else "–",
                    f"{1e3 * mean(row['seconds_per_image'] for row in seeds):.2f}",
                    len(seeds),
                ]
            )
    head = ["sampler", "network calls", "Fréchet distance", "class accuracy", "ms per image", "seeds"]
    return markdown_table(head, cells)
