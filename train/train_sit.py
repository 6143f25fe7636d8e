"""Train SiT, with ATConv or self-attention, on images.

    accelerate launch train/train_sit.py                               # handwritten digits, about 5 minutes on 2 cores
    accelerate launch train/train_sit.py --mixer attention             # the baseline
    accelerate launch train/train_sit.py --config train/configs/folder_pixels.yaml --data PHOTOS
    accelerate launch train/train_sit.py --config train/configs/folder_latents.yaml --data PHOTOS
    … --dry_run                                                        # does everything fit?
    … --resume auto                                                    # go on where it was stopped

docs/training.md describes what a run writes and what it survives.

t=0 noise, t=1 data; x_0 noise, x_1 data. B images on this process, C channels, S latent size.
"""

import dataclasses
import math
import os
import sys
import warnings
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from sit_atconv import Interpolant, InterpolantLoss, SiTPipeline, SiTTransformer2DModel
from sit_atconv.data import (
    BrokenImageError,
    BrokenImages,
    TrainingOrder,
    TrainingView,
    open_dataset,
    too_many_broken,
)
from sit_atconv.models.vae import encode, load_vae
from sit_atconv.sharing.hub import finish_folder, prepare_repository
from sit_atconv.training.build import build_pipeline, build_transformer
from sit_atconv.training.checkpoints import (
    checkpoint_steps,
    newest_good_checkpoint,
    read_checkpoint,
    save_checkpoint,
    sweep,
)
from sit_atconv.training.command_line import parse_arguments
from sit_atconv.training.config import TrainConfig, resolve_config
from sit_atconv.training.ema import WeightAverages
from sit_atconv.training.finish import print_next_steps, save_pipeline
from sit_atconv.training.loss_plot import plot_metrics
from sit_atconv.training.optimizer import learning_rate
from sit_atconv.training.plan import describe_plan
from sit_atconv.training.processes import on_main_process, one_process_first
from sit_atconv.training.repa import AlignedTransformer, TargetEncoder, alignment_loss
from sit_atconv.training.run_folder import (
    check_continues,
    describe_data,
    prepare_run_folder,
    record_start,
    save_config,
    take_run_folder,
)
from sit_atconv.training.runlog import MetricsFile, Stopwatch, Window, memory_gb
from sit_atconv.training.sharding import whole
from sit_atconv.training.signals import StopSignals, ignore_stop_signals
from sit_atconv.training.state import AVERAGES, gather_average, gather_state, restore_state
from sit_atconv.training.step_report import TIME_BINS, StepReports, time_bin_sums
from sit_atconv.training.trackers import scalars, tracker_config, tracker_options, trackers
from sit_atconv.utils.image_grid import save_grid
from sit_atconv.utils.randomness import image_generator

GRID_CLASSES, GRID_COLUMNS = 10, 8
WAIT_FOR_OTHERS = timedelta(hours=1)  # until a process gives up on the others; the main one may write a checkpoint
STOPPED = 143  # exit code of a run that was asked to stop, as a terminated process has it


def train(config: TrainConfig) -> Path:
    """Run the training and return the folder of the finished pipeline (or the run folder, where it was stopped).

    Raises:
        ValueError: naming what in the configuration, the data, the output folder or a checkpoint cannot be used.
        FloatingPointError: where too many steps in a row had to be skipped.
        OSError: where a checkpoint cannot be written, as on a full disk.
    """
    config = resolve_config(config)
    with ExitStack() as lock:  # of the run folder: taken where it is first written to, freed at the end
        return train_in_folder(config, lock)


