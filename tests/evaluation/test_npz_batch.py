"""The .npz batches of the ADM evaluations: what is written is what is read, from stored and compressed files."""

import json
import time

import numpy as np
import pytest

from sit_atconv.evaluation.npz_batch import BatchImages, is_packed, open_images_array, write_npz


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)


def test_what_is_written_is_what_is_read(images, tmp_path):
    write_npz(tmp_path / "deeper" / "batch.npz", iter(images), [3, 1, 4, 1, 5], (6, 4, 3))
    with np.load(tmp_path / "deeper" / "batch.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].tolist() == [3, 1, 4, 1, 5] and arrays["arr_1"].dtype == np.int64
    found = BatchImages(tmp_path / "deeper" / "batch.npz")
    assert len(found) == 5 and found.shape == (6, 4, 3)
    np.testing.assert_array_equal(found.image(2), images[2])


@pytest.mark.parametrize("order", ["C", "F"])
def test_stored_arrays_are_mapped_and_compressed_ones_read(images, tmp_path, order):
    array = np.asarray(images, order=order)
    np.savez(tmp_path / "stored.npz", arr_1=np.arange(3), arr_0=array)
    np.savez_compressed(tmp_path / "compressed.npz", arr_0=array)
    assert isinstance(open_images_array(tmp_path / "stored.npz"), np.memmap)
    for name in ("stored", "compressed"):
        np.testing.assert_array_equal(open_images_array(tmp_path / f"{name}.npz"), images)


def test_the_bytes_of_a_batch_do_not_depend_on_the_time(images, tmp_path, monkeypatch):
    files = [tmp_path / "one.npz", tmp_path / "other.npz"]
    for file, seconds in zip(files, (0, 10_000_000), strict=True):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: 1_700_000_000 + seconds)
        monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(time.time()))
        write_npz(file, iter(images), [3, 1, 4, 1, 5], (6, 4, 3))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_grey_batches(images, tmp_path):
    np.savez(tmp_path / "grey.npz", arr_0=images[..., 0])
    assert BatchImages(tmp_path / "grey.npz").shape == (6, 4, 1)
    np.savez(tmp_path / "equal.npz", arr_0=images[..., :1].repeat(3, axis=3))
    assert BatchImages(tmp_path / "equal.npz").shape == (6, 4, 3)
    assert BatchImages(tmp_path / "equal.npz", uniform=True).shape == (6, 4, 1)


def test_a_batch_is_packed_if_its_own_record_says_so(tmp_path):
    older = {"complete": True, "pipeline": "a", "num_samples": 5, "seed": 0, "versions": {"torch": "2", "numpy": "2"}}
    record = {**older, "dtype": "float32"}
    file = tmp_path / "batch.npz"
    assert not is_packed(str(file), record)
    (tmp_path / "batch.json").write_text(json.dumps(older))
    assert not is_packed(str(file), record)  # a kill left the record alone
    file.touch()
    assert is_packed(str(file), record)
    assert is_packed(str(file), {**record, "pipeline": "moved", "versions": {"torch": "2", "numpy": "3"}})
    for change in ({"seed": 1}, {"num_samples": 6}, {"versions": {"torch": "3"}}):
        with pytest.raises(ValueError, match=r"batch\.npz' already exists"):
            is_packed(str(file), {**record, **change})
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        is_packed("batch.zip", record)
