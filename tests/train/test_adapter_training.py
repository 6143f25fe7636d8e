"""Runs that train an adapter: what they leave, that the model stays, that they are functions of the seed, refusals."""

import shutil
from pathlib import Path

import pytest
import torch
import train_sit
from accelerate.state import AcceleratorState
from command_runs import refused
from safetensors.torch import load_file

from sit_atconv import SiTPipeline, SiTTransformer2DModel
from sit_atconv.classification.export_average import export_average
from sit_atconv.training.adapter import Adapter

pytest.importorskip("peft")
TINY = ["--batch_size", "32", "--log_every", "1", "--log_with", "none", "--lr_warmup_steps", "0", "--sample_steps", "1"]
SMALL = ["--model.num_layers", "2", "--model.num_attention_heads", "2", "--mixer", "hybrid"]
WEIGHTS = "pytorch_lora_weights.safetensors"


def run(folder: Path, *options: str, steps: int = 3) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    train_sit.main(["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *options])
    return folder


def latents(pipe: SiTPipeline) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return pipe([1, 4], num_inference_steps=2, generator=generators, output_type="latent").images


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pipeline folder with both kinds of mixers, trained for three steps."""
    folder = tmp_path_factory.mktemp("base") / "run"
    return str(run(folder, *SMALL, "--learning_rate", "0.02") / "pipeline")


def lora(base: str, *options: str) -> tuple[str, ...]:
    return ("--init_from", base, "--lora_rank", "2", "--learning_rate", "0.02", "--ema_decay", "0.5", *options)


@pytest.mark.slow
def test_the_folder_is_what_a_pipeline_loads(base, tmp_path):
    before = load_file(Path(base) / "transformer" / "diffusion_pytorch_model.safetensors")
    folder = run(tmp_path / "run", *lora(base, "--lora_alpha", "3", "--checkpoint_every", "2"))
    assert {file.name for file in (folder / "adapter").iterdir()} == {
        *("README.md", WEIGHTS, "lineage.json", "samples.png", "training_config.yaml")
    }
    assert not (folder / "pipeline").exists()
    pipe = SiTPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    plain = latents(pipe)
    pipe.load_lora_weights(folder / "adapter")
    settings = pipe.transformer.peft_config["default_0"]
    assert (settings.r, settings.lora_alpha) == (2, 3)
    assert (latents(pipe) - plain).abs().max() > 1e-3
    after = {name.replace(".base_layer", ""): value for name, value in pipe.transformer.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    # The adapter is the average of the checkpoints, which hold nothing but the adapter.
    stored = load_file(folder / "checkpoints/step-00000003/ema-decay-0.5.safetensors")
    saved = load_file(folder / "adapter" / WEIGHTS)
    assert {f"transformer.{name.replace('.default', '')}": value.shape for name, value in stored.items()} == {
        name: value.shape for name, value in saved.items()
    }
    for name, value in stored.items():
        assert torch.equal(value, saved[f"transformer.{name.replace('.default', '')}"]), name
    assert load_file(folder / "checkpoints/step-00000003/model.safetensors").keys() == stored.keys()
    layers = {name.partition(".lora_")[0] for name in stored}
    assert layers == {
        *(f"blocks.0.mixer.{name}" for name in ("qkv", "out_proj")),
        *(f"blocks.1.mixer.{name}" for name in ("kernel_proj", "value_proj", "out_proj")),
        *(f"blocks.{i}.mlp.{name}" for i in (0, 1) for name in ("fc1", "fc2")),
    }
    card = (folder / "adapter/README.md").read_text()
    assert "LoRA adapter of rank 2 for run" in card and str(tmp_path) not in card
    with pytest.raises(ValueError, match="trains an adapter, which is no pipeline"):
        export_average(folder, tmp_path / "exported")


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(base, tmp_path, capsys):
    options = lora(base, "--checkpoint_every", "1", "--keep_checkpoints", "9")
    whole = run(tmp_path / "whole", *options)
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    for gone in ("checkpoints/step-00000002", "checkpoints/step-00000003", "adapter"):
        shutil.rmtree(parts / gone)
    run(parts, *options, "--resume", "latest")
    for file in (*sorted((whole / "checkpoints/step-00000003").glob("*.safetensors")), whole / "adapter" / WEIGHTS):
        left, right = load_file(file), load_file(parts / file.relative_to(whole))
        assert left.keys() == right.keys() and left
        assert all(torch.equal(value, right[name]) for name, value in left.items()), file

    # In place of the model that the adapter belongs to, there is another one.
    other = tmp_path / "base"
    shutil.copytree(base, other)
    moved = tmp_path / "moved"
    run(moved, *lora(str(other)), "--checkpoint_every", "1", steps=1)
    pipe = SiTPipeline.from_pretrained(other)
    pipe.transformer.proj_out.weight.data.add_(1)
    pipe.save_pretrained(other)
    message = refused(
        capsys,
        train_sit.main,
        *TINY,
        *lora(str(other)),
        "--checkpoint_every",
        "1",
        "--output_dir",
        str(moved),
        *("--max_steps", "2", "--resume", "latest"),
    )
    assert "init_from" in message and "was trained on other data" in message


def test_adapters_hold_what_is_trained():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).requires_grad_(False)
    model[1].bias.requires_grad_(True)
    adapter = Adapter(model)
    assert [name for name, _ in adapter.named_parameters()] == ["1.bias"]
    assert adapter.get_parameter("1.bias") is model[1].bias and adapter.state_dict().keys() == {"1.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora_rank", "2"), "lora_rank=2: an adapter belongs to a trained model; give --init_from"),
        (("--lora_alpha", "2"), "lora_alpha=2.0 is for an adapter; also give --lora_rank"),
        (("--init_from", "BASE", "--lora_rank", "0"), "lora_rank=0 must be a whole number of at least 1"),
        (
            ("--init_from", "BASE", "--lora_rank", "2", "--mixer", "atconv"),
            "mixer='atconv' does not go with lora_rank=2",
        ),
        (("--init_from", "BASE", "--lora_rank", "2", "--push_to_hub", "a/b"), "push_to_hub='a/b' does not go with"),
        (("--init_from", "BASE", "--lora_rank", "2", "--objective", "meanflow"), "objective='meanflow' trains how"),
        (
            ("--init_from", "BASE", "--lora_rank", "2", "--ema_stds", "[0.1]"),
            "ema_stds=[0.1] does not go with lora_rank=2",
        ),
        (
            ("--init_from", "BASE", "--lora_rank", "2", "--ema_decay", "[0.9, 0.99]"),
            "one average; give one decay",
        ),
        (("--init_from", "BASE", "--lora_rank", "2", "--lora_targets", "[]"), "lora_targets=[] names no layer"),
    ],
)
def test_what_does_not_go_with_an_adapter_is_refused(options, message, tmp_path, capsys):
    assert message in refused(capsys, train_sit.main, *TINY, *options, "--output_dir", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_does_not_fit_the_model_is_refused(base, tmp_path, capsys):
    output = ("--output_dir", str(tmp_path / "run"))
    message = refused(capsys, train_sit.main, *TINY, *lora(base, "--lora_targets", "[qkv, to_q]"), *output)
    assert "no layer is named 'to_q'; there are: " in message and "kernel_proj" in message
    other = tmp_path / "other"
    shutil.copytree(base, other)
    index = other / "model_index.json"
    index.write_text(index.read_text().replace('"0": "0"', '"0": "none"'))
    message = refused(capsys, train_sit.main, *TINY, *lora(str(other)), *output)
    assert "has other classes than init_from" in message
    config = SiTTransformer2DModel.load_config(Path(base) / "transformer")
    SiTTransformer2DModel(**config | {"step_conditioning": "span"}).save_pretrained(other / "transformer")
    index.write_text(index.read_text().replace('"0": "none"', '"0": "0"'))
    message = refused(capsys, train_sit.main, *TINY, *lora(str(other)), *output)
    assert "predicts mean velocities (step_conditioning='span')" in message
    assert not (tmp_path / "run").exists()
