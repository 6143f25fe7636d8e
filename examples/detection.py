"""Object detection: AttNet in torchvision's RetinaNet, data in COCO's format, COCO's average precision.

    python examples/detection.py                    # digits pasted into scenes, 1 minute on one core
    python examples/detection.py --data FOLDER --image_size 512 --model attnet_t2

FOLDER has images in train/ and val/, and their boxes in train.json and val.json. Boxes are (left, top, right, bottom)
here, and (left, top, width, height) in COCO's files.
"""

import contextlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.datasets import CocoDetection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, box_convert
from torchvision.transforms.functional import to_tensor

import sit_atconv  # noqa: F401  registers AttNet with timm
from sit_atconv.data import DigitsDataset, digit_scene, hold_out
from sit_atconv.utils.commands import reporting_mistakes
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.option_parser import OptionParser

BATCH_SIZE, LEARNING_RATE = 16, 2e-3


class Pyramid(nn.Module):
    """Maps of a timm backbone at strides 8, 16 and 32, of equal channels after a feature pyramid network (FPN)."""

    def __init__(self, model: str, out_channels: int = 64):
        super().__init__()
        self.body = timm.create_model(model, features_only=True, out_indices=(1, 2, 3))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels)
        self.out_channels = out_channels  # RetinaNet asks for it

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn({str(level): features for level, features in enumerate(self.body(x))})


def build_detector(model: str, num_classes: int, image_size: int) -> RetinaNet:
    """RetinaNet on a backbone, with anchors of three sizes and three shapes in each cell of each map."""
    backbone = Pyramid(model)
    strides = backbone.body.feature_info.reduction()
    sizes = tuple(tuple(round(2 * stride * 2 ** (i / 3)) for i in range(3)) for stride in strides)
    anchors = AnchorGenerator(sizes, aspect_ratios=((0.5, 1.0, 2.0),) * len(sizes))
    norm = partial(nn.GroupNorm, 8)  # without norms, fresh heads take long to train
    head = RetinaNetHead(backbone.out_channels, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm)
    view = dict(min_size=image_size, max_size=image_size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return RetinaNet(backbone, num_classes, anchor_generator=anchors, head=head, **view)


def write_digits(folder: Path, counts: dict[str, int]) -> None:
    """Write scenes of digits as a data set in COCO's format; those of the second part are of held-out digits."""
    for seed, (digits, (part, count)) in enumerate(zip(hold_out(DigitsDataset(), 0.2), counts.items(), strict=True)):
        generator = np.random.default_rng(seed)
        images, annotations = [], []
        (folder / part).mkdir()
        for i in range(count):
            scene = digit_scene(digits, generator)
            Image.fromarray(scene.image).save(folder / part / f"{i}.png")
            images.append(dict(id=i, file_name=f"{i}.png", width=scene.image.shape[1], height=scene.image.shape[0]))
            for (left, top, right, bottom), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
                box = dict(bbox=[left, top, right - left, bottom - top], area=(right - left) * (bottom - top))
                annotations.append(dict(id=len(annotations) + 1, image_id=i, category_id=label + 1, iscrowd=0, **box))
        categories = [dict(id=i + 1, name=name) for i, name in enumerate(digits.classes)]
        content = dict(images=images, annotations=annotations, categories=categories)
        (folder / f"{part}.json").write_text(json.dumps(content))


def open_part(folder: Path, part: str) -> CocoDetection:
    """Images as PIL, each with a list of annotations."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on its progress
        return CocoDetection(str(folder / part), str(folder / f"{part}.json"))


def to_target(annotations: list[dict]) -> dict[str, torch.Tensor]:
    """COCO's annotations of one image -> boxes (n, 4) and labels (n,); crowds and empty boxes are left out."""
    kept = [each for each in annotations if not each["iscrowd"] and min(each["bbox"][2:]) > 0]
    boxes = torch.tensor([each["bbox"] for each in kept], dtype=torch.float32).view(-1, 4)
    labels = torch.tensor([each["category_id"] for each in kept], dtype=torch.int64)
    return dict(boxes=box_convert(boxes, "xywh", "xyxy"), labels=labels)


def train(detector: RetinaNet, dataset: CocoDetection, steps: int, seed: int, device: torch.device) -> None:
    """Train on random batches, with a learning rate that rises and falls once."""
    optimizer = torch.optim.AdamW(detector.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        batch = [dataset[i] for i in torch.randint(len(dataset), (BATCH_SIZE,), generator=generator).tolist()]
        images = [to_tensor(picture).to(device) for picture, _ in batch]
        targets = [{name: value.to(device) for name, value in to_target(found).items()} for _, found in batch]
        losses = detector(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step} of {steps}: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))


@torch.no_grad()
def detect(detector: RetinaNet, dataset: CocoDetection, device: torch.device) -> list[dict]:
    """What the detector finds, in COCO's format of results."""
    detector.eval()
    results = []
    for image_id, (picture, _) in zip(dataset.ids, dataset, strict=True):
        found = {name: value.cpu() for name, value in detector([to_tensor(picture).to(device)])[0].items()}
        boxes = box_convert(found["boxes"], "xyxy", "xywh").tolist()
        for box, label, score in zip(boxes, found["labels"].tolist(), found["scores"].tolist(), strict=True):
            results.append(dict(image_id=image_id, category_id=label, bbox=box, score=score))
    return results


def average_precision(dataset: CocoDetection, results: list[dict]) -> tuple[float, float]:
    """COCO's AP, which is the mean over IoU thresholds from 0.5 to 0.95, and AP50 at 0.5 alone; 0 without results."""
    if not results:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(dataset.coco, dataset.coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def guesses(dataset: CocoDetection, seed: int) -> list[dict]:
    """Chance: the true boxes, with classes and scores drawn at random."""
    generator, categories = np.random.default_rng(seed), dataset.coco.getCatIds()
    return [
        dict(
            image_id=each["image_id"],
            bbox=each["bbox"],
            category_id=int(generator.choice(categories)),
            score=generator.random(),
        )
        for each in dataset.coco.anns.values()
    ]


def run(arguments: list[str]) -> tuple[float, float]:
    """Train, evaluate, and return the average precision of the detector and that of guesses."""
    parser = OptionParser(prog="detection.py", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=str, default="attnet_xxs", help="a backbone of timm")
    parser.add_argument("--data", type=str | None, help="a folder in COCO's format; without it, scenes of digits")
    parser.add_argument("--image_size", type=int, default=48, help="the longer side to which images are scaled")
    parser.add_argument("--steps", type=int, default=200, help="updates of 16 images")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--device", type=str, default="auto", help="such as cpu or cuda")
    options = parser.parse_options(arguments)
    device = pick_device(options["device"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options["data"] or scratch)
        if options["data"] is None:
            write_digits(folder, dict(train=800, val=100))
        training, validation = open_part(folder, "train"), open_part(folder, "val")
        torch.manual_seed(options["seed"])
        num_classes = max(training.coco.getCatIds()) + 1  # labels are COCO's category ids
        detector = build_detector(options["model"], num_classes, options["image_size"]).to(device)
        train(detector, training, options["steps"], options["seed"], device)
        found = average_precision(validation, detect(detector, validation, device))
        chance = average_precision(validation, guesses(validation, options["seed"]))
    print(f"AP {found[0]:.3f}, AP50 {found[1]:.3f}; true boxes with guessed classes: {chance[0]:.3f}, {chance[1]:.3f}")
    return found[0], chance[0]


if __name__ == "__main__":
    with reporting_mistakes("detection.py"):
        run(sys.argv[1:])
