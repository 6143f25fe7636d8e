import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import train_sit
import yaml
from command_runs import refused, weights
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from sit_atconv import SiTPipeline, SiTTransformer2DModel
from sit_atconv.training.loop import train

TINY = ["--model.num_layers", "2", "--batch_size", "32", "--log_every", "2", "--sample_steps", "2"]


def run(folder: Path, *arguments: str, steps: int = 4) -> Path:
    options = ["--output_dir", str(folder), "--max_steps", str(steps), *TINY, *arguments]
    return train(train_sit.parse_arguments(options))


def refusal(capsys, *options: str) -> str:
    return refused(capsys, train_sit.main, *TINY, *options)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture
def photos(tmp_path):
    """Two classes of noisy colour images, sizes mixed."""
    rng = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(colour, 20, (20 + i, 30, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_run_folder_is_complete(tmp_path):
    pipeline = run(tmp_path / "run", "--sample_every", "2", "--checkpoint_every", "2")
    folder = tmp_path / "run"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["mixer"] == "atconv"
    assert config["max_steps"] == 4
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(np.isfinite(line["loss"]) and line["images_per_second"] > 0 for line in lines)
    assert sorted(file.name for file in (folder / "samples").iterdir()) == ["step-00000002.png", "step-00000004.png"]
    with Image.open(folder / "samples" / "step-00000004.png") as grid:
        assert grid.height > grid.width  # ten classes, one a row of eight
    assert sorted(file.name for file in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    images = SiTPipeline.from_pretrained(pipeline)(["3"], num_inference_steps=2).images
    assert images[0].size == (8, 8)


@pytest.mark.slow
def test_the_pipeline_is_uploaded_with_its_card(online, tmp_path):
    run(tmp_path / "run", "--push_to_hub", "me/digits")
    uploaded = online.repositories["me/digits"]
    assert uploaded["samples.png"] == (tmp_path / "run" / "samples" / "step-00000004.png").read_bytes()
    local = tmp_path / "run" / "pipeline"
    assert uploaded["transformer/diffusion_pytorch_model.safetensors"] == (
        (local / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    card = uploaded["README.md"].decode()
    for text in ("max_steps: 4", 'from_pretrained("me/digits"', "![Samples](samples.png)"):
        assert text in card
    assert str(tmp_path) not in card


def test_an_upload_that_cannot_be_is_refused_before_training(tmp_path, capsys):
    """The tests are offline."""
    message = refusal(capsys, "--push_to_hub", "me/digits", "--output_dir", str(tmp_path / "run"))
    assert "push_to_hub: 'me/digits' cannot be written" in message
    assert not (tmp_path / "run").exists()


def test_pipeline_holds_the_ema_not_the_raw_weights(tmp_path):
    pipeline = run(tmp_path / "run", "--learning_rate", "0.01", "--lr_warmup_steps", "0")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert_same(weights(pipeline), load_file(checkpoint / "ema-decay-0.995.safetensors"))
    raw = load_file(checkpoint / "model.safetensors")
    assert not torch.equal(raw["proj_out.weight"], weights(pipeline)["proj_out.weight"])


@pytest.mark.slow
def test_same_seed_gives_the_same_weights(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert_same(weights(first), weights(second))
    other = run(tmp_path / "c", "--seed", "1")
    assert not torch.equal(weights(other)["proj_out.weight"], weights(first)["proj_out.weight"])


@pytest.mark.slow
def test_accumulation_and_gradient_checkpointing_change_nothing(tmp_path):
    plain = weights(run(tmp_path / "plain"))
    parts = weights(run(tmp_path / "parts", "--gradient_accumulation_steps", "4", "--gradient_checkpointing", "true"))
    for name, value in plain.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_gradients_that_are_not_clipped_are_logged(tmp_path):
    trained = {}
    for limit in ("null", "1e9", "1e-3"):
        trained[limit] = weights(run(tmp_path / limit, "--max_grad_norm", limit, steps=2))
        line = json.loads((tmp_path / limit / "metrics.jsonl").read_text().splitlines()[0])
        assert 1e-3 < line["grad_norm"] < 1e3
    assert_same(trained["null"], trained["1e9"])
    assert any(not torch.equal(value, trained["1e-3"][name]) for name, value in trained["null"].items())


@pytest.mark.slow
def test_resume_of_a_finished_run_writes_the_pipeline(tmp_path):
    """As after a kill between the last checkpoint and the end."""
    expected = weights(run(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run" / "pipeline")
    assert_same(weights(run(tmp_path / "run", "--resume", "latest")), expected)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


@pytest.mark.slow
def test_resume_auto_starts_over_without_a_checkpoint(tmp_path, capsys):
    whole = weights(run(tmp_path / "run", "--resume", "auto"))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "pipeline")
    assert_same(weights(run(tmp_path / "run", "--resume", "auto")), whole)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    options = ["--output_dir", str(tmp_path / "run"), "--max_steps", "4", "--resume", "auto", "--seed", "3"]
    assert "holds another run" in refusal(capsys, *options)


@pytest.mark.slow
def test_killed_saves_are_swept(tmp_path):
    options = vars(train_sit.parse_arguments(["--output_dir", str(tmp_path / "run"), "--mixed_precision", "no", *TINY]))
    (tmp_path / "run" / "checkpoints" / ".staging-step-00000001").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(options))
    run(tmp_path / "run", "--resume", "auto", steps=2)
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_vae_with_missing_weights_is_refused(tmp_path, capsys, photos):
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    vae.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    arguments = ("--data", str(photos), "--image_size", "16", "--vae", str(tmp_path / "vae"))
    assert name in refusal(capsys, "--output_dir", str(tmp_path / "run"), *arguments)


def test_unreadable_checkpoint_is_named(tmp_path, capsys):
    run(tmp_path / "run", steps=2)
    file = tmp_path / "run" / "checkpoints" / "step-00000002" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    message = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--max_steps", "4", "--resume", "latest")
    assert "step-00000002" in message


@pytest.mark.parametrize("mixer", ["attention", "hybrid"])
def test_mixer_flag(tmp_path, mixer):
    pipeline = SiTPipeline.from_pretrained(run(tmp_path / "run", "--mixer", mixer, steps=2))
    assert pipeline.transformer.config.mixer == mixer


@pytest.mark.slow
@pytest.mark.parametrize("prediction, path", [("noise", "vp"), ("data", "gvp"), ("score", "linear")])
def test_other_objectives_train_and_sample(tmp_path, prediction, path):
    pipeline = SiTPipeline.from_pretrained(run(tmp_path / "run", "--prediction", prediction, "--path", path, steps=2))
    assert (pipeline.scheduler.config.prediction, pipeline.scheduler.config.path) == (prediction, path)
    assert np.isfinite(pipeline([0], num_inference_steps=2, output_type="np").images).all()


def test_bf16(tmp_path):
    pipeline = run(tmp_path / "run", "--mixed_precision", "bf16", steps=2)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights(pipeline).values())


@pytest.mark.slow
def test_compiled_blocks_train_the_same(tmp_path, monkeypatch):
    """Through the front end of torch.compile; its code generator is PyTorch's own matter, and takes long."""
    compile, compiled = SiTTransformer2DModel.compile_repeated_blocks, []

    def quickly(self, **options):
        compiled.append(options)
        compile(self, backend="eager", **options)

    monkeypatch.setattr(SiTTransformer2DModel, "compile_repeated_blocks", quickly)
    plain = weights(run(tmp_path / "plain", "--model.num_layers", "1", steps=2))
    fast = weights(run(tmp_path / "fast", "--model.num_layers", "1", "--compile", steps=2))
    assert compiled == [{"fullgraph": True}]
    assert plain.keys() == fast.keys()  # none is named after a wrapper
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_numbers_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "run", "--log_with", "tensorboard")
    run(tmp_path / "run", "--log_with", "tensorboard", "--resume", "latest", steps=6)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == {line["step"]: pytest.approx(line["loss"]) for line in lines}
    assert logged.keys() == {2, 4, 6}


def test_image_folder_in_pixels(tmp_path, photos):
    pipeline = SiTPipeline.from_pretrained(
        run(tmp_path / "run", "--data", str(photos), "--image_size", "16", "--horizontal_flip", "true", steps=2)
    )
    image = pipeline(["blue"], num_inference_steps=2).images[0]
    assert (image.size, image.mode) == ((16, 16), "RGB")


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_image_folder_through_a_vae(tmp_path, photos, kind):
    if kind == "kl":
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
    else:
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    vae.save_pretrained(tmp_path / "vae")
    arguments = ("--data", str(photos), "--image_size", "16", "--vae", str(tmp_path / "vae"))
    pipeline = SiTPipeline.from_pretrained(run(tmp_path / "run", *arguments, steps=2))
    assert pipeline.transformer.config.sample_size == 8
    assert pipeline.transformer.config.in_channels == 4
    assert pipeline(["red"], num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.slow
def test_two_and_four_processes_see_what_one_sees(tmp_path, processes):
    """Data, noise and times do not depend on the number of processes, so the weights agree up to summation order."""
    one = weights(run(tmp_path / "1", "--horizontal_flip", "true", steps=3))
    for count in (2, 4):
        folder = tmp_path / str(count)
        codes = processes(count, lambda rank: run(folder, "--horizontal_flip", "true", steps=3))  # noqa: B023
        assert codes == [0] * count
        several = weights(folder / "pipeline")
        for name, value in one.items():
            torch.testing.assert_close(several[name], value, rtol=1e-3, atol=2e-5)
        # the grids are drawn by turns, and show the same
        pictures = [Image.open(tmp_path / str(n) / "samples" / "step-00000003.png") for n in (1, count)]
        assert np.abs(np.asarray(pictures[0], dtype=int) - np.asarray(pictures[1], dtype=int)).max() <= 2


@pytest.mark.parametrize("flag", ["dry_run", "compile", "gradient_checkpointing", "horizontal_flip"])
def test_switches_need_no_value(flag):
    for arguments in ([f"--{flag}"], [f"--{flag}", "--seed", "1"], [f"--{flag}", "true"], [f"--{flag}=true"]):
        assert getattr(train_sit.parse_arguments(arguments), flag) is True
    assert getattr(train_sit.parse_arguments([f"--{flag}", "false"]), flag) is False


def test_config_file_and_command_line(tmp_path):
    (tmp_path / "config.yaml").write_text("batch_size: 16\nmixer: attention\nmodel: {kernel_size: 5}\n")
    config = train_sit.parse_arguments(["--config", str(tmp_path / "config.yaml"), "--batch_size", "8"])
    assert (config.batch_size, config.mixer, config.model) == (8, "attention", {"kernel_size": 5})


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--mixr", "attention"], "mixr"),
        (["--mixer", "convolution"], "mixer='convolution' is not one of: atconv, attention, "),
        (["--preset", "SiT-Q/2"], "preset='SiT-Q/2' is unknown"),
        (["--model.depth", "3"], "depth"),
        (["--path", "cubic"], "cubic"),
        (["--max_steps", "0"], "max_steps=0"),
        (["--data", "nowhere"], "data='nowhere' does not exist"),
        (["--batch_size", "2000"], "batch_size=2000 exceeds the 1797 images"),
        (["--preset", "SiT-S/4", "--model.patch_size", "3"], "image_size=8 must be divisible by 3"),
        (["--image_size", "12"], "image_size=12"),
        (["--vae", "nowhere/vae"], "vae='nowhere/vae' is not a VAE folder"),
        (["--gradient_accumulation_steps", "3"], "batch_size=32 must be divisible by 3"),
        (["--resume", "latest"], "holds no checkpoint"),
        (["--model.in_channels", "4"], "in_channels follow from"),
        (["--model.class_dropout_prob", "2"], "class_dropout_prob=2"),
        (["--model.class_dropout_prob", "0", "--sample_guidance_scale", "4"], "cannot be guided"),
        (["--seed", "-1"], "seed=-1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, capsys, arguments, expected):
    assert expected in refusal(capsys, "--output_dir", str(tmp_path / "run"), *arguments)
    assert not (tmp_path / "run").exists()


def test_unknown_key_in_config_file(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("batchsize: 16\n")
    assert "batchsize" in refusal(capsys, "--config", str(tmp_path / "config.yaml"))


def test_bad_folders(tmp_path, capsys, photos):
    def message(data):
        return refusal(capsys, "--output_dir", str(tmp_path / "run"), "--data", str(data), "--image_size", "16")

    (tmp_path / "empty").mkdir()
    assert "holds no images and no class folders" in message(tmp_path / "empty")
    (photos / "green").mkdir()
    assert "class folders without images: green" in message(photos)
    (photos / "green").rmdir()
    missing_size = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--data", str(photos))
    assert "image_size must be given" in missing_size


def test_output_folder_of_another_run_is_kept(tmp_path, capsys):
    run(tmp_path / "run", steps=2)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "holds another run" in refusal(capsys, "--output_dir", str(tmp_path / "run"))
    changed = refusal(capsys, "--output_dir", str(tmp_path / "run"), "--resume", "latest", "--learning_rate", "0.5")
    assert "learning_rate: 0.002 -> 0.5" in changed
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_generated_digits_are_recognised(tmp_path, mixer):
    """The proof that generation works: a classifier of real digits knows the class that was asked for."""
    options = ["--mixer", mixer, "--output_dir", str(tmp_path / mixer), "--max_steps", "500", "--sample_every", "500"]
    options += ["--learning_rate", "0.003", "--ema_decay", "0.98"]
    options += ["--model.num_layers", "3", "--model.attention_head_dim", "32"]
    pipeline = SiTPipeline.from_pretrained(train(train_sit.parse_arguments(options)))
    pipeline.set_progress_bar_config(disable=True)
    labels = [label for label in range(10) for _ in range(20)]
    images = pipeline(labels, generator=torch.Generator().manual_seed(0), output_type="np").images  # (200, 8, 8, 1)
    real = load_digits()
    classifier = SVC().fit(real.data / 16, real.target)
    accuracy = (classifier.predict(images.reshape(len(labels), -1)) == labels).mean()
    assert accuracy > 0.65  # chance is 0.1

    # other sizes than the one trained on, square or not, give pictures of strokes, too
    for height, width in ((16, 16), (8, 12)):
        generator = torch.Generator().manual_seed(0)
        images = pipeline([3] * 4, height=height, width=width, generator=generator, output_type="np").images
        assert images.shape == (4, height, width, 1)
        assert 0.1 < images.mean() < 0.6
        assert images.std() > 0.2


@pytest.mark.slow
def test_alignment_is_learned_and_its_projector_left_out_of_the_pipeline(tmp_path):
    options = ["--repa", "test_vit.r160_in1k", "--repa_weights", "random", "--repa_depth", "1", "--log_every", "3"]
    pipeline = run(tmp_path / "run", *options, "--gradient_checkpointing", "true", "--checkpoint_every", "3", steps=6)
    assert not any("projector" in name for name in weights(pipeline))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006"
    assert load_file(checkpoint / "projector.safetensors")["0.weight"].shape == (2048, 96)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["alignment_loss"] < lines[0]["alignment_loss"] < 0.3  # a negative cosine
    whole = load_file(checkpoint / "projector.safetensors")
    for name in ("checkpoints/step-00000006", "pipeline"):
        shutil.rmtree(tmp_path / "run" / name)
    run(tmp_path / "run", *options, "--gradient_checkpointing", "true", "--resume", "latest", steps=6)
    assert_same(load_file(checkpoint / "projector.safetensors"), whole)


@pytest.mark.slow
def test_fine_tuning_starts_from_the_pipeline(tmp_path):
    pipeline = run(tmp_path / "run", "--learning_rate", "0.01")
    options = ["--output_dir", str(tmp_path / "tuned"), "--init_from", str(pipeline), "--max_steps", "1"]
    options += ["--batch_size", "16", "--sample_steps", "1", "--learning_rate", "1e-9", "--lr_warmup_steps", "0"]
    tuned = train(train_sit.parse_arguments(options))
    before, after = weights(pipeline), weights(tuned)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-7)
