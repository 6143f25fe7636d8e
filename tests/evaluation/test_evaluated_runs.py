"""Reports and training times as a comparison reads them."""

import json
from pathlib import Path

import pytest

from sit_atconv.evaluation.evaluated_runs import (
    REQUIRED,
    SAMPLED_ALIKE,
    Run,
    check_runs,
    choose_finals,
    load_run,
    read_report,
    training_hours,
)
from sit_atconv.evaluation.records import folder_sha256
from sit_atconv.training.config import TrainConfig

WHOLE = {
    "fid": 1.0,
    **dict.fromkeys(("model_sha256", "labels", "device", "samples", "reference", "extractor", "resize"), "known"),
    **dict.fromkeys(("seed", "num_inference_steps", "num_samples", "num_features"), 0),
    "notes": [],
    "versions": {"torch": "2", "timm": None},
}


def test_reports_that_do_not_say_enough(tmp_path):
    assert WHOLE.keys() == {"fid", *REQUIRED}
    file = tmp_path / "fid.json"
    whole = WHOLE
    cases = [
        ("{", "is damaged, or no JSON: .*; make that report again"),
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


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fid_interval", ["x", [1.0], [1.0, None], [1.0, float("inf")], 3, [[1], [2]]]),
        ("fid_resampled", [1, [1.0, "x"], {"a": 1.0}]),
        ("kid", ["x", True, float("nan"), 10**400]),
        ("step", ["3", 1.5, -1, True, 10**12]),
        ("seed", ["0", -1, 2**63]),
        ("num_samples", ["70", [], True]),
        ("seconds_per_image", ["1", -1.0, 10**400, {}]),
        ("network_calls_per_image", ["1", [2.0], True]),
        ("notes", ["text", [1], [["a"]], 1, {}]),
        ("versions", ["2", [], {"torch": 2}]),
        ("samples", [["a"], 1, {}]),
        ("scheduler", ["x", {"class": "X"}, {"class": 1, "config": {}}, {"class": "X", "config": []}]),
        ("reference_sha256", [7, ["x"]]),
    ],
)
def test_entries_of_another_kind_are_named(tmp_path, name, values):
    file = tmp_path / "fid.json"
    for value in values:
        file.write_text(json.dumps(WHOLE | {name: value}))
        with pytest.raises(ValueError, match=rf"fid\.json is damaged \({name}=.*\); make that report again") as error:
            read_report(file)
        assert len(str(error.value)) < len(str(file)) + 120


def test_what_was_not_measured_is_no_damage(tmp_path):
    file = tmp_path / "fid.json"
    for absent in ("kid_interval", "seconds_per_image", "weights_sha256", "guidance_interval", "num_reference"):
        file.write_text(json.dumps(WHOLE | {absent: None}))
        assert read_report(file) == WHOLE | {absent: None}


@pytest.mark.parametrize(
    "line", ['{"step": 9' + "9" * 400 + ', "images_per_second": 1}', '{"step": -1}', '{"step": true}',
             '{"step": 1, "images_per_second": 1e-320}', '{"step": 1, "images_per_second": true}']
)  # fmt: skip
def test_numbers_of_the_log_that_cannot_be_meant_are_named(tmp_path, line):
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is damaged"):
        training_log(tmp_path, line + "\n")


