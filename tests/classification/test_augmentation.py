"""Augmentation is a function of (seed, sample), whatever else draws random numbers; mixing has timm's meaning."""

import random

import numpy as np
import pytest
import torch

from sit_atconv.classification.augmentation import Mixing, evaluation_transform, seeded, training_transform
from sit_atconv.classification.config import ClassifierConfig
from sit_atconv.classification.view import ClassifierView, read_tensor
from sit_atconv.data import DigitsDataset, FolderDataset, Stream

HALF = (0.5,) * 3
STRONG = dict(auto_augment="rand-m9-mstd0.5-inc1", random_erase=0.5, horizontal_flip=0.5, interpolation="random")


def view(**options) -> ClassifierView:
    config = ClassifierConfig(image_size=16, **STRONG, **options)
    dataset = DigitsDataset()
    return ClassifierView(dataset, config.seed, training_transform(config, HALF, HALF), Mixing(config, 10))


def test_a_sample_depends_on_its_position_alone():
    first = view()
    samples = [first[(3, position)]["x"] for position in range(8)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    again = view()
    for position in (6, 2, 2):
        assert torch.equal(again[(3, position)]["x"], samples[position])
    assert len({sample.numpy().tobytes() for sample in samples}) == 8
    assert not torch.equal(view(seed=1)[(3, 0)]["x"], samples[0])
    assert samples[0].shape == (1, 16, 16)


def test_global_numbers_are_put_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(KeyError), seeded(0, Stream.MIXUP, 3):
        inside = (random.random(), np.random.rand(), torch.rand(()).item())
        raise KeyError
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    with seeded(0, Stream.MIXUP, 3):
        assert (random.random(), np.random.rand(), torch.rand(()).item()) == inside
    with seeded(0, Stream.MIXUP, 4):
        assert (random.random(), np.random.rand(), torch.rand(()).item()) != inside


@pytest.mark.parametrize("options", [dict(mixup=0.8), dict(cutmix=1.0), dict(mixup=0.8, cutmix=1.0)], ids=str)
def test_mixed_images_have_mixed_targets(options):
    """The images are constant, so the mean of a mixed one tells its share, which must be that of its target."""
    labels = torch.arange(8)
    for position in range(6):
        mixing = Mixing(ClassifierConfig(label_smoothing=0.0, **options), 8)
        x = labels.float()[:, None, None, None].expand(8, 1, 16, 16).clone()
        mixed, target = mixing(x, labels, position)
        assert torch.allclose(target.sum(1), torch.ones(8))
        assert torch.allclose(mixed.mean((1, 2, 3)), target @ labels.float(), atol=1e-5)
        x = labels.float()[:, None, None, None].expand(8, 1, 16, 16).clone()
        assert torch.equal(mixing(x, labels, position)[0], mixed)


def test_smoothing_without_mixing():
    x, target = Mixing(ClassifierConfig(label_smoothing=0.1), 10)(torch.zeros(3, 1, 2, 2), torch.tensor([0, 4, 9]), 0)
    assert torch.allclose(target, 0.9 * torch.eye(10)[[0, 4, 9]] + 0.01)
    assert x.shape == (3, 1, 2, 2)  # an odd number of images


def test_batches_are_mixed_and_name_broken_images():
    batch = (whole := view(mixup=0.5)).collate([whole[(index, index)] for index in range(4)])
    assert sorted(batch) == ["broken", "position", "target", "x"]
    assert (batch["target"] > 0.05).sum(1).max() == 2
    assert batch["position"].tolist() == [0, 1, 2, 3] and batch["broken"] == []


def test_a_crop_sees_the_whole_picture(tmp_path):
    """Not only its central square, which generative models are trained on."""
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)).save(
        tmp_path / "a/0.png"
    )
    dataset = FolderDataset(tmp_path, 16)
    config = ClassifierConfig(data="x", image_size=8, crop_scale=[0.2, 0.3], crop_ratio=[1, 1], label_smoothing=0)
    transform = training_transform(config, (0.0,) * 3, (1.0,) * 3)
    centres = []
    for position in range(40):
        with seeded(0, Stream.AUGMENTATION, position):
            centres.append(read_tensor(dataset, 0, transform, 3).mean().item() * 255)
    assert min(centres) < 16 and max(centres) > 48
    middle = read_tensor(dataset, 0, evaluation_transform(8, 1.0, (0.0,) * 3, (1.0,) * 3), 1)
    assert middle.shape == (1, 8, 8)
    assert middle.mean().item() * 255 == pytest.approx(31.5, abs=1)
