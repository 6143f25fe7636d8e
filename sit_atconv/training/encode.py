"""Encode a data set with a VAE once, so that training does not have to do it in every epoch.

Each process encodes its own shards. A process may be killed at any moment: the next run encodes the shards that are
missing.

B images of a batch, C channels, S image side in pixels; c latent channels, s latent side; N tokens, Z features.
"""

import math
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data import BrokenImageError, ImageDataset, open_dataset, too_many_broken
from ..data.latent_shards import (
    DTYPES,
    begin_folder,
    check_folder,
    count_shards,
    describe_encoding,
    describe_vae,
    finish_folder,
    published_shards,
    write_shard,
)
from ..data.latent_statistics import channel_statistics, file_moments
from ..data.latents import vae_of_latents
from ..models.latent_scaling import set_latent_statistics
from ..models.vae import load_vae, posterior_moments, save_vae
from ..utils.checks import MAX_WORKERS, check_choice, check_count
from ..utils.files import folder_lock
from ..utils.source_names import check_folder_or_name, check_source
from ..utils.text import counted, one_line, printable
from .batches import dead_worker, start_workers
from .processes import join_processes, on_main_process, one_process_first
from .repa import TargetEncoder
from .repa_options import check_targets
from .repa_targets import describe_targets, encode_targets, open_target_encoder
from .signals import end_workers

SHARD_SIZE = 4096
SHARD_SIZE_WITH_TARGETS = 512


def encode_latents(
    data: str,
    vae: str,
    output_dir: str,
    image_size: int | None = None,
    flip: bool = False,
    dtype: str = "float32",
    shard_size: int | None = None,
    batch_size: int = 32,
    num_workers: int = 2,
    max_broken_images: int = 10,
    statistics: str = "vae",
    targets: str | None = None,
    targets_weights: str = "pretrained",
    targets_patch_size: int | None = None,
) -> dict | None:
    """Encode all images of a data set.

    Args:
        data: images, as for train_sit.py: a folder of images, hf:NAME, parquet files, tar shards or an LMDB.
        vae: an autoencoder of diffusers, such as AutoencoderKL or AutoencoderDC, as a folder or a name on the Hub;
            docs/data.md lists them.
        output_dir: folder for the latents, new or begun by the same command.
        image_size: side of the images in pixels.
        flip: whether to also encode the mirrored images, for training with --horizontal_flip true.
        dtype: type of the stored latents: float32, float16 or bfloat16. The last two round, and halve the size.
        shard_size: number of images per file, which a process holds in memory. Defaults to 4096, and to 512 with
            targets, which are larger.
        batch_size: number of images that each process passes through the VAE at a time.
        num_workers: number of worker processes that read images, for each process that encodes.
        max_broken_images: number of images that may be broken. They are left out and listed; if there are more, the
            encoding stops.
        statistics: what normalizes the latents: "vae", the numbers that the VAE comes with; or "channels", mean and
            standard deviation of each channel over these images, with which a copy of the VAE is then saved in
            output_dir/vae, so that output_dir is the VAE to train with.
        targets: timm:NAME, a model of timm whose features are stored beside the latents, for training with --repa NAME.
        targets_weights: weights of that model: pretrained, random or a file.
        targets_patch_size: patch size of the transformer that will be trained: features are stored for its tokens.
            Defaults to 2.

    Returns:
        The manifest on the main process; None on the others, or if the folder was complete already.

    Raises:
        ValueError: if an argument cannot be used, which is checked first, or if too many images cannot be read.
    """
    check_choice("dtype", dtype, ("float32", "float16", "bfloat16"))  # as in DTYPES; these checks run before PyTorch
    check_choice("statistics", statistics, ("vae", "channels"))
    check_count("shard_size", SHARD_SIZE if shard_size is None else shard_size)
    check_count("batch_size", batch_size)
    check_count("num_workers", num_workers, least=0, most=MAX_WORKERS)
    check_count("max_broken_images", max_broken_images, least=0)
    check_source("data", data)
    check_folder_or_name("vae", vae)
    check_targets(targets, targets_weights, targets_patch_size)
    accelerator = join_processes()
    dataset = one_process_first(accelerator, lambda: open_dataset(data, image_size))
    dataset.check_pixels("images are needed for encoding, but")
    dataset.check_output("output_dir", Path(output_dir))
    model = load_vae(vae).to(accelerator.device)
    shard_size = shard_size or (SHARD_SIZE if targets is None else SHARD_SIZE_WITH_TARGETS)
    settings = describe_encoding(dataset, model, vae, flip, dtype, shard_size, statistics)
    encoder, settings["targets"] = None, None
    if targets is not None:
        side = settings["latents"]["shape"][-1]
        encoder = open_target_encoder(targets, targets_weights, side, targets_patch_size or 2, accelerator.device)
        settings["targets"] = describe_targets(encoder, targets, targets_weights)
    folder = Path(output_dir)
    with ExitStack() as lock:
        if on_main_process(accelerator, lambda: take_folder(folder, settings, lock)):
            accelerator.print(printable(f"{folder} is complete; nothing is left to do"))
            return None
        return LatentEncoder(
            accelerator, dataset, model, settings, folder, batch_size, num_workers, max_broken_images, encoder
        ).run()


