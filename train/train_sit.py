"""Train SiT, with ATConv or self-attention, on images.

    accelerate launch train/train_sit.py                               # handwritten digits, about 5 minutes on 2 cores
    accelerate launch train/train_sit.py --mixer attention             # the baseline
    accelerate launch train/train_sit.py --config train/configs/folder_pixels.yaml --data PHOTOS
    accelerate launch train/train_sit.py --config train/configs/folder_latents.yaml --data PHOTOS

t=0 noise, t=1 data; x_0 noise, x_1 data. B images on this process, C channels, S latent size.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from sit_atconv import Interpolant, InterpolantLoss, InterpolantODEScheduler, SiTPipeline
from sit_atconv.checkpoints import load_checkpoint, save_checkpoint
from sit_atconv.data import BrokenImageError, BrokenImages, ImageDataset, TrainingOrder, TrainingView, open_dataset
from sit_atconv.evaluation import MAX_PIXEL_DIMENSIONS, image_generator
from sit_atconv.hub import finish_folder, prepare_repository
from sit_atconv.images import save_grid
from sit_atconv.labels import name_synsets
from sit_atconv.latents import encode, load_vae
from sit_atconv.training import TrainConfig, build_transformer, learning_rate, prepare_run_folder, save_config

GRID_CLASSES, GRID_COLUMNS = 10, 8


def parse_arguments(arguments: list[str] | None = None) -> TrainConfig:
    """Defaults, then --config FILE.yaml, then the command line; unknown keys are refused."""
    parser = ArgumentParser(
        description=TrainConfig.__doc__.splitlines()[0],
        usage="%(prog)s [--config FILE.yaml] [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(TrainConfig)
    options = parser.parse_args(arguments).as_dict()
    options.pop("config")
    return TrainConfig(**options)


class Stop:
    """Turns the first SIGINT or SIGTERM into a request to stop at the next step; the second one acts at once."""

    def __init__(self):
        self.requested = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._request)

    def _request(self, number, frame):
        self.requested = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; all processes get the same answer."""
        if accelerator.num_processes == 1:
            return self.requested
        flag = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum") > 0)


def build_pipeline(config: TrainConfig, transformer, vae, dataset: ImageDataset) -> SiTPipeline:
    """The pipeline that samples what is being trained."""
    scheduler = InterpolantODEScheduler(path=config.path, prediction=config.prediction)
    return SiTPipeline(transformer, scheduler, vae, id2label=dict(enumerate(name_synsets(dataset.classes))))


def write_sample_grid(config: TrainConfig, pipeline: SiTPipeline, file: Path) -> None:
    """Draw the first classes from the same noise each time, one class a row."""
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for label in range(min(GRID_CLASSES, pipeline.transformer.config.num_classes)):
        images = pipeline(
            [label] * GRID_COLUMNS,
            guidance_scale=config.sample_guidance_scale,
            num_inference_steps=config.sample_steps,
            generator=[image_generator(config.seed, label * GRID_COLUMNS + i) for i in range(GRID_COLUMNS)],
            output_type="pt",
        ).images
        rows.append(images.cpu())
    save_grid(torch.cat(rows), file, columns=GRID_COLUMNS)


