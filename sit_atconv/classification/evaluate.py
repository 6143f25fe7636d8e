"""Evaluate a classifier on labelled images.

B images, C channels, S side of what the model takes; K classes.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..data import BrokenImageError, ImageDataset
from .scores import Scores
from .view import Transform, read_tensor


class Evaluation:
    """Labelled images as a model takes them, in batches.

    Args:
        dataset: the images.
        transform: from RGB pictures to (3, S, S).
        channels: C, 1 or 3.
        batch_size: images per forward pass.

    Attributes:
        unreadable: reasons for the images that could not be read, and are left out.
        predictions: the class that was predicted for each image, by its index.
        seconds: time that the model took.
    """

    def __init__(self, dataset: ImageDataset, transform: Transform, channels: int, batch_size: int):
        self.dataset, self.transform = dataset, transform
        self.channels, self.batch_size = channels, batch_size
        self.unreadable: list[str] = []
        self.predictions: dict[int, int] = {}
        self.seconds = 0.0

    def read(self, indices: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """Read a batch: images (B, C, S, S), and the indices of those that could be read."""
        images, found = [], []
        for index in indices:
            try:
                images.append(read_tensor(self.dataset, index, self.transform, self.channels))
            except BrokenImageError as error:
                self.unreadable.append(str(error))
                continue
            found.append(index)
        return torch.stack(images) if images else torch.empty(0), found

    @torch.no_grad()
    def run(
        self,
        predict: Callable[[torch.Tensor], torch.Tensor] | nn.Module,
        scores: Scores,
        indices: range | None = None,
        device: torch.device | str = "cpu",
        progress: Callable[[Sequence], Sequence] = lambda starts: starts,
    ) -> None:
        """Add the predictions for images to the scores.

        Args:
            predict: from images (B, C, S, S) to logits (B, K).
            scores: the sums to which they are added, on the CPU.
            indices: the images; all of them if None.
            device: device of the model.
            progress: shows how far the batches are.
        """
        indices = range(len(self.dataset)) if indices is None else indices
        for first in progress(range(0, len(indices), self.batch_size)):
            images, found = self.read(indices[first : first + self.batch_size])
            if not found:
                continue
            start = time.perf_counter()
            logits = predict(images.to(device)).float().cpu()
            self.seconds += time.perf_counter() - start
            scores.add(logits, torch.from_numpy(self.dataset.labels[found]).long())
            self.predictions.update(zip(found, logits.argmax(1).tolist(), strict=True))
