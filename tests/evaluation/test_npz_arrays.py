"""Arrays of .npz files: read as NumPy reads them; damage, bombs and objects are refused before they are read."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from sit_atconv.evaluation import npz_arrays
from sit_atconv.evaluation.npz_arrays import ANY_RATIO_BYTES, list_arrays
from sit_atconv.evaluation.npz_batch import BatchImages
from sit_atconv.evaluation.reference_statistics import load_statistics


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(array, tmp_path, save, order):
    numbers = np.asarray(array.astype(np.float32), order=order)
    save(tmp_path / "a.npz", a=numbers, scalar=np.float64(3), text=np.array("σ"))
    found = list_arrays(tmp_path / "a.npz", ["a", "scalar", "text", "missing"])
    assert found.keys() == {"a", "scalar", "text"}
    np.testing.assert_array_equal(found["a"].read(), numbers)
    np.testing.assert_array_equal(found["a"].map(), numbers)
    assert found["scalar"].read() == 3 and str(found["text"].read()) == "σ"


def damage(file, name: str) -> None:
    """Zero a stretch in the middle of an array."""
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
    content = bytearray(file.read_bytes())
    middle = member.header_offset + member.compress_size // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_zeroed_stretch_is_noticed(array, tmp_path, save):
    file = tmp_path / "samples.npz"
    save(file, arr_0=array, arr_1=np.arange(20))
    assert len(BatchImages(file)) == 20
    damage(file, "arr_0")
    with pytest.raises(ValueError, match=r"samples\.npz' is damaged .*; get or make it again"):
        BatchImages(file)
    with pytest.raises(Exception, match=r"CRC|decompress|distance|code"):  # what NumPy says
        np.load(file)["arr_0"]


@pytest.mark.parametrize("name", ["mu", "sigma", "features"])
def test_a_zeroed_stretch_in_statistics_is_noticed(tmp_path, name):
    features = np.random.default_rng(0).normal(size=(90, 60))
    moments = {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False), "features": features}
    np.savez(tmp_path / "statistics.npz", **moments)
    load_statistics(tmp_path / "statistics.npz")
    damage(tmp_path / "statistics.npz", name)
    with pytest.raises(ValueError, match=r"^reference='.*' cannot be used: .*CRC.*get or make it again"):
        load_statistics(tmp_path / "statistics.npz")


@pytest.mark.parametrize("kept", [0, 10, -1, -30])
def test_a_file_cut_short_is_refused(array, tmp_path, kept):
    np.savez(tmp_path / "a.npz", arr_0=array)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.npz' is damaged or no \.npz file"):
        BatchImages(tmp_path / "cut.npz")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigma", "features", "arr_0", "mu"])
def test_bombs_are_refused_before_they_are_read(tmp_path, name):
    """Zeros compress a thousandfold: statistics of a few MB could take all memory and minutes."""
    file = tmp_path / "bomb.npz"
    F = int((2 * ANY_RATIO_BYTES / 8) ** 0.5)
    shapes = {"mu": (F,), "sigma": (F, F)} | ({"features": (F, F)} if name == "features" else {})
    shapes = shapes | ({"mu": (F * F,)} if name == "mu" else {})
    arrays = {key: np.zeros(shape) for key, shape in shapes.items()}
    if name == "arr_0":
        arrays = {"arr_0": np.zeros((1, 8 * F, F, 1), np.uint8)}
    np.savez_compressed(file, **arrays)
    del arrays
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"would grow from \d+ bytes to \d+, more than 20 times; if that"):
        (BatchImages if name == "arr_0" else load_statistics)(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_uncompressed_arrays_of_zeros_are_read(tmp_path):
    """The remedy of the message above works, and maps the array instead of reading it."""
    np.savez(tmp_path / "zeros.npz", arr_0=np.zeros((1, 2**14, 2**13, 1), np.uint8))
    assert isinstance(BatchImages(tmp_path / "zeros.npz").array, np.memmap)


def write_member(file, content: bytes, **options) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", content, **options)


def npy(header: str, values: bytes) -> bytes:
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + values


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000, 3), }", "not as long as its header"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 1, 1, 3), }", "not as long as its header"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 1), }", "not as long as its header"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1, 3), }", "Python objects"),
        ("{'descr': '<c16', 'fortran_order': False, 'shape': (0, 1, 1, 3), }", "not as long as"),
        ("__import__('os').abort()", "has a header that NumPy does not know"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, header, expected):
    write_member(tmp_path / "lie.npz", npy(header, b"\0\0\0"))
    with pytest.raises(ValueError, match=expected):
        BatchImages(tmp_path / "lie.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path, method):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 1, 1, 3), }"
    write_member(tmp_path / "a.npz", npy(header, b"\0\0\0"), compress_type=method)
    with pytest.raises(ValueError, match=r"compressed in another way than NumPy's; save it with numpy\.savez"):
        BatchImages(tmp_path / "a.npz")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"pipe\.npz' is not a file"):
        BatchImages(tmp_path / "pipe.npz")


def test_the_checksum_of_a_mapped_array_is_read_in_chunks(array, tmp_path, monkeypatch):
    monkeypatch.setattr(npz_arrays, "CHUNK", 100)
    np.savez(tmp_path / "a.npz", arr_0=array)
    np.testing.assert_array_equal(BatchImages(tmp_path / "a.npz").array, array)


def test_a_header_may_be_a_bomb(tmp_path):
    length = 2 * ANY_RATIO_BYTES
    content = b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + bytes(length)
    write_member(tmp_path / "a.npz", content, compress_type=zipfile.ZIP_DEFLATED)
    del content
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 20 times"):
        BatchImages(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
