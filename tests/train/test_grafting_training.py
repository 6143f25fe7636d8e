"""Runs that graft: their stages, what they leave, that they are functions of the seed, and what they refuse."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_sit
from accelerate.state import AcceleratorState
from command_runs import gradient_norms, metrics, refused, weights
from safetensors.torch import load_file
from without_package import WITHOUT_PACKAGE

from sit_atconv import SiTPipeline
from sit_atconv.classification.export_average import export_average
from sit_atconv.training import grafting
from sit_atconv.utils.hashing import file_sha256

TINY = ["--batch_size", "32", "--log_every", "1", "--log_with", "none", "--lr_warmup_steps", "0", "--sample_steps", "1"]
SMALL = ["--model.num_layers", "3", "--model.num_attention_heads", "2", "--preset", "SiT-Nano/2"]


def run(folder: Path, *options: str, steps: int = 2) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    train_sit.main(["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *options])
    return folder


def refusal(capsys, *options: str) -> str:
    return refused(capsys, train_sit.main, *TINY, *options)


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    """A pipeline folder of self-attention, trained for three steps."""
    folder = tmp_path_factory.mktemp("attention") / "run"
    AcceleratorState._reset_state(reset_partial_state=True)
    train_sit.main(["--output_dir", str(folder), "--max_steps", "3", *TINY, *SMALL, "--learning_rate", "0.02"])
    return str(folder / "pipeline")


@pytest.fixture(autouse=True)
def short_ranking(monkeypatch):
    monkeypatch.setattr(grafting, "RANKING_STEPS", 6)
    monkeypatch.setattr(grafting, "MEASURED_STEPS", 2)


@pytest.mark.slow
def test_regression_trains_the_new_mixers_alone(attention, tmp_path):
    options = ("--init_from", attention, "--mixer", "hybrid", "--lr_schedule", "constant", "--ema_decay", "0")
    folder = run(tmp_path / "run", *options, "--graft_steps", "2", "--checkpoint_every", "2", steps=3)
    old = load_file(Path(attention) / "transformer" / "diffusion_pytorch_model.safetensors")
    staged = load_file(folder / "checkpoints" / "step-00000002" / "model.safetensors")
    for name, value in staged.items():
        if not name.startswith("blocks.1.mixer."):
            assert torch.equal(value, old[name]), name
    whole = weights(folder / "pipeline")
    assert not torch.equal(whole["patch_embed.weight"], old["patch_embed.weight"])
    moments = load_file(folder / "checkpoints" / "step-00000003" / "optimizer.safetensors")
    assert {float(value) for name, value in moments.items() if name.endswith("|step")} == {1.0}  # started over
    assert [line["learning_rate"] for line in metrics(folder)] == [0.002] * 3


@pytest.mark.slow
def test_a_grafted_folder_samples_without_the_package(attention, tmp_path):
    options = ("--init_from", attention, "--teacher", attention, "--mixer", "auto:2", "--graft_steps", "1")
    folder = run(tmp_path / "run", *options) / "pipeline"
    expected = SiTPipeline.from_pretrained(folder)([3], generator=torch.Generator().manual_seed(0), output_type="np")
    code = (
        WITHOUT_PACKAGE
        + f"""
