"""Inception Score: how confident and how varied a classifier's predictions for the samples are.

N images, K classes. Everything is float64 on the CPU.
"""

import numpy as np

from .feature_statistics import check_features


def inception_score(probabilities: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) (arXiv 1606.03498), averaged over consecutive parts of the images.

    Args:
        probabilities: probabilities of the classes, (N, K); each row sums to 1.
        num_splits: number of parts; 10 with 5,000 images each in the literature.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: if numbers are not probabilities, or there are fewer images than parts.
    """
    p = check_features("probabilities", probabilities)
    if (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must be at least 0 and sum to 1 for each image")
    if len(p) < num_splits:
        raise ValueError(f"num_splits={num_splits} exceeds the {len(p)} images; choose at most as many")
    scores = []
    for part in np.array_split(p, num_splits):
        marginal = part.mean(axis=0, keepdims=True)
        # 0 · log 0 is 0
        divergence = np.where(part > 0, part * (np.log(part.clip(1e-300)) - np.log(marginal.clip(1e-300))), 0).sum(1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))