def train(config: TrainConfig) -> Path:
    """Run the training and return the folder of the finished pipeline (or the run folder, where it was stopped).

    Raises:
        ValueError: naming what in the configuration, the data or the output folder cannot be used.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with="tensorboard" if importlib.util.find_spec("tensorboard") else None,
        project_dir=config.output_dir,
    )
    device, main = accelerator.device, accelerator.is_main_process
    share = config.gradient_accumulation_steps * accelerator.num_processes
    if config.batch_size % share:
        raise ValueError(
            f"batch_size={config.batch_size} must be divisible by {share} "
            f"({accelerator.num_processes} processes × {config.gradient_accumulation_steps} accumulation steps)"
        )

    # Everything that can be wrong is found before anything is written.
    dataset = open_dataset(config.data, config.image_size)
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
    checkpoint = prepare_run_folder(config)
    if main and config.push_to_hub is not None:
        prepare_repository(config.push_to_hub)
    accelerator.wait_for_everyone()

    run = Path(config.output_dir)
    if main:
        save_config(config)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(
        transformer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    model, optimizer = accelerator.prepare(transformer, optimizer)
    ema = EMAModel(transformer.parameters(), decay=config.ema_decay, foreach=True)
    start_step = 0
    if checkpoint is not None:
        start_step = load_checkpoint(checkpoint, transformer, ema, optimizer, accelerator.scaler)
        accelerator.print(f"continuing {run} from step {start_step}")

    shape = (transformer.config.in_channels, *2 * (transformer.config.sample_size,))
    encoding = vae is not None and not dataset.is_latents
    view = TrainingView(dataset, config.seed, config.horizontal_flip, shape, posterior=encoding)
    broken_images = BrokenImages(run / "broken_images.txt", config.max_broken_images)
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
    )
    if main:
        accelerator.init_trackers("tensorboard")
        count = sum(p.numel() for p in transformer.parameters())
        classes = f"of {len(dataset.classes)} classes" if dataset.classes else "without classes"
        print(f"{len(dataset)} images {classes}, {count / 1e6:.2f} M parameters, into {run}")

    def samples_to_file(file: Path) -> None:
        ema.store(transformer.parameters())
        ema.copy_to(transformer.parameters())
        write_sample_grid(config, build_pipeline(config, transformer, vae, dataset), file)
        ema.restore(transformer.parameters())

    def checkpoint_now(step: int) -> None:
        if main:
            save_checkpoint(
                run / "checkpoints", step, transformer, ema, optimizer, accelerator.scaler, config.keep_checkpoints
            )
        accelerator.wait_for_everyone()

    def micro_batch_loss(part: dict[str, torch.Tensor]) -> torch.Tensor:
        part = {name: tensor.to(device, non_blocking=True) for name, tensor in part.items()}
        latents = part["x"]  # (B, C, S, S)
        if encoding:
            with torch.no_grad():
                latents = encode(vae, latents, part["posterior"])
        dropout = part["dropout"] < transformer.config.class_dropout_prob  # (B,)

        def model_fn(x_t, t):
            return model(x_t, t, part["label"], class_dropout=dropout).sample

        return loss_fn(model_fn, latents, x_0=part["noise"], t=loss_fn.time_from_normal(part["time"])).mean()

    stop = Stop()
    metrics = open_metrics(run / "metrics.jsonl", start_step) if main else None
    progress = tqdm(
        initial=start_step, total=config.max_steps, desc="training", unit="step", disable=not main, dynamic_ncols=True
    )
    loss_sum, last_log_step, last_log_time = torch.zeros((), device=device), start_step, time.perf_counter()
    model.train()
    for step, batch in enumerate(loader, start=start_step + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step - 1)
        loss_of_step = torch.zeros((), device=device)
        broken_images.add(batch.pop("broken"))
        chunks = [tensor.chunk(config.gradient_accumulation_steps) for tensor in batch.values()]
        parts = [dict(zip(batch, part, strict=True)) for part in zip(*chunks, strict=True)]
        for i, part in enumerate(parts):
            # DDP adds up gradients over processes in the last part's backward pass alone.
            with accelerator.no_sync(model) if i < len(parts) - 1 else nullcontext():
                loss = micro_batch_loss(part) / len(parts)
                accelerator.backward(loss)
            loss_of_step += loss.detach()
        loss_sum += loss_of_step
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(transformer.parameters())
        progress.update(1)

        if step % config.log_every == 0 or step == config.max_steps:
            loss = (accelerator.reduce(loss_sum, "mean") / (step - last_log_step)).item()
            now = time.perf_counter()
            speed = (step - last_log_step) * config.batch_size / (now - last_log_time)
            loss_sum, last_log_step, last_log_time = torch.zeros_like(loss_sum), step, now
            values = {
                "loss": loss,
                "grad_norm": float(grad_norm) if torch.isfinite(grad_norm) else None,
                "learning_rate": learning_rate(config, step - 1),
                "images_per_second": speed,
            }
            if main:
                metrics.write(json.dumps({"step": step, **values}) + "\n")
                progress.set_postfix(loss=f"{loss:.4f}", images_per_s=f"{speed:.0f}")
                accelerator.log(values, step=step)
        stopping = stop.agreed(accelerator)
        checkpointing = step % config.checkpoint_every == 0 or step == config.max_steps or stopping
        if (checkpointing or step % config.log_every == 0) and not torch.isfinite(loss_of_step):
            raise FloatingPointError(
                f"the loss is {loss_of_step.item()} at step {step}; lower --learning_rate, or train in bf16. "
                "Checkpoints hold the state before."
            )
        if main and (step % config.sample_every == 0 or step == config.max_steps):
            samples_to_file(run / "samples" / f"step-{step:08d}.png")
        if checkpointing:
            checkpoint_now(step)
        if stopping and step < config.max_steps:
            progress.close()
            accelerator.print(f"stopped after step {step}; continue with the same command and --resume latest")
            accelerator.end_training()
            return run
    progress.close()

    if main:
        ema.copy_to(transformer.parameters())
        build_pipeline(config, transformer, vae, dataset).save_pretrained(run / "pipeline")
        samples = run / "samples" / f"step-{config.max_steps:08d}.png"
        uploaded = finish_folder(run / "pipeline", dataclasses.asdict(config), samples, config.push_to_hub)
        if uploaded is not None:
            print(f"uploaded: {uploaded}")
        print_next_steps(config, dataset, run / "pipeline")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return run / "pipeline"


def open_metrics(file: Path, start_step: int) -> TextIO:
    """Open the log to append to, without the lines of steps that are about to be done again."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    file.write_text("".join(line for line in lines if json.loads(line)["step"] <= start_step))
    return file.open("a", buffering=1)


def print_next_steps(config: TrainConfig, dataset: ImageDataset, pipeline: Path) -> None:
    """Say how to sample and how to evaluate what was trained."""
    folder, data = shlex.quote(str(pipeline)), shlex.quote(dataset.reference)
    small = dataset.channels * dataset.image_size**2 <= MAX_PIXEL_DIMENSIONS
    size = "" if dataset.source == "digits" else f" --image_size {dataset.image_size}"
    extractor = " --extractor pixels" if small else ""
    print(f"\nThe trained pipeline (EMA weights) is in {folder}. Sample it and evaluate it with:")
    print(f"  sit-atconv sample {folder} --classes 0 --out samples.png")
    print(f"  python eval/fid.py {folder} --reference {data}{size}{extractor}")
    if small and dataset.classes:
        print(f"  python eval/class_accuracy.py {folder} --reference {data}{size}")


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    try:
        train(parse_arguments(arguments))
    except (ValueError, FloatingPointError) as error:
        # Every process finds the same mistake, and one says so; but only one may have met the broken image.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, BrokenImageError):
            print(f"train_sit.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
