import pytest
import torch

from sit_atconv.training.step_report import TIME_BINS, StepReport, StepReports


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
