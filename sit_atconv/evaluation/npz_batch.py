"""The .npz batches of the ADM evaluations: arr_0 (N, H, W, C) uint8 images and arr_1 (N,) labels, in one file.

Reading maps the images from the disk and writing holds one of them in memory at a time, so that batches of 50,000
images need no more memory than small ones.
"""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..utils.files import check_new_file, staged
from .npz_arrays import list_arrays
from .output_files import check_batch_file
from .records import image_determining, read_record


class BatchImages:
    """The images of a .npz batch: arr_0 (N, H, W, C) or (N, H, W) uint8. Images are not read before they are needed.

    Args:
        file: the .npz file.
        uniform: if True, and the three channels of all images are equal, the images have one channel, as in
            `FolderImages`. To find out, the batch is read up to the first image whose channels differ.

    Attributes:
        shape: (H, W, C).
        broken, notes: as of other image sets; empty, because a damaged batch is refused as a whole.

    Raises:
        ValueError: if the file cannot be read, or holds no such array.
    """

    def __init__(self, file: str | Path, uniform: bool = False):
        self.broken: list[str] = []
        self.notes: list[str] = []
        try:
            self.array = open_images_array(file)
        except ValueError as error:
            raise ValueError(f"{str(file)!r} cannot be read as a .npz batch of images (arr_0): {error}") from error
        if uniform and all((image == image[..., :1]).all() for image in self.array):
            self.array = self.array[..., :1]
        self.shape: tuple[int, int, int] = self.array.shape[1:]

    def __len__(self) -> int:
        return len(self.array)

    def image(self, index: int) -> np.ndarray:
        """One image, (H, W, C) uint8."""
        return np.asarray(self.array[index])


def open_images_array(file: str | Path) -> np.ndarray:
    """Open the images of a .npz batch, (N, H, W, C) uint8: mapped from the disk if they are stored uncompressed.

    Raises:
        ValueError: if there are none, or they are of another type or shape, or damaged.
    """
    stored = list_arrays(file, ["arr_0"]).get("arr_0")
    if stored is None:
        raise ValueError("it holds no arr_0")
    shape = (*stored.shape, 1) if len(stored.shape) == 3 else stored.shape
    if len(shape) != 4 or 0 in shape or stored.dtype != np.uint8 or shape[3] not in (1, 3):
        raise ValueError(f"arr_0 is {stored.dtype} {stored.shape}, but must be uint8 (N, H, W, 1 or 3)")
    return stored.map().reshape(shape)


def is_packed(npz: str, record: dict) -> bool:
    """Whether a .npz file already holds the images that a record describes, according to the record in NAME.json.

    Raises:
        ValueError: if the file cannot be written, or would replace another one.
    """
    file = Path(npz)
    check_batch_file(file)
    found = read_record(file)
    if (
        found is not None
        and found["num_samples"] == record["num_samples"]
        and image_determining(found) == image_determining(record)
    ):
        return file.exists()
    check_new_file("npz", file)
    check_new_file("npz", file.with_suffix(".json"))
    return False


def write_npz(file: Path, images: Iterable[np.ndarray], labels: list[int], shape: tuple[int, int, int]) -> None:
    """Pack images as the ADM evaluations expect them: arr_0 (N, H, W, 3) uint8, arr_1 (N,) labels.

    The bytes of the file depend on images and labels only, not on the time.

    Args:
        file: the .npz file to write.
        images: N images (H, W, 3) uint8; one is in memory at a time.
        labels: class ids of the N images.
        shape: (H, W, C) of the images; grey images are packed with three equal channels.
    """
    height, width, _ = shape
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged(file) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as opened:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), height, width, 3)}
            np.lib.format.write_array_header_1_0(opened, header)
            for image in tqdm(images, total=len(labels), desc=file.name, unit="image", leave=False):
                opened.write(image.tobytes())
        array = io.BytesIO()
        np.save(array, np.array(labels, dtype=np.int64))
        archive.writestr(zipfile.ZipInfo("arr_1.npy"), array.getvalue())  # an entry of 1980, unlike one by name alone
