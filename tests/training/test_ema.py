import numpy as np
import pytest
import torch

from sit_atconv.training.ema import WeightAverages
from sit_atconv.training.ema_profiles import power_exponent, power_weight

APPLIED, SKIPPED = torch.tensor(1.0), torch.tensor(0.0)


@pytest.mark.parametrize("std, gamma", [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_of_the_paper(std, gamma):
    assert power_exponent(std) == pytest.approx(gamma, abs=5e-3)


@pytest.mark.parametrize("std", [0.01, 0.075, 0.2, 0.28])
def test_exponent_gives_the_deviation(std):
    gamma = power_exponent(std)
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(std)
    tau = (np.arange(100_000) + 0.5) / 100_000  # and the deviation is the one of the profile
    weights = tau**gamma / (tau**gamma).sum()
    assert np.sqrt((weights * tau**2).sum() - (weights * tau).sum() ** 2) == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("std", [0.0, 1e-300, 0.29, -1.0, float("nan"), float("inf")])
def test_impossible_deviation_is_refused(std):
    with pytest.raises(ValueError, match=f"std={std}"):
        power_exponent(std)


def test_power_average_has_its_closed_form():
    """The weight of update n in the average at t is (n^(γ+1) − (n−1)^(γ+1)) / t^(γ+1)."""
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    parameter = torch.full((3,), 1e6)  # the state before training leaves no trace
    averages = WeightAverages([parameter], [], [0.1])
    for step, value in enumerate(values, start=1):
        averages.update([value], step, APPLIED)
    n = np.arange(0, 41) / 40
    weights = torch.from_numpy(np.diff(n ** (power_exponent(0.1) + 1)))
    expected = (weights[:, None] * values.double()).sum(0)
    torch.testing.assert_close(averages.first[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_exponential_average_warms_up():
    averages = WeightAverages([torch.zeros(1)], [0.5, 0.999])
    expected = 0.0
    for step in range(1, 30):
        averages.update([torch.tensor([float(step)])], step, APPLIED)
        decay = 0.0 if step == 1 else min(0.5, step / (9 + step))
        expected = decay * expected + (1 - decay) * step
    assert list(averages.averages) == ["decay-0.5", "decay-0.999"]
    assert averages.first[0].item() == pytest.approx(expected)
    assert averages.averages["decay-0.999"][0].item() < expected  # longer, so further behind


@pytest.mark.parametrize("decay", [0.9999, 0.6])
def test_warm_up_bounds_the_decay_of_the_first_updates(decay):
    """By (1 + n) / (10 + n) after n updates; the very first one is taken over whole."""
    averages = WeightAverages([torch.full((1,), 1e6)], [decay])
    averages.update([torch.tensor([3.0])], 1, APPLIED)
    assert averages.first[0].item() == 3
    for step, bound in ((2, 2 / 11), (3, 3 / 12), (4, 4 / 13), (100, 100 / 109)):
        before = averages.first[0].item()
        averages.update([torch.tensor([7.0])], step, APPLIED)
        kept = min(decay, bound)
        assert averages.first[0].item() == pytest.approx(kept * before + (1 - kept) * 7, rel=1e-6)


def test_skipped_steps_leave_no_trace():
    averages = WeightAverages([torch.ones(2)], [0.9], [0.1])
    averages.update([torch.ones(2)], 1, APPLIED)
    averages.update([torch.full((2,), 5.0)], 2, SKIPPED)
    assert all(torch.equal(average[0], torch.ones(2)) for average in averages.averages.values())


def test_averages_are_float32_whatever_the_model():
    parameter = torch.ones(1, dtype=torch.bfloat16)
    averages = WeightAverages([parameter], [0.9999])
    for step in range(100_000, 100_200):
        averages.update([parameter * 2], step, APPLIED)
    assert averages.first[0].item() == pytest.approx(2 - 0.9999**200, rel=1e-4)  # in bfloat16 it would stand still


def test_model_holds_the_average_only_within():
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    averages = WeightAverages(model.parameters(), [0.5])
    averages.update([p + 1 for p in model.parameters()], 1, APPLIED)
    with averages.in_place_of(model):
        torch.testing.assert_close(model.weight.detach(), before + 1)
        assert not model.training
    assert torch.equal(model.weight.detach(), before)
    assert model.training


@pytest.mark.parametrize("decays, stds", [([1.0], []), ([0.5, 0.5], []), ([], []), ([0.5], [0.1, 0.1])])
def test_unusable_profiles_are_refused(decays, stds):
    with pytest.raises(ValueError, match="ema_decay"):
        WeightAverages([torch.zeros(1)], decays, stds)


def test_power_weight_of_the_first_step_is_one():
    assert power_weight(0.05, 1) == 1
