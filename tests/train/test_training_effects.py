"""Each option of a training has the effect that it promises, told from what the run writes: numbers, weights, pictures.

Where an optimizer step hides an effect, as AdamW hides the scale of the loss, the gradient is looked at: its norm in
metrics.jsonl, or AdamW's first moment in a checkpoint, which after one step is (1 − β₁) times the gradient.
"""

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
import train_sit
from command_runs import metrics
from PIL import Image
from safetensors.torch import load_file

from sit_atconv import SiTPipeline, SiTTransformer2DModel
from sit_atconv.training.runlog import Stopwatch
from sit_atconv.training.samples import MIN_TILE
from sit_atconv.utils.files import folder_lock
from sit_atconv.utils.image_grid import save_grid
from sit_atconv.utils.randomness import image_generator

TINY = ["--model.num_layers", "1", "--batch_size", "32", "--log_every", "1", "--sample_steps", "1"]
TINY += ["--log_with", "none", "--lr_warmup_steps", "0", "--lr_schedule", "constant", "--max_grad_norm", "null"]


def run(folder: Path, *options: str, steps: int = 1) -> Path:
    train_sit.main(["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *options])
    return folder


def tensors(folder: Path, part: str, step: int = 1) -> dict[str, torch.Tensor]:
    """A file of a checkpoint: model, optimizer, ema-…"""
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors")


def first_moments(folder: Path, step: int = 1) -> dict[str, torch.Tensor]:
    """AdamW's running mean of the gradient, by parameter."""
    moments = tensors(folder, "optimizer", step)
    return {name.removesuffix("|exp_avg"): value for name, value in moments.items() if name.endswith("|exp_avg")}


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_number_of_accumulation_steps(tmp_path):
    norms = {}
    for parts in (1, 2, 4):
        folder = run(tmp_path / str(parts), "--gradient_accumulation_steps", str(parts), steps=2)
        norms[parts] = [line["grad_norm"] for line in metrics(folder)]
    assert norms[2] == pytest.approx(norms[1], rel=1e-4)
    assert norms[4] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_number_of_processes(tmp_path, processes):
    """Each of which accumulates, and takes part in one sum at the end."""
    options = ("--gradient_accumulation_steps", "2")
    one = run(tmp_path / "one", *options, steps=2)
    assert processes(2, lambda rank: run(tmp_path / "two", *options, steps=2)) == [0, 0]
    norms = [[line["grad_norm"] for line in metrics(folder)] for folder in (one, tmp_path / "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    for name, value in first_moments(one, step=2).items():
        torch.testing.assert_close(first_moments(tmp_path / "two", step=2)[name], value, rtol=1e-3, atol=1e-6)


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


@pytest.mark.slow
def test_muon_has_the_matrices_of_the_blocks_and_is_resumed_to_the_bit(tmp_path):
    options = ("--optimizer", "muon", "--repa", "test_vit.r160_in1k", "--repa_weights", "random", "--repa_depth", "1")
    options += ("--model.kernel_groups", "2")  # with biases of two axes
    whole = run(tmp_path / "whole", *options, "--checkpoint_every", "2", steps=4)
    state = tensors(whole, "optimizer", 4)
    slots = {name.partition("|")[0]: [] for name in state}
    for name in state:
        slots[name.partition("|")[0]].append(name.rpartition("|")[2])
    parameters = {part: tensors(whole, part, 4) for part in ("model", "projector")}
    for name, found in slots.items():
        part, _, key = name.partition(".")
        is_bias = key.endswith("bias")
        is_matrix = key.startswith("blocks.") and parameters[part][key].ndim == 2 and not is_bias
        assert (found == ["momentum_buffer"]) == is_matrix, name
        assert is_matrix or sorted(found) == ["exp_avg", "exp_avg_sq", "step"]
    files = {
        file: file.read_bytes() for file in sorted((whole / "checkpoints" / "step-00000004").glob("*.safetensors"))
    }
    for name in ("checkpoints/step-00000004", "pipeline"):
        shutil.rmtree(whole / name)
    run(whole, *options, "--checkpoint_every", "2", "--resume", "latest", steps=4)
    assert {file: file.read_bytes() for file in files} == files


def test_the_scale_of_the_noise_is_trained_with_and_kept_in_the_pipeline(tmp_path):
    """Before the first step, the network says 0, and the loss is the mean square of the noise that it should say."""
    one, two = (run(tmp_path / scale, "--prediction", "noise", "--noise_scale", scale) for scale in ("1", "2"))
    assert metrics(two)[0]["loss"] == pytest.approx(4 * metrics(one)[0]["loss"], rel=1e-6)
    scheduler = SiTPipeline.from_pretrained(two / "pipeline").scheduler
    assert (scheduler.config.noise_scale, scheduler.config.prediction) == (2.0, "noise")


@pytest.mark.slow
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


@pytest.mark.slow
def test_repa_coefficient_scales_the_gradient_of_the_alignment(tmp_path):
    """All of the projector's gradient comes from the alignment, of whatever number of accumulation steps."""
    options = ("--repa", "test_vit.r160_in1k", "--repa_weights", "random", "--repa_depth", "1", "--batch_size", "8")
    half = first_moments(run(tmp_path / "half", *options, "--repa_coefficient", "0.5"))
    two = first_moments(
        run(tmp_path / "two", *options, "--repa_coefficient", "2", "--gradient_accumulation_steps", "2")
    )
    logged = [metrics(tmp_path / name)[0]["alignment_loss"] for name in ("half", "two")]
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    names = [name for name in half if name.startswith("projector.") and name.endswith(".weight")]
    assert len(names) == 3
    for name in names:
        assert half[name].any()
        torch.testing.assert_close(two[name], 4 * half[name], rtol=1e-3, atol=1e-3 * two[name].abs().max().item())


@pytest.mark.slow
def test_alignment_of_irepa_ends_after_its_steps(tmp_path):
    options = ("--repa", "test_vit.r160_in1k", "--repa_weights", "random", "--repa_depth", "1", "--batch_size", "8")
    options += ("--repa_projector", "conv", "--repa_spatial_norm", "0.6", "--repa_steps", "2")
    folder = run(tmp_path / "run", *options, steps=3)
    logged = [line["alignment_loss"] for line in metrics(folder)]
    assert logged[0] != 0 and logged[1] != 0 and logged[2] == 0
    assert tensors(folder, "projector", 3)["weight"].shape[2:] == (3, 3)


def first_loss(folder: Path, *options: str) -> float:
    """Of a network that still returns 0 everywhere, so that it is the mean square of what it should return."""
    return metrics(run(folder, *options))[0]["loss"]


@pytest.mark.slow
def test_path_and_prediction_decide_on_the_target(tmp_path):
    """Noise: of variance one. Data: pixels. Velocity of the linear path: data minus noise, which are independent."""
    losses = {name: first_loss(tmp_path / name, "--prediction", name) for name in ("velocity", "noise", "data")}
    assert losses["noise"] == pytest.approx(1, abs=0.1)
    assert 0.3 < losses["data"] < 0.9
    assert losses["velocity"] == pytest.approx(losses["noise"] + losses["data"], abs=0.1)
    # π/2 times noise and data mixed by sine and cosine
    gvp = first_loss(tmp_path / "gvp", "--path", "gvp")
    assert gvp == pytest.approx((np.pi / 2) ** 2 * (losses["noise"] + losses["data"]) / 2, rel=0.15)


@pytest.mark.slow
def test_weighting_and_times_of_the_loss(tmp_path):
    """A huge shift moves all times to t = ε = 0.001, where the weights are 1 / t² and 1 / (t (1 − t))."""
    options = ("--prediction", "noise", "--time_shift", "1e9")
    plain, velocity, likelihood = (
        first_loss(tmp_path / weighting, *options, "--weighting", weighting)
        for weighting in ("none", "velocity", "likelihood")
    )
    assert plain == pytest.approx(1, abs=0.1)
    assert velocity / plain == pytest.approx(1e6, rel=1e-2)
    assert likelihood / plain == pytest.approx(1e3, rel=1e-2)

    lines = {
        sampling: metrics(run(tmp_path / sampling, "--prediction", "noise", "--time_sampling", sampling))[0]
        for sampling in ("uniform", "logit-normal")
    }
    assert lines["uniform"]["loss"] == pytest.approx(lines["logit-normal"]["loss"], rel=1e-5)  # the same noise
    assert lines["uniform"]["loss_by_time"] != lines["logit-normal"]["loss_by_time"]


@pytest.mark.slow
def test_the_seed_decides_on_weights_images_and_noise(tmp_path):
    for prediction in ("data", "noise"):  # of which the first loss depends on the images alone, and on the noise
        losses = [
            first_loss(tmp_path / f"{prediction}{seed}", "--prediction", prediction, "--seed", seed) for seed in "01"
        ]
        assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    weights = [tensors(tmp_path / f"noise{seed}", "model")["class_embed.weight"] for seed in "01"]
    assert (weights[0] - weights[1]).abs().mean() > 0.01


@pytest.mark.slow
def test_what_is_kept_and_when(tmp_path):
    options = ["--checkpoint_every", "1", "--keep_checkpoints", "1", "--keep_every", "2", "--sample_every", "3"]
    folder = run(tmp_path / "run", *options, "--ema_stds", "[0.1]", "--ema_snapshot_every", "2", steps=5)

    def steps(name: str) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in (folder / name).iterdir())

    assert steps("checkpoints") == [2, 4, 5]
    assert steps("ema") == [2, 4, 5]
    assert steps("samples") == [3, 5]


@pytest.mark.slow
def test_speed_counts_the_images_since_the_last_line(tmp_path, monkeypatch):
    counted, read = [], Stopwatch.read
    monkeypatch.setattr(Stopwatch, "read", lambda self, images: counted.append(images) or read(self, images))
    run(tmp_path / "run", "--log_every", "2", "--checkpoint_every", "3", steps=3)
    assert counted == [64, 32]
    run(tmp_path / "run", "--log_every", "2", "--resume", "latest", steps=4)
    assert counted == [64, 32, 32]


def test_gradient_checkpointing_is_switched_on(tmp_path, monkeypatch):
    switched, switch = [], SiTTransformer2DModel.enable_gradient_checkpointing
    monkeypatch.setattr(
        SiTTransformer2DModel, "enable_gradient_checkpointing", lambda self: switched.append(1) or switch(self)
    )
    run(tmp_path / "run", "--gradient_checkpointing")
    assert switched == [1]


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
        save_grid(images, tmp_path / name, 8, MIN_TILE, [str(digit) for digit in range(10)])
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_run_folder_is_locked_until_all_is_written(tmp_path, processes, monkeypatch):
    def take(rank: int) -> None:
        with folder_lock(tmp_path / "run"):
            pass

    def refused(rank: int) -> None:
        with pytest.raises(ValueError, match="another process is writing to it"):
            take(rank)

    codes, save = [], SiTPipeline.save_pretrained

    def saving(*arguments, **options):
        codes.extend(processes(1, refused))
        save(*arguments, **options)

    monkeypatch.setattr(SiTPipeline, "save_pretrained", saving)
    run(tmp_path / "run")
    run(tmp_path / "run", "--resume", "latest", steps=2)
    assert codes == [0, 0]
    assert processes(1, take) == [0]


@pytest.mark.slow
def test_what_killed_saves_have_left_is_removed_at_the_start(tmp_path):
    """Even where no further checkpoint is written, since the run has only its pipeline to save."""
    folder = run(tmp_path / "run")
    (folder / "checkpoints" / ".staging-step-00000002").mkdir()
    run(folder, "--resume", "latest")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000001"]


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
