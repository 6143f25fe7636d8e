"""The objective of MeanFlow on batches of `TrainingView`."""

from contextlib import nullcontext

import pytest
import torch

from sit_atconv.data import DigitsDataset, TrainingView
from sit_atconv.flow.interpolants import Interpolant
from sit_atconv.flow.mean_flow import MeanFlowLoss
from sit_atconv.training.mean_flow import MeanFlowObjective, TargetNetwork
from sit_atconv.training.objective import Objective
from sit_atconv.training.repa import AlignedTransformer, TargetEncoder, Targets, alignment_loss


@pytest.fixture
def batch():
    """Eight digits in positions 4 to 11 of a run."""
    view = TrainingView(DigitsDataset(), 0, False, (1, 8, 8), steps=True)
    batch = view.collate([view[10 * position, position] for position in range(4, 12)])
    del batch["broken"]
    return batch


def digits_model(tiny_transformer, **overrides):
    arguments = dict(in_channels=1, num_classes=10, step_conditioning="span", class_dropout_prob=0.3)
    return tiny_transformer(**arguments | overrides).train()


def objective(model, loss_fn=None, share=0.5, unguided=0, teacher=None, trained=None, targets=None):
    loss_fn = loss_fn or MeanFlowLoss(Interpolant())
    return MeanFlowObjective(
        loss_fn, trained or model, 0.3, None, targets, model, teacher, share, unguided, nullcontext
    )


def test_losses_are_those_of_the_loss(tiny_transformer, batch):
    model, loss_fn = digits_model(tiny_transformer), MeanFlowLoss(Interpolant(), adaptive_power=0.5)
    losses = objective(model, loss_fn).losses(batch)
    is_span = torch.tensor([False, True] * 4)
    t, s = loss_fn.times_from_normal(batch["time"], batch["end_time"], is_span)
    dropped = batch["dropout"] < 0.3
    assert dropped.any() and not dropped.all()

    def predict(x, t, s):
        return model(x, t, batch["label"], class_dropout=dropped, end_timestep=s).sample

    network = TargetNetwork(model, batch["label"], dropped, nullcontext)
    expected = loss_fn(predict, network, batch["x"], batch["noise"], t, s, is_span.nonzero()[:, 0])
    torch.testing.assert_close(losses.diffusion, expected)
    torch.testing.assert_close(losses.weights, (expected.detach() + 1e-3) ** -0.5)
    assert torch.equal(losses.t, t) and not losses.alignment.any()
    gradients = torch.autograd.grad(losses.diffusion.sum(), model.span_embed.linear_1.weight)
    assert gradients[0].any()


def test_a_batch_in_parts_is_the_whole_batch(tiny_transformer, batch):
    """Whichever rows a process or an accumulation step gets, down to a single one."""
    objective_ = objective(digits_model(tiny_transformer), share=0.25)
    whole = objective_.losses(batch)
    for size in (1, 3):
        parts = [{name: tensor[i : i + size] for name, tensor in batch.items()} for i in range(0, 8, size)]
        diffusion = torch.cat([objective_.losses(part).diffusion for part in parts])
        torch.testing.assert_close(diffusion, whole.diffusion, rtol=1e-4, atol=1e-5)


def test_without_spans_it_is_the_objective_of_a_flow(tiny_transformer, batch):
    model = digits_model(tiny_transformer)
    mean_flow = objective(model, share=0.0)
    flow = Objective(mean_flow.loss_fn.flow, model, 0.3)
    torch.testing.assert_close(mean_flow.losses(batch).diffusion, flow.losses(batch).diffusion)


def test_target_network_drops_labels(tiny_transformer, batch):
    """The null class where labels are dropped, or everywhere; of the rows that are asked for."""
    for conditioning in ("none", "span"):
        model = digits_model(tiny_transformer, step_conditioning=conditioning)
        rows, dropped = torch.tensor([1, 4, 6]), torch.arange(8) == 4
        network = TargetNetwork(model, batch["label"], dropped, nullcontext)
        x, t = batch["noise"][rows], torch.tensor([0.2, 0.5, 0.7])
        labels = batch["label"][rows].masked_fill(dropped[rows], 10)
        model.eval()
        with torch.no_grad():
            expected, null = model(x, t, labels).sample, model(x, t, torch.full((3,), 10)).sample
        model.train()
        torch.testing.assert_close(network(x, t, t, rows), expected)
        torch.testing.assert_close(network(x, t, t, rows, unconditional=True), null)


def test_guidance_starts_after_the_warm_up_and_leaves_dropped_labels_alone(tiny_transformer, batch):
    model = digits_model(tiny_transformer)
    plain = objective(model).losses(batch).diffusion
    guided_loss = MeanFlowLoss(Interpolant(), guidance_scale=4.0)
    for unguided in (5, 12):  # the batch begins with position 4
        assert torch.equal(objective(model, guided_loss, unguided=unguided).losses(batch).diffusion, plain)
    guided = objective(model, guided_loss, unguided=4).losses(batch).diffusion
    assert torch.equal(guided == plain, batch["dropout"] < 0.3)


def test_a_teacher_gives_the_velocities(tiny_transformer, batch):
    """A student that is the teacher has no error where s = t; with guidance, it is that of the guided teacher."""
    teacher = digits_model(tiny_transformer, step_conditioning="none").requires_grad_(False)
    student = digits_model(tiny_transformer)
    student.load_state_dict(student.state_dict() | teacher.state_dict())
    torch.nn.init.zeros_(student.span_embed.linear_2.weight)
    torch.nn.init.zeros_(student.span_embed.linear_2.bias)
    losses = objective(student, MeanFlowLoss(Interpolant(), "teacher"), teacher=teacher).losses(batch).diffusion
    is_span = torch.tensor([False, True] * 4)
    assert losses[~is_span].max() < 1e-8 and losses[is_span].min() > 1e-6
    guided = objective(student, MeanFlowLoss(Interpolant(), "teacher", guidance_scale=3.0), teacher=teacher)
    errors = guided.losses(batch).diffusion[~is_span]
    dropped = (batch["dropout"] < 0.3)[~is_span]
    assert errors[dropped].max() < 1e-8 and errors[~dropped].min() > 1e-6


def test_alignment(tiny_transformer, batch):
    """REPA's loss of the same forward pass; the derivative leaves nothing behind in the aligned transformer."""
    model = digits_model(tiny_transformer)
    encoder = TargetEncoder("test_vit.r160_in1k", "random", (4, 4), "cpu")
    aligned = AlignedTransformer(model, 1, encoder.features)
    losses = objective(model, trained=aligned, targets=Targets(encoder)).losses(batch)
    x_t = Interpolant().interpolate(batch["noise"], batch["x"], losses.t)
    is_span = torch.tensor([False, True] * 4)
    _, s = MeanFlowLoss(Interpolant()).times_from_normal(batch["time"], batch["end_time"], is_span)
    dropped = batch["dropout"] < 0.3
    output = aligned(x_t, losses.t, batch["label"], class_dropout=dropped, end_timestep=s)
    torch.testing.assert_close(losses.alignment, alignment_loss(output.projected, encoder(batch["x"])))
