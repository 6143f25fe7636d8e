"""The error of trained models on fixed images, noise and times, by time and by spatial frequency.

The mean loss hides where a model fails: near the noise (t=0), where the whole image is laid out, or near the data
(t=1), where details are decided; in coarse structure or in fine. Models that meet the same images, noise and times can
be compared sample by sample, which resolves differences that are far smaller than the spread of the losses.

B samples, C channels of size (H, W) as the transformer takes them; t=0 noise, t=1 data.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..data import ImageDataset
from ..flow.interpolants import expand_like
from ..models.vae import encode
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.files import write_atomically
from ..utils.randomness import image_generator
from .sampling import check_same_images
from .validation_options import ValidationOptions

TIME_BINS = 10
# Upper ends of the bands of spatial frequency, in cycles per latent pixel; the last band holds the rest.
BAND_ENDS = (1 / 16, 1 / 8, 1 / 4)
BANDS = ("below 1/16", "1/16 to 1/8", "1/8 to 1/4", "above 1/4")
ARRAYS = ("image", "time", "loss", "spectrum", "settings")


@dataclass(frozen=True)
class ValidationLoss:
    """The squared errors of a model's velocities at fixed samples; n samples, several of each image.

    Attributes:
        settings: the samples in words: data set, numbers and seed, as JSON. Losses with the same settings are paired.
        image: (n,) index of the image.
        time: (n,) t.
        loss: (n,) squared error, the mean over channels and pixels.
        spectrum: (n, bands) squared error of a Fourier coefficient, the mean over channels and a band of frequencies.
            The coefficients are scaled so that their mean over all frequencies is the loss.
    """

    settings: str
    image: np.ndarray
    time: np.ndarray
    loss: np.ndarray
    spectrum: np.ndarray

    @property
    def bins(self) -> np.ndarray:
        """(n,) which of `TIME_BINS` equal parts of [0, 1] the time lies in."""
        return np.minimum((self.time * TIME_BINS).astype(np.int64), TIME_BINS - 1)

    def save(self, file: Path) -> None:
        """Write the arrays to a NumPy archive."""

        file.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez_compressed(content, **{name: getattr(self, name) for name in ARRAYS})
        write_atomically(file, content.getvalue())

    @classmethod
    def load(cls, file: Path) -> "ValidationLoss":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is damaged.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = cls(**{name: arrays[name] for name in ARRAYS} | {"settings": str(arrays["settings"])})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is damaged ({error}); remove it, and compute the losses again") from error
        return found


def validation_file(run: Path, step: int) -> Path:
    """The file with the losses of a run of train/train_sit.py after a training step."""
    return run / "evaluation" / f"step-{step:08d}-validation.npz"


def validation_loss(pipeline: SiTPipeline, dataset: ImageDataset, options: ValidationOptions) -> ValidationLoss:
    """Compute the errors of a model's velocities at x_t of held-out images.

    Which images are taken, their noise and their times depend on the options and the data set alone, so the losses of
    two models are paired. The times of all samples cover [0, 1] evenly. A VAE encodes images as the mean of its
    posterior.

    Args:
        pipeline: the model, and the scheduler whose path and prediction it was trained with.
        dataset: images that the model was not trained on, or their precomputed latents; of its size and classes.
        options: numbers and seed.

    Raises:
        ValueError: if the scheduler has no path, or the data does not fit the model.
    """
    check_fits(pipeline, dataset)
    image, time = draw_samples(len(dataset), options)
    interpolant = pipeline.scheduler.interpolant
    start, end = interpolant.time_interval(interpolant.default_eps(training=True))  # where velocities are finite
    time = start + (end - start) * time
    num_images = len(image) // options.num_times
    loss, spectrum = np.zeros(len(image), np.float32), np.zeros((len(image), len(BANDS)), np.float32)
    for columns in batches(num_images, options.batch_size):
        x_1 = clean_images(pipeline, dataset, image[columns])  # once for all of their times
        for start in range(0, len(image), num_images):
            rows = [start + column for column in columns]
            labels = torch.from_numpy(dataset.labels[image[rows]]).to(x_1.device)
            error = velocity_errors(pipeline, x_1, labels, time[rows], rows, options.seed)
            loss[rows] = error.square().flatten(1).mean(1).cpu().numpy()
            spectrum[rows] = band_powers(error).cpu().numpy()
    return ValidationLoss(describe_samples(dataset, options), image, time, loss, spectrum)


def check_fits(pipeline: SiTPipeline, dataset: ImageDataset) -> None:
    """Raise ValueError unless the scheduler knows the path, and the data set has the model's images and classes."""
    if not hasattr(pipeline.scheduler, "interpolant"):
        raise ValueError(
            f"scheduler={type(pipeline.scheduler).__name__} does not know the path that the model was trained on; give "
            "the pipeline an InterpolantODEScheduler with that path and prediction"
        )
    dataset.check_training(pipeline.vae, horizontal_flip=False)
    check_same_images(pipeline, dataset)


