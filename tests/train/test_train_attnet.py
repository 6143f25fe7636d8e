"""Training a classifier: what it leaves, that it can be resumed bit by bit, and what it refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import train_attnet
import train_sit
from accelerate.state import AcceleratorState
from command_runs import refused
from PIL import Image
from safetensors.torch import load_file

from sit_atconv.classification import task as classifier_task
from sit_atconv.classification.config import ClassifierConfig
from sit_atconv.classification.task import ClassifierTask
from sit_atconv.data import Stream, sample_generator
from sit_atconv.training.loop import train
from sit_atconv.training.runlog import list_lines
from sit_atconv.training.step_report import StepReport

TINY = [
    *("--model_args.depths", "[1, 1, 1, 1]", "--model_args.dims", "[4, 6, 8, 8]", "--image_size", "16"),
    *("--batch_size", "16", "--log_every", "1", "--log_with", "none", "--lr_warmup_steps", "1", "--held_out", "0.02"),
]
RANDOM = [
    *("--drop_path", "0.5", "--mixup", "0.5", "--cutmix", "1", "--auto_augment", "rand-m9-mstd0.5-inc1"),
    *("--random_erase", "0.5", "--repeated_augmentation", "2", "--ema_decay", "[0.5, 0.9]"),
]


def run(folder: Path, *options: str, steps: int = 2) -> Path:
    return train(
        train_attnet.parse_arguments(["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *options])
    )


def refusal(capsys, *options: str) -> str:
    return refused(capsys, train_attnet.main, *TINY, *options)


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(48):
        file = tmp_path / "photos" / ("cat", "dog", "eel")[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"


def test_the_folder_that_is_left_is_a_model_of_timm(tmp_path, photos):
    """With the weights of the first average, also those of BatchNorm."""
    out = run(tmp_path / "run", "--data", str(photos), "--held_out", "0.25", "--ema_decay", "[0.5, 0.9]")
    assert out == tmp_path / "run" / "model"
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    average, raw = (load_file(checkpoint / f"{name}.safetensors") for name in ("ema-decay-0.5", "model"))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in average.items())
    assert {name for name in state if name not in average} == {name for name in raw if "num_batches" in name}
    assert any("running_mean" in name for name in average)
    assert not torch.equal(raw["stem.norm1.running_mean"], average["stem.norm1.running_mean"])
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == ["cat", "dog", "eel"] and config["num_classes"] == 3
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16] and config["pretrained_cfg"]["crop_pct"] == 1.0
    [line] = list_lines(tmp_path / "run" / "evaluation.jsonl")
    assert list(line) == ["step", "raw", "decay-0.5", "decay-0.9"] and line["raw"]["images"] == 12
    assert config["evaluation"] == line


def checkpoint_content(folder: Path, step: int) -> dict:
    path = folder / "checkpoints" / f"step-{step:08d}"
    files = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "manifest.json"}
    state = json.loads(files.pop("state.json"))
    state.pop("config")  # the output folder
    return {**files, "state": state}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_same_bit_by_bit(tmp_path, workers):
    options = [*RANDOM, "--checkpoint_every", "2", "--keep_checkpoints", "9", "--evaluate_every", "3"]
    options += ["--num_workers", str(workers), "--lr_schedule", "constant"]
    run(tmp_path / "whole", *options, steps=5)
    run(tmp_path / "run", *options, steps=2)
    run(tmp_path / "run", *options, "--resume", "latest", steps=5)
    assert checkpoint_content(tmp_path / "run", 5) == checkpoint_content(tmp_path / "whole", 5)
    results = [list_lines(tmp_path / name / "evaluation.jsonl") for name in ("whole", "run")]
    assert results[0] == [line for line in results[1] if line["step"] != 2]
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    assert len({line["loss"] for line in lines[0]}) == 5


def test_a_step_that_is_not_finite_leaves_no_trace_in_batch_norm(tmp_path, monkeypatch):
    seen = []
    loss = ClassifierTask.loss

    def spoiled(self, batch, report: StepReport):
        seen.append({name: buffer.clone() for name, buffer in self.model.named_buffers()})
        if len(seen) == 2:
            batch["x"][:] = math.nan
        return loss(self, batch, report)

    monkeypatch.setattr(ClassifierTask, "loss", spoiled)
    run(tmp_path / "run", steps=3)
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in seen[2].items())
    assert not torch.equal(seen[1]["stem.norm1.running_mean"], seen[0]["stem.norm1.running_mean"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [2]


def test_optimizer_and_learning_rate_are_those_of_the_recipe(tmp_path):
    config = train_attnet.parse_arguments(
        [*TINY, "--max_steps", "100", "--lr_warmup_steps", "10", "--learning_rate", "1", "--weight_decay", "0.3"]
    )
    task = ClassifierTask(config, None)
    task.model = timm.create_model("attnet_xs", **config.model_args)
    optimizer = task.build_optimizer()
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999)
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.model.parameters()))
    rates = [task.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6) and rates[5] == pytest.approx(0.5, rel=1e-4)
    for step in (10, 50, 99):
        assert rates[step] == pytest.approx(1e-6 + 0.5 * (1 - 1e-6) * (1 + math.cos(math.pi * step / 100)))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_bfloat16_and_compilation_train_nearly_the_same(tmp_path, monkeypatch):
    """Compiled by the front end of torch.compile; its code generator is PyTorch's own matter, and takes long."""
    compile, compiled = torch.nn.Module.compile, []

    def traced(module: torch.nn.Module) -> None:
        compiled.append(module)
        compile(module, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    options = ["--drop_path", "0", "--learning_rate", "0.01", "--image_size", "32"]
    run(tmp_path / "plain", *options, steps=4)
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process; it holds the precision
    run(tmp_path / "half", *options, "--mixed_precision", "bf16", steps=4)
    assert not compiled
    AcceleratorState._reset_state(reset_partial_state=True)
    run(tmp_path / "compiled", *options, "--compile", "true", steps=4)
    assert len(compiled) == 1
    plain, half = losses(tmp_path / "plain"), losses(tmp_path / "half")
    assert losses(tmp_path / "compiled") == pytest.approx(plain, rel=1e-4)
    assert half == pytest.approx(plain, rel=0.02) and half != pytest.approx(plain, rel=1e-5)
    weights = load_file(tmp_path / "half" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())


def test_bfloat16_is_refused_where_its_gradients_are_undefined(capsys):
    message = refusal(capsys, "--mixed_precision", "bf16", "--dry_run", "true")
    assert "mixed_precision=bf16 with image_size=16" in message and "at least 17 pixels" in message


def test_repeated_augmentation_draws_each_image_in_a_row(tmp_path):
    task = ClassifierTask(ClassifierConfig(repeated_augmentation=3), None)
    task.dataset = classifier_task.open_data(ClassifierConfig())[0]
    order = task.epoch_order(sample_generator(0, Stream.ORDER, 0))
    once = task.dataset.epoch_order(sample_generator(0, Stream.ORDER, 0))
    assert len(order) == len(once)
    assert (order[:9] == np.repeat(once[:3], 3)).all()


def test_training_goes_on_from_other_weights(tmp_path, photos):
    digits = run(tmp_path / "digits", "--learning_rate", "0.1")
    model = classifier_task.build_classifier(
        train_attnet.parse_arguments([*TINY, "--data", str(photos), "--init_from", str(digits)]), 3, 3
    )
    trained = load_file(digits / "model.safetensors")
    for name, tensor in model.state_dict().items():
        same = tensor.shape == trained[name].shape and torch.equal(tensor, trained[name])
        assert same == (not name.startswith(("head.fc", "stem.conv1"))), name
    assert model.head.fc.weight.shape == (3, 8)


def test_mistakes_are_named_before_anything_is_written(tmp_path, photos, capsys):
    out = ("--output_dir", str(tmp_path / "run"))
    assert "did you mean attnet_t2" in refusal(capsys, *out, "--model", "attnet_t22")
    assert "unexpected keyword argument 'depth'" in refusal(capsys, *out, "--model_args.depth", "3")
    assert "follow from the other options" in refusal(capsys, *out, "--model_args.in_chans", "3")
    assert "3 values; AttNet has 4 stages" in refusal(capsys, *out, "--model_args.dims", "[4, 4, 4]")
    text = refusal(capsys, *out, "--data", str(photos / "cat"))
    assert "has no classes; put the images of each class into a folder of their own" in text
    text = refusal(capsys, *out, "--data", str(photos), "--validation", "digits")
    assert "validation='digits' has other classes than data=" in text
    assert "must be divisible by 2 (1 processes × 1 accumulation steps × 2 images)" in refusal(
        capsys, *out, "--batch_size", "17"
    )
    assert "is neither a folder with model.safetensors" in refusal(capsys, *out, "--init_from", str(photos))
    assert "exceeds the" in refusal(capsys, *out, "--batch_size", "9000")
    assert "push_to_hub='a b' is no name on the Hub" in refusal(capsys, *out, "--push_to_hub", "a b")
    assert not (tmp_path / "run").exists()


def test_the_run_of_another_script_is_not_continued(tmp_path, capsys):
    run(tmp_path / "run", steps=1)
    with pytest.raises(SystemExit):
        train_sit.main(["--output_dir", str(tmp_path / "run"), "--resume", "auto", "--log_with", "none"])
    assert "or of another training script" in capsys.readouterr().err
    assert "(learning_rate: 0.003 -> 0.1); continue with the options of that run" in refusal(
        capsys, "--output_dir", str(tmp_path / "run"), "--resume", "auto", "--max_steps", "1", "--learning_rate", "0.1"
    )


def test_dry_run_takes_a_step_and_writes_nothing(tmp_path, capsys):
    run(tmp_path / "run", "--dry_run", "--mixup", "0.5")
    assert "dry run finished: one step with 2 images" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_missing_evaluation_is_made_up_for(tmp_path):
    run(tmp_path / "run", "--evaluate_every", "1", steps=2)
    lines = list_lines(tmp_path / "run" / "evaluation.jsonl")
    (tmp_path / "run" / "evaluation.jsonl").write_text(json.dumps(lines[0]) + "\n{torn")
    run(tmp_path / "run", "--evaluate_every", "1", "--resume", "latest", steps=2)
    assert list_lines(tmp_path / "run" / "evaluation.jsonl") == lines


@pytest.mark.slow
def test_two_processes_share_training_and_evaluation(tmp_path, processes):
    """Every held-out image counts once, and the run goes on in one process."""

    def member(rank: int) -> None:
        run(tmp_path / "run", "--mixup", "0.5", "--checkpoint_every", "1")

    assert processes(2, member) == [0, 0]
    run(tmp_path / "run", "--mixup", "0.5", "--checkpoint_every", "1", "--resume", "latest", steps=3)
    lines = list_lines(tmp_path / "run" / "evaluation.jsonl")
    assert [(line["step"], line["raw"]["images"]) for line in lines] == [(2, 39), (3, 39)]


@pytest.mark.slow
def test_the_built_in_recipe_reaches_97_percent(tmp_path):
    config = train_attnet.parse_arguments(["--output_dir", str(tmp_path / "run"), "--log_with", "none"])
    train(config)
    last = list_lines(tmp_path / "run" / "evaluation.jsonl")[-1]
    assert last["raw"]["images"] == 179
    assert last[f"decay-{config.ema_decay:g}"]["top1"] >= 0.97
