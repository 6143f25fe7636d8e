"""How well an autoencoder keeps images, and what its latents look like: rFID, PSNR, SSIM, statistics, spectra.

B images of S × S pixels and C channels, uint8 (S, S, C); c latent channels, s latent side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from ..data import BrokenImageError, ImageDataset
from ..data.latent_shards import describe_vae
from ..data.latent_statistics import channel_statistics, shard_moments
from ..models.codecs import check_vae_image_size, codec_of, vae_image_channels, vae_scale_factor
from ..models.latent_scaling import normalize_latents
from ..models.vae import VAE, decode_own_latents, enable_tiling, posterior_moments
from ..utils.checks import check_count, check_seed
from ..utils.environment import package_versions
from ..utils.files import check_new_file
from ..utils.image_grid import save_grid
from ..utils.randomness import image_generator
from ..utils.tables import markdown_table
from .extractor import Extractor, check_extractor, check_trust
from .feature_statistics import FeatureStatistics
from .features import build_extractor
from .frechet import frechet_distance
from .image_sets import leave_out, notes_on_broken
from .similarity import WINDOW, psnr, ssim

GRID_COLUMNS = 8
HIGH_FREQUENCY = 0.5  # of the highest along an axis; frequencies above are called high


def reconstruct(
    vae: VAE,
    name: str,
    dataset: ImageDataset,
    device: torch.device,
    num_images: int | None = None,
    batch_size: int = 16,
    sample_posterior: bool = False,
    seed: int = 0,
    tiling: bool = False,
    extractor: str = "inception",
    weights: str | None = None,
    trust_torchscript: bool = False,
    grid: str | None = None,
    max_broken_images: int = 0,
) -> dict:
    """Encode and decode images, and compare them with the originals.

    Args:
        vae: the autoencoder, on the device.
        name: its name, for the report.
        dataset: the images.
        device: where the extractor runs.
        num_images: number of images, the first ones. If None, all of them.
        batch_size: number of images per forward pass.
        sample_posterior: whether to decode a sample of the posterior instead of its mean.
        seed: seed of these samples; image i depends on (seed, i) only.
        tiling: whether large images are encoded and decoded tile by tile, which needs less memory.
        extractor: the features of rFID: inception, inception-adm, pixels, dinov2, timm:NAME or torchscript:FILE.
        weights: a file with the weights of the extractor. If None, they are fetched.
        trust_torchscript: allow a TorchScript file that you name, which is a program, as eval/fid.py does.
        grid: a new PNG file for the first originals, and their reconstructions below. If None, no picture is written.
        max_broken_images: number of images that may be left out because they cannot be read.

    Returns:
        The report: "rfid", the Fréchet distance of the features of reconstructions and originals; mean "psnr" in dB
        and "ssim"; "channels" of the latents, neither shifted nor scaled, with what the transformer would see; and what
        they depend on.

    Raises:
        ValueError: naming what cannot be used, before any long work; or an image that cannot be read.
    """
    if num_images is not None:
        check_count("num_images", num_images, least=2)
    check_count("batch_size", batch_size)
    check_seed("seed", seed)
    check_count("max_broken_images", max_broken_images, least=0)
    check_new_file("grid", grid)
    check_extractor(extractor, weights)
    check_trust(extractor, weights, trust_torchscript)
    check_images(vae, name, dataset)
    kind = kind_of_latents(vae, seed if sample_posterior else None)
    if tiling:
        enable_tiling(vae)
    count = len(dataset) if num_images is None else min(num_images, len(dataset))
    measured = Measurements(build_extractor(extractor, weights, device))
    broken: list[str] = []
    for indices, images in batches(dataset, count, batch_size, broken, max_broken_images):
        originals = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (B, C, S, S)
        latents, others = encode_and_decode(vae, originals.to(device), indices if sample_posterior else None, seed)
        measured.update(latents, originals, others)
    if count - len(broken) < 2:
        raise ValueError(f"data={dataset.name!r}: {len(broken)} of {count} images are broken; a distance needs two")
    if grid is not None:
        save_grid(torch.cat(measured.shown), grid, len(measured.shown[0]), names=("original", "reconstruction"))
    return {
        "vae": describe_vae(vae, name),
        "factor": vae_scale_factor(vae),
        **measured.scores(),
        "channels": measured.channels(vae),
        "reference": dataset.name,
        "num_images": count - len(broken),
        "image_size": dataset.image_size,
        "latents": kind,
        "extractor": {"name": extractor, "resize": measured.extractor.resize, "weights": measured.extractor.weights},
        "notes": notes_on_broken(dataset.name, broken),
        "versions": package_versions(),
    }


def kind_of_latents(vae: VAE, seed: int | None) -> str:
    """Which latents are decoded: samples with this seed, or without one the means, or the points.

    Raises:
        ValueError: if there is a seed, but no posterior.
    """
    if not codec_of(vae).has_posterior:
        if seed is not None:
            raise ValueError(f"sample_posterior=True: {type(vae).__name__} has no posterior to sample; leave it out")
        return "single points"
    return "means of the posterior" if seed is None else f"samples of the posterior, seed {seed}"


def check_images(vae: VAE, name: str, dataset: ImageDataset) -> None:
    """Raise ValueError unless the autoencoder takes the images of a data set, and they can be compared."""
    dataset.check_pixels("images are needed for reconstruction, but")
    if (channels := vae_image_channels(vae)) != dataset.channels:
        raise ValueError(
            f"vae={name!r} takes {channels} channels, but the images of data={dataset.source!r} have "
            f"{dataset.channels}; give other images or another VAE"
        )
    check_vae_image_size(vae, dataset.image_size)
    factor = vae_scale_factor(vae)
    if dataset.image_size % factor or dataset.image_size < WINDOW:
        raise ValueError(
            f"image_size={dataset.image_size} must be divisible by {factor}, the factor of the VAE, and at least "
            f"{WINDOW}, the window of SSIM"
        )
    if len(dataset) < 2:
        raise ValueError(f"data={dataset.source!r} holds {len(dataset)} image; rFID needs 2 or more")


def batches(
    dataset: ImageDataset, count: int, batch_size: int, broken: list[str], max_broken_images: int
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yield the indices and the images of batches, with a progress bar; images that are left out go to `broken`."""
    indices: list[int] = []
    images: list[np.ndarray] = []
    for index in tqdm(range(count), desc="reconstructing", unit="image", dynamic_ncols=True):
        try:
            images.append(dataset.image(index))
            indices.append(index)
        except BrokenImageError as error:
            leave_out(error, broken, max_broken_images)
        if images and (len(images) == batch_size or index + 1 == count):
            yield indices, images
            indices, images = [], []
    if images:  # the last one could not be read
        yield indices, images