def describe_samples(dataset: ImageDataset, options: ValidationOptions) -> str:
    """The settings of the losses that `validation_loss` computes of this data."""
    settings = {
        "data": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "num_images": options.num_images,
        "num_times": options.num_times,
        "seed": options.seed,
    }
    return json.dumps(settings, sort_keys=True)


def draw_samples(num_available: int, options: ValidationOptions) -> tuple[np.ndarray, np.ndarray]:
    """Draw which images are met at which times: (image, time), each (n,), n = images · num_times, time in (0, 1).

    Each image is met once in each of `num_times` equal parts of [0, 1], at a place of its own, and all times together
    are evenly spaced.
    """
    parts = options.num_times
    rng = np.random.default_rng(np.random.SeedSequence([options.seed, options.num_images, parts]))
    images = np.sort(rng.permutation(num_available)[: options.num_images])
    place = (rng.permutation(len(images)) + 0.5) / len(images)  # in (0, 1)
    time = (place + np.arange(parts)[:, None]) / parts  # (parts, images)
    return np.tile(images, parts), time.flatten()


def batches(num_images: int, batch_size: int) -> Iterator[range]:
    """The numbers of the images of each batch, with a progress bar."""
    starts = range(0, num_images, batch_size)
    for start in tqdm(starts, "validation loss", leave=False, dynamic_ncols=True, disable=None):
        yield range(start, min(start + batch_size, num_images))


@torch.no_grad()
def clean_images(pipeline: SiTPipeline, dataset: ImageDataset, image: np.ndarray) -> torch.Tensor:
    """The images (B,) of a data set as the transformer takes them: x_1, (B, C, H, W) float32 on its device."""
    config, vae = pipeline.transformer.config, pipeline.vae
    mean = None if vae is None else torch.zeros(config.in_channels, config.sample_size, config.sample_size)
    parts = [dataset.training_tensors(int(i), False, mean) for i in image]
    x_1 = torch.stack([part["x"] for part in parts]).to(pipeline.device)
    return encode(vae, x_1) if vae is not None and "posterior" in parts[0] else x_1


@torch.no_grad()
def velocity_errors(
    pipeline: SiTPipeline,
    x_1: torch.Tensor,
    labels: torch.Tensor,
    time: np.ndarray,
    rows: Sequence[int],
    seed: int,
) -> torch.Tensor:
    """The predicted velocity minus the true one at some samples: (B, C, H, W) float32.

    Args:
        pipeline: the model and its scheduler.
        x_1: (B, C, H, W) data.
        labels: (B,) its classes.
        time: (B,) t of each sample.
        rows: the numbers of the samples, which determine their noise.
        seed: seed of the noise.
    """
    model, interpolant = pipeline.transformer, pipeline.scheduler.interpolant
    noise = [torch.randn(x_1.shape[1:], generator=image_generator(seed, row)) for row in rows]
    x_0 = interpolant.noise_scale * torch.stack(noise).to(x_1.device)
    t = torch.from_numpy(time).float().to(x_1.device)
    x_t = interpolant.interpolate(x_0, x_1, t)
    output = model(x_t.to(model.dtype), t, labels, return_dict=False)[0].float()
    return interpolant.to_velocity(output, x_t, t) - interpolant.velocity(x_0, x_1, expand_like(t, x_1))


def band_powers(error: torch.Tensor) -> torch.Tensor:
    """The mean square of the Fourier coefficients of errors (B, C, H, W) in each band of frequencies: (B, bands).

    Bands in which an image has no frequency get 0.
    """
    H, W = error.shape[-2:]
    power = torch.fft.fft2(error, norm="ortho").abs().square().mean(1).flatten(1)  # (B, H·W)
    frequency = torch.hypot(torch.fft.fftfreq(H)[:, None], torch.fft.fftfreq(W)).flatten()  # cycles per pixel
    members = band_members(frequency).to(power)  # (bands, H·W)
    return power @ members.T / members.sum(1).clamp(min=1)


def band_members(frequency: torch.Tensor) -> torch.Tensor:
    """Which frequencies (F,) each band holds: (bands, F) bool; a frequency at an end belongs to the higher band."""
    place = torch.bucketize(frequency, torch.tensor(BAND_ENDS), right=True)
    return place == torch.arange(len(BANDS))[:, None]