def train_in_folder(config: TrainConfig, lock: ExitStack) -> Path:
    """`train`, which holds the run folder's lock until all is written."""
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or torchrun's processes would not find each other on CPUs
        mixed_precision=config.mixed_precision,
        log_with=trackers(config) or None,
        project_dir=config.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS)],
    )
    device, main = accelerator.device, accelerator.is_main_process
    config = dataclasses.replace(config, mixed_precision=accelerator.mixed_precision)
    if accelerator.num_processes == 1 and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        warnings.warn(
            "on CPUs accelerate's launcher starts one process, whatever --num_processes; for several use "
            "torchrun --nproc_per_node N train/train_sit.py",
            stacklevel=2,
        )
    share = config.gradient_accumulation_steps * accelerator.num_processes
    if config.batch_size % share:
        raise ValueError(
            f"batch_size={config.batch_size} must be divisible by {share} "
            f"({accelerator.num_processes} processes × {config.gradient_accumulation_steps} accumulation steps)"
        )

    # Everything that can be wrong is found before anything is written.
    dataset = one_process_first(accelerator, lambda: open_dataset(config.data, config.image_size))
    if len(dataset) < config.batch_size:
        raise ValueError(f"batch_size={config.batch_size} exceeds the {len(dataset)} images of data={config.data!r}")
    vae = None if config.vae is None else load_vae(config.vae).to(device)
    dataset.check_training(vae, config.horizontal_flip)
    transformer = build_transformer(config, dataset, vae)
    if config.sample_guidance_scale != 1 and transformer.config.class_dropout_prob == 0:
        raise ValueError(
            f"sample_guidance_scale={config.sample_guidance_scale}: without class dropout the model cannot be guided; "
            "use 1, or a class_dropout_prob above 0"
        )
    interpolant = Interpolant(config.path, config.prediction)
    loss_fn = InterpolantLoss(interpolant, config.weighting, config.time_sampling, config.time_shift)
    trained, modules, encoder = transformer, {"model": transformer}, None
    if config.repa is not None:
        dataset.check_pixels(f"repa={config.repa!r} compares features with those of images, but")
        grid = 2 * (transformer.config.sample_size // transformer.config.patch_size,)
        encoder = TargetEncoder(config.repa, config.repa_weights, grid, device)
        trained = AlignedTransformer(transformer, config.repa_depth, encoder.features, config.seed)
        modules["projector"] = trained.projector
    run = Path(config.output_dir)
    continues = prepare_run_folder(config) and not config.dry_run
    checkpoint = None
    if continues:
        on_main_process(accelerator, lambda: take_run_folder(run, lock))
        checkpoint = on_main_process(accelerator, lambda: newest_good_checkpoint(run / "checkpoints"))
    on_main_process(accelerator, dataset.verify)
    data = on_main_process(accelerator, lambda: describe_data(dataset, vae))
    if checkpoint is not None:
        check_continues(config, data, checkpoint)
    accelerator.print(
        describe_plan(
            config,
            dataset,
            transformer,
            modules.get("projector"),
            accelerator.num_processes,
            accelerator.distributed_type == DistributedType.FSDP,
            accelerator.mixed_precision,
        )
    )
    if config.dry_run:
        config = dataclasses.replace(config, batch_size=share, max_steps=1, num_workers=min(config.num_workers, 1))
    writes = main and not config.dry_run
    if config.push_to_hub is not None and not config.dry_run:
        on_main_process(accelerator, lambda: prepare_repository(config.push_to_hub))
    accelerator.wait_for_everyone()

    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile:
        transformer.compile_repeated_blocks(fullgraph=True)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    if accelerator.is_fsdp2 and accelerator.mixed_precision != "no":
        # Inputs stay in float32, times above all, and gradients are summed in it, as under DDP.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float16,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
    model, optimizer = accelerator.prepare(trained, optimizer)
    averages = WeightAverages(transformer.parameters(), config.ema_decays, config.ema_stds)
    start_step, window = 0, Window()
    if checkpoint is not None:
        tensors, state = read_checkpoint(checkpoint)
        restore_state(tensors, modules, averages, optimizer)
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        start_step, window = state["step"], Window(**state["window"])
        del tensors  # as large as all that is trained
        accelerator.print(f"continuing {run} from step {start_step}")

    shape = (transformer.config.in_channels, *2 * (transformer.config.sample_size,))
    view = TrainingView(dataset, config.seed, config.horizontal_flip, shape, posterior=vae is not None)
    broken_images = BrokenImages(None if config.dry_run else run / "broken_images.txt", config.max_broken_images)
    order = TrainingOrder(
        len(dataset),
        config.batch_size,
        config.seed,
        start_step,
        config.max_steps,
        accelerator.process_index,
        accelerator.num_processes,
        dataset.epoch_order,
    )
    loader = DataLoader(
        view,
        batch_sampler=order,
        num_workers=config.num_workers,
        collate_fn=view.collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals,
    )

    def per_sample_losses(part: dict[str, torch.Tensor]):
        """The loss (B,) of each image, its time (B,), and how far off its aligned features are (B,)."""
        part = {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}
        latents = part["x"]  # (B, C, S, S)
        if "posterior" in part:  # pixels that are still to be encoded
            with torch.no_grad():
                latents = encode(vae, latents, part["posterior"])
        dropout = part["dropout"] < transformer.config.class_dropout_prob  # (B,)
        t = loss_fn.time_from_normal(part["time"])
        projected = None

        def model_fn(x_t, t):
            nonlocal projected
            output = model(x_t, t, part["label"], class_dropout=dropout, return_dict=False)
            projected = output[1] if encoder else None
            return output[0]

        losses = loss_fn(model_fn, latents, x_0=part["noise"], t=t)
        return losses, t, alignment_loss(projected, encoder(part["x"])) if encoder else torch.zeros_like(losses)

    def check_broken_images() -> None:
        """Raise ValueError where all processes together have met too many."""
        reasons = dict(gather_object(list(broken_images.reasons.items())))
        if len(reasons) > config.max_broken_images:
            raise ValueError(too_many_broken(list(reasons.values()), config.max_broken_images))

    def write_samples(step: int) -> None:
        with averages.in_place_of(transformer):
            pipeline = build_pipeline(config, transformer, vae, dataset.classes)
            images = sample_grid(config, pipeline, accelerator)
        if main:
            save_grid(images, run / "samples" / f"step-{step:08d}.png", columns=GRID_COLUMNS)

    def checkpoint_now(step: int) -> None:
        tensors = gather_state(modules, averages, optimizer, main)
        state = {
            "step": step,
            AVERAGES: list(averages.averages),
            "data": data,
            "classes": dataset.classes,
            "transformer": {key: value for key, value in transformer.config.items() if not key.startswith("_")},
            "window": dataclasses.asdict(window),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        }
        on_main_process(
            accelerator,
            lambda: save_checkpoint(
                run / "checkpoints", step, tensors, state, config.keep_checkpoints, config.keep_every
            ),
        )

    def snapshot_averages(step: int) -> None:
        names = [f"std-{std:g}" for std in config.ema_stds]
        tensors = {name: gather_average(transformer, averages.averages[name], main) for name in names}
        on_main_process(accelerator, lambda: save_checkpoint(run / "ema", step, tensors, {"step": step}))

    def account(step: int, report: list[float]) -> bool:
        """Take in what a step reported; whether some process was asked to stop, or met too many broken images."""
        stop, applied, grad_norm, alignment, *bins = report
        if applied:
            window.add(bins, grad_norm, alignment)
            return stop > 0
        window.skip()
        accelerator.print(f"\nstep {step} is skipped: its loss or gradient is not finite")
        if writes:
            metrics.write(step, skipped=True)
        if window.skipped_in_a_row >= config.max_skipped_steps:
            good = [path for _, path in checkpoint_steps(run / "checkpoints")]
            raise FloatingPointError(
                f"the loss or its gradient was not finite in {window.skipped_in_a_row} steps in a row, up to step "
                f"{step}; lower --learning_rate, or train in bf16. The last good checkpoint is "
                + (f"{good[-1]}" if good else "none: the run had not saved one yet")
            )
        return stop > 0

    check_broken_images()  # a run that was stopped by them, and is continued with the same limit
    metrics = None
    with ExitStack() as stack:
        if not config.dry_run:
            if not continues:
                on_main_process(accelerator, lambda: take_run_folder(run, lock))
            on_main_process(accelerator, lambda: start_run_folder(config, accelerator, start_step))
            accelerator.init_trackers(
                "tensorboard" if "tensorboard" in trackers(config) else run.name,
                tracker_config(config),
                on_main_process(accelerator, lambda: tracker_options(config)),
            )
        if writes:
            metrics = stack.enter_context(MetricsFile(run / "metrics.jsonl", start_step))
        stop = stack.enter_context(StopSignals())
        progress = stack.enter_context(
            tqdm(initial=start_step, total=config.max_steps, desc="training", disable=not main, dynamic_ncols=True)
        )
        reports, watch, last_log_step, stopping = StepReports(device), Stopwatch(), start_step, False
        batches = iter(loader)
        model.train()
        for step in range(start_step + 1, config.max_steps + 1):
            batch = watch.next(batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step - 1)
            broken_images.add(batch.pop("broken"))
            chunks = [tensor.chunk(config.gradient_accumulation_steps) for tensor in batch.values()]
            parts = [dict(zip(batch, part, strict=True)) for part in zip(*chunks, strict=True)]
            sums = torch.zeros(2 + 2 * TIME_BINS, device=device)  # stop, alignment, losses by time and their number
            for i, part in enumerate(parts):
                # DDP adds up gradients over processes in the last part's backward pass alone.
                with accelerator.no_sync(model) if i < len(parts) - 1 else nullcontext():
                    losses, t, alignment = per_sample_losses(part)
                    loss = (losses.mean() + config.repa_coefficient * alignment.mean()) / len(parts)
                    accelerator.backward(loss)
                sums[1] += alignment.detach().sum() / config.batch_size
                sums[2:] += time_bin_sums(losses.detach(), t)

            # One small sum tells all processes whether one has to stop or met a loss that is not finite; the gradient
            # and its norm are common already. Nobody waits for the GPU: a bad step is masked, not branched on.
            sums[0].fill_(float(stop.requested or broken_images.too_many))
            sums = accelerator.reduce(sums, "sum")
            grad_norm = whole(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf))
            applied = (grad_norm.isfinite() & sums.isfinite().all()).float()
            masked_step(optimizer, applied, accelerator.scaler)
            optimizer.zero_grad()
            averages.update(transformer.parameters(), step, applied)
            reports.send(step, torch.cat([sums[:1], torch.stack([applied, grad_norm.to(applied)]), sums[1:]]))
            progress.update(1)

            logging = step % config.log_every == 0 or step == config.max_steps
            checkpointing = step % config.checkpoint_every == 0 or step == config.max_steps
            for reported, report in reports.arrived(wait=logging or checkpointing):
                stopping |= account(reported, report)
            if config.dry_run:
                break
            if stopping:  # a second look brings the report of this step, too
                for reported, report in reports.arrived(wait=True):
                    account(reported, report)
            if logging:
                speed = watch.read((step - last_log_step) * config.batch_size)
                last_log_step = step
                values = {
                    **window.close(),
                    "learning_rate": learning_rate(config, step - 1),
                    **speed,
                    "memory_gb": memory_gb(device),
                }
                if main:
                    metrics.write(step, **values)
                    progress.set_postfix(loss=values["loss"], images_per_s=round(values["images_per_second"]))
                accelerator.log(scalars(values), step=step)
            with watch.paused():
                if config.ema_stds and (step % config.ema_snapshot_every == 0 or step == config.max_steps):
                    snapshot_averages(step)
                if checkpointing or stopping:
                    checkpoint_now(step)
                    if main:
                        plot_metrics(run / "metrics.jsonl", run / "loss.png")
                if step == config.max_steps or (step % config.sample_every == 0 and not stopping):
                    write_samples(step)
            if stopping:
                check_broken_images()
            if stopping and step < config.max_steps:
                accelerator.print(f"\nstopped after step {step}; continue with the same command and --resume latest")
                accelerator.end_training()
                return run

    if config.dry_run:
        check_broken_images()
        accelerator.print(f"dry run: one step with {share} images is done, nothing was written")
        return run
    weights = gather_average(transformer, averages.first, main)
    samples = run / "samples" / f"step-{config.max_steps:08d}.png"

    def finish() -> None:
        averaged = SiTTransformer2DModel.from_config(transformer.config)
        averaged.load_state_dict(weights)
        save_pipeline(build_pipeline(config, averaged, vae, dataset.classes), run / "pipeline")
        finish_folder(run / "pipeline", dataclasses.asdict(config), samples, None)
        print_next_steps(dataset, run / "pipeline")

    on_main_process(accelerator, finish)
    accelerator.end_training()
    if main and config.push_to_hub is not None:  # the others need not wait: a barrier has a time limit
        uploaded = finish_folder(run / "pipeline", dataclasses.asdict(config), samples, config.push_to_hub)
        print(f"uploaded: {uploaded}")
    return run / "pipeline"


