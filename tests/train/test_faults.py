"""What may go wrong in a run, and what it must not cost. The table in docs/training.md lists these cases."""

import json
import multiprocessing
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_sit
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from command_runs import refused
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from sit_atconv.flow.losses import InterpolantLoss
from sit_atconv.training import learner, trainer
from sit_atconv.training.loop import train
from sit_atconv.training.objective import Objective
from sit_atconv.training.processes import on_main_process
from sit_atconv.training.step_report import StepReports
from sit_atconv.utils.files import folder_lock

TINY = [
    "--model.num_layers",
    "1",
    "--batch_size",
    "32",
    "--log_every",
    "2",
    "--sample_steps",
    "1",
    "--log_with",
    "none",
]


def run(folder: Path, *arguments: str, steps: int = 4) -> Path:
    options = ["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *arguments]
    return train(train_sit.parse_arguments(options))


def refusal(capsys, *options: str) -> str:
    return refused(capsys, train_sit.main, *TINY, *options)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def assert_same_state(left: Path, right: Path, step: int) -> None:
    """Parameters, averages and moments, bit for bit."""
    name = Path("checkpoints") / f"step-{step:08d}"
    files = sorted(file.name for file in (left / name).glob("*.safetensors"))
    assert files == sorted(file.name for file in (right / name).glob("*.safetensors"))
    assert len(files) >= 3
    for file in files:
        a, b = load_file(left / name / file), load_file(right / name / file)
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), (file, key)


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["loss_by_time"], line["grad_norm"]) for line in lines if "loss" in line}


@pytest.fixture
def photos(tmp_path):
    """40 pictures in two classes, each half black, half coloured: a flip shows."""
    folder = tmp_path / "photos"
    for i in range(40):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (8, 8))
        picture.paste((6 * i, 255 - 6 * i, 99), (0, 0, 4, 8))
        picture.save(file)
    return folder


# resume


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop, options",
    [
        (3, ()),  # within an epoch, and between two lines of the log
        (4, ("--data", "photos", "--image_size", "8", "--horizontal_flip", "true")),  # 40 images: in the fourth epoch
        (3, ("--num_workers", "2")),
        (3, ("--gradient_accumulation_steps", "4", "--ema_decay", "[0.9, 0.99]", "--ema_stds", "[0.1]")),
    ],
    ids=["mid-epoch", "later-epoch", "workers", "accumulation-and-averages"],
)
def test_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, monkeypatch, photos, stop, options):
    monkeypatch.chdir(photos.parent)
    options = (*options, "--lr_schedule", "constant", "--ema_snapshot_every", "4")
    run(tmp_path / "whole", *options, steps=stop + 3)
    run(tmp_path / "parts", *options, "--checkpoint_every", str(stop), steps=stop + 1)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"step-{stop + 1:08d}")  # as if killed before it
    run(tmp_path / "parts", *options, "--resume", "latest", "--num_workers", "0", "--log_with", "none", steps=stop + 3)
    assert_same_state(tmp_path / "whole", tmp_path / "parts", stop + 3)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole == {step: values for step, values in parts.items() if step in whole}


@pytest.mark.slow
def test_from_one_to_two_to_one_processes(tmp_path, processes):
    """Samples, noise, times and learning rates go on; sums are in another order."""
    options = ("--checkpoint_every", "2", "--gradient_accumulation_steps", "1")
    run(tmp_path / "whole", *options, steps=6)

    stop_after(2, tmp_path / "parts", *options)
    assert checkpoints(tmp_path / "parts") == ["step-00000002"]

    def stopped_two(rank: int) -> None:
        stop_after(4, tmp_path / "parts", *options, "--resume", "latest", rank=rank)

    assert processes(2, stopped_two) == [0, 0]
    assert checkpoints(tmp_path / "parts") == ["step-00000002", "step-00000004"]
    run(tmp_path / "parts", *options, "--resume", "latest", steps=6)
    name = Path("checkpoints", "step-00000006", "model.safetensors")
    whole, parts = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=2e-5)
    for step, (loss, _, norm) in losses(tmp_path / "whole").items():
        assert losses(tmp_path / "parts")[step][0] == pytest.approx(loss, rel=1e-5)
        assert losses(tmp_path / "parts")[step][2] == pytest.approx(norm, rel=1e-3)