import numpy, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
image = pipe([3], generator=torch.Generator().manual_seed(0), output_type="np").images
numpy.save({str(tmp_path / "image.npy")!r}, image)
"""
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "image.npy"), expected.images)
    card = (folder / "README.md").read_text()
    sha256 = file_sha256(Path(attention) / "transformer" / "diffusion_pytorch_model.safetensors")
    assert re.search(r"Grafted from run: self-attention is replaced in blocks \d, \d, from 0\.", card)
    assert "the outputs of a teacher, run." in card and card.count(sha256) == 1
    exported = tmp_path / "exported"
    export_average(folder.parent, exported)
    assert sha256 in (exported / "README.md").read_text()


@pytest.mark.slow
def test_resumed_stages_are_bitwise_those_of_the_uninterrupted_run(attention, tmp_path, monkeypatch):
    """Stopped in the regression and in the training of the whole model; the blocks are not ranked again."""
    options = ("--init_from", attention, "--teacher", attention, "--mixer", "auto:1", "--graft_steps", "3")
    options += ("--checkpoint_every", "1", "--keep_checkpoints", "9")
    whole = run(tmp_path / "whole", *options, steps=6)
    ranking = json.loads((whole / "graft.json").read_text())
    assert (whole / "graft.png").is_file() and len(ranking["unexplained"]) == 3
    assert ranking["mixer"].count("atconv") == 1
    for last in (2, 3, 5):
        parts = tmp_path / f"parts-{last}"
        shutil.copytree(whole, parts)
        for step in range(last + 1, 7):
            shutil.rmtree(parts / "checkpoints" / f"step-{step:08d}")
        shutil.rmtree(parts / "pipeline")
        with monkeypatch.context() as patch:
            patch.setattr(grafting, "rank_blocks", lambda *_: pytest.fail("ranked again"))
            run(parts, *options, "--resume", "latest", steps=6)
        for file in sorted((whole / "checkpoints/step-00000006").glob("*.safetensors")):
            left, right = load_file(file), load_file(parts / "checkpoints/step-00000006" / file.name)
            assert left.keys() == right.keys()
            for key in left:
                assert torch.equal(left[key], right[key]), (file.name, key)
        assert gradient_norms(whole) == gradient_norms(parts)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["hybrid", "auto:2"])
def test_gradients_do_not_depend_on_processes_and_accumulation(mixer, attention, tmp_path, processes):
    options = ("--init_from", attention, "--teacher", attention, "--mixer", mixer, "--graft_steps", "1")
    one = run(tmp_path / "one", *options)
    accumulated = (*options, "--gradient_accumulation_steps", "2") if mixer == "hybrid" else options
    assert processes(2, lambda rank: run(tmp_path / "two", *accumulated)) == [0, 0]
    if mixer == "hybrid":  # a ranking depends on how many images fit into one pass
        assert gradient_norms(tmp_path / "two") == pytest.approx(gradient_norms(one), rel=1e-4)
    assert (tmp_path / "two" / "pipeline").is_dir()


@pytest.mark.slow
def test_the_ranking_finds_the_block_that_hardly_mixes(attention, tmp_path):
    """A block whose attention sees each token alone is a pointwise layer, which ATConv learns at once."""
    folder = tmp_path / "teacher"
    shutil.copytree(attention, folder)
    pipe = SiTPipeline.from_pretrained(folder)
    with torch.no_grad():
        for i, block in enumerate(pipe.transformer.blocks):
            block.mixer.qkv.weight *= 3.0
            if i == 1:
                block.mixer.qkv.weight[-block.mixer.out_proj.in_features :] = 0  # its values are its biases
                block.mixer.qkv.bias[-block.mixer.out_proj.in_features :] = 1
    pipe.save_pretrained(folder)
    run(tmp_path / "run", "--init_from", str(folder), "--mixer", "auto:1", "--learning_rate", "0.01")
    ranking = json.loads((tmp_path / "run" / "graft.json").read_text())
    assert ranking["blocks"] == [1] and ranking["mixer"] == ["attention", "atconv", "attention"]


@pytest.mark.slow
def test_a_teacher_that_the_model_equals_teaches_nothing(attention, tmp_path):
    """Without a graft, the first loss against a teacher is 0 where the model starts as that teacher."""
    folder = run(tmp_path / "run", "--init_from", attention, "--teacher", attention, steps=1)
    assert metrics(folder)[0]["loss"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mixer", "auto:2"), "mixer='auto:2' replaces blocks of a trained model; give --init_from"),
        (("--init_from", "x", "--mixer", "auto:all"), "mixer='auto:all': write the number of blocks"),
        (("--graft_steps", "2"), "graft_steps=2 is for a graft; give --init_from and --mixer"),
        (("--init_from", "x", "--mixer", "hybrid", "--graft_steps", "9"), "must leave some of max_steps=9"),
        (("--init_from", "x", "--mixer", "hybrid", "--graft_steps", "2", "--weight_decay", "0.1"), "weight_decay=0.1"),
        (("--flow_weight", "1"), "flow_weight=1.0 needs a teacher; give --teacher"),
        (("--teacher", "x", "--teacher_weight", "0"), "leave --teacher out"),
        (("--teacher", "x", "--teacher_guidance_scale", "2", "--flow_weight", "1"), "the data are not guided"),
        (("--init_from", "x", "--preset", "SiT-S/2", "--mixer", "hybrid"), "remove: preset='SiT-S/2'"),
        (("--init_from", "nowhere", "--mixer", "hybrid"), "init_from='nowhere' is not a pipeline folder"),
    ],
)
def test_options_that_contradict_each_other(options, message, tmp_path, capsys):
    assert message in refusal(capsys, "--output_dir", str(tmp_path / "run"), "--max_steps", "9", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_models_that_cannot_be_grafted(attention, tmp_path, capsys):
    output = ("--output_dir", str(tmp_path / "run"))
    graft = (*output, "--init_from", attention)
    assert "has already; leave mixer out" in refusal(capsys, *graft, "--mixer", "attention")
    assert "self-attention in 3 blocks; name at most" in refusal(capsys, *graft, "--mixer", "auto:4")
    plain = run(tmp_path / "plain", *SMALL[:4]) / "pipeline"
    assert "no self-attention" in refusal(capsys, *output, "--init_from", str(plain), "--mixer", "hybrid")
    renamed = tmp_path / "renamed"
    shutil.copytree(attention, renamed)
    index = json.loads((renamed / "model_index.json").read_text())
    index["id2label"]["3"] = "three"
    (renamed / "model_index.json").write_text(json.dumps(index))
    regression = ("--mixer", "hybrid", "--graft_steps", "1")
    message = refusal(capsys, *output, "--init_from", str(renamed), *regression)
    assert f"init_from={str(renamed)!r} was trained on other classes" in message
    other = (*graft, "--path", "gvp", "--mixer", "hybrid")
    assert "was trained with linear; give --path linear" in refusal(capsys, *other)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_graft_without_images(attention, tmp_path):
    """A dry run leaves nothing behind, in the cache either; a resumed run goes on with the same samples."""
    options = ("--data", "teacher:40?steps=2", "--init_from", attention, "--teacher", attention, "--mixer", "hybrid")
    options += ("--checkpoint_every", "1", "--keep_checkpoints", "3")
    cache = Path(os.environ["XDG_CACHE_HOME"])
    run(tmp_path / "dry", *options, "--dry_run")
    assert not (tmp_path / "dry").exists() and not (cache / "sit_atconv").exists()
    whole = run(tmp_path / "whole", *options, steps=3)
    run(tmp_path / "parts", *options, steps=3)
    for step in (2, 3):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(cache / "sit_atconv")
    parts = run(tmp_path / "parts", *options, "--resume", "latest", steps=3)
    for name, value in weights(whole / "pipeline").items():
        assert torch.equal(weights(parts / "pipeline")[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["graft", "graft_xl"])
def test_recipes(recipe, attention, tmp_path, capsys):
    """Their heads name the command, whose plan names both stages. The teacher of this test has but three blocks."""
    file = Path(train_sit.__file__).with_name("configs") / f"{recipe}.yaml"
    assert f"--config train/configs/{recipe}.yaml --init_from" in file.read_text()
    AcceleratorState._reset_state(reset_partial_state=True)
    options = [
        "--config",
        str(file),
        "--init_from",
        attention,
        "--teacher",
        attention,
        "--mixer",
        "auto:1",
        "--dry_run",
    ]
    train_sit.main([*options, "--mixed_precision", "no", "--num_workers", "0", "--output_dir", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "unexplained by ATConv" in printed and "and learns its output for" in printed
    assert f"error against {attention}" in printed and not (tmp_path / "run").exists()
