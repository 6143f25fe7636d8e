"""Which runs a folder can be continued by."""

import dataclasses
import os

import pytest
import yaml

from sit_atconv.training import run_folder, sit_task, trainer
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.run_folder import check_continues, prepare_run_folder
from sit_atconv.training.stored_config import load_config

DECIDE_ON_THE_RESULT = {
    "image_size",
    "horizontal_flip",
    "init_from",
    "preset",
    "mixer",
    "model",
    "path",
    "prediction",
    "weighting",
    "time_sampling",
    "time_shift",
    "optimizer",
    "noise_scale",
    "batch_size",
    "learning_rate",
    "lr_warmup_steps",
    "lr_schedule",
    "weight_decay",
    "max_grad_norm",
    "ema_decay",
    "ema_stds",
    "ema_snapshot_every",
    "repa",
    "repa_weights",
    "repa_coefficient",
    "repa_depth",
    "mixed_precision",
    "seed",
    "objective",
    "teacher",
    "teacher_weight",
    "teacher_guidance_scale",
    "time_mean",
    "time_std",
    "sigma_floor",
    "repa_projector",
    "repa_spatial_norm",
    "repa_steps",
    "flow_weight",
    "graft_init",
    "graft_steps",
    "meanflow_share",
    "meanflow_tangent",
    "meanflow_data_end_share",
    "meanflow_derivative",
    "meanflow_adaptive_power",
    "meanflow_guidance_scale",
    "meanflow_guidance_mix",
    "meanflow_guidance_warmup_steps",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
}


@pytest.mark.parametrize("resume", ["latest", "auto"])
def test_options_that_decide_on_the_result_cannot_change(resume, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path / "run"), resume=resume, mixed_precision="no")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    saved, refused = dataclasses.asdict(config), set()
    for name in saved:
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(saved | {name: "something else"}))
        try:
            assert prepare_run_folder(config)
        except ValueError as error:
            assert f"{name}: 'something else' -> {saved[name]!r}" in str(error)
            refused.add(name)
    assert refused == DECIDE_ON_THE_RESULT


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "starts.jsonl", "broken_images.txt", "samples", "checkpoints"]
)
def test_run_folder_with_a_link_is_refused_and_nothing_is_written_through_it(name, tmp_path):
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    victim.write_text("precious")
    (run / name).symlink_to(victim)
    for resume in (None, "latest", "auto"):
        with pytest.raises(ValueError, match=rf"run/{name} is a link, and nothing is written through links"):
            prepare_run_folder(TrainConfig(output_dir=str(run), resume=resume))
    assert victim.read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "starts.jsonl", "broken_images.txt", "config.yaml", "tracker_id.txt"]
)
def test_run_folder_with_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    os.mkfifo(run / name)
    for resume in (None, "latest", "auto"):
        with pytest.raises(ValueError, match=rf"run/{name} is a pipe, a socket or a device; remove it"):
            prepare_run_folder(TrainConfig(output_dir=str(run), resume=resume))


def killed_before_its_first_checkpoint(config: TrainConfig) -> None:
    config.run_folder.mkdir()
    (config.run_folder / ".lock").touch()
    (config.run_folder / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    (config.run_folder / "starts.jsonl").touch()


@pytest.mark.parametrize("resume", [None, "latest"])
def test_run_killed_before_its_first_checkpoint_is_started_over_as_its_message_says(resume, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path / "run"), resume=resume)
    killed_before_its_first_checkpoint(config)
    with pytest.raises(ValueError, match="has no checkpoint; start that run over with --resume auto, or ch"):
        prepare_run_folder(config)
    assert prepare_run_folder(dataclasses.replace(config, resume="auto")) is False


@pytest.mark.parametrize("resume", [None, "latest", "auto"])
def test_no_remedy_is_named_that_would_be_refused(resume, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path / "run"), resume=resume)
    killed_before_its_first_checkpoint(config)
    with pytest.raises(
        ValueError, match=r"holds another run \(seed: 0 -> 1\), which has no .*; choose another"
    ) as error:
        prepare_run_folder(dataclasses.replace(config, seed=1))
    assert "--resume" not in str(error.value)
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"seed: 0 -> 1\).*; .*choose another --output_dir") as error:
        prepare_run_folder(dataclasses.replace(config, seed=1))
    assert "--resume" not in str(error.value)


@pytest.mark.parametrize("content", [b"seed: 0\x00", b"[1, 2", b"- seed\n", b"sedd: 0\n", b"\xff"])
def test_damaged_configuration_without_a_checkpoint_is_named(content, tmp_path):
    config = TrainConfig(output_dir=str(tmp_path / "run"), resume="auto")
    killed_before_its_first_checkpoint(config)
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"run/config\.yaml.*; choose another --output_dir"):
        prepare_run_folder(config)


def test_output_folder_is_checked_first(tmp_path, monkeypatch):
    """Before data are scanned, which may take long."""
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sit_task, "build_components", None)
    for name, reason in (("file", "is not a folder"), ("file/run", "cannot be written: "), ("a\0b", "a zero byte")):
        config = TrainConfig(output_dir=str(tmp_path / name), log_with="none")
        with (
            trainer.Trainer(config) as training,
            pytest.raises(ValueError, match=rf"^output_dir='.*' .*{reason}.*; name another$"),
        ):
            training.setup()
    assert (tmp_path / "file").read_text() == "mine"


def test_options_of_a_newer_version_are_named(tmp_path):
    config = TrainConfig(output_dir=str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config) | {"sparkle": 3}))
    with pytest.raises(
        ValueError,
        match=r"do not exist: sparkle; it is damaged, or of a newer version .* or of another training script",
    ):
        load_config(tmp_path)


@pytest.mark.parametrize("name, value", [("vae", [1]), ("model", "x"), ("data", 3), ("output_dir", {"a": 1})])
def test_options_of_another_type_are_damage(tmp_path, name, value):
    config = TrainConfig(output_dir=str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config) | {name: value}))
    with pytest.raises(ValueError, match=rf"^{name}=.* must be (text|names and values)"):
        load_config(tmp_path)


@pytest.mark.parametrize("mean", [None, [0.1, 0.2]])
def test_runs_of_earlier_versions_knew_no_statistics_of_channels(mean, tmp_path, monkeypatch):
    """They continue if their VAE is normalized as it was, and not if it has statistics that nobody used."""
    statistics = {"scaling_factor": 0.5, "shift_factor": 0.0, "latents_mean": mean, "latents_std": mean}
    data = {"images": 3, "vae_statistics": statistics}
    checkpoint = tmp_path / "step-00000001"
    monkeypatch.setattr(run_folder, "read_state", lambda path: {"step": 1, "data": {"images": 3}})
    config = TrainConfig(output_dir=str(tmp_path))
    if mean is None:
        check_continues(config, data, checkpoint)
    else:
        with pytest.raises(ValueError, match="was trained on other data: vae_statistics"):
            check_continues(config, data, checkpoint)
