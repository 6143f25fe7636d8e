"""eval/duel.py and eval/compare.py as commands: a small duel, interrupted and continued, and its report."""

import html
import json
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import compare
import duel
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from sit_atconv.evaluation import duel as duel_commands
from sit_atconv.evaluation import duel_run
from sit_atconv.evaluation.comparison import paired_differences
from sit_atconv.evaluation.comparison_tables import mean_fids, score_table
from sit_atconv.evaluation.duel_options import Duel
from sit_atconv.evaluation.duel_run import DuelRun, Scripts
from sit_atconv.evaluation.evaluated_runs import check_runs, load_run
from sit_atconv.training.checkpoints import checkpoint_steps
from sit_atconv.training.command_line import parse_arguments
from sit_atconv.training.export import average_file
from sit_atconv.training.objective import Objective

sys.path.insert(0, str(duel.TRAIN.parent))
import train_sit

SCRIPTS = Scripts(duel.TRAIN, duel.SAMPLE)

TINY = {"batch_size": 8, "log_every": 1, "sample_steps": 1, "model.num_layers": 1, "model.num_attention_heads": 2}


@pytest.fixture
def in_process(monkeypatch):
    """Trainings in this process, which starts faster than a new one; a list of what was started."""
    started = []

    def run(command):
        started.append(command)
        AcceleratorState._reset_state(reset_partial_state=True)
        if len(started) == 2 and run.interrupt:
            return 130
        try:
            train_sit.main(command[2:])
        except SystemExit as stopped:
            return stopped.code
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
        return 0

    run.interrupt = True
    monkeypatch.setattr(duel_run, "run_to_end", run)
    return started, run


def write_yaml(file: Path, folder: Path, **changes) -> str:
    options = {
        "output": str(folder),
        "models": {"SA": {"mixer": "attention"}, "ATConv": {"mixer": "atconv"}},
        "seeds": [0, 1],
        "max_steps": 3,
        "evaluate_every": 2,
        "inference_steps": [2, 1],
        "train": TINY,
        "sampling": {"num_samples": 70, "batch_size": 70},
        "metrics": {"extractor": "pixels", "metrics": "fid,kid", "bootstrap": 20},
        "device": "cpu",
        "latency_repeats": 2,
        "validation": {"data": "digits", "num_images": 20, "num_times": 2},
        **changes,
    }
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    return str(file)


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        duel.main(list(arguments))
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.partition("error: ")[2].split())


