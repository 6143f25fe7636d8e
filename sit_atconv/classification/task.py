"""The task of training a classifier: what `Trainer` needs to know about models that name what they see.

B images, K classes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

from ..data import ImageDataset, Stream, View, hold_out, open_dataset
from ..training.ema import WeightAverages
from ..training.optimizer import learning_rate
from ..training.processes import on_main_process, one_process_first
from ..training.references import check_references
from ..training.run_folder import describe_data
from ..training.runlog import list_lines
from ..training.step_report import StepReport
from ..training.task import Task
from ..utils.files import write_atomically
from .augmentation import Mixing, evaluation_transform, seeded, training_transform
from .config import ClassifierConfig
from .evaluate import Evaluation
from .export import print_next_steps, save_classifier, upload_classifier, with_weights
from .models import build_classifier, image_statistics
from .plan import describe_classifier_plan
from .scores import Scores
from .view import ClassifierView

EVALUATIONS = "evaluation.jsonl"
SMALLEST_BF16_SIZE = 17  # two pixels a side at stride 16; the convolution after it is the last one with a stride


class ClassifierTask(Task):
    """Train a model of timm on labelled images, evaluate it on others, and leave a folder that timm loads.

    Attributes:
        validation: the images on which the model is evaluated.
    """

    exported = "model"
    smallest_part = 2  # BatchNorm needs two values of a channel, and mixup two images
    config: ClassifierConfig
    validation: ImageDataset
    network: nn.Module  # the model as accelerate has prepared it

    @staticmethod
    def resolve(config: ClassifierConfig) -> ClassifierConfig:
        check_references(config)
        return config

    def build(self) -> None:
        config = self.config
        if self.accelerator.is_fsdp2:
            raise ValueError(
                "classifiers are not sharded: their BatchNorm needs whole channels; use a configuration of accelerate "
                "without FSDP, such as train/configs/accelerate/ddp_8gpus.yaml"
            )
        assert config.image_size is not None  # ClassifierConfig checks it
        is_half = self.accelerator.mixed_precision == "bf16" and self.accelerator.device.type == "cpu"
        if is_half and config.image_size < SMALLEST_BF16_SIZE:
            raise ValueError(
                f"mixed_precision=bf16 with image_size={config.image_size}: on CPUs, PyTorch's gradients of strided "
                "convolutions on maps of a single pixel are undefined in bfloat16; use --mixed_precision no, or images "
                f"of at least {SMALLEST_BF16_SIZE} pixels"
            )
        self.dataset, self.validation = one_process_first(self.accelerator, lambda: open_data(config))
        self.dataset.check_output("output_dir", config.run_folder)
        if len(self.dataset) < config.batch_size:
            raise ValueError(
                f"batch_size={config.batch_size} exceeds the {len(self.dataset)} training images of "
                f"data={config.data!r}"
            )
        local = config.batch_size // self.accelerator.num_processes
        self.mixing = Mixing(config, self.dataset.num_classes)
        if local % 2 and self.mixing.mixes:
            raise ValueError(
                f"batch_size={config.batch_size} gives each process {local} images; mixup needs an even number"
            )
        self.model = self.trained = build_classifier(config, self.dataset.channels, self.dataset.num_classes)
        self.modules = {"model": self.model}
        self.mean, self.std = image_statistics(self.model, self.dataset.channels)
        self.transform = training_transform(config, self.mean, self.std)

    def verify_data(self) -> None:
        self.dataset.verify()
        self.validation.verify()

    def describe_data(self) -> dict[str, Any]:
        return describe_data(self.dataset, None) | {"validation": self.validation.fingerprint()}

    def plan(self) -> str:
        return describe_classifier_plan(self.config, self.dataset, self.validation, self.model, self.accelerator)

    def prepare(self) -> None:
        if self.config.gradient_checkpointing:
            self.model.set_grad_checkpointing()  # type: ignore[operator]  # all models of timm have it
        if self.config.compile:
            self.model.compile()

    def view(self) -> View:
        return ClassifierView(self.dataset, self.config.seed, self.transform, self.mixing)

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        order = super().epoch_order(generator)
        return np.repeat(order, self.config.repeated_augmentation)[: len(order)]

    def build_optimizer(self) -> torch.optim.AdamW:
        config = self.config
        optimizer = create_optimizer_v2(
            self.model, "adamw", lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = CosineLRScheduler(
            optimizer,
            config.max_steps,
            lr_min=config.min_learning_rate,
            warmup_t=config.lr_warmup_steps,
            warmup_lr_init=config.min_learning_rate,
            t_in_epochs=False,
        )
        return optimizer

    def learning_rate(self, step: int) -> float:
        if self.config.lr_schedule == "constant":
            return learning_rate(self.config, step)
        self.scheduler.step_update(step)
        return self.scheduler.optimizer.param_groups[0]["lr"]

    def distributed(self, model: nn.Module) -> None:
        self.network = model

    def loss(self, batch: dict[str, torch.Tensor], report: StepReport) -> torch.Tensor:
        device = self.accelerator.device
        x, target = (batch[name].to(device, non_blocking=True) for name in ("x", "target"))
        devices = [device] if device.type == "cuda" else []
        # Drop path draws from the global numbers. The position, which is on the CPU, makes them the part's own.
        with seeded(self.config.seed, Stream.DROPOUT, int(batch["position"][0]), devices):
            logits = self.network(x).float()
        losses = -(target * F.log_softmax(logits, 1)).sum(1)  # (B,)
        report.add_losses(losses.detach(), torch.zeros_like(losses))
        return losses.mean()

    def describe_model(self) -> dict[str, Any]:
        return {"classifier": {"model": self.config.model, "arguments": self.config.model_args}}

    @property
    def validate_every(self) -> int:
        return self.config.evaluate_every

    def validate(self, step: int, averages: WeightAverages) -> None:
        """Evaluate the weights and each average, and write a line of evaluation.jsonl."""
        was_training = self.model.training
        self.model.eval()
        results: dict[str, Any] = {"raw": self._scores()}
        for name in averages.averages:
            with averages.in_place_of(self.model, name):
                results[name] = self._scores()
        self.model.train(was_training)
        shown = ", ".join(f"{name} {result['top1']:.4f}" for name, result in results.items())
        self.accelerator.print(f"\nstep {step}: held-out accuracy {shown}")
        logged = {f"{name}/{key}": value for name, result in results.items() for key, value in result.items()}
        self.accelerator.log(logged, step=step)
        file = self.config.run_folder / EVALUATIONS
        on_main_process(self.accelerator, lambda: write_evaluation(file, {"step": step, **results}))

    def _scores(self) -> dict[str, float]:
        """Evaluate the model, each process a part of the images."""
        accelerator, config, side = self.accelerator, self.config, self.config.image_size
        assert side is not None  # ClassifierConfig checks it
        transform = evaluation_transform(side, config.crop_pct, self.mean, self.std)
        part = range(accelerator.process_index, len(self.validation), accelerator.num_processes)
        size = max(1, config.batch_size // accelerator.num_processes)
        evaluation = Evaluation(self.validation, transform, self.dataset.channels, size)
        scores = Scores(self.dataset.num_classes)
        evaluation.run(self.model, scores, part, accelerator.device)
        if accelerator.num_processes > 1:
            for sums in scores.tensors():
                sums.copy_(accelerator.reduce(sums.to(accelerator.device), "sum"))
        unreadable = accelerator.reduce(torch.tensor(len(evaluation.unreadable), device=accelerator.device), "sum")
        return scores.summary() | {"images": scores.images, "unreadable": int(unreadable)}

    def is_validated(self, step: int) -> bool:
        return any(line["step"] == step for line in list_lines(self.config.run_folder / EVALUATIONS))

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        lines = list_lines(self.config.run_folder / EVALUATIONS)
        scores = next((line for line in lines if line["step"] == self.config.max_steps), None)
        model, data = with_weights(self.model, weights), self.dataset
        save_classifier(model, self.config, data.channels, data.classes, folder, scores)
        print_next_steps(self.config, folder)

    def upload(self, folder: Path, repo_id: str) -> str:
        return upload_classifier(folder, repo_id)


def open_data(config: ClassifierConfig) -> tuple[ImageDataset, ImageDataset]:
    """Open the images for training and those for evaluation.

    Raises:
        ValueError: if they have no classes, or not the same.
    """
    size = None if config.data == "digits" else config.image_size
    dataset = open_dataset(config.data, size)
    dataset.check_pixels("a classifier is trained on images, but")
    if len(dataset.classes) < 2:
        raise ValueError(
            f"data={config.data!r} has {len(dataset.classes) or 'no'} classes; put the images of each class into a "
            "folder of their own"
        )
    if config.validation is None:
        return hold_out(dataset, config.held_out)
    size = None if config.validation == "digits" else config.image_size
    validation = open_dataset(config.validation, size)
    if validation.classes != dataset.classes:
        missing = sorted(set(dataset.classes) ^ set(validation.classes))[:5]
        raise ValueError(
            f"validation={config.validation!r} has other classes than data={config.data!r}: "
            f"{', '.join(missing) or 'in another order'}; give images of the same classes"
        )
    if validation.channels != dataset.channels:
        raise ValueError(
            f"validation={config.validation!r} has {validation.channels} channels, data={config.data!r} has "
            f"{dataset.channels}; give images of the same kind"
        )
    return dataset, validation


def write_evaluation(file: Path, line: dict[str, Any]) -> None:
    """Add a line to evaluation.jsonl, in place of those of the same and of later steps, which are repeated."""
    kept = [each for each in list_lines(file) if each["step"] < line["step"]]
    write_atomically(file, "".join(json.dumps(each) + "\n" for each in [*kept, line]))
