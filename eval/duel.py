"""Train, sample and score several models under one recipe, and compare them: all from one YAML file.

    python eval/duel.py eval/configs/duel_digits.yaml

Interrupt it at any time, and start it again: what is done is skipped, and training goes on from its newest checkpoint.
In the output folder each model and seed has a run, NAME-seedS, and report/ has the report of eval/compare.py.
"""

import dataclasses
import itertools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from compare import load_run, write_comparison
from jsonargparse import ArgumentParser
from safetensors.torch import load_file

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.evaluation.features import build_extractor
from sit_atconv.evaluation.sample_folder import sample_to_folder
from sit_atconv.evaluation.sampling import SamplingOptions, load_pipeline
from sit_atconv.evaluation.scores import MetricOptions, evaluate, open_reference, summary
from sit_atconv.training.checkpoints import checkpoint_steps
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.export import average_file
from sit_atconv.utils.checks import check_count
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.files import write_json

STATISTICS = "reference.npz"  # in the duel's folder, once they are known
TRAIN = Path(__file__).resolve().parents[1] / "train" / "train_sit.py"
SAMPLE = Path(__file__).resolve().parent / "sample.py"
OWN_TRAINING_OPTIONS = {"output_dir", "resume", "seed", "max_steps", "checkpoint_every", "keep_every", "config"}