def stop_after(step: int, folder: Path, *options: str, rank: int = 0, parts: int = 1) -> Path:
    """Send this process SIGTERM in step `step`, in the last of its accumulation parts."""
    original, calls = Objective.losses, []
    start = max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)

    def signalling(*arguments):
        calls.append(None)
        if len(calls) == (step - start - 1) * parts + 1 and rank == 0:  # the first part of the step
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)  # it is a thread that takes note
        return original(*arguments)

    Objective.losses = signalling
    try:
        return run(folder, *options, steps=6)
    finally:
        Objective.losses = original


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--batch_size=16", "--seed=1", "--model.num_layers=2", "--horizontal_flip=true"])
def test_another_run_is_refused_with_the_difference(tmp_path, capsys, change):
    run(tmp_path / "run", steps=2)
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    message = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--resume", "latest", change)
    name, _, value = change.lstrip("-").partition("=")
    assert name.split(".")[0] in message
    assert value in message.lower()
    assert " -> " in message
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_other_precision_is_refused(tmp_path, capsys, monkeypatch):
    """Also where nobody asked for it: here accelerate has been set up in another way."""
    run(tmp_path / "run", steps=2)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["mixed_precision"] == "no"
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    message = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--resume", "latest")
    assert "mixed_precision: 'no' -> 'bf16'" in message


@pytest.mark.slow
def test_the_same_pictures_and_vae_elsewhere_are_the_same_run(tmp_path, capsys, photos):
    vae = AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    vae.save_pretrained(tmp_path / "vae")

    def options(folder: Path) -> list[str]:
        return ["--data", str(folder / "photos"), "--image_size", "8", "--vae", str(folder / "vae")]

    run(tmp_path / "run", *options(tmp_path), steps=2)
    for name in ("photos", "vae"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
    run(tmp_path / "run", "--resume", "latest", *options(tmp_path / "moved"), steps=3)
    with torch.no_grad():
        next(vae.encoder.parameters()).add_(1)
    vae.save_pretrained(tmp_path / "moved" / "vae")
    message = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--resume", "latest", *options(tmp_path / "moved"))
    assert "vae_sha256: " in message
    assert "fingerprint" not in message


def test_another_data_set_of_the_same_name_is_refused(tmp_path, capsys, photos):
    options = ["--data", str(photos), "--image_size", "8"]
    run(tmp_path / "run", *options, steps=2)
    Image.new("RGB", (8, 8)).save(photos / "b" / "new.png")
    message = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--resume", "latest", *options)
    assert "images: 40 -> 41" in message


def test_harmless_changes_are_accepted(tmp_path):
    run(tmp_path / "run", steps=2)
    changes = ("--log_every", "1", "--checkpoint_every", "7", "--sample_every", "3", "--keep_checkpoints", "1")
    run(tmp_path / "run", "--resume", "latest", *changes, "--gradient_accumulation_steps", "2", steps=4)
    assert (tmp_path / "run" / "pipeline").exists()


@pytest.mark.slow
def test_run_from_before_an_option_was_there_goes_on(tmp_path):
    run(tmp_path / "run", steps=2)
    file = tmp_path / "run" / "config.yaml"
    file.write_text("".join(line for line in file.open() if not line.startswith("time_shift:")))
    run(tmp_path / "run", "--resume", "latest", steps=3)
    assert checkpoints(tmp_path / "run") == ["step-00000002", "step-00000003"]


@pytest.mark.slow
def test_resumed_run_does_not_keep_the_checkpoint_in_memory(tmp_path, monkeypatch):
    run(tmp_path / "run", steps=2)
    read, losses, loaded = learner.read_checkpoint, Objective.losses, []

    def reading(path):
        tensors, state = read(path)
        loaded.extend(weakref.ref(tensor) for tensor in tensors["ema-decay-0.995"].values())
        return tensors, state

    def training(*arguments):
        assert not any(reference() is not None for reference in loaded)
        return losses(*arguments)

    monkeypatch.setattr(learner, "read_checkpoint", reading)
    monkeypatch.setattr(Objective, "losses", training)
    run(tmp_path / "run", "--resume", "latest", steps=3)
    assert loaded


# damage


@pytest.mark.slow
def test_run_goes_on_from_the_last_checkpoint_that_is_whole(tmp_path):
    options = ("--checkpoint_every", "2", "--lr_schedule", "constant")
    run(tmp_path / "whole", *options, steps=6)
    run(tmp_path / "run", *options, steps=4)
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000004: optimizer.safetensors .*falling back to .*step-00000002"):
        run(tmp_path / "run", *options, "--resume", "latest", steps=6)
    assert_same_state(tmp_path / "whole", tmp_path / "run", 6)
    assert losses(tmp_path / "whole") == losses(tmp_path / "run")


def test_torn_log_line_is_no_obstacle(tmp_path):
    """As a kill in the middle of a write leaves it."""
    run(tmp_path / "run", steps=2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')
    run(tmp_path / "run", "--resume", "latest", steps=4)
    assert sorted(losses(tmp_path / "run")) == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"seed: 1\n", b"data: \xff", b"[1, 2", b""])
