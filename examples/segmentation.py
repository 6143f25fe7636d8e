"""Semantic segmentation: AttNet in transformers' UperNet, mean intersection over union (mIoU).

    python examples/segmentation.py                    # digits pasted into scenes, 1 minute on one core
    python examples/segmentation.py --model attnet_t2 --device cuda

B images of S×S pixels, K classes, of which 0 is the background. For your own data, replace `scenes`.
"""

import sys

import numpy as np
import torch
from torch import nn
from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

import sit_atconv  # noqa: F401  registers AttNet with timm
from sit_atconv.data import DigitsDataset, ImageDataset, digit_scene, hold_out
from sit_atconv.utils.commands import reporting_mistakes
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.option_parser import OptionParser

NUM_CLASSES, BATCH_SIZE, LEARNING_RATE = 11, 16, 2e-3


def scenes(digits: ImageDataset, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 3, S, S) in [-1, 1], and the class of each of their pixels (count, S, S)."""
    generator = np.random.default_rng(seed)
    drawn = [digit_scene(digits, generator) for _ in range(count)]
    images = torch.from_numpy(np.stack([scene.image for scene in drawn])).permute(0, 3, 1, 2)
    return images / 127.5 - 1, torch.from_numpy(np.stack([scene.classes for scene in drawn]))


def build_segmenter(model: str) -> UperNetForSemanticSegmentation:
    """UperNet on the four maps of a timm backbone."""
    backbone = TimmBackboneConfig(backbone=model, out_indices=[0, 1, 2, 3])
    head = dict(hidden_size=64, num_labels=NUM_CLASSES, use_auxiliary_head=False)
    head["initializer_range"] = 0.1  # with the default, 0.02, only the background is found after so few steps
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, **head))


def train(segmenter: nn.Module, images: torch.Tensor, classes: torch.Tensor, steps: int, seed: int) -> None:
    """Train on random batches, with a learning rate that rises and falls once."""
    optimizer = torch.optim.AdamW(segmenter.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    segmenter.train()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator).to(images.device)
        loss = segmenter(pixel_values=images[chosen], labels=classes[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step} of {steps}: loss {loss:.3f}")


@torch.no_grad()
def segment(segmenter: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) -> the class of each pixel (B, S, S)."""
    segmenter.eval()
    return torch.cat([segmenter(pixel_values=batch).logits.argmax(1) for batch in images.split(BATCH_SIZE)])


def mean_iou(predicted: torch.Tensor, true: torch.Tensor) -> float:
    """The mean over classes of intersection over union, each counted over the pixels of all images.

    Classes that occur in neither are left out.
    """
    pairs = torch.bincount((true * NUM_CLASSES + predicted).flatten(), minlength=NUM_CLASSES**2)
    confusion = pairs.view(NUM_CLASSES, NUM_CLASSES).double()  # [true, predicted]
    intersection = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return float((intersection / union)[union > 0].mean())


def guesses(true: torch.Tensor, seed: int) -> torch.Tensor:
    """Chance: each digit's pixels are known as ink, and given a digit at random, the same one for all of an image."""
    generator = torch.Generator().manual_seed(seed)
    renamed = torch.randint(1, NUM_CLASSES, (len(true), NUM_CLASSES), generator=generator).to(true.device)
    renamed[:, 0] = 0
    return renamed.gather(1, true.flatten(1)).view_as(true)


def run(arguments: list[str]) -> tuple[float, float]:
    """Train, evaluate, and return the mIoU of the segmenter and that of guesses."""
    parser = OptionParser(prog="segmentation.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=str, default="attnet_xxs", help="a backbone of timm")
    parser.add_argument("--steps", type=int, default=250, help="updates of 16 images")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--device", type=str, default="auto", help="such as cpu or cuda")
    options = parser.parse_options(arguments)
    device = pick_device(options["device"])
    digits, held_out = hold_out(DigitsDataset(), 0.2)
    images, classes = (each.to(device) for each in scenes(digits, 800, seed=0))
    new_images, new_classes = (each.to(device) for each in scenes(held_out, 100, seed=1))
    torch.manual_seed(options["seed"])
    segmenter = build_segmenter(options["model"]).to(device)
    train(segmenter, images, classes, options["steps"], options["seed"])
    found = mean_iou(segment(segmenter, new_images), new_classes)
    chance = mean_iou(guesses(new_classes, options["seed"]), new_classes)
    print(f"mIoU {found:.3f}; true outlines with guessed digits: {chance:.3f}")
    return found, chance


if __name__ == "__main__":
    with reporting_mistakes("segmentation.py"):
        run(sys.argv[1:])
