"""The command line of training: ~ is the home folder in YAML files and in every spelling of an option."""

import os
from pathlib import Path

import pytest

from sit_atconv.training.command_line import parse_arguments


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_home_is_expanded(home):
    (home / "options.yaml").write_text("data: latents:~/latents\noutput_dir: ~/runs/a\nvae: ~/vae\n")
    for folder in ("latents", "photos", "vae"):
        (home / folder).mkdir()
    for file in ("--config=~/options.yaml", "--config=options.yaml"):
        config = parse_arguments([file])
        assert config.data == f"latents:{home}/latents"
        assert (config.output_dir, config.vae) == (f"{home}/runs/a", f"{home}/vae")
    config = parse_arguments(["--output_dir=~/b", "--data", "~/photos"])
    assert (config.data, config.output_dir) == (f"{home}/photos", f"{home}/b")
    assert parse_arguments(["--output_dir=./~"]).output_dir == "./~"  # whoever means it
    assert sorted(os.listdir(home)) == ["latents", "options.yaml", "photos", "vae"]


def test_switches_need_no_value():
    assert parse_arguments(["--dry_run"]).dry_run and parse_arguments(["--dry_run", "--seed", "3"]).dry_run
    assert not parse_arguments(["--dry_run", "false"]).dry_run
