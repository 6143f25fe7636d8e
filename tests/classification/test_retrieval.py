"""Scores of retrieval against their definitions, spelt out, and against what chance gives in closed form."""

from math import comb

import pytest
import torch

from sit_atconv.classification.retrieval import retrieval_scores


def by_definition(distances, query_ids, gallery_ids, k, ignored) -> tuple[float, float]:
    """mAP and rank-k, one query and one image of the gallery after the other."""
    precisions, hits = [], []
    for q, identity in enumerate(query_ids):
        images = [(distances[q][g], gallery_ids[g] == identity) for g in range(len(gallery_ids)) if not ignored[q][g]]
        ranked = [is_right for _, is_right in sorted(images)]  # False sorts before True
        shares = [sum(ranked[: i + 1]) / (i + 1) for i, is_right in enumerate(ranked) if is_right]
        precisions.append(sum(shares) / len(shares))
        hits.append(any(ranked[:k]))
    return sum(precisions) / len(precisions), sum(hits) / len(hits)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 3, 100])
def test_scores_follow_their_definitions(ties, k):
    generator = torch.Generator().manual_seed(k)
    for _ in range(20):
        query_ids, gallery_ids = torch.randint(3, (7,), generator=generator), torch.arange(12) % 3
        distances = torch.rand(7, 12, generator=generator)
        distances = (distances * 4).round() if ties else distances
        ignored = torch.rand(7, 12, generator=generator) < 0.3
        ignored[:, -3:] = False  # a right image of each identity
        scores = retrieval_scores(distances, query_ids, gallery_ids, [k], ignored)
        expected = by_definition(*(each.tolist() for each in (distances, query_ids, gallery_ids)), k, ignored.tolist())
        assert (scores["mAP"], scores[f"rank-{k}"]) == pytest.approx(expected)


def test_chance_scores_in_closed_form():
    """Of G images in random order, R are right; the expected average precision follows from the place of each."""
    G, R, Q, k = 20, 4, 20000, 3
    distances = torch.rand(Q, G, generator=torch.Generator().manual_seed(0))
    gallery_ids = (torch.arange(G) < R).long()
    scores = retrieval_scores(distances, torch.ones(Q), gallery_ids, [k])
    assert scores["mAP"] == pytest.approx(
        sum((1 + (i - 1) * (R - 1) / (G - 1)) / i for i in range(1, G + 1)) / G, abs=0.005
    )
    assert scores[f"rank-{k}"] == pytest.approx(1 - comb(G - R, k) / comb(G, k), abs=0.01)


def test_perfect_and_collapsed_features():
    features = torch.eye(5)
    ids = torch.arange(5)
    assert retrieval_scores(torch.cdist(features, features), ids, ids, [1]) == {"mAP": 1, "rank-1": 1}
    alike = retrieval_scores(torch.zeros(5, 5), ids, ids, [1, 4, 5])
    assert alike == pytest.approx({"mAP": 1 / 5, "rank-1": 0, "rank-4": 0, "rank-5": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(distances=torch.zeros(3, 2)), r"shape \(3, 2\)"),
        (dict(distances=torch.full((2, 3), torch.nan)), "NaN"),
        (dict(query_ids=torch.tensor([0, 7])), "1 of 2 queries"),
        (dict(ignored=torch.tensor([[True, False, False], [False, False, False]])), "1 of 2 queries"),
    ],
)
def test_mistakes_are_named(change, message):
    right = dict(distances=torch.rand(2, 3), query_ids=torch.tensor([0, 1]), gallery_ids=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=message):
        retrieval_scores(**(right | change))