def sample_grid(config: TrainConfig, pipeline: SiTPipeline, accelerator: Accelerator) -> torch.Tensor:
    """Draw the first classes from the same noise each time, one class a row: (rows · GRID_COLUMNS, C, H, W) in [0, 1].

    Processes take turns with the rows, so that none waits for another; all make the same number of network calls.
    """
    pipeline.set_progress_bar_config(disable=True)
    rows = min(GRID_CLASSES, pipeline.transformer.config.num_classes)
    drawn = []
    for first in range(0, rows, accelerator.num_processes):
        label = (first + accelerator.process_index) % rows
        images = pipeline(
            [label] * GRID_COLUMNS,
            guidance_scale=config.sample_guidance_scale,
            num_inference_steps=config.sample_steps,
            generator=[image_generator(config.seed, label * GRID_COLUMNS + i) for i in range(GRID_COLUMNS)],
            output_type="pt",
        ).images
        drawn.append(accelerator.gather(images.contiguous()).cpu())
    return torch.cat(drawn)[: rows * GRID_COLUMNS]


def masked_step(optimizer: AcceleratedOptimizer, applied: torch.Tensor, scaler: torch.amp.GradScaler | None) -> None:
    """AdamW's update where `applied` () is 1, nothing where it is 0, by the mechanism that fused kernels have for fp16.

    The gradients have been unscaled by now.
    """
    fused = optimizer.optimizer
    fused.grad_scale, fused.found_inf = None, 1 - applied
    fused.step()
    if scaler is not None:
        scaler.update()


def start_run_folder(config: TrainConfig, accelerator: Accelerator, start_step: int) -> None:
    """Write down what is being run."""
    run = config.run_folder
    save_config(config)
    sweep(run / "checkpoints")
    record_start(
        run / "starts.jsonl", start_step, accelerator.num_processes, accelerator.device, accelerator.mixed_precision
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2, a stop on request with 143."""
    try:
        config = parse_arguments(arguments)
        finished = train(config)
    except (ValueError, FloatingPointError, OSError) as error:
        # Every process finds the same mistake, and one says so; but only one may have met the broken image.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, BrokenImageError):
            print(f"train_sit.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    if finished.name != "pipeline" and not config.dry_run:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