def take_folder(folder: Path, settings: dict, lock: ExitStack) -> bool:
    """Lock the folder, unless it holds something else or is complete; return whether it is complete.

    Raises:
        ValueError: as `check_folder`, or if another process is writing to it.
    """
    if not check_folder(folder, settings):
        folder.mkdir(parents=True, exist_ok=True)
        lock.enter_context(folder_lock(folder))
    return begin_folder(folder, settings)


@dataclass
class LatentEncoder:
    """Encodes the shards that a folder lacks, and completes it. All processes call `run`.

    Args:
        accelerator: the processes.
        dataset: the images.
        vae: the VAE, on the accelerator's device.
        settings: the settings of the encoding, from `describe_encoding`.
        folder: folder of the latents, prepared by `begin_folder`.
        batch_size: number of images that each process passes through the VAE at a time.
        num_workers: number of worker processes that read images, for each process.
        max_broken_images: how many broken images are tolerated.
        encoder: the encoder whose features are stored, too; None for none.
    """

    accelerator: Accelerator
    dataset: ImageDataset
    vae: torch.nn.Module
    settings: dict
    folder: Path
    batch_size: int
    num_workers: int
    max_broken_images: int
    encoder: TargetEncoder | None = None

    def run(self) -> dict | None:
        """Encode what is missing; return the manifest on the main process, None on the others.

        Raises:
            ValueError: if the disk has too little space or too many images cannot be read.
        """
        done = published_shards(self.folder, self.settings)
        missing = self.missing_shards(done)
        self.accelerator.wait_for_everyone()  # or a slower process would find the first new shards done
        start = time.perf_counter()
        self.encode_shards(
            missing[self.accelerator.process_index :: self.accelerator.num_processes],
            [reason for shard in done.values() for reason in shard["broken"]],
        )
        self.accelerator.wait_for_everyone()
        manifest = self.finish(start) if self.accelerator.is_main_process else None
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return manifest

    def missing_shards(self, done: dict[int, dict]) -> list[int]:
        """Return the numbers of the shards that are not `done`; raise ValueError if the disk has no space for them."""
        count = count_shards(self.settings)
        missing = [number for number in range(count) if number not in done]
        needed = min(len(missing) * self.settings["shard_size"], len(self.dataset)) * latents_bytes(self.settings)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"output_dir={str(self.folder)!r}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; "
                "make space, or choose a folder on another disk"
            )
        self.accelerator.print(
            f"{counted(len(self.dataset), 'image')} of {printable(self.dataset.source)} in {counted(count, 'shard')}, "
            f"{len(done)} of them done; {needed / 1e9:.2f} GB to write"
        )
        for note in self.dataset.notes:
            self.accelerator.print(f"  {note}")
        return missing

    def encode_shards(self, shards: list[int], broken: list[str]) -> None:
        """Encode and write these shards.

        Args:
            shards: numbers of the shards.
            broken: reasons why images of finished shards cannot be read. They count towards the limit.

        Raises:
            BrokenImageError: if too many images cannot be read.
        """
        batches = list(shard_batches(shards, self.settings, self.batch_size))
        loader = DataLoader(
            ReadableImages(self.dataset),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=lambda items: items,
        )
        shard = Shard()
        hidden = not self.accelerator.is_main_process
        total = sum(map(len, batches))
        with tqdm(total=total, desc="encoding", unit="image", disable=hidden, dynamic_ncols=True) as progress:
            for items, wanted in zip(self.read(loader), batches, strict=True):
                shard.broken += [reason for _, _, reason in items if reason is not None]
                self.check_broken(broken + shard.broken)
                if read := [(index, pixels) for index, pixels, _ in items if pixels is not None]:
                    indices, images = zip(*read, strict=True)
                    pixels = torch.stack(images).to(self.accelerator.device)  # (B, C, S, S)
                    shard.add(indices, encode_batch(self.vae, pixels, self.settings, self.encoder))
                progress.update(len(wanted))
                last, size = wanted[-1], self.settings["shard_size"]
                if (last + 1) % size == 0 or last + 1 == len(self.dataset):
                    write_shard(self.folder, last // size, shard.tensors(self.dataset.labels), shard.broken)
                    broken = broken + shard.broken
                    shard = Shard()

    def read(self, loader: DataLoader) -> Iterator[list]:
        """The batches of a loader.

        Raises:
            ChildProcessError: if a data worker died.
        """
        batches, workers = start_workers(loader)
        # PyTorch would raise RuntimeError wherever the main thread is, also between two batches.
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if workers else None
        try:
            yield from batches
        except Exception as error:
            if (death := dead_worker(workers)) is None:
                raise
            raise ChildProcessError(
                f"{death}. num_workers={self.num_workers}: finished shards are whole; the same command encodes the "
                "others. Lower --num_workers if memory is short"
            ) from error
        finally:
            end_workers(workers)  # first: the death of another one would still raise
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)

    def check_broken(self, reasons: list[str]) -> None:
        """Raise BrokenImageError if these are more broken images than tolerated."""
        if len(reasons) > self.max_broken_images:
            raise BrokenImageError(too_many_broken(reasons, self.max_broken_images))

    def finish(self, start: float) -> dict:
        """Write and return the manifest, and print how to train with the latents. `start` is the time of the start."""
        shards = published_shards(self.folder, self.settings)
        self.check_broken([reason for shard in shards.values() for reason in shard["broken"]])
        statistics = channel_statistics(
            shard.get("moments") or file_moments(self.folder / shard["file"]) for _, shard in sorted(shards.items())
        )
        if self.settings.get("normalization") == "channels":
            if constant := [i for i, std in enumerate(statistics["std"]) if not std > 0]:
                raise ValueError(
                    f"output_dir={str(self.folder)!r}: channel {constant[0]} of the latents is the same in all images, "
                    "and has no deviation to divide by; encode with --statistics vae into another folder"
                )
            set_latent_statistics(self.vae, **statistics)
            save_vae(self.vae, self.folder / "vae")
        described = describe_vae(self.vae, self.settings["vae"]["name"])
        manifest = finish_folder(self.folder, self.settings, described, statistics)
        size = sum(shard["bytes"] for shard in manifest["shards"])
        seconds = time.perf_counter() - start
        vae = vae_of_latents(self.folder, manifest)
        command = f"accelerate launch train/train_sit.py --data {self.folder} --vae {vae} …"
        size_and_time = f"{size / 1e9:.3f} GB, {seconds:.0f} s"
        images = counted(manifest["num_images"], "image")
        print(printable(f"{images} in {self.folder}, {size_and_time}; train with:\n  {command}"))
        for reason in manifest["broken"]:
            print(f"left out: {one_line(reason)}", file=sys.stderr)
        return manifest


