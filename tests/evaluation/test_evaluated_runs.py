"""Reports and training times as a comparison reads them."""

import json

import pytest

from sit_atconv.evaluation.evaluated_runs import REQUIRED, read_report, training_hours


def test_reports_that_do_not_say_enough(tmp_path):
    file = tmp_path / "fid.json"
    whole = {"fid": 1.0, **dict.fromkeys(REQUIRED, "known")}
    cases = [
        ("{", "is incomplete"),
        (json.dumps(whole | {"fid": float("nan")}), "fid=nan is not a finite number"),
        (json.dumps(whole | {"model_sha256": None}), "does not record model_sha256"),
        (json.dumps({name: value for name, value in whole.items() if name != "notes"}), "does not record notes"),
    ]
    for text, part in cases:
        file.write_text(text)
        with pytest.raises(ValueError, match=part) as error:
            read_report(file)
        assert str(file) in str(error.value)
    file.write_text(json.dumps({"class_accuracy": 0.5}))
    assert read_report(file) is None
    file.write_text(json.dumps(whole))
    assert read_report(file) == whole


def test_training_hours(tmp_path):
    lines = [
        {"step": 10, "images_per_second": 100.0},
        {"step": 15, "skipped": True},
        {"step": 20, "images_per_second": 50.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hours = training_hours(tmp_path, {"batch_size": 10}, [10, 20])
    assert hours == pytest.approx({10: 1 / 3600, 20: 3 / 3600})
