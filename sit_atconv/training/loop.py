"""The training loop. trainer.py holds what its calls do."""

from pathlib import Path

from .config import CommonConfig
from .trainer import Trainer


def train(config: CommonConfig) -> Path:
    """Run the training; return the folder of the finished model, or the run folder if the run was stopped.

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
            if trainer.validation_is_due(step):
                trainer.validate(step)  # for example, draw samples
            if trainer.is_stopping:
                break
        return trainer.finish()
