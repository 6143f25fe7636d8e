import importlib.util
import multiprocessing
import resource
import signal

import export_average
import pytest
import timm
import torch
import train_attnet
import train_sit
from command_runs import weights
from safetensors.torch import load_file

from sit_atconv import SiTPipeline
from sit_atconv.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["--output_dir", str(folder), "--max_steps", "6", "--model.num_layers", "1", "--batch_size", "16"]
    options += ["--ema_decay", "[0.9, 0.5]", "--ema_stds", "[0.05, 0.1]", "--ema_snapshot_every", "2"]
    options += ["--checkpoint_every", "3", "--sample_steps", "1", "--log_with", "none"]
    train(train_sit.parse_arguments(options))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, file",
    [
        ([], "checkpoints/step-00000006/ema-decay-0.9.safetensors"),
        (["--average", "decay-0.5"], "checkpoints/step-00000006/ema-decay-0.5.safetensors"),
        (["--average", "decay-0.5", "--step", "3"], "checkpoints/step-00000003/ema-decay-0.5.safetensors"),
        (["--std", "0.1"], "ema/step-00000006/std-0.1.safetensors"),
        (["--std", "0.05", "--step", "4"], "ema/step-00000004/std-0.05.safetensors"),
    ],
)
def test_pipeline_holds_the_average_asked_for(run, tmp_path, capsys, options, file):
    export_average.main([str(run), "--out", str(tmp_path / "out"), *options])
    said = capsys.readouterr().out
    assert f"of {run}, in {tmp_path / 'out'}; sample it with: sit-atconv sample {tmp_path / 'out'}" in said
    expected = load_file(run / file)
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    if not options:
        assert SiTPipeline.from_pretrained(tmp_path / "out")(["3"], num_inference_steps=1).images[0].size == (8, 8)


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--average", "decay-0.7"], "tracks decay-0.5, decay-0.9, std-0.05, std-0.1"),
        (["--std", "0.5"], "std=0.5 must be between"),
        (["--step", "5"], r"checkpoints [3, 6]"),
        (["--std", "0.1", "--average", "decay-0.5"], "two different things"),
    ],
)
def test_what_a_run_does_not_hold_is_said(run, tmp_path, capsys, options, expected):
    with pytest.raises(SystemExit):
        export_average.main([str(run), "--out", str(tmp_path / "out"), *options])
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_classifier_holds_the_average_asked_for(tmp_path, capsys):
    """Also BatchNorm's running statistics, in a folder that timm loads."""
    options = ["--output_dir", str(tmp_path / "run"), "--max_steps", "4", "--image_size", "16", "--batch_size", "16"]
    options += ["--model_args.depths", "[1, 1, 1, 1]", "--model_args.dims", "[4, 6, 8, 8]", "--held_out", "0.02"]
    options += ["--ema_decay", "[0.9, 0.5]", "--ema_stds", "[0.05, 0.1]", "--ema_snapshot_every", "2"]
    train(train_attnet.parse_arguments([*options, "--checkpoint_every", "2", "--log_with", "none"]))
    for choice, file in (
        ([], "checkpoints/step-00000004/ema-decay-0.9.safetensors"),
        (["--average", "decay-0.5", "--step", "2"], "checkpoints/step-00000002/ema-decay-0.5.safetensors"),
        (["--std", "0.1"], "ema/step-00000004/std-0.1.safetensors"),
    ):
        out = tmp_path / f"out{len(choice)}"
        capsys.readouterr()
        export_average.main([str(tmp_path / "run"), "--out", str(out), *choice])
        said = capsys.readouterr().out
        assert f"in {out}; evaluate it with: python eval/classify.py {out} --data digits --held_out 0.02" in said
        model = timm.create_model(f"local-dir:{out}", pretrained=True)
        expected = load_file(tmp_path / "run" / file)
        assert "stem.norm1.running_var" in expected or any(name.endswith("running_var") for name in expected)
        for name, value in expected.items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_run_of_a_tracker_that_is_not_here_and_without_decays(tmp_path, monkeypatch):
    options = [
        "--output_dir",
        str(tmp_path / "run"),
        "--max_steps",
        "1",
        "--model.num_layers",
        "1",
        "--sample_steps",
        "1",
    ]
    options += ["--ema_decay", "[]", "--ema_stds", "[0.1, 0.05]", "--log_with", "none", "--batch_size", "16"]
    train(train_sit.parse_arguments(options))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("log_with: none", "log_with: wandb"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    export_average.main([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    expected = load_file(tmp_path / "run" / "checkpoints" / "step-00000001" / "ema-std-0.1.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "out").items())


def test_nothing_is_overwritten(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        export_average.main([str(run), "--out", str(tmp_path)])
    assert "already exists; choose another name" in capsys.readouterr().err


def test_home_is_expanded_and_text_from_files_is_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for arguments, message in (
        (["~/no\x1b[2Jrun", "--out=~/new"], f"{tmp_path}/no\\x1b[2Jrun"),
        (["~/run", "--out=~/there"], f"out='{tmp_path}/there' already exists; choose another name"),
    ):
        with pytest.raises(SystemExit) as stopped:
            export_average.main(arguments)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and "\x1b" not in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_full_disk_ends_the_export_with_one_line(run, tmp_path, capfd):
    """A limit on the size of files stands in for the disk; safetensors reports both in a class of its own."""

    def export() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        export_average.main([str(run), "--out", str(tmp_path / "out")])

    child = multiprocessing.get_context("fork").Process(target=export)
    child.start()
    child.join(60)
    assert child.exitcode == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("export_average.py: error:")]
    assert f"{tmp_path / 'out'} cannot be written" in line
    assert "File too large" in line
    assert not list(tmp_path.iterdir())
