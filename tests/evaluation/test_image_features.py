"""Statistics of a file as if its images had just been seen, if they fit the extractor."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from sit_atconv.data import BrokenImageError
from sit_atconv.evaluation.image_features import from_statistics, read_batches
from sit_atconv.evaluation.reference_statistics import ReferenceStatistics
from sit_atconv.evaluation.scored_images import ReferenceSource
from sit_atconv.evaluation.scores import check_weights_agree


@pytest.fixture
def file(tmp_path):
    (tmp_path / "statistics.npz").write_bytes(b"whatever")
    return str(tmp_path / "statistics.npz")


@pytest.mark.parametrize("num_images", [None, 30])
def test_moments_come_back(num_images, file):
    rng = np.random.default_rng(0)
    mean, covariance = rng.standard_normal(3), np.cov(rng.standard_normal((30, 3)), rowvar=False)
    record = {"extractor": "pixels"} | ({} if num_images is None else {"num_images": num_images})
    found = from_statistics(ReferenceStatistics(mu=mean, sigma=covariance, record=record), file)
    np.testing.assert_array_equal(found.statistics["features"].mean, mean)
    np.testing.assert_allclose(found.statistics["features"].covariance, covariance, rtol=1e-12)
    assert found.statistics["features"].n == (num_images or 2)


@pytest.mark.parametrize("made_with, agrees", [("a" * 64, True), ("b" * 64, False), (None, True)])
def test_statistics_of_other_weights_are_refused(made_with, agrees):
    """None: the file does not say which weights it was made with."""
    source = ReferenceSource("reference.npz", ReferenceStatistics(record={"weights": made_with}), None, [])
    extractor = SimpleNamespace(name="inception", weights_sha256="a" * 64)
    with nullcontext() if agrees else pytest.raises(ValueError, match=r"bbbbbbbbbbbb…, here aaaaaaaaaaaa…"):
        check_weights_agree(source, extractor)


class Pictures:
    """Images 0…6 of one pixel, of which those in `unreadable` cannot be read."""

    def __init__(self, unreadable: set[int]):
        self.unreadable, self.broken = unreadable, []

    def __len__(self) -> int:
        return 7

    def image(self, index: int) -> np.ndarray:
        if index in self.unreadable:
            raise BrokenImageError(f"{index}.png cannot be read")
        return np.full((1, 1, 3), index, np.uint8)


@pytest.mark.parametrize("unreadable", [set(), {0}, {0, 1}, {2, 6}])
def test_broken_images_are_left_out_up_to_a_limit(unreadable):
    with ThreadPoolExecutor(2) as pool:
        pictures = Pictures(unreadable)
        batches = list(read_batches(pictures, 2, pool, max_broken_images=2))
        assert [int(image[0, 0, 0]) for batch in batches for image in batch] == sorted(set(range(7)) - unreadable)
        assert all(batches)
        assert pictures.broken == [f"{index}.png cannot be read" for index in sorted(unreadable)]
        if len(unreadable) == 2:
            with pytest.raises(BrokenImageError, match=r"max_broken_images=1: 2 images or more .*png cannot be read"):
                list(read_batches(Pictures(unreadable), 2, pool, max_broken_images=1))
        if unreadable:
            with pytest.raises(BrokenImageError, match=r"png cannot be read.* give --max_broken_images"):
                list(read_batches(Pictures(unreadable), 2, pool))
