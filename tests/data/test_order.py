"""The order and the randomness in which training sees its images."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from sit_atconv.data import (
    BrokenImageError,
    BrokenImages,
    DigitsDataset,
    Stream,
    TrainingOrder,
    TrainingView,
    draw,
    sample_generator,
)


def batches(num_samples=10, batch_size=4, seed=0, start=0, stop=10, rank=0, world=1):
    return list(TrainingOrder(num_samples, batch_size, seed, start, stop, rank, world))


@pytest.mark.parametrize(("num_samples", "batch_size"), [(10, 4), (7, 7), (3, 8), (12, 1)])
def test_every_epoch_covers_every_index_once(num_samples, batch_size):
    steps = 6 * num_samples
    seen = [item for batch in batches(num_samples, batch_size, stop=steps) for item in batch]
    assert [position for _, position in seen] == list(range(steps * batch_size))
    indices = [index for index, _ in seen]
    epochs = [indices[i : i + num_samples] for i in range(0, len(indices) - num_samples + 1, num_samples)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(num_samples))
    assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled anew


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [4, 6, 7])
def test_processes_share_what_one_process_sees(batch_size, world):
    """Also where the parts are not equal, the union is the same, step by step."""
    expected = batches(batch_size=batch_size)
    parts = [batches(batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(expected):
        assert [item for part in parts for item in part[step]] == batch


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_resumed_run_sees_the_rest(start):
    assert batches(start=start) == batches()[start:]
    assert len(TrainingOrder(10, 4, 0, start, 10, 0, 1)) == 10 - start


def test_order_is_a_function_of_the_seed():
    assert batches(seed=1) == batches(seed=1)
    assert batches(seed=1) != batches(seed=2)


def test_epoch_order_of_the_data_set_is_followed():
    backwards = TrainingOrder(6, 4, 0, 0, 3, 0, 1, epoch_order=lambda generator: np.arange(6)[::-1])
    assert [index for batch in backwards for index, _ in batch] == [5, 4, 3, 2, 1, 0] * 2


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


def test_draws_are_a_function_of_seed_stream_and_position():
    global_state = torch.get_rng_state()
    drawn = draw(0, Stream.NOISE, 123_456_789_012, (2, 3))
    assert drawn.dtype == torch.float32
    assert drawn.shape == (2, 3)
    assert draw(0, Stream.TIME, 5).shape == ()
    assert torch.equal(drawn, draw(0, Stream.NOISE, 123_456_789_012, (2, 3)))
    for other in (
        draw(1, Stream.NOISE, 123_456_789_012, (2, 3)),
        draw(0, Stream.TIME, 123_456_789_012, (2, 3)),
        draw(0, Stream.NOISE, 123_456_789_013, (2, 3)),
    ):
        assert not torch.isclose(drawn, other).any()
    assert torch.equal(torch.get_rng_state(), global_state)


def test_draws_are_standard_normal_and_independent():
    draws = torch.stack([draw(0, Stream.NOISE, position, (8,)) for position in range(2000)]).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.03
    flips = torch.stack([draw(0, Stream.FLIP, position, (8,)) for position in range(2000)])
    assert abs(torch.corrcoef(torch.stack([draws.flatten(), flips.flatten()]))[0, 1]) < 0.03


def test_items_hold_the_draws_of_their_position():
    latent = view(shape=(2, 4, 4), posterior=True)
    items = [latent[i % 10, i] for i in range(500)]
    assert items[7]["noise"].shape == items[7]["posterior"].shape == (2, 4, 4)
    assert not torch.isclose(items[7]["noise"], items[7]["posterior"]).any()
    assert torch.equal(items[7]["noise"], draw(0, Stream.NOISE, 7, (2, 4, 4)))
    assert stats.kstest([float(item["time"]) for item in items], "norm").pvalue > 1e-3
    assert stats.kstest([float(item["dropout"]) for item in items], "uniform").pvalue > 1e-3
    assert "posterior" not in view()[0, 0]


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
    assert TrainingView.collate([first, whole])["broken"][0] == (5, "digit 5 cannot be read")


def test_a_data_set_without_a_readable_image_is_given_up():
    class Unreadable(DigitsDataset):
        def image(self, index):
            raise BrokenImageError("no")

    with pytest.raises(BrokenImageError):
        view(dataset=Unreadable())[0, 0]


def test_broken_images_are_listed_up_to_a_limit(tmp_path, capsys):
    file = tmp_path / "run" / "broken_images.txt"
    first, second = BrokenImages(file, 2), BrokenImages(file, 2)  # of two processes
    first.add([])
    assert not file.exists()
    first.add([(5, "a.png cannot\nbe read"), (5, "a.png cannot be read")])
    second.add([(5, "a.png cannot be read"), (7, "b.png is cut")])
    assert file.read_text() == "5\ta.png cannot be read\n7\tb.png is cut\n"
    assert capsys.readouterr().err.count("skipped") == 2
    resumed = BrokenImages(file, 2)
    resumed.add([(7, "b.png is cut")])
    assert not resumed.too_many
    resumed.add([(9, "c.png is cut")])
    assert resumed.too_many
    assert list(resumed.reasons) == [5, 7, 9]
    in_memory = BrokenImages(None, 0)
    in_memory.add([(7, "b.png is cut")])
    assert in_memory.too_many
    assert in_memory.reasons == {7: "b.png is cut"}


def test_long_draws_do_not_run_into_the_next_position():
    long = sample_generator(0, Stream.NOISE, 7).standard_normal(100_000)
    following = sample_generator(0, Stream.NOISE, 8).standard_normal(8)
    assert not np.isin(following, long).any()
