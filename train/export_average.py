"""Make a pipeline folder of other averaged weights than those that a run has saved, during the run or after it.

python train/export_average.py runs/faces --std 0.08 --out faces-0.08           # any length, from the snapshots
python train/export_average.py runs/faces --average decay-0.999 --out faces-999   # one of several decays
python train/export_average.py runs/faces --out faces-now                         # the first average, so far
"""

import argparse
import json
import sys
from pathlib import Path

import yaml

from sit_atconv import SiTTransformer2DModel
from sit_atconv.models.vae import load_vae
from sit_atconv.training.build import build_pipeline
from sit_atconv.training.checkpoints import STATE, checkpoint_steps, read_checkpoint, verify_checkpoint
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.ema import profile_weights
from sit_atconv.training.posthoc_ema import reconstruct
from sit_atconv.training.run_folder import save_pipeline
from sit_atconv.training.state import EMA


def export(run: Path, out: Path, average: str | None = None, std: float | None = None, step: int | None = None) -> None:
    """Write the pipeline of a run with other weights.

    Args:
        run: a run folder.
        out: the pipeline folder to write.
        average: the name of one that the run tracks; its first one where neither this nor `std` is given.
        std: relative standard deviation of a power-function average, put together from the run's snapshots.
        step: of the checkpoint (or the last snapshot) to use; the newest where None.

    Raises:
        ValueError: naming what the run does not hold.
    """
    checkpoints = dict(checkpoint_steps(run / "checkpoints"))
    if not checkpoints:
        raise ValueError(f"{run} holds no checkpoints")
    if average is not None and std is not None:
        raise ValueError(f"average={average!r} and std={std} are two different things; give one")
    if std is None and step is not None and step not in checkpoints:
        raise ValueError(f"step={step}: {run} holds the checkpoints {sorted(checkpoints)}")
    checkpoint = checkpoints[max(checkpoints) if std is not None or step is None else step]
    verify_checkpoint(checkpoint)
    state = json.loads((checkpoint / STATE).read_text())
    # what only a run needs, and may not be there any more, or not here
    unused = {"init_from": None, "log_with": None}
    config = TrainConfig(**yaml.safe_load((run / "config.yaml").read_text()) | unused)
    if std is not None:
        weights = reconstruct(run / "ema", std, step)
    else:
        tensors, _ = read_checkpoint(checkpoint)
        tracked = [part.removeprefix(EMA) for part in tensors if part.startswith(EMA)]
        if average is not None and average not in tracked:
            raise ValueError(f"average={average!r}: {run} tracks {', '.join(tracked)}")
        weights = tensors[EMA + (average or next(iter(profile_weights(config.ema_decays, config.ema_stds))))]
    transformer = SiTTransformer2DModel(**state["transformer"])
    transformer.load_state_dict(weights)
    vae = None if config.vae is None else load_vae(config.vae)
    save_pipeline(build_pipeline(config, transformer, vae, state["classes"]), out)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--average", help="name of an average that the run tracks, such as decay-0.999")
    parser.add_argument("--std", type=float, help="relative standard deviation of a power-function average")
    parser.add_argument("--step", type=int, help="of the checkpoint or snapshot; the newest where none is given")
    args = parser.parse_args(arguments)
    try:
        if args.out.exists():
            raise ValueError(f"out={str(args.out)!r} exists already; choose another folder")
        export(args.run, args.out, args.average, args.std, args.step)
    except (ValueError, OSError) as error:
        print(f"export_average.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
