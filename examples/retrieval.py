"""Retrieval across modalities: AttNet's normalized embeddings, trained by an identity and a triplet loss; mAP and CMC.

    python examples/retrieval.py                       # two-digit numbers, grey and coloured; 1 minute on one core
    python examples/retrieval.py --model attnet_t2 --device cuda

As in the search for persons across infrared and colour cameras, a query of one modality ranks a gallery of the other,
and identities in the test are none of those in training. Here an identity is a number from 00 to 99; its pictures show
different handwritten digits. For your own data, replace `picture`.

B pictures (B, 3, 32, 64) in [-1, 1]; D features.
"""

import sys
from collections.abc import Sequence

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import nn

import sit_atconv  # noqa: F401  registers AttNet with timm
from sit_atconv.classification.retrieval import retrieval_scores
from sit_atconv.data import DigitsDataset, ImageDataset, hold_out
from sit_atconv.utils.commands import reporting_mistakes
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.option_parser import OptionParser

GREY, COLOUR = MODALITIES = ("grey", "colour")
IDENTITIES, TRAINED = 100, 70
LEARNING_RATE, MARGIN = 1e-3, 0.3


def picture(digits: ImageDataset, number: int, modality: str, generator: np.random.Generator) -> np.ndarray:
    """A number (32, 64, 3): in random colours, bright on dark or dark on bright; or blurred, in grey."""
    drawn = [generator.choice(np.flatnonzero(digits.labels == label)) for label in divmod(number, 10)]
    ink = Image.fromarray(np.concatenate([digits.image(index)[..., 0] for index in drawn], 1))
    ink = ink.resize((64, 32), Image.Resampling.BICUBIC)
    if modality == GREY:
        ink = ink.filter(ImageFilter.GaussianBlur(1))
        pen, ground = np.full(3, generator.uniform(150, 200)), np.full(3, generator.uniform(50, 90))
    else:
        pen, ground = generator.uniform(150, 255, 3), generator.uniform(0, 90, 3)
    weight = np.asarray(ink)[..., None] / 255
    pixels = weight * pen + (1 - weight) * ground + generator.normal(0, 12, (32, 64, 3 if modality == COLOUR else 1))
    return 255 - pixels if modality == COLOUR and generator.random() < 0.5 else pixels


def pictures(
    digits: ImageDataset, numbers: Sequence[int], modality: str, generator: np.random.Generator
) -> torch.Tensor:
    """One picture of each number (B, 3, 32, 64)."""
    pixels = np.stack([picture(digits, number, modality, generator) for number in numbers])
    return torch.from_numpy(pixels.clip(0, 255) / 127.5 - 1).float().permute(0, 3, 1, 2)


def triplet_loss(embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The farthest picture of the same identity is to be nearer than the nearest of another one, by a margin.

    All pictures of a batch (B, D) take part, of both modalities (batch-hard triplets, arXiv 1703.07737).
    """
    distances = torch.cdist(embeddings, embeddings)  # (B, B)
    same = ids[:, None] == ids[None, :]
    farthest = distances.masked_fill(~same, 0).amax(1)
    nearest = distances.masked_fill(same, torch.inf).amin(1)
    return F.relu(farthest - nearest + MARGIN).mean()


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images -> pooled features (B, D); normalized, they are the embeddings."""
    return model.forward_head(model.forward_features(images), pre_logits=True)


def train(
    model: nn.Module, digits: ImageDataset, numbers: np.ndarray, steps: int, seed: int, device: torch.device
) -> None:
    """Train on batches of 8 identities with two pictures of each modality."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = np.random.default_rng(seed)
    model.train()
    for step in range(1, steps + 1):
        ids = generator.choice(len(numbers), 8, replace=False).repeat(2)
        images = torch.cat([pictures(digits, numbers[ids], modality, generator) for modality in MODALITIES])
        labels = torch.from_numpy(ids).repeat(2).to(device)
        pooled = features(model, images.to(device))
        identity = F.cross_entropy(model.get_classifier()(pooled), labels)
        triplet = triplet_loss(F.normalize(pooled), labels)
        optimizer.zero_grad()
        (identity + triplet).backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step} of {steps}: identity {identity:.3f}, triplet {triplet:.3f}")


@torch.no_grad()
def embed(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images -> embeddings (B, D) of length 1."""
    model.eval()
    return torch.cat([F.normalize(features(model, batch)) for batch in images.split(32)])


def run(arguments: list[str]) -> dict[str, dict[str, float]]:
    """Train, evaluate, and return the scores of each direction, and those of a random order as "chance"."""
    parser = OptionParser(prog="retrieval.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=str, default="attnet_xxs", help="a model of timm")
    parser.add_argument("--steps", type=int, default=200, help="updates of 32 pictures")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and the choice of identities")
    parser.add_argument("--device", type=str, default="auto", help="such as cpu or cuda")
    options = parser.parse_options(arguments)
    device = pick_device(options["device"])
    digits, held_out = hold_out(DigitsDataset(), 0.2)
    generator = np.random.default_rng(options["seed"])
    trained, unseen = np.split(generator.permutation(IDENTITIES), [TRAINED])
    torch.manual_seed(options["seed"])
    model = timm.create_model(options["model"], num_classes=TRAINED).to(device)
    train(model, digits, trained, options["steps"], options["seed"], device)

    numbers = unseen.repeat(4)  # four pictures of each, by other writers than in training
    ids = torch.from_numpy(numbers)
    embeddings = {
        each: embed(model, pictures(held_out, numbers, each, generator).to(device)).cpu() for each in MODALITIES
    }
    scores = {}
    for query, gallery in (MODALITIES, MODALITIES[::-1]):
        distances = torch.cdist(embeddings[query], embeddings[gallery])
        scores[f"{query} to {gallery}"] = retrieval_scores(distances, ids, ids)
    order = torch.rand(len(ids), len(ids), generator=torch.Generator().manual_seed(options["seed"]))
    scores["chance"] = retrieval_scores(order, ids, ids)
    for direction, values in scores.items():
        print(f"{direction}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items()))
    return scores


if __name__ == "__main__":
    with reporting_mistakes("retrieval.py"):
        run(sys.argv[1:])
