"""Held-out images: the same ones always, of every class, and never in training."""

import numpy as np
import pytest
from PIL import Image

from sit_atconv.data import DigitsDataset, FolderDataset, Stream, hold_out, sample_generator


def test_split_has_every_image_once_and_a_share_of_each_class():
    whole = DigitsDataset()
    kept, held_out = hold_out(whole, 0.2)
    assert sorted([*kept.indices, *held_out.indices]) == list(range(len(whole)))
    shares = np.bincount(held_out.labels) / np.bincount(whole.labels)
    assert np.abs(shares - 0.2).max() < 0.01
    again = hold_out(DigitsDataset(), 0.2)[1]
    assert (again.indices == held_out.indices).all()
    for part in (kept, held_out):
        for index in (0, len(part) - 1):
            assert (part.image(index) == whole.image(part.indices[index])).all()
            assert part.labels[index] == whole.labels[part.indices[index]]
            assert part.picture(index).mode == "L"
    assert kept.fingerprint() != held_out.fingerprint() != whole.fingerprint()


def test_order_of_a_part_follows_that_of_the_whole(monkeypatch):
    kept, _ = hold_out(DigitsDataset(), 0.5)
    order = kept.epoch_order(sample_generator(0, Stream.ORDER, 0))
    assert sorted(order) == list(range(len(kept)))
    whole = kept.dataset.epoch_order(sample_generator(0, Stream.ORDER, 0))
    assert [index for index in whole if index in set(kept.indices)] == kept.indices[order].tolist()


def test_class_of_one_image_cannot_be_split(tmp_path):
    for name, count in (("cat", 3), ("dog", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (5, 4)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(ValueError, match=r"class 'dog' of .* has a single image; add images, or give a --validation"):
        hold_out(FolderDataset(tmp_path, 8), 0.5)
    assert FolderDataset(tmp_path, 8).picture(0).size == (5, 4)  # as it was taken
