"""Scores against their definitions, image by image."""

import pytest
import torch

from sit_atconv.classification.scores import CALIBRATION_BINS, Scores


def test_scores_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(200, 7, generator=generator), torch.randint(7, (200,), generator=generator)
    scores = Scores(7)
    for part in range(0, 200, 64):
        scores.add(logits[part : part + 64], labels[part : part + 64])
    summary = scores.summary()
    order = logits.argsort(1, descending=True)
    assert summary["top1"] == pytest.approx((order[:, 0] == labels).double().mean().item())
    assert summary["top5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).double().mean().item())
    assert summary["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), labels).item())
    confidence = logits.double().softmax(1).amax(1)
    expected = 0.0
    for i in range(CALIBRATION_BINS):
        inside = (confidence >= i / CALIBRATION_BINS) & (confidence < (i + 1) / CALIBRATION_BINS)
        if inside.any():
            accuracy = (order[inside, 0] == labels[inside]).double().mean()
            expected += inside.double().mean().item() * abs(accuracy - confidence[inside].mean()).item()
    assert summary["ece"] == pytest.approx(expected)
    for label, accuracy in enumerate(scores.per_class()):
        assert accuracy == pytest.approx((order[labels == label, 0] == label).double().mean().item())
    assert scores.confusion[2, 3] == ((labels == 2) & (order[:, 0] == 3)).sum()


def test_a_certain_answer_counts_and_an_empty_class_has_no_accuracy():
    scores = Scores(3)
    scores.add(torch.tensor([[1000.0, 0, 0], [0, 1000, 0]]), torch.tensor([0, 0]))
    assert scores.summary() == {"top1": 0.5, "top5": 1.0, "loss": 500.0, "ece": 0.5}
    assert scores.per_class() == [0.5, None, None]


def test_sums_of_two_processes_are_those_of_one():
    logits, labels = torch.randn(20, 4), torch.randint(4, (20,))
    one, two, both = Scores(4), Scores(4), Scores(4)
    one.add(logits[:8], labels[:8])
    two.add(logits[8:], labels[8:])
    both.add(logits, labels)
    for mine, other in zip(one.tensors(), two.tensors(), strict=True):
        mine += other
    assert one.summary() == pytest.approx(both.summary())
