"""The loss against a teacher: its minimum, its weights, and guidance."""

import pytest
import torch

from sit_atconv.flow.distillation import DistillationLoss
from sit_atconv.flow.interpolants import PREDICTIONS, Interpolant
from sit_atconv.flow.losses import InterpolantLoss

X_1, X_0 = (torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 0))
T = torch.linspace(0.1, 0.9, 6)
GUIDED = torch.tensor([True, False] * 3)


class Teacher:
    """A network that says x·t with a label, and 1 without."""

    def __call__(self, x, t, s, rows, unconditional=False):
        assert torch.equal(t, s)
        return torch.ones_like(x) if unconditional else x * t[:, None, None, None]


def student(x, t):
    return 0.5 * x


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_teacher_that_says_the_target_gives_the_loss_of_the_flow(prediction):
    """Whatever the prediction and its weighting: a perfect teacher is the data."""
    interpolant = Interpolant("gvp", prediction)
    for weighting in ("none",) if prediction == "velocity" else ("none", "velocity", "likelihood"):
        flow = InterpolantLoss(interpolant, weighting)
        expected = flow(student, X_1, X_0, T)
        loss = DistillationLoss(flow)(student, lambda x, *_: interpolant.target(X_0, X_1, T), X_1, X_0, T, GUIDED)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_both_errors():
    flow = InterpolantLoss(Interpolant())
    alone = DistillationLoss(flow)(student, Teacher(), X_1, X_0, T, GUIDED)
    x_t = flow.interpolant.interpolate(X_0, X_1, T)
    torch.testing.assert_close(alone, ((0.5 - T)[:, None, None, None] * x_t).square().flatten(1).mean(1))
    both = DistillationLoss(flow, 2.0, 3.0)(student, Teacher(), X_1, X_0, T, GUIDED)
    torch.testing.assert_close(both, 2 * alone + 3 * flow(student, X_1, X_0, T))


def test_guidance_applies_where_labels_are_kept():
    flow = InterpolantLoss(Interpolant())
    output = DistillationLoss(flow, guidance_scale=3.0).teacher_output(Teacher(), X_1, T, GUIDED)
    labelled = X_1 * T[:, None, None, None]
    torch.testing.assert_close(output[GUIDED], (1 + 3 * (labelled - 1))[GUIDED])
    torch.testing.assert_close(output[~GUIDED], labelled[~GUIDED])


def test_no_gradient_reaches_the_teacher():
    weight = torch.ones((), requires_grad=True)
    loss = DistillationLoss(InterpolantLoss(Interpolant()))(
        lambda x, t: x * weight, lambda x, *_: x * weight * 2, X_1, X_0, T, GUIDED
    )
    x_t = Interpolant().interpolate(X_0, X_1, T)
    (gradient,) = torch.autograd.grad(loss.sum(), weight)
    torch.testing.assert_close(gradient, -2 * x_t.square().flatten(1).mean(1).sum())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_weight": 0.0}, "nothing would be learnt"),
        ({"flow_weight": -1.0}, "flow_weight=-1.0"),
        ({"guidance_scale": 0.0}, "guidance_scale=0.0"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(InterpolantLoss(Interpolant()), **options)
