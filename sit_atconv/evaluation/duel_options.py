"""The options of a duel: which models are trained, under which recipe, and how they are sampled and scored."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from ..training.config import TrainConfig
from ..utils.bounded_text import load_yaml
from ..utils.checks import check_count, check_seed
from ..utils.text import joined_lines
from .metric_options import MetricOptions
from .sampling_options import SamplingOptions
from .validation_options import ValidationOptions

MAX_EVALUATIONS = 10_000  # of one model
# Training options that the duel sets itself.
RESERVED = {"output_dir", "resume", "seed", "max_steps", "checkpoint_every", "keep_every", "config"}


@dataclass
class Duel:
    """Train, sample and score several models under one recipe, and compare them.

    Args:
        output: folder of the duel.
        models: for each model, by name, the options of train/train_sit.py in which it differs from the others, such as
            "ATConv: {mixer: atconv}". The first model is the baseline.
        reference: real images, as in eval/fid.py.
        seeds: seeds of the training; each model is trained with each of them.
        max_steps: number of training steps.
        evaluate_every: number of training steps between two evaluations; max_steps is always evaluated.
        inference_steps: numbers of solver steps. The first one is used for the scores, and all are tried on the final
            models. If empty, the default of the pipelines.
        train: further options of train/train_sit.py, the same for all models.
        sampling: options of eval/sample.py. Unless a dtype is named, it is float32, so that it is the same for all.
        metrics: options of eval/fid.py about metrics and features.
        validation: options of eval/validation_loss.py, with held-out images as "data". If empty, losses on such images
            are not computed.
        launch: command that starts training and sampling, such as "accelerate launch --num_processes 8". If null, one
            process is used.
        device: device for scores, latency and, without `launch`, samples.
        latency_repeats: number of timed forward passes of each model.

    Raises:
        ValueError: if an option cannot be used; the message names the field, its value and the remedy.
    """

    output: str
    models: dict[str, dict]
    reference: str = "digits"
    seeds: list[int] = field(default_factory=lambda: [0])
    max_steps: int = 1600
    evaluate_every: int = 400
    inference_steps: list[int] = field(default_factory=list)
    train: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    validation: dict = field(default_factory=dict)
    launch: str | None = None
    device: str = "auto"
    latency_repeats: int = 20

    def __post_init__(self) -> None:
        self.inference_steps = self.inference_steps or []  # null stands for the default
        self._check_own_options()
        # Options of the command line arrive as text, and an empty block of a YAML file as None.
        self.train = parse_text_values(self.train or {}, TrainConfig)
        self.models = {name: parse_text_values(options or {}, TrainConfig) for name, options in self.models.items()}
        self.sampling = without_nulls(parse_text_values(self.sampling or {}, SamplingOptions))
        self.metrics = without_nulls(parse_text_values(self.metrics or {}, MetricOptions))
        if isinstance(metrics := self.metrics.get("metrics"), list):
            self.metrics["metrics"] = ",".join(map(str, metrics))
        self.validation = without_nulls(parse_text_values(self.validation or {}, ValidationOptions))
        for name, options in (("train", self.train), *self.models.items()):
            check_training_options(name, options)
        check_options("sampling", self.sampling, SamplingOptions)
        check_options("metrics", self.metrics, MetricOptions)
        if self.validation:
            if not self.validation.get("data"):
                raise ValueError("validation: data must be given: held-out images, as for train/train_sit.py")
            check_options("validation", self.validation, ValidationOptions)
            _ = self.validation_options  # which checks the numbers
        if "fid" not in self.metric_options.names:
            raise ValueError(f"metrics: {self.metric_options.metrics!r} must name fid, which the curves show")
        if "num_samples" not in self.sampling:
            raise ValueError("sampling: num_samples must be given")
        self.metric_options.check()

    def _check_own_options(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"models={list(self.models)}: a duel needs at least two models")
        for name in self.models:
            if not isinstance(name, str):
                raise ValueError(f"models: YAML reads the name {name!r} as a {type(name).__name__}; put it in quotes")
            if not re.fullmatch(r"[\w.+-]+", name) or re.search(r"-seed\d+$", name):
                raise ValueError(
                    f"models: {name!r} must consist of letters, digits, '.', '+', '-' and '_', and not end in -seedS"
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must name at least one seed, and each only once")
        for seed in self.seeds:
            check_seed("seeds", seed)
        for name in ("max_steps", "evaluate_every", "latency_repeats"):
            check_count(name, getattr(self, name))
        if self.max_steps > MAX_EVALUATIONS * self.evaluate_every:
            raise ValueError(
                f"max_steps={self.max_steps}, evaluate_every={self.evaluate_every}: that would be more than "
                f"{MAX_EVALUATIONS} evaluations of each model; raise evaluate_every"
            )
        for steps in self.inference_steps:
            check_count("inference_steps", steps)

    @property
    def metric_options(self) -> MetricOptions:
        """`metrics` as the options of eval/fid.py."""
        return MetricOptions(**self.metrics)

    @property
    def validation_options(self) -> ValidationOptions:
        """`validation` as options of eval/validation_loss.py."""
        return ValidationOptions(**self.validation)

    def sampling_options(self, inference_steps: int | None = None) -> SamplingOptions:
        """`sampling` as the options of eval/sample.py; if `inference_steps` is None, the pipeline chooses the steps."""
        return SamplingOptions(
            **{**self.sampling, "num_inference_steps": inference_steps, "dtype": self.sampling_dtype}
        )

    @property
    def sampling_dtype(self) -> Any:
        """In which all models are sampled: not chosen for each, which "auto" would do on CPUs with AMX."""
        dtype = self.sampling.get("dtype", "auto")
        return "float32" if dtype == "auto" else dtype

    @property
    def steps(self) -> list[int]:
        """Training steps at which the models are scored."""
        return sorted({*range(self.evaluate_every, self.max_steps, self.evaluate_every), self.max_steps})

    def run_folder(self, model: str, seed: int) -> Path:
        """The run folder of one model and seed."""
        return Path(self.output) / f"{model}-seed{seed}"


def parse_text_values(options: dict[str, Any], known: type) -> dict[str, Any]:
    """Replace text values by the numbers, lists and nulls that they spell.

    Text stays as it is for fields of the dataclass `known` that have text as their default.
    """
    text_fields = {each.name for each in dataclasses.fields(known) if isinstance(each.default, str)}
    return {
        name: load_yaml(value, name) if isinstance(value, str) and name not in text_fields else value
        for name, value in options.items()
    }


def without_nulls(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that are null, which stands for the default."""
    return {name: value for name, value in options.items() if value is not None}