def test_training_hours(tmp_path):
    lines = [
        {"step": 10, "images_per_second": 100.0},
        {"step": 15, "skipped": True},
        {"step": 20, "images_per_second": 50.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hours = training_hours(tmp_path, {"batch_size": 10}, [10, 20])
    assert hours == pytest.approx({10: 1 / 3600, 20: 3 / 3600})


def training_log(folder: Path, text: str) -> dict[int, float]:
    (folder / "metrics.jsonl").write_text(text)
    return training_hours(folder, {"batch_size": 10}, [10])


def test_a_log_cut_short_is_read_up_to_there(tmp_path):
    line = json.dumps({"step": 10, "images_per_second": 100.0})
    for end in ("", "\n", '\n{"step": 20, "ima', "\n{", "\n\x00\x00"):
        assert training_log(tmp_path, line + end) == pytest.approx({10: 1 / 3600})
    assert training_log(tmp_path, "") == {}


@pytest.mark.parametrize(
    "damage",
    [
        '{"step": 5, "ima',
        "[]",
        "3",
        "{}",
        '{"step": "5"}',
        '{"step": 5, "images_per_second": 0}',
        '{"step": 5, "images_per_second": "fast"}',
        '{"step": 5, "images_per_second": Infinity}',
        "[" * 100_000,
    ],
)
def test_a_damaged_line_of_the_log_is_named(tmp_path, damage):
    line = json.dumps({"step": 10, "images_per_second": 100.0})
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged; remove that line, or the file"):
        training_log(tmp_path, f"{line}\n{damage}\n{line}\n")
    assert training_log(tmp_path, f"{line}\n{line}\n")  # the remedy


@pytest.fixture
def run_folder(tmp_path):
    """Function: make a run with these reports, by file name, each with its changes."""

    def make(name: str, **reports: dict) -> Path:
        folder = tmp_path / name
        (folder / "pipeline").mkdir(parents=True)
        (folder / "evaluation").mkdir()
        (folder / "pipeline" / "config.json").write_text(name)
        (folder / "config.yaml").write_text("max_steps: 10\nseed: 0\nbatch_size: 8\n")
        fits = WHOLE | {"model_sha256": folder_sha256(folder / "pipeline")}
        for file, changes in reports.items():
            (folder / "evaluation" / f"{file}.json").write_text(json.dumps(fits | changes))
        return folder

    return make


@pytest.mark.parametrize("stale", ["a", "z"])
def test_the_report_of_the_runs_weights_counts(run_folder, stale):
    """Whatever the names of the files: a pipeline that was evaluated again has a report of its old weights, too."""
    old = {"model_sha256": "0" * 64, "fid": 9.0, "num_samples": 7}
    runs = [load_run(run_folder("SA-seed0", m={})), load_run(run_folder("ATConv-seed0", **{"m": {}, stale: old}))]
    assert [run.final["fid"] for run in runs] == [1.0, 1.0]
    assert check_runs(runs) == []


def test_without_a_report_of_the_weights_a_command_makes_one(run_folder):
    runs = [load_run(run_folder("SA", m={})), load_run(run_folder("ATConv", m={"model_sha256": "0" * 64}))]
    with pytest.raises(ValueError, match=r"m\.json is of other weights than .*; make one with python eval/fid\.py"):
        check_runs(runs)


def test_reports_that_were_sampled_alike_are_shown(run_folder):
    more = {"num_inference_steps": 50, "network_calls_per_image": 100, "fid": 3.0}
    runs = [load_run(run_folder("SA", a={}, b=more)), load_run(run_folder("ATConv", a={}))]
    assert runs[0].final["fid"] == 3.0
    choose_finals(runs)
    assert [run.final["fid"] for run in runs] == [1.0, 1.0] and check_runs(runs) == []
    runs = [load_run(run_folder("B", a={}, b=more)), load_run(run_folder("C", a={}, b=more))]
    choose_finals(runs)
    assert [run.final["fid"] for run in runs] == [3.0, 3.0]
    runs = [load_run(run_folder("D", a={})), load_run(run_folder("E", b=more))]
    choose_finals(runs)
    with pytest.raises(ValueError, match=r"in different ways \(num_inference_steps: 0 and 50\); sample both"):
        check_runs(runs)
    assert "num_inference_steps" in SAMPLED_ALIKE


def test_a_run_has_a_name_however_it_is_given(run_folder, monkeypatch):
    folder = run_folder("SA-seed0", a={})
    for place, spelling in ((folder, "."), (folder / "pipeline", ".."), (folder.parent, "SA-seed0/"), ("/", folder)):
        monkeypatch.chdir(place)
        assert load_run(Path(spelling)).model == "SA"
    folder.rename(folder.with_name("-seed3"))
    assert load_run(folder.with_name("-seed3")).model == "-seed3"
    folder.with_name("-seed3").rename(folder.with_name("a\x1b[2J\nb"))
    assert load_run(folder.with_name("a\x1b[2J\nb")).model == r"a\x1b[2J\nb"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_steps: [",
        "[" * 3000,
        "- 1",
        "max_steps: 10\nseed: 0\n",
        "\x00",
        "seed: x",
        "max_steps: 10\nseed: 0\nbatch_size: 8\n1: 2",
    ],
)
def test_a_damaged_configuration_is_named(run_folder, text):
    folder = run_folder("SA", a={})
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml.*.*; restore it"):
        load_run(folder)


def test_final_report_of_steps_that_the_duel_names():
    reports = [{"step": 1, "num_inference_steps": steps} for steps in (10, 25)]
    assert Run(Path("a"), "a", 0, {}, reports).final == reports[1]
    assert Run(Path("a"), "a", 0, {}, reports, final_inference_steps=10).final == reports[0]


def test_reports_from_before_an_option_of_schedulers_existed_can_be_compared(run_folder):
    config = {"solver": "midpoint"}
    runs = [
        load_run(run_folder(name, a={"scheduler": {"class": "InterpolantODEScheduler", "config": {**config, **newer}}}))
        for name, newer in (("SA", {}), ("ATConv", {"noise_scale": 1.0}), ("hybrid", {"noise_scale": 0.5}))
    ]
    assert check_runs(runs[:2]) == []
    with pytest.raises(ValueError, match="in different ways"):
        check_runs(runs)


def test_what_recipes_differ_in_is_said_once_for_all_runs_that_share_it(run_folder):
    folders = [run_folder(name, a={}) for name in ("SA", "ATConv", "gate", "hybrid")]
    for folder, options in zip(
        folders, ("", "noise_scale: 1.0\n", "learning_rate: 0.5\n", "learning_rate: 0.5\n"), strict=True
    ):
        with (folder / "config.yaml").open("a") as file:  # noise_scale: as it always was
            file.write(options)
    default = TrainConfig().learning_rate
    assert check_runs(list(map(load_run, folders))) == [f"learning_rate: {default} in SA, 0.5 in gate, hybrid"]
