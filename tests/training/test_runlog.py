import json
from dataclasses import asdict

import pytest
import torch
from PIL import Image

from sit_atconv.training import runlog
from sit_atconv.training.loss_plot import plot_metrics
from sit_atconv.training.runlog import MetricsFile, Stopwatch, Window, read_metrics
from sit_atconv.training.step_report import TIME_BINS, StepReport


def step_report(losses=(), t=(), grad_norm=0.0, alignment=0.0, device="cpu") -> StepReport:
    report = StepReport.zeros(device)
    report.add_losses(torch.tensor(losses, device=device), torch.tensor(t, device=device))
    report.grad_norm += grad_norm
    report.alignment += alignment
    return report


def test_window_averages_over_samples_and_starts_anew():
    window = Window()
    window.add(step_report([1.0, 3.0], [0.1, 0.2], grad_norm=2.0, alignment=-0.5))
    window.skip()
    window.add(step_report([5.0], [0.1], grad_norm=4.0, alignment=-0.1))
    copy = Window(**json.loads(json.dumps(vars(window))))  # as through a checkpoint
    for current in (window, copy):
        values = current.close()
        assert values["loss"] == 3.0
        assert values["loss_by_time"][1:3] == [3.0, 3.0]
        assert values["loss_by_time"][5] is None
        assert (values["grad_norm"], values["grad_norm_max"]) == (3.0, 4.0)
        assert values["alignment_loss"] == pytest.approx(-0.3)
        assert values["skipped_steps"] == 1
        assert current == Window()
    assert window.close()["loss"] is None


def test_window_keeps_the_largest_norm():
    window = Window()
    for norm in (2.0, 4.0, 3.0):
        window.add(step_report([1.0], [0.1], grad_norm=norm))
    assert window.close()["grad_norm_max"] == 4.0


def test_stopwatch_leaves_out_what_it_is_paused_for(monkeypatch):
    now = 100.0
    monkeypatch.setattr(runlog.time, "perf_counter", lambda: now)

    def batches():
        nonlocal now
        while True:
            now += 2.0  # waiting for data
            yield "batch"

    watch, iterator = Stopwatch(), batches()
    assert watch.next(iterator) == "batch"
    now += 6.0
    with watch.paused():
        now += 1000.0
    assert watch.read(40) == {"images_per_second": 5.0, "data_wait": 0.25}
    now += 10.0
    assert watch.read(40) == {"images_per_second": 4.0, "data_wait": 0.0}  # since the last reading


def test_metrics_are_continued_from_a_step_and_plotted(tmp_path):
    values = {"loss": 1.0, "loss_by_time": [1.0] * 9 + [None], "grad_norm": 0.5}
    with MetricsFile(tmp_path / "metrics.jsonl", 0) as metrics:
        for step in (1, 2, 3):
            metrics.write(step, **values)
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 4, "lo')
    with MetricsFile(tmp_path / "metrics.jsonl", 2) as metrics:
        metrics.write(3, skipped=True)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]


def test_a_single_line_of_metrics_is_seen_in_the_plot(tmp_path):
    with MetricsFile(tmp_path / "metrics.jsonl", 0) as metrics:
        metrics.write(1, loss=1.0, loss_by_time=None, grad_norm=0.5)
    plot_metrics(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert (31, 119, 180) in colours  # the first one of matplotlib


def test_only_lines_of_this_file_are_read(tmp_path):
    window = {"step": 2, "loss": 1.0, "loss_by_time": [1.0] * 9 + [None], "grad_norm": 0.5}
    good = [{"step": 1, "skipped": True}, window, {**window, "loss": None, "grad_norm": None}]
    bad = [
        1,
        [],
        {},
        {"step": "2"},
        {"step": True},
        {"step": 3},
        window | {"loss": "x"},
        window | {"loss_by_time": [1]},
    ]
    bad += [{key: value for key, value in window.items() if key != left_out} for left_out in window]
    text = "".join(json.dumps(line) + "\n" for line in [*good[:1], *bad, *good[1:]])
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b"[" * 100000 + b"\n\xff\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == good


@pytest.mark.parametrize("change", [{"steps": None}, {"grad_norm": "1"}, {"loss_sums": [0.0]}, {"loss_counts": 3}, {}])
def test_window_of_a_checkpoint_is_checked(change):
    values = asdict(Window(steps=3, grad_norm=1.5, loss_sums=[1.0] * TIME_BINS))
    assert Window.restored(values) == Window(**values)
    values.update(change)
    if not change:
        del values["alignment"]
    with pytest.raises(ValueError, match=r"^the checkpoint's window of losses is damaged: "):
        Window.restored(values)
