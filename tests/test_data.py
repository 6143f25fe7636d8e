"""Image data sets, and the order and randomness in which training sees them."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

from sit_atconv.data import (
    FLIP,
    NOISE,
    TIME,
    DigitsDataset,
    FolderDataset,
    TrainingOrder,
    TrainingView,
    draw_per_sample,
    open_dataset,
    read_image,
    sample_generator,
)


def test_digits_are_scikit_learns():
    dataset, digits = open_dataset("digits"), load_digits()
    assert isinstance(dataset, DigitsDataset)
    assert len(dataset) == 1797
    assert (dataset.channels, dataset.image_size, dataset.classes) == (1, 8, [str(i) for i in range(10)])
    for index in (0, 1, 1000, 1796):
        pixels, label = dataset[index]
        assert pixels.dtype == torch.float32
        assert pixels.shape == (1, 8, 8)
        assert label == digits.target[index]
        assert isinstance(label, int)
        np.testing.assert_array_equal(dataset.image(index)[..., 0], np.round(digits.images[index] / 16 * 255))
        np.testing.assert_allclose(pixels[0], digits.images[index] / 8 - 1, atol=0.51 / 127.5)
    everything = torch.stack([dataset[i][0] for i in range(100)])
    assert everything.min() == -1
    assert everything.max() == 1


@pytest.mark.parametrize("image_size", [16, 0])
def test_digits_have_one_size(image_size):
    open_dataset("digits", 8)
    with pytest.raises(ValueError, match=f"image_size={image_size}"):
        open_dataset("digits", image_size)


@pytest.fixture
def folder(tmp_path):
    """Two classes: one wide, one tall image with a distinct centre square."""
    for name in ("b_cat", "a_dog"):
        (tmp_path / name).mkdir()
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "b_cat" / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "b_cat" / "tall.png")
    Image.fromarray(wide[..., 0]).save(tmp_path / "a_dog" / "grey.png")
    return tmp_path


def test_folder(folder):
    dataset = open_dataset(folder, image_size=4)
    assert isinstance(dataset, FolderDataset)
    assert dataset.classes == ["a_dog", "b_cat"]
    assert (len(dataset), dataset.channels, dataset.image_size, dataset.name) == (3, 3, 4, folder.name)
    assert dataset.labels.tolist() == [0, 1, 1]
    grey, tall, wide = (dataset[i] for i in range(3))
    assert (grey[1], tall[1], wide[1]) == (0, 1, 1)
    torch.testing.assert_close(grey[0], torch.full((3, 4, 4), 200 / 127.5 - 1))
    colour = (torch.tensor([200.0, 100.0, 50.0]) / 127.5 - 1).view(3, 1, 1).expand(3, 4, 4)
    torch.testing.assert_close(wide[0], colour)
    torch.testing.assert_close(tall[0], colour)


def test_images_are_resized(folder):
    pixels, _ = open_dataset(folder, image_size=9)[2]
    assert pixels.shape == (3, 9, 9)
    assert -1 <= pixels.min()
    assert pixels.max() <= 1


def test_images_are_turned_upright(tmp_path):
    image = np.zeros((2, 4, 3), np.uint8)
    image[:, :2] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png")[:, 2:].min() == 255


def test_a_broken_image_is_named(folder):
    (folder / "a_dog" / "broken.png").write_bytes(b"not a picture")
    dataset = open_dataset(folder, 4)
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        dataset[0]


def test_a_truncated_image_is_named(folder):
    whole = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = folder / "a_dog" / "cut.png"
    Image.fromarray(whole).save(file)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        open_dataset(folder, 4)[0]


def test_folders_that_cannot_be_used(tmp_path, folder):
    with pytest.raises(ValueError, match="missing' is no folder"):
        open_dataset(tmp_path / "missing", 8)
    with pytest.raises(ValueError, match="is no folder"):
        open_dataset(tmp_path / "b_cat" / "wide.png", 8)
    with pytest.raises(ValueError, match="image_size must be given"):
        open_dataset(folder)
    with pytest.raises(ValueError, match="image_size=0"):
        open_dataset(folder, 0)
    with pytest.raises(ValueError, match="holds no class folders"):
        open_dataset(folder / "b_cat", 8)
    (folder / "empty_class").mkdir()
    with pytest.raises(ValueError, match="class folders without images: empty_class"):
        open_dataset(folder, 8)


def test_an_empty_folder_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="holds no class folders"):
        open_dataset(tmp_path, 8)


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


def test_flips_are_a_function_of_seed_and_position():
    dataset = DigitsDataset()
    view = TrainingView(dataset, seed=0, horizontal_flip=True)
    plain = TrainingView(dataset, seed=0, horizontal_flip=False)
    pixels, label = dataset[3]
    flipped = []
    for position in range(200):
        seen, seen_label, seen_position = view[3, position]
        assert (seen_label, seen_position) == (label, position)
        assert torch.equal(seen, pixels) or torch.equal(seen, pixels.flip(-1))
        assert torch.equal(plain[3, position][0], pixels)
        assert torch.equal(seen, view[3, position][0])
        flipped.append(not torch.equal(seen, pixels))
    assert 70 < sum(flipped) < 130
    assert len(view) == len(dataset)


def test_draws_are_a_function_of_seed_stream_and_position():
    positions = torch.tensor([5, 0, 123_456_789_012])
    draws = draw_per_sample(0, NOISE, positions, (2, 3))
    assert draws.dtype == torch.float32
    assert draws.shape == (3, 2, 3)
    torch.testing.assert_close(draws[[2, 0]], draw_per_sample(0, NOISE, positions[[2, 0]], (2, 3)), rtol=0, atol=0)
    others = [
        draw_per_sample(1, NOISE, positions, (2, 3)),
        draw_per_sample(0, TIME, positions, (2, 3)),
        draw_per_sample(0, NOISE, positions + 1, (2, 3)),
    ]
    for other in others:
        assert not torch.isclose(draws, other).any()
    global_state = torch.get_rng_state()
    draw_per_sample(0, NOISE, positions)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_draws_are_standard_normal_and_independent():
    draws = draw_per_sample(0, NOISE, torch.arange(2000), (8,)).double()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    neighbours = torch.corrcoef(torch.stack([draws[:-1].flatten(), draws[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.03
    across = torch.corrcoef(
        torch.stack([draws.flatten(), draw_per_sample(0, FLIP, torch.arange(2000), (8,)).flatten()])
    )
    assert abs(across[0, 1]) < 0.03


def test_long_draws_do_not_run_into_the_next_position():
    long = sample_generator(0, NOISE, 7).standard_normal(100_000)
    following = sample_generator(0, NOISE, 8).standard_normal(8)
    assert not np.isin(following, long).any()
