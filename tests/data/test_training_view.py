"""What training sees of a sample: its image, its random numbers, and a substitute for a broken image."""

import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from sit_atconv.data import (
    BrokenImageError,
    DigitsDataset,
    Stream,
    TrainingOrder,
    TrainingView,
    draw,
)


def view(seed=0, horizontal_flip=False, shape=(1, 8, 8), dataset=None, **options):
    return TrainingView(dataset or DigitsDataset(), seed, horizontal_flip, shape, **options)


def test_flips_are_a_function_of_seed_and_position():
    dataset = DigitsDataset()
    flipping, plain = view(horizontal_flip=True), view()
    pixels, label = dataset.tensor(3), dataset.labels[3]
    flipped = []
    for position in range(200):
        item = flipping[3, position]
        assert item["label"] == label
        assert torch.equal(item["x"], pixels) or torch.equal(item["x"], pixels.flip(-1))
        assert torch.equal(plain[3, position]["x"], pixels)
        assert torch.equal(item["x"], flipping[3, position]["x"])
        flipped.append(not torch.equal(item["x"], pixels))
    assert 70 < sum(flipped) < 130
    assert len(flipping) == len(dataset)


def test_items_hold_the_draws_of_their_position():
    latent = view(shape=(2, 4, 4), posterior=True)
    items = [latent[i % 10, i] for i in range(500)]
    assert items[7]["noise"].shape == items[7]["posterior"].shape == (2, 4, 4)
    assert not torch.isclose(items[7]["noise"], items[7]["posterior"]).any()
    assert torch.equal(items[7]["noise"], draw(0, Stream.NOISE, 7, (2, 4, 4)))
    assert torch.equal(items[7]["time"], draw(0, Stream.TIME, 7))
    assert torch.equal(items[7]["dropout"], torch.special.ndtr(draw(0, Stream.CLASS_DROPOUT, 7)))
    assert stats.kstest([float(item["time"]) for item in items], "norm").pvalue > 1e-3
    assert stats.kstest([float(item["dropout"]) for item in items], "uniform").pvalue > 1e-3
    assert "posterior" not in view()[0, 0]


def test_steps_have_an_end_and_change_nothing_else():
    plain, steps = view(), view(steps=True)
    items = [steps[i % 10, i] for i in range(500)]
    assert [item["position"] for item in items] == list(range(500))
    assert torch.equal(items[7]["end_time"], draw(0, Stream.END_TIME, 7))
    ends, times = ([float(item[name]) for item in items] for name in ("end_time", "time"))
    assert stats.kstest(ends, "norm").pvalue > 1e-3 and abs(stats.pearsonr(ends, times)[0]) < 0.15
    item = plain[3, 7]
    assert items[7].keys() - item.keys() == {"end_time"}
    assert torch.equal(steps[3, 7]["noise"], item["noise"]) and torch.equal(steps[3, 7]["time"], item["time"])


def test_workers_give_the_same_batches_bit_by_bit():
    def load(workers):
        order = TrainingOrder(1797, 16, 0, 3, 8, 0, 1)
        whole = view(horizontal_flip=True, posterior=True)
        return list(DataLoader(whole, batch_sampler=order, num_workers=workers, collate_fn=whole.collate))

    alone, shared = load(0), load(2)
    assert len(alone) == len(shared) == 5
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        assert one.pop("broken") == other.pop("broken") == []
        for name, tensor in one.items():
            assert tensor.dtype == other[name].dtype
            assert torch.equal(tensor, other[name]), name


class DamagedDigits(DigitsDataset):
    """Digits of which the first hundred cannot be read."""

    def image(self, index):
        if index < 100:
            raise BrokenImageError(f"digit {index} cannot be read")
        return super().image(index)


def test_broken_images_are_replaced_by_position():
    damaged = view(dataset=DamagedDigits())
    first, again, later = damaged[5, 70], damaged[5, 70], damaged[5, 71]
    assert first["broken"][0] == (5, "digit 5 cannot be read")
    assert torch.equal(first["x"], again["x"])
    assert not torch.equal(first["x"], later["x"])
    [substitute] = [i for i in range(100, 1797) if torch.equal(damaged.dataset.tensor(i), first["x"])]
    assert first["label"] == damaged.dataset.labels[substitute]
    assert torch.equal(first["noise"], view()[5, 70]["noise"])
    whole = damaged[500, 70]
    assert (whole["broken"], whole["label"]) == ([], DigitsDataset().labels[500])
    for items in ([first, whole], [whole, later]):
        batch = TrainingView.collate([dict(item) for item in items])
        assert batch["broken"][0] == (5, "digit 5 cannot be read")
        assert torch.equal(batch["x"], torch.stack([item["x"] for item in items]))


def test_noise_has_its_scale_and_nothing_else_changes():
    plain, wide = (TrainingView(DigitsDataset(), 0, True, (1, 8, 8), noise_scale=scale)[5, 70] for scale in (1.0, 2.0))
    assert torch.equal(wide.pop("noise"), 2 * plain.pop("noise"))
    for name, value in plain.items():
        assert torch.equal(torch.as_tensor(wide[name]), torch.as_tensor(value)), name


def test_a_data_set_without_a_readable_image_is_given_up():
    class Unreadable(DigitsDataset):
        def image(self, index):
            raise BrokenImageError("no")

    with pytest.raises(BrokenImageError):
        view(dataset=Unreadable())[0, 0]
