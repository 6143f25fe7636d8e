"""Each option of a training has the effect that it promises, told from what the run writes: numbers, weights, pictures.

Where an optimizer step hides an effect, as AdamW hides the scale of the loss, the gradient is looked at: its norm in
metrics.jsonl, or AdamW's first moment in a checkpoint, which after one step is (1 − β₁) times the gradient.
"""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import train_sit
from PIL import Image
from safetensors.torch import load_file

from sit_atconv import SiTPipeline
from sit_atconv.utils.image_grid import save_grid
from sit_atconv.utils.randomness import image_generator

TINY = ["--model.num_layers", "1", "--batch_size", "32", "--log_every", "1", "--sample_steps", "1"]
TINY += ["--log_with", "none", "--lr_warmup_steps", "0", "--lr_schedule", "constant", "--max_grad_norm", "null"]


def run(folder: Path, *options: str, steps: int = 1) -> Path:
    train_sit.main(["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *options])
    return folder


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tensors(folder: Path, part: str, step: int = 1) -> dict[str, torch.Tensor]:
    """A file of a checkpoint: model, optimizer, ema-…"""
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors")


def first_moments(folder: Path, step: int = 1) -> dict[str, torch.Tensor]:
    """AdamW's running mean of the gradient, by parameter."""
    moments = tensors(folder, "optimizer", step)
    return {name.removesuffix("|exp_avg"): value for name, value in moments.items() if name.endswith("|exp_avg")}


def test_gradients_do_not_depend_on_the_number_of_accumulation_steps(tmp_path):
    norms = {}
    for parts in (1, 2, 4):
        folder = run(tmp_path / str(parts), "--gradient_accumulation_steps", str(parts), steps=2)
        norms[parts] = [line["grad_norm"] for line in metrics(folder)]
    assert norms[2] == pytest.approx(norms[1], rel=1e-4)
    assert norms[4] == pytest.approx(norms[1], rel=1e-4)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    """The norm in the log is the one before clipping."""
    free, clipped = run(tmp_path / "free"), run(tmp_path / "clipped", "--max_grad_norm", "0.125")
    norm = metrics(free)[0]["grad_norm"]
    assert norm > 0.25
    assert metrics(clipped)[0]["grad_norm"] == pytest.approx(norm, rel=1e-6)
    expected = first_moments(free)
    for name, value in first_moments(clipped).items():
        torch.testing.assert_close(value, expected[name] * (0.125 / norm), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("probability", [1e-6, 0.5, 1 - 1e-6])
def test_class_dropout_trains_the_null_class_in_place_of_others(tmp_path, probability):
    # the gradient reaches the label embedding once the layers behind it, which start at zero, have moved
    options = ("--model.class_dropout_prob", str(probability))
    moments = first_moments(run(tmp_path / "run", *options, steps=3), step=3)
    *classes, null = moments["model.class_embed.weight"].abs().sum(1) > 0
    assert any(classes) == (probability < 0.9)
    assert null == (probability > 0.1)


def test_weight_decay_shrinks_weights_without_a_gradient(tmp_path):
    """AdamW's decay is decoupled: w ← (1 − lr·λ)·w. In the first step, the blocks have no gradient yet."""
    plain = run(tmp_path / "plain", "--learning_rate", "0.01")
    decayed = run(tmp_path / "decayed", "--learning_rate", "0.01", "--weight_decay", "5")
    still = [name for name, value in first_moments(plain).items() if not value.any()]
    assert "model.class_embed.weight" in still
    before, after = tensors(plain, "model"), tensors(decayed, "model")
    for name in still:
        name = name.removeprefix("model.")
        torch.testing.assert_close(after[name], 0.95 * before[name], rtol=1e-6, atol=0)


def test_repa_coefficient_scales_the_gradient_of_the_alignment(tmp_path):
    """All of the projector's gradient comes from the alignment, of whatever number of accumulation steps."""
    options = ("--repa", "test_vit.r160_in1k", "--repa_weights", "random", "--repa_depth", "1", "--batch_size", "8")
    half = first_moments(run(tmp_path / "half", *options, "--repa_coefficient", "0.5"))
    two = first_moments(
        run(tmp_path / "two", *options, "--repa_coefficient", "2", "--gradient_accumulation_steps", "2")
    )
    names = [name for name in half if name.startswith("projector.") and name.endswith(".weight")]
    assert len(names) == 3
    for name in names:
        assert half[name].any()
        torch.testing.assert_close(two[name], 4 * half[name], rtol=1e-3, atol=1e-3 * two[name].abs().max().item())


def test_sample_grids_are_drawn_with_their_options(tmp_path):
    """Guidance scale, steps, seed and weights: the grid of the last step shows what the saved pipeline draws."""
    options = ("--learning_rate", "0.01", "--ema_decay", "0.5", "--seed", "3")
    folder = run(tmp_path / "run", *options, "--sample_guidance_scale", "30", "--sample_steps", "2", steps=4)
    pipeline = SiTPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)

    def grid(name: str, **options) -> np.ndarray:
        generators = [image_generator(3, i) for i in range(80)]
        labels = [label for label in range(10) for _ in range(8)]
        images = pipeline(labels, generator=generators, output_type="pt", **options).images
        save_grid(images, tmp_path / name, columns=8)
        return np.asarray(Image.open(tmp_path / name), dtype=int)

    drawn = np.asarray(Image.open(folder / "samples" / "step-00000004.png"), dtype=int)
    guided = grid("guided.png", guidance_scale=30.0, num_inference_steps=2)
    assert np.abs(drawn - guided).max() <= 2
    assert np.abs(drawn - grid("plain.png", guidance_scale=1.0, num_inference_steps=2)).max() > 20
    assert np.abs(drawn - grid("longer.png", guidance_scale=30.0, num_inference_steps=3)).max() > 20


def test_the_average_starts_short(tmp_path):
    """After n updates the decay is (1 + n) / (10 + n), so that the first weights are forgotten soon (and at once)."""
    steps = 4
    options = ("--ema_decay", "0.9999", "--checkpoint_every", "1", "--keep_checkpoints", str(steps))
    folder = run(tmp_path / "run", *options, "--learning_rate", "0.1", steps=steps)
    expected = tensors(folder, "model", 1)
    for step in range(1, steps + 1):
        weights, averaged = tensors(folder, "model", step), tensors(folder, "ema-decay-0.9999", step)
        decay = step / (9 + step)
        for name, value in averaged.items():
            if step > 1:
                expected[name] = decay * expected[name] + (1 - decay) * weights[name]
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_learning_rate_warms_up_and_falls(tmp_path):
    """As logged, and as AdamW applies it: its first step moves a weight by the learning rate."""
    options = ("--checkpoint_every", "1", "--keep_checkpoints", "4")
    rising = run(tmp_path / "rising", "--learning_rate", "0.04", "--lr_warmup_steps", "3", *options, steps=4)
    assert [line["learning_rate"] for line in metrics(rising)] == pytest.approx([0.01, 0.02, 0.03, 0.04])
    falling = run(tmp_path / "falling", "--learning_rate", "0.04", "--lr_schedule", "cosine", steps=4)
    cosine = [0.02 * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    assert [line["learning_rate"] for line in metrics(falling)] == pytest.approx(cosine)
    bias = tensors(rising, "model", 1)["proj_out.bias"]  # from 0; the gradient is far above AdamW's epsilon
    torch.testing.assert_close(bias.abs(), torch.full_like(bias, 0.01), rtol=1e-4, atol=0)


def test_checkpoints_and_pipeline_are_on_the_disk_before_they_are_seen(tmp_path, monkeypatch):
    """Every file and folder is synced before the rename that publishes it, and the folder around it after that."""
    fsync, rename, events = os.fsync, os.rename, []

    def syncing(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        # a file's size tells whether all of it was written by then
        events.append(("sync", status.st_ino, None if stat.S_ISDIR(status.st_mode) else status.st_size))

    def renaming(source, target):
        rename(source, target)
        events.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    folder = run(tmp_path / "run", "--ema_stds", "[0.1]")
    names = ("manifest.json", "state.json", "model.safetensors", "optimizer.safetensors", "ema-decay-0.995.safetensors")
    pipeline = ("transformer/diffusion_pytorch_model.safetensors", "transformer/config.json", "model_index.json")
    for published, files in (
        ("checkpoints/step-00000001", names),
        ("ema/step-00000001", ("manifest.json", "state.json", "std-0.1.safetensors")),
        ("pipeline", pipeline),
    ):
        at = events.index(("rename", str(folder / published)))
        for file in files:
            status = (folder / published / file).stat()
            assert ("sync", status.st_ino, status.st_size) in events[:at], file
            assert ("sync", (folder / published / file).parent.stat().st_ino, None) in events[:at], f"folder of {file}"
        assert ("sync", (folder / published).parent.stat().st_ino, None) in events[at:], f"folder of {published}"
