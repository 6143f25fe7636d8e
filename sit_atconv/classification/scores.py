"""Scores of a classifier on labelled images: accuracy, loss, confusions, calibration.

B images, K classes.
"""

import torch
import torch.nn.functional as F

TOP = 5
CALIBRATION_BINS = 15  # equal parts of [0, 1] (arXiv 1706.04599)


class Scores:
    """Sums over images, of which scores follow. The sums of several processes may be added.

    Args:
        num_classes: K.
        device: device of the sums.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)  # [true, predicted]
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # loss, true label among the top 5
        self.bins = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=device)  # images, correct, confidence

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Add logits (B, K) for images of the labels (B,)."""
        logits = logits.double()  # float32 softmax rounds confidences to 1, which then fall out of the last bin
        classes = self.confusion.shape[0]
        confidence, predicted = logits.softmax(1).max(1)
        correct = (predicted == labels).double()
        pairs = torch.bincount(labels * classes + predicted, minlength=classes**2)
        self.confusion += pairs.view(classes, classes)
        top = logits.topk(min(TOP, classes)).indices
        self.sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        self.sums[1] += (top == labels[:, None]).any(1).sum()
        place = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
        for row, values in enumerate((torch.ones_like(correct), correct, confidence)):
            self.bins[row].index_add_(0, place, values)

    def tensors(self) -> list[torch.Tensor]:
        """All sums, which may be added to those of other processes in place."""
        return [self.confusion, self.sums, self.bins]

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    def summary(self) -> dict[str, float]:
        """Accuracies, mean cross-entropy and calibration error."""
        count = max(self.images, 1)
        return {
            "top1": float(self.confusion.diagonal().sum() / count),
            "top5": float(self.sums[1] / count),
            "loss": float(self.sums[0] / count),
            "ece": self.calibration_error(),
        }

    def calibration_error(self) -> float:
        """The expected calibration error (arXiv 1706.04599, Equation 5).

        It is the mean over images of the gap between accuracy and mean confidence in the bin of their confidence.
        """
        _, correct, confidence = self.bins
        return float((correct - confidence).abs().sum() / max(self.images, 1))

    def per_class(self) -> list[float | None]:
        """Accuracy on the images of each class (recall); None for a class without images."""
        counts = self.confusion.sum(1).tolist()
        return [float(self.confusion[i, i] / count) if count else None for i, count in enumerate(counts)]
