"""Encode images with a VAE once, so that training need not do it in every epoch.

    accelerate launch train/encode_latents.py --data PHOTOS --image_size 256 --vae stabilityai/sd-vae-ft-ema \
        --output_dir PHOTOS-latents --flip true
    accelerate launch train/train_sit.py --config train/configs/folder_latents.yaml --data PHOTOS-latents

Mean and standard deviation of the posterior are kept, so that each epoch draws new samples of it. Processes share the
shards out among themselves. Whatever stops them, the same command continues with the shards that are missing.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from sit_atconv.data import BrokenImageError, ImageDataset, open_dataset, too_many_broken
from sit_atconv.data.latents import (
    DTYPES,
    begin_folder,
    describe_encoding,
    finish_folder,
    published_shards,
    write_shard,
)
from sit_atconv.models.vae import load_vae, posterior_moments
from sit_atconv.training.processes import on_main_process, one_process_first
from sit_atconv.utils.checks import check_choice, check_count
from sit_atconv.utils.files import folder_lock


class Images(Dataset):
    """Items are (index, pixels, None), or (index, None, reason) of a broken image."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None, str | None]:
        try:
            return index, self.dataset.tensor(index), None
        except BrokenImageError as error:
            return index, None, str(error)


def shard_batches(shards: list[int], settings: dict, batch_size: int) -> Iterator[list[int]]:
    """The indices of the images in these shards, in batches that end with their shard.

    What is in a batch depends on the settings alone, so that any number of processes writes the same shards.
    """
    for shard in shards:
        start = shard * settings["shard_size"]
        end = min(start + settings["shard_size"], settings["source_images"])
        for first in range(start, end, batch_size):
            yield list(range(first, min(first + batch_size, end)))


@torch.no_grad()
def encode_batch(vae: torch.nn.Module, pixels: torch.Tensor, settings: dict) -> dict[str, torch.Tensor]:
    """The tensors of a shard for some images, on the CPU."""
    dtype = DTYPES[settings["latents"]["dtype"]]
    tensors = {}
    for suffix in ("", "_flipped") if settings["latents"]["flip"] else ("",):
        mean, std = posterior_moments(vae, pixels.flip(-1) if suffix else pixels)
        tensors[f"mean{suffix}"] = mean.to("cpu", dtype)
        if std is not None:
            tensors[f"std{suffix}"] = std.to("cpu", dtype)
    return tensors


def latents_bytes(settings: dict) -> int:
    """Bytes of one image's latents."""
    latents = settings["latents"]
    c, h, w = latents["shape"]
    return c * h * w * DTYPES[latents["dtype"]].itemsize * (1 + latents["std"]) * (1 + latents["flip"])


def encode_latents(
    data: str,
    vae: str,
    output_dir: str,
    image_size: int | None = None,
    flip: bool = False,
    dtype: str = "float32",
    shard_size: int = 4096,
    batch_size: int = 32,
    num_workers: int = 2,
    max_broken_images: int = 10,
) -> dict | None:
    """Encode all images of a data set.

    Args:
        data: as of train_sit.py: a folder of images, hf:NAME, parquet files, tar shards or an LMDB.
        vae: an AutoencoderKL or AutoencoderTiny, as a folder or a name on the Hub.
        output_dir: a new folder, or one to continue.
        image_size: side of the images in pixels.
        flip: also encode the mirrored images, for training with --horizontal_flip true.
        dtype: of the files: float32, float16 or bfloat16. The latter two halve them and round.
        shard_size: images in one file.
        batch_size: images per pass through the VAE, on each process.
        num_workers: processes that read images, for each process that encodes.
        max_broken_images: images that cannot be read are left out and listed; with more of them it stops.

    Returns:
        The manifest.

    Raises:
        ValueError: naming what cannot be used, before any long work; or the images that cannot be read.
    """
    check_choice("dtype", dtype, DTYPES)
    check_count("shard_size", shard_size)
    check_count("batch_size", batch_size)
    for field, value in (("num_workers", num_workers), ("max_broken_images", max_broken_images)):
        if value < 0:
            raise ValueError(f"{field}={value} must be a number of at least 0")
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or processes on CPUs would not meet
    dataset = one_process_first(accelerator, lambda: open_dataset(data, image_size))
    dataset.check_pixels("images are to be encoded, but")
    model = load_vae(vae).to(accelerator.device)
    settings = describe_encoding(dataset, model, vae, flip, dtype, shard_size)
    folder = Path(output_dir)
    with ExitStack() as stack:

        def begin() -> bool:
            """Refuse what others wrote, lock the folder, remove leftovers; whether nothing is left to do."""
            if not begin_folder(folder, settings, writing=False):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(folder_lock(folder))
            return begin_folder(folder, settings, writing=True)

        if on_main_process(accelerator, begin):
            accelerator.print(f"{folder} is complete; nothing is left to do")
            return None
        return encode_missing(accelerator, dataset, model, settings, folder, batch_size, num_workers, max_broken_images)


