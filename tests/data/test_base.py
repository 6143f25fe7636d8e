"""What all image data sets share: classes from labels, fingerprints, and the cache of indices."""

import json
from datetime import date
from decimal import Decimal

import numpy as np
import pytest

from sit_atconv.data import DigitsDataset
from sit_atconv.data.base import cached_index, class_names, hash_of


def test_class_names_of_ids_and_of_names():
    names, labels = class_names("data", [2, "0", 1, 2])
    assert (names, labels.tolist()) == (["0", "1", "2"], [2, 0, 1, 2])
    names, labels = class_names("data", ["b", "a", "b"])
    assert (names, labels.tolist()) == (["a", "b"], [1, 0, 1])
    names, labels = class_names("data", [1, 0], ["cat", "dog", "owl"])
    assert (names, labels.tolist()) == (["cat", "dog", "owl"], [1, 0])


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        ([0, "cat"], None, "all be whole numbers or all be names"),
        ([0.0, 1.0], None, "all be whole numbers or all be names"),
        ([0, -1], None, "label -1 is below 0"),
        ([0, 4], None, "labels reach 4, but there are only 2 classes"),
        ([0, 2], ["cat", "dog"], "labels reach 2, but only 2 classes have names"),
    ],
)
def test_labels_that_make_no_classes(values, names, message):
    with pytest.raises(ValueError, match=f"^data: .*{message}"):
        class_names("data", values, names)


def test_half_of_the_ids_may_be_unused():
    assert class_names("data", [0, 3])[0] == ["0", "1", "2", "3"]


def test_fingerprints_tell_images_and_labels_apart():
    digits, relabelled, redrawn = (DigitsDataset() for _ in range(3))
    relabelled.labels = np.roll(relabelled.labels, 1)
    redrawn._images = redrawn._images.copy()
    redrawn._images[5, 3, 3] ^= 1
    assert DigitsDataset().fingerprint() == digits.fingerprint()
    assert len({dataset.fingerprint() for dataset in (digits, relabelled, redrawn)}) == 3


def test_hashes_tell_types_and_shapes_apart():
    values = np.arange(6)
    others = [values.astype(np.int32), values.reshape(2, 3), values + 1, values.tolist()]
    assert len({hash_of(other) for other in (values, *others)}) == 5
    assert hash_of(values[::-1]) == hash_of(np.array([5, 4, 3, 2, 1, 0]))  # whatever the layout in memory


def test_an_index_is_built_once_and_again_where_the_cache_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []

    def build() -> dict:
        built.append(None)
        return {"names": ["é"]}

    assert cached_index("a", build) == cached_index("a", build) == {"names": ["é"]}
    assert len(built) == 1
    cached_index("b", build)
    assert len(built) == 2
    [file, _] = sorted((tmp_path / "sit_atconv" / "index").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    file.write_text("{")
    assert cached_index("a", build) == json.loads(file.read_text()) == {"names": ["é"]}
    assert len(built) == 3


def test_without_a_writable_cache_the_index_is_built_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    built = []
    for _ in range(2):
        assert cached_index("a", lambda: built.append(None) or {"n": 1}) == {"n": 1}
    assert len(built) == 2


@pytest.mark.parametrize("large", [2**63, -(2**64), 10**30, "9" * 30, b"9" * 30, "9" * 5000])
def test_labels_beyond_64_bits(large):
    with pytest.raises(ValueError, match="is too large for a class id"):
        class_names("data", [0, large])


@pytest.mark.parametrize("odd", [None, [1], {"a": 1}, 0.5, float("inf"), Decimal("1.5"), date(2026, 1, 1)])
def test_labels_of_odd_types(odd):
    with pytest.raises(ValueError, match="all be whole numbers or all be names, but one is"):
        class_names("data", [0, odd])
    with pytest.raises(ValueError, match="all be whole numbers or all be names, but one is"):
        class_names("data", ["cat", odd])


def test_labels_as_bytes_and_long_names():
    assert class_names("data", [b"cat", "dog\0", "dog"])[0] == ["cat", "dog", "dog\0"]
    assert class_names("data", [np.int64(1), b" 0 ", True])[1].tolist() == [1, 0, 1]
    labels = class_names("data", ["a"] * 100_000 + ["b" * 60_000])[1]  # an array of such texts would take 24 GB
    assert labels.sum() == 1


def test_classes_without_images_are_named():
    digits = DigitsDataset()
    assert digits.notes == []
    digits.classes, digits.labels = class_names("data", [1, 2, 1, 2])
    assert digits.notes == ["1 of 3 classes have no image, but will be sampled: 0"]
