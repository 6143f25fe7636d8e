"""Train SiT, with ATConv or self-attention, on images.

    accelerate launch train/train_sit.py                               # handwritten digits, about 5 minutes on 2 cores
    accelerate launch train/train_sit.py --mixer attention             # the baseline
    accelerate launch train/train_sit.py --config train/configs/folder_pixels.yaml --data PHOTOS
    accelerate launch train/train_sit.py --config train/configs/folder_latents.yaml --data PHOTOS-latents
    … --dry_run                                                        # does everything fit?
    … --resume auto                                                    # continue where it was stopped

docs/training.md describes what a run writes and what it survives.
"""

import os
import sys
from pathlib import Path

from sit_atconv.data import BrokenImageError
from sit_atconv.training.command_line import parse_arguments
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.trainer import Trainer
from sit_atconv.utils.text import printable

STOPPED = 143  # exit code of a run that was asked to stop, that of a terminated process


def train(config: TrainConfig) -> Path:
    """Run the training; return the folder of the finished pipeline, or the run folder if the run was stopped.

    Raises:
        ValueError: naming what in the configuration, the data, the output folder or a checkpoint cannot be used.
        FloatingPointError: if too many steps in a row had to be skipped.
        OSError: if a checkpoint cannot be written, for example because the disk is full.
    """
    with Trainer(config) as trainer:
        trainer.setup()  # builds everything and finds every mistake before anything is written
        trainer.resume()
        trainer.start()
        trainer.catch_up()  # with what a kill or a stop left out
        config = trainer.config
        for step, batch in trainer.steps():
            trainer.train_step(step, batch)
            trainer.record_reports(step)
            if config.dry_run:
                break
            if trainer.is_due(step, config.log_every):
                trainer.log(step)
            if config.ema_stds and trainer.is_due(step, config.ema_snapshot_every):
                trainer.snapshot_averages(step)
            if trainer.is_due(step, config.checkpoint_every) or trainer.is_stopping:
                trainer.checkpoint(step)
            if step == config.max_steps or (step % config.sample_every == 0 and not trainer.is_stopping):
                trainer.sample(step)
            if trainer.is_stopping:
                break
        return trainer.finish()


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake ends with a one-line message and exit code 2, a requested stop with 143."""
    try:
        config = parse_arguments(arguments)
        finished = train(config)
    except (ValueError, FloatingPointError, OSError) as error:
        # Every process finds the same mistake, so one of them reports it; but only one may have met the broken image.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, BrokenImageError):
            print(f"train_sit.py: error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    if finished == config.run_folder and not config.dry_run:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