@torch.no_grad()
def encode_and_decode(
    vae: VAE, images: torch.Tensor, indices: list[int] | None, seed: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the moments of the latents (B, c, s, s), on the CPU, and the reconstructions of images, uint8.

    Args:
        vae: the autoencoder.
        images: (B, C, S, S) uint8.
        indices: whose noise samples the posteriors; None decodes their means.
        seed: seed of the noise.
    """
    mean, std = posterior_moments(vae, images.float() / 127.5 - 1)
    latents = mean
    if indices is not None and std is not None:
        noise = [torch.randn(mean.shape[1:], generator=image_generator(seed, index)) for index in indices]
        latents = mean + std * torch.stack(noise).to(mean)
    pixels = decode_own_latents(vae, latents)
    pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().cpu()
    return {"mean": mean.cpu()} | ({} if std is None else {"std": std.cpu()}), pixels


@dataclass
class Measurements:
    """What is added up over the batches."""

    extractor: Extractor
    features: tuple[FeatureStatistics, FeatureStatistics] = field(
        default_factory=lambda: (FeatureStatistics(), FeatureStatistics())
    )
    similarity: dict[str, list[torch.Tensor]] = field(default_factory=lambda: {"psnr": [], "ssim": []})
    moments: list[dict] = field(default_factory=list)
    power: torch.Tensor | float = 0.0  # (c, s, s), summed over images
    images: int = 0
    shown: list[torch.Tensor] = field(default_factory=list)

    @torch.no_grad()
    def update(self, latents: dict[str, torch.Tensor], originals: torch.Tensor, others: torch.Tensor) -> None:
        """Add a batch: the moments of its latents, originals (B, C, S, S) and reconstructions, uint8."""
        for statistics, images in zip(self.features, (originals, others), strict=True):
            prepared = [self.extractor.prepare(image.numpy()) for image in images.permute(0, 2, 3, 1)]
            statistics.update(self.extractor.embed(torch.stack(prepared))["features"].cpu().numpy())
        self.similarity["psnr"].append(psnr(originals, others))
        self.similarity["ssim"].append(ssim(originals, others))
        self.moments.append(shard_moments(latents))
        self.power = self.power + power_spectrum(latents["mean"])
        self.images += len(originals)
        if not self.shown:
            self.shown = [images[:GRID_COLUMNS] / 255 for images in (originals, others)]

    def scores(self) -> dict[str, float]:
        """rFID, and the means of PSNR and SSIM."""
        original, other = ((statistics.mean, statistics.covariance) for statistics in self.features)
        means = {name: float(torch.cat(values).mean()) for name, values in self.similarity.items()}
        return {"rfid": frechet_distance(*original, *other), **means}

    def channels(self, vae: VAE) -> list[dict]:
        """Each channel of the latents: mean and standard deviation, as they are and as normalized, and the spectrum."""
        found = channel_statistics(self.moments)
        mean, std = (torch.tensor(found[name])[:, None, None] for name in ("mean", "std"))
        try:
            centre = normalize_latents(vae, mean)
            seen = torch.stack([centre, normalize_latents(vae, mean + std) - centre]).flatten(1).T.tolist()
        except ValueError:  # the autoencoder says nothing of the scale of its latents
            seen = [[None, None]] * len(mean)
        spectra, high = radial_spectra(torch.as_tensor(self.power) / self.images)
        parts = zip(found["mean"], found["std"], seen, spectra.tolist(), high.tolist(), strict=True)
        return [
            {
                "mean": mean,
                "std": std,
                "normalized_mean": normalized[0],
                "normalized_std": normalized[1],
                "high_frequency_share": share,
                "spectrum": spectrum,
            }
            for mean, std, normalized, spectrum, share in parts
        ]


def power_spectrum(latents: torch.Tensor) -> torch.Tensor:
    """The summed squared amplitudes (c, s, s) of the frequencies of latents (B, c, s, s); their mean is the power."""
    return torch.fft.fft2(latents.double(), norm="ortho").abs().square().sum(0)


def radial_spectra(power: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean power of each frequency, and the share of the high ones.

    Args:
        power: (c, s, s), the power of each pair of frequencies.

    Returns:
        (c, s // 2 + 1), the mean power at 0, 1, … s // 2 periods per side, in any direction; and (c,), the share of the
        power, without that of the mean, above half of the highest frequency along an axis. It is about 0.80 for white
        noise, and small for smooth latents.
    """
    s = power.shape[-1]
    frequencies = torch.fft.fftfreq(s, 1 / s, dtype=torch.float64)
    radius = (frequencies[:, None].square() + frequencies.square()).sqrt()  # (s, s)
    bins = radius.round().long()
    spectra = torch.stack([power[:, bins == r].mean(1) for r in range(s // 2 + 1)], 1)
    total = (power.sum((1, 2)) - power[:, 0, 0]).clamp(min=torch.finfo(torch.float64).tiny)
    return spectra, power[:, radius > HIGH_FREQUENCY * (s // 2)].sum(1) / total


def reconstruction_summary(report: dict) -> str:
    """The report as a line and a table of the channels."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    columns = ("mean", "std", "normalized_mean", "normalized_std", "high_frequency_share")
    rows = [[i, *(cell(channel[name]) for name in columns)] for i, channel in enumerate(report["channels"])]
    return (
        f"rFID {report['rfid']:.3f}, PSNR {report['psnr']:.2f} dB, SSIM {report['ssim']:.4f}: "
        f"{report['num_images']} images of {report['reference']}, {report['vae']['class']} of factor "
        f"{report['factor']}\n\n"
        + markdown_table(["channel", *(name.replace("_", " ") for name in columns)], rows)
        + "".join(f"\n{note}" for note in report["notes"])
    )