@dataclass
class Duel:
    """Train, sample and score several models under one recipe, and compare them.

    Args:
        output: folder of the duel.
        models: by name, the options of train/train_sit.py in which they differ, such as "ATConv: {mixer: atconv}". The
            first is the baseline.
        reference: real images, as in eval/fid.py.
        seeds: of training; each model is trained with each.
        max_steps: of training.
        evaluate_every: training steps between two evaluations; max_steps is always evaluated.
        inference_steps: solver steps; the first are those of the scores, all are tried on the final models. The
            pipelines' own default where none are given.
        train: further options of train/train_sit.py, the same for all models.
        sampling: options of eval/sample.py.
        metrics: options of eval/fid.py about metrics and features.
        launch: command that starts training and sampling, such as "accelerate launch --num_processes 8"; one process
            where none is given.
        device: for scores, latency and, without `launch`, samples.
        latency_repeats: timed forward passes of each model.
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
    launch: str | None = None
    device: str = "auto"
    latency_repeats: int = 20

    def __post_init__(self) -> None:
        """Refuse what no duel can use.

        Raises:
            ValueError: naming the field, its value and the remedy.
        """
        if len(self.models) < 2:
            raise ValueError(f"models={list(self.models)}: a duel needs at least two")
        for name in self.models:
            if not re.fullmatch(r"[\w.+-]+", name) or re.search(r"-seed\d+$", name):
                raise ValueError(f"models: {name!r} must be letters, digits, '.', '+', '-' or '_', without -seedS")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must name at least one, and each once")
        for name in ("max_steps", "evaluate_every", "latency_repeats"):
            check_count(name, getattr(self, name))
        for steps in self.inference_steps:
            check_count("inference_steps", steps)
        training_options = {each.name for each in dataclasses.fields(TrainConfig)}
        # The command line hands these over as text.
        self.train = typed(self.train, TrainConfig)
        self.models = {name: typed(options, TrainConfig) for name, options in self.models.items()}
        self.sampling = typed(self.sampling, SamplingOptions)
        self.metrics = typed(self.metrics, MetricOptions)
        for name, options in (("train", self.train), *self.models.items()):
            if own := sorted(OWN_TRAINING_OPTIONS & options.keys()):
                raise ValueError(f"{name}: {', '.join(own)} are set by the duel itself; leave them out")
            if unknown := sorted(key for key in options if key.partition(".")[0] not in training_options):
                raise ValueError(f"{name}: train/train_sit.py has no options {', '.join(unknown)}")
        for name, options, known in (
            ("sampling", self.sampling, SamplingOptions),
            ("metrics", self.metrics, MetricOptions),
        ):
            fields = {each.name for each in dataclasses.fields(known)} - {"num_inference_steps"}
            if unknown := sorted(options.keys() - fields):
                raise ValueError(f"{name}: unknown options {', '.join(unknown)}; there are {', '.join(sorted(fields))}")
        if "fid" not in self.metric_options.names:
            raise ValueError(f"metrics: {self.metric_options.metrics!r} must name fid, which the curves show")
        if "num_samples" not in self.sampling:
            raise ValueError("sampling: num_samples must be given")
        self.metric_options.check()

    @property
    def metric_options(self) -> MetricOptions:
        return MetricOptions(**self.metrics)

    @property
    def steps(self) -> list[int]:
        """Training steps at which the models are scored."""
        return sorted({*range(self.evaluate_every, self.max_steps, self.evaluate_every), self.max_steps})

    def run_folder(self, model: str, seed: int) -> Path:
        return Path(self.output) / f"{model}-seed{seed}"


def typed(options: dict, known: type) -> dict:
    """Options with numbers, lists and null in place of their text, but where the dataclass has text itself."""
    words = {each.name for each in dataclasses.fields(known) if isinstance(each.default, str)}
    return {
        name: yaml.safe_load(value) if isinstance(value, str) and name not in words else value
        for name, value in options.items()
    }


def check_parts(duel: Duel) -> None:
    """Try out what comes after the first training, so that no mistake in it costs one.

    Raises:
        ValueError: naming the option that cannot be used.
    """
    device = pick_device(duel.device)
    options = duel.metric_options
    statistics = Path(duel.output) / STATISTICS
    open_reference(str(statistics) if statistics.is_file() else duel.reference, options)
    build_extractor(options.extractor, options.weights, device, options.outputs)
    train = TrainConfig(**{name: duel.train[name] for name in ("path", "prediction") if name in duel.train})
    network = SiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4)
    pipeline = SiTPipeline(network, InterpolantODEScheduler(path=train.path, prediction=train.prediction))
    for steps in duel.inference_steps or [None]:
        SamplingOptions(**{**duel.sampling, "num_inference_steps": steps}).resolve(pipeline)


def train_command(duel: Duel, model: str, seed: int) -> list[str]:
    """The command that trains one model, or goes on with it."""
    options = {
        **duel.train,
        **duel.models[model],
        "seed": seed,
        "max_steps": duel.max_steps,
        "checkpoint_every": duel.evaluate_every,
        "keep_every": duel.evaluate_every,  # each checkpoint that is scored stays
        "output_dir": str(duel.run_folder(model, seed)),
        "resume": "auto",
    }
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return [*launcher(duel), str(TRAIN), *arguments]


def launcher(duel: Duel) -> list[str]:
    """How Python scripts are started."""
    if duel.launch is None:
        return [sys.executable]
    words = shlex.split(duel.launch)
    return (
        [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
        if words[:2] == ["accelerate", "launch"]
        else words
    )


def run_to_end(command: list[str]) -> int:
    """Run a command and return its exit status.

    A signal does not cut it short: training is given the time for its checkpoint, and only then the duel stops, too.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM, when the command has ended.
    """
    process = subprocess.Popen(command)
    stopped = False

    def stop(number, frame):
        nonlocal stopped
        stopped = True
        if number == signal.SIGTERM:  # Ctrl-C reaches the command by itself
            process.terminate()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt
    return status


def is_trained(run: Path) -> bool:
    """Whether a training has come to its end."""
    return (run / "pipeline" / "model_index.json").is_file()


def train(duel: Duel, model: str, seed: int) -> None:
    """Train one model to the end, unless that was done.

    Raises:
        ValueError: where training fails, or was stopped.
    """
    run = duel.run_folder(model, seed)
    if is_trained(run):
        return
    command = train_command(duel, model, seed)
    print(shlex.join(command), flush=True)
    status = run_to_end(command)
    if status or not (run / "pipeline").is_dir():
        raise ValueError(f"training of {run} stopped with status {status}; start the duel again to go on")


def pipeline_at(run: Path, step: int, max_steps: int) -> Path:
    """The pipeline folder of a training step: the final one, or one with the averaged weights of a checkpoint.

    Raises:
        ValueError: where there is no checkpoint of that step.
    """
    if step == max_steps:
        return run / "pipeline"
    target = run / "evaluation" / f"step-{step:08d}" / "pipeline"
    if target.is_dir():
        return target
    checkpoint = dict(checkpoint_steps(run / "checkpoints")).get(step)
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint of step {step}; remove that run to train it again")
    pipeline = load_pipeline(run / "pipeline", pick_device("cpu"))
    weights = load_file(average_file(run, checkpoint))
    pipeline.transformer.load_state_dict(weights)
    staged = target.with_name(".pipeline")
    shutil.rmtree(staged, ignore_errors=True)
    pipeline.save_pretrained(staged)
    staged.rename(target)
    return target


def score(duel: Duel, model: str, seed: int, step: int, inference_steps: int, command: str = "") -> None:
    """Sample and score one model at one training step, unless that was done.

    Raises:
        ValueError: where it was done with other options, or cannot be done.
    """
    run = duel.run_folder(model, seed)
    file = run / "evaluation" / f"step-{step:08d}-{inference_steps}-inference-steps.json"
    asked = {"metrics": duel.metrics, "sampling": duel.sampling, "reference": duel.reference}
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8")).get("duel")
        if found != asked:
            raise ValueError(f"{file} was made with {found}, not {asked}; choose another output, or remove that file")
        return
    folder = run / "evaluation" / f"step-{step:08d}" / f"samples-{inference_steps}-inference-steps"
    pipeline = pipeline_at(run, step, duel.max_steps)
    print(f"{run.name}, step {step}, {inference_steps} inference steps", flush=True)
    options = {**duel.sampling, "num_inference_steps": inference_steps}
    arguments = [str(pipeline), "--output", str(folder)]
    for name, value in options.items():
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    if duel.launch is None:
        own_command = shlex.join(["python", "eval/sample.py", *arguments])
        sample_to_folder(str(pipeline), str(folder), SamplingOptions(**options), None, own_command, duel.device)
    elif run_to_end([*launcher(duel), str(SAMPLE), *arguments]):
        raise ValueError(f"sampling into {folder} failed; start the duel again to go on")
    statistics = Path(duel.output) / STATISTICS
    known = statistics.is_file()
    report = evaluate(
        str(folder),
        str(statistics) if known else duel.reference,
        duel.metric_options,
        device=duel.device,
        statistics_file=None if known else str(statistics),
    )
    write_json(file, {**report, "step": step, "reference": duel.reference, "command": command, "duel": asked})
    print(summary(report), flush=True)


def solver_steps(duel: Duel, model: str, seed: int) -> list[int]:
    """The inference steps that a trained model is sampled with."""
    if duel.inference_steps:
        return duel.inference_steps
    pipeline = load_pipeline(duel.run_folder(model, seed) / "pipeline", pick_device("cpu"))
    return [SamplingOptions(**duel.sampling).resolve(pipeline).num_inference_steps]


def run_duel(duel: Duel, command: str = "") -> Path:
    """Do all that is not done yet; returns the report.

    Raises:
        ValueError: where the folder holds another duel, or a part cannot be done.
    """
    output = Path(duel.output)
    settings = output / "duel.yaml"
    described = {key: value for key, value in dataclasses.asdict(duel).items() if key not in ("launch", "device")}
    if settings.is_file():
        found = yaml.safe_load(settings.read_text(encoding="utf-8"))
        extendable = {"models", "seeds", "latency_repeats", "inference_steps"}
        differing = [key for key in described if key not in extendable and found.get(key) != described[key]]
        differing += [
            f"models.{name}"
            for name in found["models"].keys() & duel.models.keys()
            if found["models"][name] != duel.models[name]
        ]
        if differing:
            raise ValueError(
                f"output={duel.output!r} holds another duel ({', '.join(differing)} differ); name a new folder"
            )
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"output={duel.output!r} holds other files; name a new folder")
    if not all(is_trained(duel.run_folder(model, seed)) for model in duel.models for seed in duel.seeds):
        check_parts(duel)
    output.mkdir(parents=True, exist_ok=True)
    settings.write_text(yaml.safe_dump(described, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for seed in duel.seeds:
        for model in duel.models:
            train(duel, model, seed)
            tried = solver_steps(duel, model, seed)
            for step in duel.steps:
                for inference_steps in tried if step == duel.max_steps else tried[:1]:
                    score(duel, model, seed, step, inference_steps, command)
    runs = []
    for model, seed in itertools.product(duel.models, duel.seeds):
        runs.append(load_run(duel.run_folder(model, seed)))
        runs[-1].final_inference_steps = solver_steps(duel, model, seed)[0]  # those of the scores
    return write_comparison(runs, output / "report", device=duel.device, repeats=duel.latency_repeats, command=command)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(
        prog="duel.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s DUEL.yaml [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(Duel)
    named = arguments[:1] and not arguments[0].startswith("-")
    options = parser.parse_args(["--config", *arguments] if named else arguments).as_dict()
    options.pop("config")
    try:
        print(run_duel(Duel(**options), shlex.join(["python", "eval/duel.py", *arguments])))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("duel.py: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
