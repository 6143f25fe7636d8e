"""What a run trains, distributed over its processes: gradients, updates, averages, and their state."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .checkpoints import Tensors, read_checkpoint
from .config import CommonConfig
from .ema import WeightAverages, averaged_tensors, kept_buffers
from .optimizer import masked_step, set_sharded_precision
from .sharding import whole
from .state import AVERAGES, gather_average, gather_state, restore_state
from .step_report import StepReport
from .task import Task


class Learner:
    """The model, its optimizer and the averages of its weights.

    A step is `backward` and `update`. Neither waits for the GPU.

    Args:
        config: the configuration of the run.
        task: what is trained, and on which loss.
        accelerator: the processes over which they are distributed.

    Attributes:
        model: the trained module, as accelerate has prepared it.
        averages: the averages of the weights of the task's model.
    """

    def __init__(self, config: CommonConfig, task: Task, accelerator: Accelerator):
        self.config = config
        self.task = task
        self.accelerator = accelerator
        task.prepare()
        set_sharded_precision(accelerator)
        self.model, self.optimizer = accelerator.prepare(task.trained, task.build_optimizer())
        task.distributed(self.model)
        self.averages = WeightAverages(self._averaged(), config.ema_decays, config.ema_stds)
        self._buffers: list[torch.Tensor] = []  # BatchNorm's, before the step

    def _averaged(self) -> list[torch.Tensor]:
        return list(averaged_tensors(self.task.model).values())

    def backward(self, batch: dict[str, torch.Tensor]) -> StepReport:
        """Accumulate the gradient of this process's batch, part by part, and report its losses."""
        config, accelerator = self.config, self.accelerator
        report = StepReport.zeros(accelerator.device)
        self._buffers = [buffer.clone() for buffer in kept_buffers(self.task.model).values()]
        chunks = [tensor.chunk(config.gradient_accumulation_steps) for tensor in batch.values()]
        parts = [dict(zip(batch, part, strict=True)) for part in zip(*chunks, strict=True)]
        for i, part in enumerate(parts):
            # DDP sums gradients over the processes only in the backward pass of the last part.
            with accelerator.no_sync(self.model) if i < len(parts) - 1 else nullcontext():
                accelerator.backward(self.task.loss(part, report) / len(parts))
        return report

    def update(self, step: int, report: StepReport) -> StepReport:
        """Update weights and averages with the accumulated gradient.

        If a loss or the gradient is not finite on some process, the update is masked on all of them, because an
        `if` would have to wait for the GPU.

        Args:
            step: number of the step, counted from 1.
            report: report of this process, by `backward`.

        Returns:
            The report of all processes.
        """
        # One small sum tells all processes whether one of them has to stop or met a loss that is not finite. The
        # gradient and its norm are the same on all of them already.
        summed = self.accelerator.reduce(report.pack(), "sum")
        report = StepReport.unpack(summed)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        norm = whole(norm)
        report.applied = (norm.isfinite() & summed.isfinite().all()).float()
        report.grad_norm = norm.to(report.applied)

        if self.task.starts_over(step - 1):
            for slots in self.optimizer.state.values():
                for value in slots.values():
                    value.zero_()
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.learning_rate(step - 1)
        masked_step(self.optimizer, report.applied, self.accelerator.scaler)
        self.optimizer.zero_grad()
        for buffer, before in zip(kept_buffers(self.task.model).values(), self._buffers, strict=True):
            buffer.copy_(torch.where(report.applied.bool(), buffer, before))  # the forward pass has changed it
        self.averages.update(self._averaged(), step, report.applied)
        return report

    def gather_state(self) -> tuple[Tensors, dict[str, Any]]:
        """Gather the state on the main process: the tensors of a checkpoint and its entries of state.json."""
        scaler = self.accelerator.scaler
        tensors = gather_state(self.task.modules, self.averages, self.optimizer, self.accelerator.is_main_process)
        return tensors, {
            AVERAGES: list(self.averages.averages),
            **self.task.describe_model(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    def restore_state(self, checkpoint: Path) -> dict[str, Any]:
        """Restore the state from a verified checkpoint and return its state.json.

        Raises:
            ValueError: if it is a checkpoint of another model or of other averages.
        """
        tensors, state = read_checkpoint(checkpoint)  # as large as everything that is trained; freed on return
        restore_state(tensors, self.task.modules, self.averages, self.optimizer)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state

    def gather_average(self, name: str | None = None) -> dict[str, torch.Tensor]:
        """Gather an average of the weights on the main process; the first one, which is sampled, if `name` is None."""
        average = self.averages.first if name is None else self.averages.averages[name]
        return gather_average(self.task.model, average, self.accelerator.is_main_process)