def test_damaged_configuration_is_no_obstacle(tmp_path, content):
    """The options are in the checkpoint, too, and their hash is compared; config.yaml is written anew."""
    run(tmp_path / "run", steps=2)
    file = tmp_path / "run" / "config.yaml"
    before = file.read_text()
    file.write_bytes(content)
    run(tmp_path / "run", "--resume", "latest", steps=2)
    assert file.read_text() == before.replace("resume: null", "resume: latest")


@pytest.mark.slow
def test_damaged_metrics_are_set_aside(tmp_path):
    run(tmp_path / "run", steps=6)
    file = tmp_path / "run" / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + lines[1].replace(b'"loss"', b'"lo\xf3s"') + lines[2]
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl has damaged lines, which are left out; .*\.corrupt"):
        run(tmp_path / "run", "--resume", "latest", steps=8)
    assert sorted(losses(tmp_path / "run")) == [2, 6, 8]
    assert (tmp_path / "run" / "metrics.jsonl.corrupt").read_bytes() == damaged


def test_full_disk_stops_the_run_with_the_reason(tmp_path, capsys, monkeypatch):
    run(tmp_path / "run", steps=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=9))
    message = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--max_steps", "4", "--resume", "latest")
    assert "the disk is full" in message
    assert checkpoints(tmp_path / "run") == ["step-00000002"]


def test_two_runs_cannot_share_a_folder(tmp_path, processes):
    run(tmp_path / "run", steps=2)

    def second(rank: int) -> None:
        with pytest.raises(ValueError, match="another process is writing to it"):
            run(tmp_path / "run", "--resume", "latest", steps=4)

    with folder_lock(tmp_path / "run"):
        assert processes(1, second) == [0]
    assert checkpoints(tmp_path / "run") == ["step-00000002"]


def test_second_run_moves_no_checkpoint_of_the_first(tmp_path, monkeypatch, processes):
    """Before it holds the lock, a resumed run does not even look for broken checkpoints, which it would set aside."""
    run(tmp_path / "run", steps=2)
    monkeypatch.setattr(trainer, "recover_checkpoint", lambda folder: pytest.fail("looked before it locked"))

    def second(rank: int) -> None:
        with pytest.raises(ValueError, match="another process is writing to it"):
            run(tmp_path / "run", "--resume", "latest", steps=4)

    with folder_lock(tmp_path / "run"):
        assert processes(1, second) == [0]