def encode_missing(
    accelerator: Accelerator,
    dataset: ImageDataset,
    vae: torch.nn.Module,
    settings: dict,
    folder: Path,
    batch_size: int,
    num_workers: int,
    max_broken_images: int,
) -> dict | None:
    """Write the shards that are not there yet, then, on the main process, the manifest, and return it.

    Raises:
        ValueError: where the disk has too little space, or too many images cannot be read.
    """
    main, shard_size = accelerator.is_main_process, settings["shard_size"]
    done = published_shards(folder, settings)
    count = -(-len(dataset) // shard_size)
    missing = [number for number in range(count) if number not in done]
    needed = min(len(missing) * shard_size, len(dataset)) * latents_bytes(settings)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"output_dir={str(folder)!r}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")
    accelerator.wait_for_everyone()  # before the first shard makes `missing` another list for a slower process
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    accelerator.print(
        f"{len(dataset)} images of {dataset.source} in {count} shards, {len(done)} of them done; "
        f"{needed / 1e9:.2f} GB to write"
    )

    broken = [reason for shard in done.values() for reason in shard["broken"]]
    batches = list(shard_batches(mine, settings, batch_size))
    loader = DataLoader(Images(dataset), batch_sampler=batches, num_workers=num_workers, collate_fn=lambda items: items)
    parts: dict[str, list[torch.Tensor]] = {}
    indices, reasons, start = [], [], time.perf_counter()
    progress = tqdm(total=sum(map(len, batches)), desc="encoding", unit="image", disable=not main, dynamic_ncols=True)
    for batch, wanted in zip(loader, batches, strict=True):
        reasons += [reason for _, _, reason in batch if reason is not None]
        if len(broken) + len(reasons) > max_broken_images:
            raise BrokenImageError(too_many_broken(broken + reasons, max_broken_images))
        if read := [(index, pixels) for index, pixels, _ in batch if pixels is not None]:
            indices += [index for index, _ in read]
            pixels = torch.stack([pixels for _, pixels in read]).to(accelerator.device)
            for name, tensor in encode_batch(vae, pixels, settings).items():
                parts.setdefault(name, []).append(tensor)
        progress.update(len(wanted))
        if (wanted[-1] + 1) % shard_size == 0 or wanted[-1] + 1 == len(dataset):
            tensors = {name: torch.cat(tensors) for name, tensors in parts.items()}
            tensors |= {
                "index": torch.tensor(indices, dtype=torch.int64),
                "label": torch.from_numpy(dataset.labels[indices].astype("int64")),
            }
            write_shard(folder, wanted[-1] // shard_size, tensors, reasons)
            broken += reasons
            parts, indices, reasons = {}, [], []
    progress.close()
    accelerator.wait_for_everyone()

    manifest = None
    if main:
        found = [reason for shard in published_shards(folder, settings).values() for reason in shard["broken"]]
        if len(found) > max_broken_images:
            raise BrokenImageError(too_many_broken(found, max_broken_images))
        manifest = finish_folder(folder, settings)
        size = sum(shard["bytes"] for shard in manifest["shards"])
        seconds = time.perf_counter() - start
        print(f"{manifest['num_images']} images in {folder}, {size / 1e9:.3f} GB, {seconds:.0f} s; train with:")
        print(f"  accelerate launch train/train_sit.py --data {folder} --vae {settings['vae']['name']} …")
        for reason in manifest["broken"]:
            print(f"left out: {reason}", file=sys.stderr)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return manifest


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    parser = ArgumentParser(
        prog="encode_latents.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s --data DATA --vae VAE --output_dir FOLDER [--OPTION VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_function_arguments(encode_latents)
    options = parser.parse_args(arguments).as_dict()
    options.pop("config")
    try:
        encode_latents(**options)
    except (ValueError, OSError) as error:
        # Every process finds the same mistake, and one says so; but only one may have met what is broken or full.
        if os.environ.get("LOCAL_RANK", "0") == "0" or isinstance(error, (BrokenImageError, OSError)):
            print(f"encode_latents.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
