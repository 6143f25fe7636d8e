"""Which duel a folder holds: the same one in every spelling and place; another one is refused, and nothing else is."""

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from sit_atconv.evaluation.duel_folder import SETTINGS, check_output, describe, scored_alike, write_settings
from sit_atconv.evaluation.duel_options import Duel


def duel(folder: Path | str, **changes) -> Duel:
    options = {
        "output": str(folder),
        "models": {"A": {"mixer": "attention"}, "B": {"mixer": "atconv"}},
        "train": {"batch_size": 8},
        "sampling": {"num_samples": 4},
        "metrics": {"extractor": "pixels"},
    }
    return Duel(**{**options, **changes})


def start_run(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "config.yaml").touch()


@pytest.fixture
def started(tmp_path) -> Path:
    """The folder of a duel of which a run of each model was started."""
    write_settings(duel(tmp_path / "d"))
    for name in ("A-seed0", "B-seed0"):
        start_run(tmp_path / "d", name)
    return tmp_path / "d"


def test_a_mistake_can_be_mended_before_anything_is_trained(tmp_path):
    write_settings(duel(tmp_path / "d", train={"batch_size": 10**9}, max_steps=5, metrics={}))
    (tmp_path / "d" / ".lock").touch()
    check_output(duel(tmp_path / "d"))
    start_run(tmp_path / "d", "A-seed0")
    with pytest.raises(ValueError, match=r"holds another duel \(max_steps, metrics, train differ\); name a new folder"):
        check_output(duel(tmp_path / "d"))


def test_a_mistake_in_a_model_that_was_not_started_can_be_mended(tmp_path):
    mistaken = {"A": {"mixer": "attention"}, "B": {"mixer": "attension"}}
    write_settings(duel(tmp_path / "d", models=mistaken))
    start_run(tmp_path / "d", "A-seed0")
    check_output(duel(tmp_path / "d"))
    start_run(tmp_path / "d", "B-seed3")
    with pytest.raises(ValueError, match=r"\(models\.B differ\)"):
        check_output(duel(tmp_path / "d"))


def test_a_duel_is_the_same_in_another_place_and_spelling(started, monkeypatch):
    monkeypatch.chdir(started.parent)
    for folder in ("d", "./d", "d/", str(started), "../" + str(started.relative_to(started.parent.parent))):
        check_output(duel(folder))
    started.rename("moved")
    check_output(duel("moved", device="cpu", launch="accelerate launch"))


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"extractor": "pixels", "metrics": "fid", "bootstrap": 0, "num_workers": 2}},
        {"sampling": {"num_samples": 4, "seed": 0, "guidance_interval": [0, 1]}},
        {"sampling": {"num_samples": 4, "dtype": "float32"}},
        {
            "train": {},
            "models": {"A": {"mixer": "attention", "batch_size": 8}, "B": {"mixer": "atconv", "batch_size": 8}},
        },
        {"seeds": [0, 1], "latency_repeats": 3, "inference_steps": [2]},
        {"models": {"A": {"mixer": "attention"}, "B": {"mixer": "atconv"}, "C": {}}},
        {"models": {"A": {"mixer": "attention"}, "C": {}}},
    ],
)
def test_options_are_the_same_in_another_spelling(started, changes):
    check_output(duel(started, **changes))


def test_paths_are_the_same_in_another_spelling(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_settings(duel("d", reference="photos", train={"data": "./photos"}))
    start_run(tmp_path / "d", "A-seed0")
    os.symlink("photos", "link")
    for spelling in ("photos", "photos/", str(tmp_path / "photos"), "~/photos", "link"):
        check_output(duel("d", reference=spelling, train={"data": spelling}))
    with pytest.raises(ValueError, match=r"\(reference, train differ\)"):
        check_output(duel("d", reference="other", train={"data": "other"}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_steps": 5}, "max_steps"),
        ({"reference": "other"}, "reference"),
        ({"sampling": {"num_samples": 5}}, "sampling"),
        ({"sampling": {"num_samples": 4, "dtype": "bfloat16"}}, "sampling"),
        ({"metrics": {"extractor": "pixels", "bootstrap": 20}}, "metrics"),
        ({"train": {"batch_size": 9}}, "train"),
        ({"models": {"A": {"mixer": "atconv"}, "B": {"mixer": "atconv"}}}, "models.A"),
    ],
)
def test_another_duel_is_refused(started, changes, named):
    with pytest.raises(ValueError, match=rf"holds another duel \({named} differ\); name a new folder"):
        check_output(duel(started, **changes))


def test_other_files_are_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds other files \('notes.txt'\)"):
        check_output(duel(tmp_path))
    with pytest.raises(ValueError, match="is not a folder"):
        check_output(duel(tmp_path / "notes.txt"))


@pytest.mark.parametrize("text", ["", "models: [", "- 1", "models: 3", "sampling: {no: 1}", "\x00"])
def test_damaged_settings_are_named(started, text):
    (started / SETTINGS).write_text(text)
    with pytest.raises(ValueError, match=r"duel\.yaml is damaged .*; restore it, or name a new folder"):
        check_output(duel(started))


def test_earlier_versions_wrote_the_output_as_well(started):
    settings = describe(duel(started)) | {"output": "elsewhere"}
    (started / SETTINGS).write_text(yaml.safe_dump(settings))
    check_output(duel(started))
    assert "output" not in describe(duel(started)) and "output" in dataclasses.asdict(duel(started))


def test_scores_are_the_same_in_another_spelling():
    requested = {"metrics": {"extractor": "pixels"}, "sampling": {"num_samples": 4}, "reference": "digits"}
    assert scored_alike(requested | {"sampling": {"num_samples": 4, "labels": "balanced"}}, requested)
    assert not scored_alike(requested | {"sampling": {"num_samples": 5}}, requested)
    assert not scored_alike(requested | {"reference": "photos"}, requested)
    for other in (None, [], {}, {"metrics": 3, "sampling": {}, "reference": ""}, requested | {"metrics": {"old": 1}}):
        assert not scored_alike(other, requested)
