"""Scores of image retrieval: mean average precision and cumulative matching characteristics (CMC).

Q queries, G images in the gallery, D features. An image of the gallery is right for a query of the same identity.
"""

from collections.abc import Sequence

import torch


def retrieval_scores(
    distances: torch.Tensor,
    query_ids: torch.Tensor,
    gallery_ids: torch.Tensor,
    ranks: Sequence[int] = (1, 5, 10),
    ignored: torch.Tensor | None = None,
) -> dict[str, float]:
    """Rank the gallery for each query by distance, and return "mAP" and "rank-k" for each k.

    The average precision of a query is the mean, over its right images, of the share of right ones among those ranked
    up to it. Rank-k is the share of queries with a right image among the first k. Of images at the same distance, wrong
    ones come first, so that features which are all alike get the worst score, not one that depends on the order.

    In cross-modal search, queries are of one modality and the gallery is of the other.

    Args:
        distances: (Q, G), such as `torch.cdist(queries, gallery)`.
        query_ids, gallery_ids: (Q,) and (G,), whole numbers.
        ranks: the values of k.
        ignored: (Q, G), true where an image is left out of the gallery for that query, as protocols demand of images
            from the same camera.

    Raises:
        ValueError: if shapes do not fit, distances are NaN, or a query has no right image in the gallery.
    """
    if distances.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(
            f"distances have shape {tuple(distances.shape)}; {len(query_ids)} queries and {len(gallery_ids)} images "
            f"of the gallery need {(len(query_ids), len(gallery_ids))}"
        )
    if distances.isnan().any():
        raise ValueError("distances contain NaN; check the features that they were computed from")
    distances = distances.double()
    right = query_ids[:, None] == gallery_ids[None, :]  # (Q, G)
    kept = torch.ones_like(right) if ignored is None else ~ignored
    if lonely := int((~(right & kept).any(1)).sum()):
        raise ValueError(f"{lonely} of {len(query_ids)} queries have no image of their identity in the gallery")
    order = right.long().argsort(dim=1, stable=True)  # wrong ones first, then by distance
    order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))
    right, kept = (each.gather(1, order).double() for each in (right & kept, kept))
    found, place = right.cumsum(1), kept.cumsum(1)  # (Q, G): right images, and all, up to each
    precision = (right * found / place.clamp(min=1)).sum(1) / right.sum(1)
    first = (place + (1 - right) * (distances.shape[1] + 1)).amin(1)  # (Q,): place of the first right image
    return {"mAP": float(precision.mean()), **{f"rank-{k}": float((first <= k).double().mean()) for k in ranks}}
