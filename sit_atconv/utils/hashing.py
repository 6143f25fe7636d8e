"""SHA-256 hashes of files and of tensors."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from .files import open_regular

if TYPE_CHECKING:
    import torch


def tensors_sha256(state_dict: "dict[str, torch.Tensor]") -> str:
    """Return a SHA-256 of names, types, shapes and values, independent of the order and of the file they came from."""
    import torch  # not needed for files

    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, as sha256sum prints it.

    Raises:
        ValueError: if it is not a regular file.
    """
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()
