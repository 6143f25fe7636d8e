"""Hashes of files and of tensors."""

import hashlib
import os

import pytest
import torch

from sit_atconv.utils.hashing import file_sha256, tensors_sha256


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**20 + 1])
def test_a_file_is_hashed_as_sha256sum_does(size, tmp_path):
    content = bytes(range(251)) * (size // 251) + b"x" * (size % 251)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_tensors_are_hashed_by_name_type_shape_and_values():
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    expected = tensors_sha256(tensors)
    assert tensors_sha256(dict(reversed(tensors.items()))) == expected
    spread = torch.arange(12.0)[::2] / 2  # the same values, computed otherwise
    assert tensors_sha256({**tensors, "a": torch.nn.Parameter(spread)}) == expected
    others = [
        {"a": tensors["a"]},
        {"a": tensors["a"], "c": tensors["b"]},
        {**tensors, "a": tensors["a"].reshape(2, 3)},
        {**tensors, "a": tensors["a"].double()},
        {**tensors, "b": tensors["b"].half()},
        {**tensors, "a": tensors["a"].nextafter(torch.tensor(9.0))},
    ]
    assert len({expected, *map(tensors_sha256, others)}) == len(others) + 1


def test_a_view_is_hashed_by_its_values():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert tensors_sha256({"a": matrix.t()}) == tensors_sha256({"a": matrix.t().contiguous()})


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        file_sha256(tmp_path / "pipe")