CONFIGS = sorted(Path(duel.__file__).with_name("configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_duels_can_be_run_by_the_command_they_name(file):
    text = file.read_text(encoding="utf-8")
    assert f"python eval/duel.py eval/configs/{file.name}" in text
    settings = Duel(**yaml.safe_load(text))
    settings.train["data"] = "digits"  # CIFAR-10 is not here
    for model in settings.models:
        parse_arguments(DuelRun(settings, SCRIPTS, model, settings.seeds[0]).train_command()[2:])


@pytest.mark.slow
def test_duel_from_interruption_to_report(in_process, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    started, run = in_process
    output = tmp_path / "duel"
    file = write_yaml(tmp_path / "duel.yaml", output)
    assert "start the duel again" in refusal(capsys, file)
    kept = output / "SA-seed0" / "evaluation" / "step-00000003-2-inference-steps.json"
    written = kept.stat().st_mtime_ns
    run.interrupt = False
    duel.main([file])
    assert len(started) == 5 and kept.stat().st_mtime_ns == written  # four runs, one of them twice
    assert capsys.readouterr().out.strip().endswith("report.html")
    duel.main([file])
    assert len(started) == 5
    verdict, page = capsys.readouterr().out.strip().splitlines()
    assert verdict.startswith("ATConv is ") and " of the time of a forward pass." in verdict
    assert page.endswith("report.html")

    # step 2 was scored with the averaged weights of its checkpoint, in a pipeline like the final one
    folder = output / "ATConv-seed1"
    weights = load_file(folder / "evaluation/step-00000002/pipeline/transformer/diffusion_pytorch_model.safetensors")
    average = load_file(average_file(folder, folder / "checkpoints" / "step-00000002"))
    assert all(torch.equal(weights[name], average[name]) for name in average)
    report = json.loads((folder / "evaluation/step-00000002-2-inference-steps.json").read_text())
    facts = {"step": 2, "num_samples": 70, "reference": "digits", "num_reference": 1797, "num_inference_steps": 2}
    assert {key: report[key] for key in facts} == facts
    assert report["samples"].startswith(str(folder))

    markdown = (output / "report" / "report.md").read_text(encoding="utf-8")
    page = (output / "report" / "report.html").read_text(encoding="utf-8")
    for part in ("SA against ATConv", "## Paired differences", "samples, paired bootstrap", "seeds, Student's t"):
        assert part in markdown
        assert part.removeprefix("## ") in html.unescape(page)
    for name in ("fid-steps.png", "fid-training-time.png", "fid-sampling-time.png", "loss-time.png", "samples-SA.png"):
        assert (output / "report" / name).is_file() and name in markdown
    assert page.count("<svg") == 4 and page.count("data:image/png;base64,") == 2
    assert verdict in html.unescape(page) and f"**{verdict}**" in markdown
    losses = json.loads((output / "report" / "report.json").read_text())["validation_loss"]
    assert list(losses) == ["2", "3"]
    shown = losses["3"]["loss_or_difference"]["ATConv"]["t 0.3–0.4"]
    assert "| t 0.3–0.4 | " in markdown and f"{shown['mean']:+.4f} ± {shown['standard_error']:.4f} |" in markdown
    assert "Columns from left to right: 0, 1, 2" in markdown
    assert len((output / "report" / "scores.csv").read_text().splitlines()) == 1 + 4 * 3  # runs × reports
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing outside the page
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))

    runs = [load_run(output / f"{name}-seed{seed}") for name in ("SA", "ATConv") for seed in (0, 1)]
    for run in runs:
        run.final_inference_steps = 2
        assert [report["step"] for report in run.reports_by_step] == [2, 3]
        assert [report["num_inference_steps"] for report in run.reports_of_last_step] == [1, 2]
    assert f"# SA against ATConv: FID {mean_fids(runs)}\n" in markdown
    (row,) = paired_differences(runs)
    expected = [runs[2 + i].final["fid"] - runs[i].final["fid"] for i in range(2)]
    assert [entry["difference"] for entry in row["per_seed"]] == pytest.approx(expected)
    assert row["mean"] == pytest.approx(np.mean(expected))
    assert row["interval"][0] < row["mean"] < row["interval"][1]

    runs = [load_run(output / f"{name}-seed0") for name in ("SA", "ATConv")]
    (output / "ATConv-seed0" / "pipeline" / "README.md").write_text("edited")
    assert check_runs(runs) == []
    runs[1].final["sfid"] = 1.0  # one run has a metric more
    assert not any("sFID" in head for head in (*score_table(runs).head, *score_table(runs[::-1]).head))
    for changes, part in (
        ({"seed": 7}, r"sampled in different ways \(seed: 0 and 7\)"),
        ({"batch_size": 7}, r"batch_size: 70 and 7"),
        ({"model_sha256": "0"}, "is of other weights than"),
    ):
        before = dict(runs[1].final)
        runs[1].final.update(changes)
        with pytest.raises(ValueError, match=part):
            check_runs(runs)
        runs[1].final.update(before)
    runs[1].final["device"] = "cuda"
    (stated,) = check_runs(runs)
    assert stated == "device of the scores: 'cpu' in SA-seed0, 'cuda' in ATConv-seed0"
    runs[1].final["fid_resampled"] = [1.0, 2.0]  # of another number: nothing to pair
    assert paired_differences(runs)[0]["per_seed"][0]["interval"] is None
    (output / "ATConv-seed0" / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    assert load_run(output / "ATConv-seed0").hours == {}

    # another duel, or other options, in the same folder
    other = write_yaml(tmp_path / "other.yaml", output, max_steps=4)
    assert "holds another duel (max_steps differ)" in refusal(capsys, other)
    with pytest.raises(SystemExit):
        compare.main([str(output / "SA-seed0"), str(output / "SA-seed1"), "--output", str(tmp_path / "report")])
    assert "all are of the model 'SA'" in capsys.readouterr().err
    report["extractor"] = "inception"
    (folder / "evaluation/step-00000002-2-inference-steps.json").write_text(json.dumps(report))
    with pytest.raises(SystemExit):
        compare.main([str(output / "SA-seed1"), str(folder), "--output", str(tmp_path / "report"), "--device", "cpu"])
    assert "cannot be compared: extractor: 'pixels' and 'inception'" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_every_checkpoint_that_is_scored_outlives_two_stops(in_process, tmp_path, monkeypatch):
    options = {**TINY, "ema_decay": [], "ema_stds": [0.1, 0.05], "ema_snapshot_every": 2}
    file = write_yaml(tmp_path / "duel.yaml", tmp_path / "duel", max_steps=6, train=options)
    settings = Duel(**yaml.safe_load(Path(file).read_text()))
    run = DuelRun(settings, SCRIPTS, "SA", 0)
    original, stops = Objective.losses, [3, 5]
    seen = []

    def signalling(*arguments):
        seen.append(None)
        if len(seen) in stops:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)  # it is a thread that takes note
        return original(*arguments)

    monkeypatch.setattr(Objective, "losses", signalling)
    for _ in stops:
        with pytest.raises(ValueError, match="start the duel again"):
            run.train()
        in_process[0].clear()
    run.train()
    checkpoints = dict(checkpoint_steps(run.folder / "checkpoints"))
    assert len(seen) == 6 and {2, 4} <= checkpoints.keys()

    folder = run.pipeline_at(2) / "transformer" / "diffusion_pytorch_model.safetensors"
    first = load_file(checkpoints[2] / "ema-std-0.1.safetensors")
    other = load_file(checkpoints[2] / "ema-std-0.05.safetensors")
    weights = load_file(folder)
    assert all(torch.equal(weights[name], first[name]) for name in first)
    assert any(not torch.equal(other[name], first[name]) for name in first)


def test_mistakes_are_refused_before_any_training(in_process, tmp_path, capsys):
    started, _ = in_process
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("precious")
    models = {"A": {}, "B": {}}
    cases = [
        ({"models": {"A": {}}}, "a duel needs at least two"),
        ({"models": {"A": {}, "B/C": {}}}, "'B/C'"),
        ({"models": {"A": {"seed": 1}, "B": {}}}, "A: seed are set by the duel itself"),
        ({"models": models, "train": {"max_steps": 3}}, "train: max_steps are set by the duel itself"),
        ({"models": {"A": {}, "B": {"mixed": "atconv"}}}, "B: train/train_sit.py has no options mixed"),
        ({"seeds": [0, 0]}, "seeds=[0, 0]"),
        ({"inference_steps": [0]}, "inference_steps=0"),
        ({"sampling": {"num_images": 3}}, "sampling: unknown options num_images"),
        ({"sampling": {}}, "num_samples must be given"),
        ({"metrics": {"metrics": "kid", "extractor": "pixels"}}, "must name fid"),
        ({"metrics": {"extractor": "vgg"}}, "extractor='vgg'"),
        ({"output": str(tmp_path / "full")}, "holds other files"),
        ({"models_and_seeds": 1}, "models_and_seeds"),
        ({"sampling": {"num_samples": 70, "labels": "odd"}}, "labels='odd'"),
        ({"sampling": {"num_samples": 0}}, "num_samples=0"),
        ({"sampling": {"num_samples": 70, "solver": "fast"}}, "solver='fast'"),
        ({"reference": str(tmp_path / "nowhere")}, "nowhere"),
        ({"metrics": {"extractor": f"torchscript:{tmp_path / 'no.pt'}"}}, "no.pt"),
        ({"device": "tpu"}, "tpu"),
    ]
    for changes, part in cases:
        assert part in refusal(capsys, write_yaml(tmp_path / "duel.yaml", tmp_path / "new", **changes)), part
    assert not started and not (tmp_path / "new").exists()


def test_a_mistake_in_training_is_found_before_anything_is_written(in_process, tmp_path, capsys, monkeypatch):
    """Also in the last model, whose turn comes after the training of the others."""
    started, run = in_process
    run.interrupt = False
    cases = [
        ({"train": TINY | {"batch_size": 10**6}}, "batch_size=1000000 exceeds the 1797 images"),
        ({"train": TINY | {"data": str(tmp_path / "nowhere")}}, "nowhere"),
        ({"models": {"A": {}, "B": {"mixer": "attension"}}}, "models.B, with train: "),
        ({"models": {"A": {}, "B": {"model.patch_size": 3}}}, "must be divisible by 3"),
        ({"models": {"A": {}, "B": {"model.attention_head_dim": -1}}}, "attention_head_dim=-1"),
        ({"models": {"A": {}, "B": {"learning_rate": "fast"}}}, "models.B, with train: "),
    ]
    for changes, part in cases:
        error = refusal(capsys, write_yaml(tmp_path / "duel.yaml", tmp_path / "new", **changes))
        assert part in error, part
        assert not started and not (tmp_path / "new").exists()
    with monkeypatch.context() as patch:
        patch.setattr(duel_commands, "folder_lock", held)
        file = write_yaml(tmp_path / "duel.yaml", tmp_path / "new")
        assert "output: another process is writing to it" in refusal(capsys, file)
    assert not started and not list((tmp_path / "new").iterdir())


@contextmanager
def held(folder: Path, field: str):
    raise ValueError(f"{field}: another process is writing to it")
    yield


@pytest.mark.slow
def test_options_of_the_command_line_are_numbers(in_process, tmp_path, capsys):
    """They arrive as text, and are those of the file."""
    started, run = in_process
    run.interrupt = False
    file = write_yaml(tmp_path / "duel.yaml", tmp_path / "duel", seeds=[0], max_steps=1, inference_steps=[1])
    changes = ["--sampling.num_samples", "65", "--metrics.bootstrap", "null", "--train.batch_size", "4"]
    assert "bootstrap" in refusal(capsys, file, *changes[:2], "--metrics.bootstrap", "5")
    changes[3] = "21"
    duel.main([file, *changes])
    report = json.loads((tmp_path / "duel/SA-seed0/evaluation/step-00000001-1-inference-steps.json").read_text())
    assert report["num_samples"] == 65 and len(report["fid_resampled"]) == 21
    assert report["command"] == f"python eval/duel.py {file} {' '.join(changes)}"
    assert yaml.safe_load((tmp_path / "duel/SA-seed0/config.yaml").read_text())["batch_size"] == 4
    again = write_yaml(
        tmp_path / "same.yaml",
        tmp_path / "duel",
        seeds=[0],
        max_steps=1,
        inference_steps=[1],
        train=TINY | {"batch_size": 4},
        sampling={"num_samples": 65, "batch_size": 70},
        metrics={"extractor": "pixels", "metrics": "fid,kid", "bootstrap": 21},
    )
    duel.main([again])
    assert len(started) == 2


def test_folders_that_are_no_runs(tmp_path, capsys):
    for arguments, part in (
        ([str(tmp_path / "a"), str(tmp_path / "b")], "is not a run folder"),
        ([str(tmp_path)], "is not a run folder"),
    ):
        with pytest.raises(SystemExit):
            compare.main([*arguments, "--output", str(tmp_path / "report")])
        assert part in capsys.readouterr().err
