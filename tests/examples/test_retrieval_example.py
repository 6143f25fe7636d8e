"""examples/retrieval.py: its loss and pictures, and that it learns."""

import numpy as np
import pytest
import retrieval
import torch

from sit_atconv.data import DigitsDataset


def test_triplet_loss_by_loops():
    embeddings = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(12) % 4
    losses = []
    for i in range(12):
        distances = [float((embeddings[i] - other).norm()) for other in embeddings]
        farthest = max(d for d, other in zip(distances, ids, strict=True) if other == ids[i])
        nearest = min(d for d, other in zip(distances, ids, strict=True) if other != ids[i])
        losses.append(max(0, farthest - nearest + retrieval.MARGIN))
    assert float(retrieval.triplet_loss(embeddings, ids)) == pytest.approx(sum(losses) / 12)


def test_triplet_loss_has_a_gradient_where_pictures_are_alike():
    embeddings = torch.ones(4, 3, requires_grad=True)
    retrieval.triplet_loss(embeddings, torch.tensor([0, 0, 1, 1])).backward()
    assert embeddings.grad.isfinite().all()


def test_modalities():
    """Grey pictures have equal channels, coloured ones do not; both show the number."""
    digits = DigitsDataset()
    for modality in retrieval.MODALITIES:
        images = retrieval.pictures(digits, [7, 70], modality, np.random.default_rng(0))
        assert images.shape == (2, 3, 32, 64) and -1 <= images.min() < images.max() <= 1
        assert (images.std(1).max() < 1e-6) == (modality == retrieval.GREY)


@pytest.mark.slow
def test_embeddings_find_the_other_modality(capsys):
    scores = retrieval.run(["--steps", "60", "--device", "cpu"])
    chance = scores.pop("chance")
    assert chance["mAP"] < 0.1
    assert set(scores) == {"grey to colour", "colour to grey"}
    for values in scores.values():
        assert values["mAP"] > 3 * chance["mAP"] and values["rank-1"] > 0.3
    assert "rank-1" in capsys.readouterr().out
