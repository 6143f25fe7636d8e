"""One run of a duel: training a model with one seed, sampling its checkpoints, and scoring the samples."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from ..data import open_dataset
from ..sharing.folder import is_pipeline_folder
from ..training.checkpoints import checkpoint_steps
from ..training.command_line import parse_arguments
from ..training.config import TrainConfig
from ..training.export import average_file
from ..utils.bounded_text import read_json_object
from ..utils.environment import pick_device
from ..utils.files import write_json
from ..utils.text import printable
from .duel_folder import scored_alike
from .duel_options import Duel
from .sample_folder import sample_to_folder
from .sampling import image_shape, load_pipeline
from .score_report import summary
from .scores import evaluate
from .subprocesses import option_arguments, python_command, run_to_end
from .validation_loss import ValidationLoss, describe_samples, validation_file, validation_loss

STATISTICS = "reference.npz"  # statistics of the reference in the duel's folder, written with the first scores


@dataclass(frozen=True)
class Scripts:
    """The scripts that a duel starts as commands; an installed package does not contain them.

    Args:
        train: train/train_sit.py.
        sample: eval/sample.py.

    Raises:
        ValueError: if a script does not exist.
    """

    train: Path
    sample: Path

    def __post_init__(self) -> None:
        for script in (self.train, self.sample):
            if not script.is_file():
                raise ValueError(f"{script} does not exist; run a duel from a complete checkout of the repository")


@dataclass(frozen=True)
class DuelRun:
    """One model of a duel, trained with one seed. Whatever is done already is skipped.

    Args:
        duel: the options of the duel.
        scripts: the scripts that train and sample.
        model: name of the model in the duel.
        seed: seed of the training.
    """

    duel: Duel
    scripts: Scripts
    model: str
    seed: int

    @property
    def folder(self) -> Path:
        """The run folder of the training."""
        return self.duel.run_folder(self.model, self.seed)

    @property
    def is_trained(self) -> bool:
        """Whether the training has come to its end."""
        return is_pipeline_folder(self.folder / "pipeline")

    def train(self) -> None:
        """Train the model to the end.

        Raises:
            ValueError: if the training fails or was stopped.
            KeyboardInterrupt: after SIGINT or SIGTERM, when the training has written its checkpoint.
        """
        if self.is_trained:
            return
        command = self.train_command()
        print(printable(shlex.join(command)), flush=True)
        status = run_to_end(command)
        if status or not (self.folder / "pipeline").is_dir():
            raise ValueError(
                f"training of {self.folder} stopped with status {status}; start the duel again to continue"
            )

    def train_command(self) -> list[str]:
        """The command that trains the model, or continues its training."""
        options = {
            **self.duel.train,
            **self.duel.models[self.model],
            "seed": self.seed,
            "max_steps": self.duel.max_steps,
            "checkpoint_every": self.duel.evaluate_every,
            "keep_every": self.duel.evaluate_every,  # so that every checkpoint that is scored stays
            "output_dir": str(self.folder),
            "resume": "auto",
        }
        return [*python_command(self.duel.launch), str(self.scripts.train), *option_arguments(options)]

    def training_config(self) -> TrainConfig:
        """The configuration of the training, parsed as train/train_sit.py parses it.

        Raises:
            ValueError: if an option cannot be used.
        """
        arguments = self.train_command()
        try:
            return parse_arguments(arguments[arguments.index(str(self.scripts.train)) + 1 :])
        except SystemExit as stopped:  # what is wrong was printed
            raise ValueError("train/train_sit.py refuses these options; the reason stands above") from stopped

    def solver_steps(self) -> list[int]:
        """The numbers of solver steps that the trained model is sampled with."""
        if self.duel.inference_steps:
            return self.duel.inference_steps
        pipeline = load_pipeline(self.folder / "pipeline", pick_device("cpu"))
        steps = self.duel.sampling_options().resolve(pipeline).num_inference_steps
        assert steps is not None  # resolve fills it in
        return [steps]

    def pipeline_at(self, step: int) -> Path:
        """The pipeline folder of a training step: the final one, or one with the averaged weights of a checkpoint.

        Raises:
            ValueError: if there is no checkpoint of that step.
        """
        if step == self.duel.max_steps:
            return self.folder / "pipeline"
        target = self._evaluation_folder(step) / "pipeline"
        if target.is_dir():
            return target
        checkpoint = dict(checkpoint_steps(self.folder / "checkpoints")).get(step)
        if checkpoint is None:
            raise ValueError(f"{self.folder} has no checkpoint of step {step}; remove that run to train it again")
        pipeline = load_pipeline(self.folder / "pipeline", pick_device("cpu"))
        pipeline.transformer.load_state_dict(load_file(average_file(self.folder, checkpoint)))
        staged = target.with_name(".pipeline")
        shutil.rmtree(staged, ignore_errors=True)
        pipeline.save_pretrained(staged)
        staged.rename(target)
        return target

    def score(self, step: int, inference_steps: int, command: str = "") -> None:
        """Sample and score the model at one training step.

        Args:
            step: the training step.
            inference_steps: number of solver steps.
            command: the command line that the report quotes.

        Raises:
            ValueError: if it was done with other options, or cannot be done.
        """
        file = self.folder / "evaluation" / f"step-{step:08d}-{inference_steps}-inference-steps.json"
        requested = {"metrics": self.duel.metrics, "sampling": self.duel.sampling, "reference": self.duel.reference}
        if file.is_file():
            try:
                found = read_json_object(file).get("duel")
            except ValueError as error:
                raise ValueError(f"{error}; remove that file to score again") from error
            if not scored_alike(found, requested):
                raise ValueError(
                    f"{file} was made with {found}, not {requested}; choose another output, or remove that file"
                )
            return
        pipeline = self.pipeline_at(step)
        print(printable(f"{self.folder.name}, step {step}, {inference_steps} inference steps"), flush=True)
        samples = self._evaluation_folder(step) / f"samples-{inference_steps}-inference-steps"
        self.sample(pipeline, samples, inference_steps)
        statistics = Path(self.duel.output) / STATISTICS
        known = statistics.is_file()
        report = evaluate(
            str(samples),
            str(statistics) if known else self.duel.reference,
            self.duel.metric_options,
            device=self.duel.device,
            statistics_file=None if known else str(statistics),
        )
        origin = {"step": step, "reference": self.duel.reference, "command": command, "duel": requested}
        write_json(file, {**report, **origin})
        print(printable(summary(report)), flush=True)

    def validate(self, step: int) -> None:
        """Compute the losses of the model at one training step on held-out images, if the duel names some.

        Raises:
            ValueError: if it was done on other samples, or the data does not fit the model.
        """
        if not self.duel.validation:
            return
        options = self.duel.validation_options
        pipeline = load_pipeline(self.pipeline_at(step), pick_device(self.duel.device))
        dataset = open_dataset(options.data, image_shape(pipeline)[0])
        file = validation_file(self.folder, step)
        if not file.is_file():
            validation_loss(pipeline, dataset, options).save(file)
        elif ValidationLoss.load(file).settings != describe_samples(dataset, options):
            raise ValueError(f"{file} is of other samples than validation={self.duel.validation}; remove that file")

    def sample(self, pipeline: Path, folder: Path, inference_steps: int) -> None:
        """Draw the samples of one pipeline: in this process, or by the duel's `launch` command.

        Raises:
            ValueError: if sampling fails.
        """
        options = {
            **self.duel.sampling,
            "num_inference_steps": inference_steps,
            "dtype": self.duel.sampling_dtype,
        }
        arguments = [str(pipeline), "--output", str(folder), *option_arguments(options)]
        if self.duel.launch is None:
            command = shlex.join(["python", "eval/sample.py", *arguments])
            sampling = self.duel.sampling_options(inference_steps)
            sample_to_folder(str(pipeline), str(folder), sampling, None, command, self.duel.device)
        elif run_to_end([*python_command(self.duel.launch), str(self.scripts.sample), *arguments]):
            raise ValueError(f"sampling into {folder} failed; start the duel again to continue")

    def _evaluation_folder(self, step: int) -> Path:
        return self.folder / "evaluation" / f"step-{step:08d}"
