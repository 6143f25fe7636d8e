"""A run that is killed anywhere and resumed leaves the same folder as one that was not."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import train_sit

from sit_atconv.training import loop
from sit_atconv.training.trainer import Trainer
from sit_atconv.utils.files import LOCK

OPTIONS = [
    *("--model.num_layers", "1", "--batch_size", "32", "--max_steps", "4", "--log_every", "1", "--log_with", "none"),
    *("--checkpoint_every", "2", "--keep_checkpoints", "1", "--sample_every", "2", "--sample_steps", "1"),
    *("--ema_stds", "[0.1]", "--ema_snapshot_every", "2", "--resume", "auto"),
]
PARTS = 8  # of the events at which runs are killed
STRIDE = 1 if os.environ.get("SIT_ATCONV_EVERY_EVENT") else 2  # every one takes a minute of CPU time more
CHANGES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}  # audit events, raised before the call


def train(folder: Path, pipe, last: int | None, stop: int | None) -> None:
    """Run until the end; or stop after a step; or be killed at the `last` event about the run folder."""
    events = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal events
        if event not in CHANGES or not isinstance(arguments[0], str):
            return
        relative = event in {"os.remove", "os.rmdir"} and arguments[-1] != -1  # as rmtree does it
        if arguments[0].startswith("run/") or arguments[0] == "run" or relative:
            events += 1
            if events == last:
                os.kill(os.getpid(), signal.SIGKILL)

    step_of = Trainer.train_step

    def train_step(self, step, batch):
        self.stop.requested |= step == stop
        step_of(self, step, batch)

    Trainer.train_step = train_step
    os.chdir(folder)  # the run folder has the same name everywhere, since configurations contain it
    sys.addaudithook(watch)
    loop.train(train_sit.parse_arguments(["--output_dir", "run", *OPTIONS]))
    pipe.send(events)


def run(folder: Path, last: int | None = None, stop: int | None = None) -> int | None:
    """Run in a child process; return the number of events, or None if it was killed."""
    ours, theirs = multiprocessing.Pipe()
    folder.mkdir(exist_ok=True)
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, theirs, last, stop))
    child.start()
    child.join(120)
    assert child.exitcode == (0 if last is None else -signal.SIGKILL)
    return ours.recv() if last is None else None


def digest(run: Path) -> dict[str, object]:
    """Every file and folder with its content, except what tells when and how fast it was written."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_dir():
            found[name] = None
        elif name == "metrics.jsonl":
            kept = {"step", "loss", "loss_by_time", "grad_norm", "grad_norm_max", "learning_rate", "skipped_steps"}
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key in kept} for line in lines]
        elif name not in ("starts.jsonl", LOCK):
            found[name] = path.read_bytes()
    return found


def assert_same(left: dict, right: dict, what: str) -> None:
    assert left.keys() == right.keys(), what
    assert not [name for name in left if left[name] != right[name]], what


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopped_run_draws_what_is_missing(tmp_path, stop):
    """Step 2 is one with a sample grid."""
    run(tmp_path / "whole")
    run(tmp_path / "stopped", stop=stop)
    run(tmp_path / "stopped")
    whole, stopped = digest(tmp_path / "whole" / "run"), digest(tmp_path / "stopped" / "run")
    assert {"samples/step-00000002.png", "samples/step-00000004.png", "pipeline/samples.png"} <= whole.keys()
    assert_same(whole, stopped, f"stopped after step {stop}")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1, PARTS + 1, STRIDE))
def test_run_killed_anywhere_comes_back_whole(tmp_path, first):
    """Killed at every second event about the run folder, or at every one; in parts, which processes share."""
    events = run(tmp_path / "whole")
    whole = digest(tmp_path / "whole" / "run")
    for last in range(first, events + 1, PARTS):
        folder = tmp_path / str(last)
        run(folder, last)
        run(folder)
        assert_same(whole, digest(folder / "run"), f"killed at event {last} of {events}")
        shutil.rmtree(folder)


@pytest.mark.slow
def test_run_killed_near_its_end_comes_back_whole(tmp_path):
    """After its last checkpoint, while the grid and the pipeline are written."""
    events = run(tmp_path / "whole")
    whole = digest(tmp_path / "whole" / "run")
    for fraction in (0.55, 0.7, 0.85):
        folder = tmp_path / str(fraction)
        run(folder, int(fraction * events))
        run(folder)
        assert_same(whole, digest(folder / "run"), f"killed at {fraction} of {events} events")