def check_training_options(name: str, options: dict) -> None:
    """Raise ValueError unless all keys are options of train/train_sit.py that the duel does not set itself."""
    known = {each.name for each in dataclasses.fields(TrainConfig)}
    if odd := [key for key in options if not isinstance(key, str)]:
        raise ValueError(f"{name}: YAML reads the name {odd[0]!r} as a {type(odd[0]).__name__}; it is no option")
    if reserved := sorted(RESERVED & options.keys()):
        raise ValueError(f"{name}: {', '.join(reserved)} are set by the duel itself; leave them out")
    if unknown := sorted(key for key in options if key.partition(".")[0] not in known):
        raise ValueError(f"{name}: train/train_sit.py has no options {', '.join(unknown)}")


def check_options(name: str, options: dict, known: type) -> None:
    """Check that all keys are fields of the dataclass `known`, and all values of their types.

    The duel sets the solver steps itself.

    Raises:
        ValueError: naming the option.
    """
    fields = {each.name for each in dataclasses.fields(known)} - {"num_inference_steps"}
    if unknown := sorted(map(str, options.keys() - fields)):
        raise ValueError(f"{name}: unknown options {', '.join(unknown)}; there are {', '.join(sorted(fields))}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(known)
    needed = {"data": options["data"]} if "data" in options else {}  # without which others are not parsed
    for key, value in options.items():
        try:
            parser.parse_object({**needed, key: value})
        except ArgumentError as error:
            raise ValueError(f"{name}: {key}={value!r} cannot be used: {joined_lines(error)}") from error