@dataclass
class Shard:
    """The content of one shard, collected batch by batch: encoded tensors, their indices, and broken images."""

    parts: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    indices: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, indices: tuple[int, ...], tensors: dict[str, torch.Tensor]) -> None:
        """Append a batch: the indices of its images in the data set, and the tensors of `encode_batch`."""
        self.indices += indices
        for name, tensor in tensors.items():
            self.parts.setdefault(name, []).append(tensor)

    def tensors(self, labels: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the tensors of the shard; `labels` are those of the whole data set."""
        return {name: torch.cat(parts) for name, parts in self.parts.items()} | {
            "index": torch.tensor(self.indices, dtype=torch.int64),
            "label": torch.from_numpy(labels[self.indices].astype("int64")),
        }


class ReadableImages(Dataset):
    """A data set whose items are (index, pixels, None), or (index, None, reason) for a broken image."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None, str | None]:
        try:
            return index, self.dataset.tensor(index), None
        except BrokenImageError as error:
            return index, None, str(error)


def shard_batches(shards: list[int], settings: dict, batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of the images of these shards, in batches that do not cross the end of a shard.

    The batches depend on the settings alone, so that any number of processes writes the same shards.
    """
    for shard in shards:
        start = shard * settings["shard_size"]
        end = min(start + settings["shard_size"], settings["source_images"])
        for first in range(start, end, batch_size):
            yield list(range(first, min(first + batch_size, end)))


@torch.no_grad()
def encode_batch(
    vae: torch.nn.Module, pixels: torch.Tensor, settings: dict, encoder: TargetEncoder | None = None
) -> dict[str, torch.Tensor]:
    """Encode pixels (B, C, S, S); return the tensors (B, c, s, s) and targets (B, N, Z) of a shard, on the CPU."""
    dtype = DTYPES[settings["latents"]["dtype"]]
    tensors = {}
    for suffix in ("", "_flipped") if settings["latents"]["flip"] else ("",):
        pixels = pixels.flip(-1) if suffix else pixels
        mean, std = posterior_moments(vae, pixels)
        tensors[f"mean{suffix}"] = mean.to("cpu", dtype)
        if std is not None:
            tensors[f"std{suffix}"] = std.to("cpu", dtype)
        if encoder is not None:
            tensors[f"targets{suffix}"] = encode_targets(encoder, pixels)
    return tensors


def latents_bytes(settings: dict) -> int:
    """Return the size of one image's latents in bytes, and of its targets."""
    latents, targets = settings["latents"], settings["targets"]
    size = math.prod(latents["shape"]) * DTYPES[latents["dtype"]].itemsize * (1 + latents["std"])
    if targets is not None:
        size += math.prod(targets["grid"]) * targets["features"] * torch.float16.itemsize
    return size * (1 + latents["flip"])
