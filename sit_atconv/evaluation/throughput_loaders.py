"""Loaders of training images that take turns: one for each kind of data set, torchvision's ImageFolder, webdataset.

All yield batches of the same pictures, cut to their centre square and resized to the same side S with the same filter.
Those of this toolkit yield what training takes: besides pixels or latents, noise and times as functions of (seed,
position). c latent channels, s latent side.
"""

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial

import torchvision
from torch.utils.data import DataLoader

from ..benchmarks.calls import VAE_CONFIG, TimedCalls
from ..data import ImageDataset, LatentsDataset, TrainingOrder, TrainingView, open_dataset
from .throughput_files import BenchmarkFiles
from .throughput_options import PIXELS_PER_LATENT, ThroughputOptions

IMAGE_FOLDER = "torchvision ImageFolder"


def loader_calls(files: BenchmarkFiles, options: ThroughputOptions, missing: list[str]) -> TimedCalls:
    """One pass over all pictures for each loader; peers that are not installed are listed in `missing`."""
    calls: dict[str, Callable[[], object]] = {}
    baselines: dict[str, str] = {}

    def add(name: str, baseline: str, loader: Iterable) -> None:
        calls[name], baselines[name] = partial(run_through, loader), baseline

    add(IMAGE_FOLDER, IMAGE_FOLDER, image_folder_loader(files, options))
    add("folder", IMAGE_FOLDER, training_loader(open_dataset(files.pictures(), options.image_size), options))
    tar_baseline = IMAGE_FOLDER
    if importlib.util.find_spec("webdataset"):
        tar_baseline = "webdataset"
        add("webdataset", "webdataset", webdataset_loader(files, options))
    else:
        missing.append("webdataset is not installed: pip install 'sit-atconv[benchmarks]'")
    add("tar shard", tar_baseline, training_loader(open_dataset(files.tar(), options.image_size), options))
    if importlib.util.find_spec("datasets"):
        parquet = files.parquet()
        add("parquet", IMAGE_FOLDER, training_loader(open_dataset(parquet, options.image_size), options))
        named = open_dataset(f"hf:{parquet.parent}", options.image_size)
        add("Hugging Face data set", IMAGE_FOLDER, training_loader(named, options))
    else:
        missing.append("datasets is not installed: pip install 'sit-atconv[datasets]'")
    add("latents", IMAGE_FOLDER, training_loader(open_dataset(files.latents()), options))
    return TimedCalls(calls, baselines)


def run_through(loader: Iterable) -> None:
    """Take every batch of a loader."""
    for _ in loader:
        pass


def training_loader(dataset: ImageDataset, options: ThroughputOptions) -> DataLoader:
    """The batches of one epoch, as training a latent model takes them."""
    side = options.image_size // PIXELS_PER_LATENT
    flip = not isinstance(dataset, LatentsDataset)  # which are mirrored when they are encoded
    noise_shape = (VAE_CONFIG["latent_channels"], side, side)  # (c, s, s)
    view = TrainingView(dataset, 0, flip, noise_shape=noise_shape, posterior=True)
    steps = len(dataset) // options.batch_size
    order = TrainingOrder(len(dataset), options.batch_size, 0, 0, max(1, steps), 0, 1)
    return DataLoader(view, batch_sampler=order, num_workers=options.num_workers, collate_fn=view.collate)


def peer_transform(image_size: int) -> Callable:
    """torchvision's usual preparation of an image, with the filter of this toolkit: PIL -> (3, S, S) in [−1, 1]."""
    transforms = torchvision.transforms
    return transforms.Compose(
        [
            transforms.Resize(image_size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def image_folder_loader(files: BenchmarkFiles, options: ThroughputOptions) -> DataLoader:
    """torchvision's loader of the folder of pictures."""
    images = torchvision.datasets.ImageFolder(str(files.pictures()), peer_transform(options.image_size))
    return DataLoader(
        images,
        options.batch_size,
        shuffle=True,
        num_workers=options.num_workers,
        drop_last=len(images) > options.batch_size,
    )


def webdataset_loader(files: BenchmarkFiles, options: ThroughputOptions) -> DataLoader:
    """webdataset's loader of the tar shard, shuffled within a buffer."""
    import webdataset

    images = webdataset.WebDataset(str(files.tar()), shardshuffle=False, empty_check=False).shuffle(1000).decode("pil")
    pairs = images.to_tuple("jpg", "cls").map_tuple(peer_transform(options.image_size), int)
    return DataLoader(pairs, options.batch_size, num_workers=min(1, options.num_workers), drop_last=True)