class UnsendableError(KeyError):
    """An error that cannot be pickled, as those of some libraries."""

    def __reduce__(self):
        raise TypeError("cannot pickle")


@pytest.mark.parametrize(
    "error, of_peers", [(UnsendableError, RuntimeError), (UnicodeError, ValueError), (OSError, OSError)]
)
def test_any_failure_of_the_main_process_reaches_the_others(processes, error, of_peers):
    def member(rank: int) -> None:
        def function() -> None:
            raise error("what went wrong")

        with pytest.raises(of_peers if rank else error, match="what went wrong"):
            on_main_process(Accelerator(cpu=True), function)

    assert processes(2, member) == [0, 0]


# numbers that are not finite


def spoil(monkeypatch, steps: set[int], value: float = float("nan"), rank: int = 0) -> None:
    """Make the loss of some steps, counted from 1, `value`, on one process."""
    original, calls = InterpolantLoss.of_output, []

    def spoiled(self, *arguments, **options):
        calls.append(None)
        result = original(self, *arguments, **options)
        return result * value if len(calls) in steps and os.environ.get("RANK", "0") == str(rank) else result

    monkeypatch.setattr(InterpolantLoss, "of_output", spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch, capsys, value):
    options = ("--checkpoint_every", "1", "--keep_checkpoints", "9", "--lr_schedule", "constant")
    spoil(monkeypatch, {2}, value)
    run(tmp_path / "run", *options, "--ema_stds", "[0.1]", steps=3)
    first, second = (tmp_path / "run" / "checkpoints" / f"step-0000000{step}" for step in (1, 2))
    for file in first.glob("*.safetensors"):  # parameters, averages, moments and AdamW's count of steps
        before, after = load_file(file), load_file(second / file.name)
        assert all(torch.equal(before[key], after[key]) for key in before), file.name
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"step": 2, "skipped": True} in lines
    assert "step 2 is skipped" in capsys.readouterr().out
    assert [line["skipped_steps"] for line in lines if "loss" in line] == [1, 0]
    assert all(line["loss"] < 10 for line in lines if "loss" in line)
    final = load_file(tmp_path / "run" / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(weight.isfinite().all() for weight in final.values())


def test_loss_alone_that_is_not_finite_is_skipped(tmp_path, monkeypatch, capsys):
    """As one that overflows where its gradient does not."""
    original, calls = InterpolantLoss.of_output, []

    def overflowing(self, *arguments, **options):
        calls.append(None)
        return original(self, *arguments, **options) + (float("inf") if len(calls) == 2 else 0)

    monkeypatch.setattr(InterpolantLoss, "of_output", overflowing)
    run(tmp_path / "run", steps=2)
    assert "step 2 is skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_reading_reports_late_changes_nothing(tmp_path, monkeypatch):
    """As on a GPU, where the host looks at a step after it has queued the next one."""

    class Late(StepReports):
        def __init__(self, device):
            super().__init__(device)
            self.lag = 1

    def spoiled_run(name: str) -> None:
        with monkeypatch.context() as patch:
            spoil(patch, {2, 3})
            run(tmp_path / name, "--checkpoint_every", "3", steps=5)

    spoiled_run("prompt")
    monkeypatch.setattr(trainer, "StepReports", Late)
    spoiled_run("late")
    for step in (3, 5):
        assert_same_state(tmp_path / "prompt", tmp_path / "late", step)
    assert losses(tmp_path / "prompt") == losses(tmp_path / "late")
    stop_after(3, tmp_path / "stopped")
    assert checkpoints(tmp_path / "stopped") == ["step-00000004"]  # one step later
    run(tmp_path / "stopped", "--resume", "latest", steps=6)
    monkeypatch.undo()
    run(tmp_path / "whole", steps=6)
    assert_same_state(tmp_path / "whole", tmp_path / "stopped", 6)


def test_too_many_in_a_row_stop_the_run_and_name_the_checkpoint(tmp_path, capsys, monkeypatch):
    spoil(monkeypatch, {2, 4, 5, 6})
    arguments = ["--output_dir", str(tmp_path / "run"), "--max_steps", "9", "--checkpoint_every", "3"]
    message = refusal(capsys, *arguments, "--max_skipped_steps", "3")
    assert "not finite in 3 steps in a row, up to step 6" in message
    assert str(tmp_path / "run" / "checkpoints" / "step-00000003") in message
    assert checkpoints(tmp_path / "run") == ["step-00000003"]


def test_gradient_that_is_not_finite_counts_too(tmp_path, monkeypatch):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("inf")

    original = InterpolantLoss.of_output
    monkeypatch.setattr(InterpolantLoss, "of_output", lambda self, *a, **o: Poison.apply(original(self, *a, **o)))
    run(tmp_path / "run", steps=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [1, 2]


def test_bad_loss_of_one_process_stops_the_update_of_all(tmp_path, monkeypatch, processes):
    spoil(monkeypatch, {2}, rank=1)

    def member(rank: int) -> None:
        run(tmp_path / "two", "--checkpoint_every", "1", "--keep_checkpoints", "9", steps=3)

    assert processes(2, member) == [0, 0]
    one, two, three = (
        load_file(tmp_path / "two" / "checkpoints" / f"step-0000000{step}" / "model.safetensors") for step in (1, 2, 3)
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(two["proj_out.weight"], three["proj_out.weight"])
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count('"skipped": true') == 1


# signals


@pytest.mark.slow
def test_stop_within_accumulation_waits_for_the_update(tmp_path):
    options = ("--gradient_accumulation_steps", "4")
    run(tmp_path / "whole", *options, steps=6)
    assert stop_after(3, tmp_path / "run", *options, parts=4) == tmp_path / "run"
    assert checkpoints(tmp_path / "run") == ["step-00000003"]
    assert not (tmp_path / "run" / "pipeline").exists()
    run(tmp_path / "run", *options, "--resume", "latest", steps=6)
    assert_same_state(tmp_path / "whole", tmp_path / "run", 6)


ONE_PROCESS = ["accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "1"]
ONE_PROCESS += ["--mixed_precision", "no", "--dynamo_backend", "no"]
TWO_PROCESSES = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def stop_launcher(launcher: list[str], folder: Path, *arguments: str) -> str:
    """Start an endless run, send its launcher SIGTERM once it trains, and return what it printed."""
    log = folder / "metrics.jsonl"
    lines = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-m", *launcher, train_sit.__file__, "--output_dir", str(folder), *TINY, *arguments]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen([*command, "--max_steps", "100000"], start_new_session=True, **output) as process:
        try:
            while not (log.exists() and log.stat().st_size > lines):
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            printed, _ = process.communicate(timeout=240)  # ends when the last process has closed its output
            assert process.returncode != 0
            return printed
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the system to report the launcher's end")
def test_sigterm_to_the_launcher_leaves_one_checkpoint_to_resume_from(tmp_path):
    """accelerate's launcher of one process passes nothing on and ends; torchrun's passes it on to each process."""
    printed = stop_launcher(ONE_PROCESS, tmp_path / "run")
    [first] = checkpoints(tmp_path / "run")
    assert f"stopped after step {int(first[5:])}; continue with the same command and --resume latest\n" in printed
    printed = stop_launcher(TWO_PROCESSES, tmp_path / "run", "--resume", "latest")
    [_, second] = checkpoints(tmp_path / "run")
    assert f"from step {int(first[5:])}" in printed
    assert f"stopped after step {int(second[5:])}; continue with the same command\n" in printed
    starts = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert [start["processes"] for start in starts] == [1, 2]


def test_signal_to_one_process_stops_all(tmp_path, processes):
    def member(rank: int) -> None:
        assert stop_after(2, tmp_path / "run", rank=1 - rank) == tmp_path / "run"  # the second one gets it

    assert processes(2, member) == [0, 0]
    assert checkpoints(tmp_path / "run") == ["step-00000002"]


def test_dead_process_ends_the_others(tmp_path, processes):
    original = Objective.losses

    def member(rank: int) -> None:
        calls = []

        def dying(*arguments):
            calls.append(None)
            if rank == 1 and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        Objective.losses = dying
        run(tmp_path / "run", "--checkpoint_every", "1", steps=1000)

    codes = processes(2, member)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL)  # by itself, not by the test's patience
    assert checkpoints(tmp_path / "run") == ["step-00000001", "step-00000002"]


# errors and workers


def failing(step: int, failure) -> None:
    """Call `failure` in step `step` of this process."""
    original, calls = Objective.losses, []

    def losses(*arguments):
        calls.append(None)
        if len(calls) == step:
            failure()
        return original(*arguments)

    Objective.losses = losses


def raise_memory_error() -> None:
    raise MemoryError("out of memory")


def raise_device_error() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")  # a RuntimeError


def kill_a_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("failure", [raise_memory_error, raise_device_error])
def test_error_ends_every_process_although_workers_ignore_signals(tmp_path, processes, count, failure):
    def member(rank: int) -> None:
        if rank == count - 1:
            failing(2, failure)
        run(tmp_path / "run", "--num_workers", "2", steps=1000)  # its error ends the process as Python does it

    start = time.monotonic()
    assert processes(count, member) == [1] * count
    assert time.monotonic() - start < 60  # the patience of the test is 120


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_dead_data_worker_stops_the_run_with_a_checkpoint(tmp_path, processes, capfd, count):
    options = ("--num_workers", "2", "--lr_schedule", "constant", "--log_every", "1")

    def member(rank: int) -> None:
        if rank == count - 1:
            failing(3, kill_a_worker)
        arguments = ["--output_dir", str(tmp_path / "run"), "--max_steps", "1000", *TINY, *options]
        train_sit.main(arguments)

    assert processes(count, member) == [2] * count
    message = capfd.readouterr().err
    [saved] = checkpoints(tmp_path / "run")
    assert "error: a data worker died: it was killed by SIGKILL, as the system does when memory runs out" in message
    assert f"num_workers=2: the run has stopped, and a checkpoint of step {int(saved[5:])} is saved" in message
    assert "Traceback" not in message
    if count == 1:  # it is the checkpoint of a run to which nothing happened
        run(tmp_path / "whole", *options, steps=int(saved[5:]))
        assert_same_state(tmp_path / "whole", tmp_path / "run", int(saved[5:]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_command_that_runs_out_of_memory_ends(tmp_path, photos):
    options = f"--data {photos} --image_size 1024 --batch_size 2 --num_workers 1 --log_with none"
    command = f"ulimit -v 7000000; exec {sys.executable} {train_sit.__file__} {options} --output_dir {tmp_path}/run"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "memory" in result.stderr


def test_closed_terminal_stops_the_run_with_a_checkpoint(tmp_path):
    """What is printed afterwards goes nowhere, instead of ending the run before it has saved."""
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        try:
            code = 143 if run(tmp_path / "run", "--num_workers", "1", steps=1000000) == tmp_path / "run" else 2
        finally:
            os._exit(code)
    log = tmp_path / "run" / "metrics.jsonl"
    os.set_blocking(terminal, False)
    printed = b""
    while not (log.exists() and log.stat().st_size):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), printed.decode()
        try:
            printed += os.read(terminal, 1 << 16)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 143
    assert len(checkpoints(tmp_path / "run")) == 1


def test_signals_work_as_before_after_a_run(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(tmp_path / "run", steps=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_stopped_run_has_its_own_exit_code(tmp_path, monkeypatch):
    monkeypatch.setattr("sit_atconv.training.loop.train", lambda config: Path(config.output_dir))
    with pytest.raises(SystemExit) as stopped:
        train_sit.main(["--output_dir", str(tmp_path / "run")])
    assert stopped.value.code == 143
