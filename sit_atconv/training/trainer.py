"""The trainer: one run, from its configuration to what it leaves. train/train_sit.py shows the loop that drives it.

What kind of model is trained is the subject of its task (task.py).
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data import BROKEN_IMAGES_FILE, BrokenImages, too_many_broken
from ..sharing.hub import prepare_repository
from ..utils.text import counted, printable
from .batches import Batches, build_loader
from .checkpoints import checkpoint_steps, recover_checkpoint, save_checkpoint
from .config import CommonConfig
from .learner import Learner
from .loss_plot import plot_metrics
from .pace import Pace
from .processes import on_main_process, start_accelerator
from .run_folder import check_continues, prepare_run_folder, record_start, take_run_folder
from .runlog import MetricsFile, Stopwatch, Window, memory_gb
from .signals import StopSignals
from .step_report import StepReport, StepReports
from .task import Task
from .trackers import log_picture, scalars, tracker_config, tracker_options, trackers


class Trainer:
    """One run on one of its processes.

    Call `setup`, `resume`, `start` and `catch_up`; then, for each of `steps`, `train_step`, `record_reports` and
    whatever is due; and `finish` at the end. As a context manager, it closes what it has opened and frees the folder.

    Args:
        config: the configuration; it is resolved here, and says which task the run has.

    Attributes:
        config: the resolved configuration.
        task: what the run is for.
        run: the run folder.
        step: the last step that was started, counted from 1; for a resumed run, initially that of its checkpoint.
        is_resumed: whether the run continues the one in its folder.
        is_writer: whether this process writes metrics and pictures: the main process, except in a dry run.
        is_stopping: whether some process was asked to stop, met too many broken images or lost a data worker.

    Raises:
        ValueError: if the configuration does not fit the disk, the installed packages or the number of processes.
    """

    task: Task
    data: dict[str, Any]  # the description of the data by the task
    learner: Learner
    loader: DataLoader
    batches: Batches
    broken_images: BrokenImages
    stop: StopSignals
    progress: tqdm
    reports: StepReports
    watch: Stopwatch
    _last_logged: int  # step of the last line of metrics.jsonl

    def __init__(self, config: CommonConfig):
        task = config.task_class()
        config = task.resolve(config)
        self.accelerator: Accelerator = start_accelerator(config)
        self.config = dataclasses.replace(config, mixed_precision=self.accelerator.mixed_precision)
        self.task = task(self.config, self.accelerator)
        processes, parts = self.accelerator.num_processes, config.gradient_accumulation_steps
        self.smallest_batch = processes * parts * task.smallest_part
        if config.batch_size % self.smallest_batch:
            least = f" × {task.smallest_part} images" if task.smallest_part > 1 else ""
            raise ValueError(
                f"batch_size={config.batch_size} must be divisible by {self.smallest_batch} "
                f"({processes} processes × {parts} accumulation steps{least})"
            )
        self.run = config.run_folder
        self.is_main = self.accelerator.is_main_process
        self.is_writer = self.is_main and not config.dry_run
        self.is_resumed = self.is_stopping = False
        self.step = 0
        self.window = Window()
        self.metrics: MetricsFile | None = None
        self._checkpoint: Path | None = None  # to continue from
        self._lock = ExitStack()  # of the run folder
        self._opened = ExitStack()  # everything that is open while the run trains

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:  # freed last, whatever happens
            self._opened.close()

    def setup(self) -> None:
        """Build all components and check everything that can be checked before anything is written.

        Raises:
            ValueError: naming what in the configuration, the data, the output folder or a checkpoint cannot be used.
        """
        config, accelerator, task = self.config, self.accelerator, self.task
        if not config.dry_run or config.resume is not None:  # first, since data may take long to scan
            self.is_resumed = prepare_run_folder(config) and not config.dry_run
        task.build()
        if self.is_resumed:
            on_main_process(accelerator, lambda: take_run_folder(self.run, self._lock))
            folder = self.run / "checkpoints"
            self._checkpoint = on_main_process(accelerator, lambda: recover_checkpoint(folder))
        on_main_process(accelerator, task.verify_data)
        self.data = on_main_process(accelerator, task.describe_data)
        if self._checkpoint is not None:
            check_continues(config, self.data, self._checkpoint)
        accelerator.print(printable(task.plan()))
        if config.dry_run:
            workers = min(config.num_workers, 1)
            self.config = dataclasses.replace(config, batch_size=self.smallest_batch, max_steps=1, num_workers=workers)
            task.config = self.config
        elif config.push_to_hub is not None:
            repository = config.push_to_hub
            on_main_process(accelerator, lambda: prepare_repository(repository))
        accelerator.wait_for_everyone()
        self.learner = Learner(self.config, task, accelerator)

    def resume(self) -> None:
        """Restore the newest good checkpoint if the run is resumed.

        Raises:
            ValueError: if it is damaged, or a checkpoint of another model or of other averages.
        """
        if self._checkpoint is None:
            return
        state = self.learner.restore_state(self._checkpoint)
        self.step, self.window = state["step"], Window.restored(state["window"])
        self.accelerator.print(f"continuing {printable(self.run)} from step {self.step}")

    def start(self) -> None:
        """Lock the run folder, record the start, and open the metrics file, the signal handlers and the progress bar.

        Raises:
            ValueError: if another process writes to the folder, or if the run met too many broken images before.
        """
        config, accelerator, start_step = self.config, self.accelerator, self.step
        self.loader = build_loader(config, self.task, accelerator, start_step)
        broken = None if config.dry_run else self.run / BROKEN_IMAGES_FILE
        self.broken_images = BrokenImages(broken, config.max_broken_images)
        self.check_broken_images()  # a run stopped by broken images must not restart with the same limit
        if not config.dry_run:
            if not self.is_resumed:
                on_main_process(accelerator, lambda: take_run_folder(self.run, self._lock))
            on_main_process(accelerator, lambda: record_start(config, accelerator, start_step))
            on_main_process(accelerator, self.task.record)
            accelerator.init_trackers(
                "tensorboard" if "tensorboard" in trackers(config) else self.run.name,
                tracker_config(config),
                on_main_process(accelerator, lambda: tracker_options(config, start_step)),
            )
        if self.is_writer:
            self.metrics = self._opened.enter_context(MetricsFile(self.run / "metrics.jsonl", start_step))
        self.stop = self._opened.enter_context(StopSignals())
        bar = tqdm(
            desc="training",
            initial=start_step,
            total=config.max_steps,
            disable=not self.is_main,
            dynamic_ncols=True,
        )
        self.progress = self._opened.enter_context(bar)
        self.reports, self.watch, self._last_logged = StepReports(accelerator.device), Stopwatch(), start_step
        self.learner.model.train()

    def catch_up(self) -> None:
        """Validate a new run before its first step, if that is wanted, and a resumed one after what it has missed.

        A kill or a stop may have kept it from drawing after the checkpoint that it continues from.
        """
        if not self.is_resumed:
            if 0 in self.task.early_validations and not self.config.dry_run:
                self.validate(0)
            return
        if self.is_main:
            plot_metrics(self.run / "metrics.jsonl", self.run / "loss.png")
        step = self.step
        is_due = self.is_due(step, self.task.validate_every) or step in self.task.early_validations
        if is_due and not on_main_process(self.accelerator, lambda: self.task.is_validated(step)):
            self.validate(step)

    def steps(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The steps that are left, counted from 1, each with this process's batch."""
        self.batches = self._opened.enter_context(closing(Batches(self.loader)))
        pace = Pace(self.config.max_steps - self.step)
        for step in range(self.step + 1, self.config.max_steps + 1):
            if (plan := pace.tick()) and self.is_main:
                self.progress.write(plan)
            batch = self.watch.next(self.batches)
            self.step = step
            yield step, batch

    def train_step(self, step: int, batch: dict[str, Any]) -> None:
        """Make one optimizer update, without waiting for the GPU.

        Args:
            step: number of the step, counted from 1.
            batch: this process's part of the batch, as `collate` of the task's view makes it.
        """
        self.broken_images.add(batch.pop("broken"))
        report = self.learner.backward(batch)
        worker_died = self.batches.failure is not None
        report.stop.fill_(float(self.stop.requested or self.broken_images.too_many or worker_died))
        report = self.learner.update(step, report)
        self.reports.send(step, report)
        self.progress.update(1)

    def record_reports(self, step: int) -> None:
        """Record the reports that have arrived, and all of them if step `step` is logged or has to stop the run.

        Raises:
            FloatingPointError: if too many steps in a row were skipped.
        """
        wait = self.is_due(step, self.config.log_every) or self.is_due(step, self.config.checkpoint_every)
        for reported, report in self.reports.arrived(wait):
            self.is_stopping |= self.record_report(reported, report)
        if self.is_stopping:
            for reported, report in self.reports.arrived(wait=True):
                self.record_report(reported, report)

    def record_report(self, step: int, report: StepReport) -> bool:
        """Record one step's report; return whether any process asked to stop.

        Raises:
            FloatingPointError: if too many steps in a row were skipped.
        """
        if report.applied:
            self.window.add(report)
            return bool(report.stop)
        self.window.skip()
        self.accelerator.print(f"\nstep {step} is skipped: its loss or gradient is not finite")
        if self.metrics is not None:
            self.metrics.write(step, skipped=True)
        if self.window.skipped_in_a_row >= self.config.max_skipped_steps:
            good = [path for _, path in checkpoint_steps(self.run / "checkpoints")]
            raise FloatingPointError(
                f"the loss or its gradient was not finite in {self.window.skipped_in_a_row} steps in a row, up to step "
                f"{step}; lower --learning_rate, or train in bf16. The last good checkpoint is "
                + (f"{good[-1]}" if good else "none: the run had not saved one yet")
            )
        return bool(report.stop)

    def is_due(self, step: int, every: int) -> bool:
        """Whether an action that runs every `every` steps and after the last step is due."""
        return step % every == 0 or step == self.config.max_steps

    def log(self, step: int) -> None:
        """Write the means since the last line to metrics.jsonl and to the tracker."""
        speed = self.watch.read((step - self._last_logged) * self.config.batch_size)
        self._last_logged = step
        values = {
            **self.window.close(self.task.has_times),
            "learning_rate": self.task.learning_rate(step - 1),
            **speed,
            "memory_gb": memory_gb(self.accelerator.device),
        }
        if self.metrics is not None:
            self.metrics.write(step, **values)
            self.progress.set_postfix(loss=values["loss"], images_per_s=round(values["images_per_second"]))
        self.accelerator.log(scalars(values), step=step)

    def snapshot_averages(self, step: int) -> None:
        """Save the power-function averages for post-hoc EMA."""
        with self.watch.paused():
            names = [f"std-{std:g}" for std in self.config.ema_stds]
            tensors = {name: self.learner.gather_average(name) for name in names}
            on_main_process(self.accelerator, lambda: save_checkpoint(self.run / "ema", step, tensors, {"step": step}))

    def checkpoint(self, step: int) -> None:
        """Save everything that is needed to resume the run after this step.

        Raises:
            OSError: if it cannot be written, for example because the disk is full.
        """
        config = self.config
        with self.watch.paused():
            tensors, learned = self.learner.gather_state()
            state = {
                "step": step,
                "config": dataclasses.asdict(config),
                "data": self.data,
                "classes": self.task.dataset.classes,
                "window": dataclasses.asdict(self.window),
                **learned,
            }
            folder, keep, keep_every = self.run / "checkpoints", config.keep_checkpoints, config.keep_every
            on_main_process(self.accelerator, lambda: save_checkpoint(folder, step, tensors, state, keep, keep_every))
            if self.is_main:
                plot_metrics(self.run / "metrics.jsonl", self.run / "loss.png")

    def validation_is_due(self, step: int) -> bool:
        """Whether `validate` is due: at its interval, unless the run is stopping, and after the last step."""
        is_due = step % self.task.validate_every == 0 or step in self.task.early_validations
        return step == self.config.max_steps or (is_due and not self.is_stopping)

    def validate(self, step: int) -> None:
        """Look at what the model can do after this step, as its task does."""
        with self.watch.paused():
            self.task.validate(step, self.learner.averages)
            if self.is_main and (picture := self.task.picture(step)) is not None:
                self.progress.write(printable(f"grid: {picture}"))
                log_picture(self.accelerator, "samples", picture, step)

    def check_broken_images(self) -> None:
        """Raise ValueError if all processes together met more than `max_broken_images` broken images."""
        reasons = dict(gather_object(list(self.broken_images.reasons.items())))
        if len(reasons) > self.config.max_broken_images:
            raise ValueError(too_many_broken(list(reasons.values()), self.config.max_broken_images))

    def check_workers(self) -> None:
        """Raise ChildProcessError if a data worker of some process died."""
        if failures := [each for each in gather_object([self.batches.failure]) if each is not None]:
            saved = "" if self.config.dry_run else f", and a checkpoint of step {self.step} is saved"
            raise ChildProcessError(
                f"{failures[0]}. num_workers={self.config.num_workers}: the run has stopped{saved}; continue with "
                f"{self.config.continuation}, and a lower --num_workers if memory is short"
            )

    def finish(self) -> Path:
        """Export the model and upload it; return its folder, or the run folder after a stop and a dry run.

        Raises:
            ChildProcessError: if the death of a data worker stopped the run.
            ValueError: if too many broken images stopped the run, or if the upload fails.
        """
        config, accelerator = self.config, self.accelerator
        if self.is_stopping or config.dry_run:
            self.check_broken_images()
            self.check_workers()
        if config.dry_run:
            self._opened.close()
            accelerator.print(
                f"dry run finished: one step with {counted(self.smallest_batch, 'image')}; nothing was written"
            )
            return self.run
        if self.step < config.max_steps:
            accelerator.print(f"\nstopped after step {self.step}; continue with {config.continuation}")
            accelerator.end_training()
            return self.run
        self._opened.close()
        weights, exported = self.learner.gather_average(), self.run / self.task.exported
        on_main_process(accelerator, lambda: self.task.export(weights, exported))
        accelerator.end_training()
        if self.is_main and config.push_to_hub is not None:  # no barrier: an upload may outlast its time limit
            print(f"uploaded: {self.task.upload(exported, config.push_to_hub)}")
        return exported
