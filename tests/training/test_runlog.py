import json

import pytest
import torch
from PIL import Image

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.loss_plot import plot_metrics
from sit_atconv.training.runlog import MetricsFile, Window, read_metrics
from sit_atconv.training.step_report import TIME_BINS, StepReport, StepReports
from sit_atconv.training.trackers import scalars, tracker_options


def step_report(losses=(), t=(), grad_norm=0.0, alignment=0.0, device="cpu") -> StepReport:
    report = StepReport.zeros(device)
    report.add_losses(torch.tensor(losses, device=device), torch.tensor(t, device=device))
    report.grad_norm += grad_norm
    report.alignment += alignment
    return report


def test_report_survives_packing():
    packed = torch.arange(4.0 + 2 * TIME_BINS)
    report = StepReport.unpack(packed)
    assert torch.equal(report.pack(), packed)
    assert len({*map(id, vars(report).values())}) == len(vars(report)) == 6
    assert sorted(torch.cat([value.reshape(-1) for value in vars(report).values()]).tolist()) == packed.tolist()


def test_losses_are_summed_by_time():
    losses, t = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0.0, 0.05, 0.999, 1.0])
    report = StepReport.zeros()
    report.add_losses(losses, t)
    assert report.loss_sums.tolist() == [3.0] + [0.0] * (TIME_BINS - 2) + [12.0]
    assert report.loss_counts.tolist() == [2.0] + [0.0] * (TIME_BINS - 2) + [2.0]


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


def test_reports_come_in_order():
    reports = StepReports(torch.device("cpu"))
    for step in (1, 2):
        reports.send(step, step_report(grad_norm=float(step)))
    assert [(step, report.grad_norm.item()) for step, report in reports.arrived()] == [(1, 1.0), (2, 2.0)]
    assert list(reports.arrived(wait=True)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_reports_of_a_gpu_lag_by_one_step():
    reports = StepReports(torch.device("cuda"))
    for step in (1, 2):
        reports.send(step, step_report(grad_norm=float(step), device="cuda"))
    assert [(step, report.grad_norm.item()) for step, report in reports.arrived()] == [(1, 1.0)]
    assert [(step, report.grad_norm.item()) for step, report in reports.arrived(wait=True)] == [(2, 2.0)]


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


@pytest.mark.parametrize("tracker, name", [("wandb", "id"), ("trackio", "name")])
def test_trackers_continue_the_same_run(tmp_path, tracker, name):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    options = [
        tracker_options(TrainConfig(log_with=tracker, output_dir=str(folder)))[tracker]
        for folder in (first, first, second)
    ]
    assert options[0][name] == options[1][name] == (first / "tracker_id.txt").read_text()
    assert options[2][name] != options[0][name]
    assert options[0]["resume"] == "allow"
    assert tracker_options(TrainConfig(log_with="tensorboard", output_dir=str(first))) == {}


def test_trackers_get_numbers_alone():
    values = {"loss": None, "loss_by_time": [1.0, None], "grad_norm": 2.0}
    assert scalars(values) == {"loss_by_time/0": 1.0, "grad_norm": 2.0}
