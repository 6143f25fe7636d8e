"""Similarity of images against closed forms and the definition of scikit-image; spectra; what a report says."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_codecs import tiny_codec

from sit_atconv.data import open_dataset
from sit_atconv.evaluation.feature_statistics import FeatureStatistics
from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.reconstruction import power_spectrum, radial_spectra, reconstruct
from sit_atconv.evaluation.similarity import psnr, ssim
from sit_atconv.models.latent_scaling import normalize_latents
from sit_atconv.models.vae import posterior_moments

CPU = torch.device("cpu")


def test_similarity_of_constant_images():
    images = torch.full((2, 3, 12, 12), 100, dtype=torch.uint8)
    others = torch.stack([images[0], images[1] + 20])
    expected = [100.0, 20 * np.log10(255 / 20)]
    torch.testing.assert_close(psnr(images, others), torch.tensor(expected, dtype=torch.float64))
    c = (0.01 * 255) ** 2
    expected = [1.0, (2 * 100 * 120 + c) / (100**2 + 120**2 + c)]
    torch.testing.assert_close(ssim(images, others), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="at least 11 × 11 pixels, not 8 × 8"):
        ssim(images[..., :8, :8], others[..., :8, :8])


def test_structural_similarity_is_that_of_scikit_image():
    generator = np.random.default_rng(0)
    x, y = (generator.integers(0, 256, (17, 14)).astype(float) for _ in range(2))

    def smooth(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, truncate=3.5)[5:-5, 5:-5]

    u, v = smooth(x), smooth(y)
    xx, yy, xy = smooth(x * x) - u * u, smooth(y * y) - v * v, smooth(x * y) - u * v
    c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * u * v + c) * (2 * xy + d) / ((u * u + v * v + c) * (xx + yy + d))).mean()
    found = ssim(*(torch.from_numpy(image)[None, None] for image in (x, y)))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_spectra_of_a_wave_and_of_noise():
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(16, 16)
    noise = torch.randn(64, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = torch.stack([wave.expand(64, 16, 16) + 5, noise], 1)  # (64, 2, 16, 16)
    power = power_spectrum(latents) / 64
    torch.testing.assert_close(power.mean((1, 2)), latents.double().square().mean((0, 2, 3)))  # Parseval
    spectra, high = radial_spectra(power)
    others = [r for r in range(9) if r not in (0, 3)]
    assert spectra[0, 3] > 1 and spectra[0, others].max() < 1e-9
    torch.testing.assert_close(spectra[1], torch.ones(9, dtype=torch.float64), rtol=0.3, atol=0)
    assert high[0] < 1e-9 and 0.78 < high[1] < 0.83


def test_the_report_is_about_these_images(photos, tmp_path):
    vae, dataset = tiny_codec("e2e"), open_dataset(photos, 16)
    report = reconstruct(
        vae, "mine", dataset, CPU, batch_size=5, extractor="pixels", grid=str(tmp_path / "grid.png"), num_images=7
    )
    images = np.stack([dataset.image(i) for i in range(7)])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        others = vae.decode(posterior.mean).sample
    others = ((others + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    statistics = []
    for each in (images, others):
        statistics.append(FeatureStatistics())
        statistics[-1].update(each.reshape(7, -1) / 255)
    (a, b) = ((each.mean, each.covariance) for each in statistics)
    assert report["rfid"] == pytest.approx(frechet_distance(*a, *b), rel=1e-4)
    errors = ((images - others.astype(float)) ** 2).reshape(7, -1).mean(1)
    assert report["psnr"] == pytest.approx(np.mean(20 * np.log10(255) - 10 * np.log10(errors)), rel=1e-6)
    mean, std = posterior_moments(vae, pixels)
    for i, channel in enumerate(report["channels"]):
        assert channel["mean"] == pytest.approx(mean[:, i].mean().item(), abs=1e-5)
        variance = mean[:, i].var(correction=0) + std[:, i].square().mean()
        assert channel["std"] == pytest.approx(variance.sqrt().item(), rel=1e-4)
        assert channel["normalized_std"] == pytest.approx(channel["std"] / 0.5, rel=1e-5)
    expected = normalize_latents(vae, mean).mean((0, 2, 3))
    assert [channel["normalized_mean"] for channel in report["channels"]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert (report["num_images"], report["factor"], report["image_size"]) == (7, 2, 16)
    assert (tmp_path / "grid.png").is_file()

    vae.register_to_config(scaling_factor=None, latents_mean=None, latents_std=None)
    report = reconstruct(vae, "mine", dataset, CPU, extractor="pixels", num_images=2, sample_posterior=True)
    assert report["channels"][0]["normalized_std"] is None  # the scale is not known, the reconstruction is


def test_without_a_posterior_latents_are_points(photos):
    vae, dataset = tiny_codec("taesd"), open_dataset(photos, 16)
    report = reconstruct(vae, "mine", dataset, CPU, extractor="pixels", num_images=2)
    assert report["latents"] == "single points"
    with pytest.raises(ValueError, match="sample_posterior=True: AutoencoderTiny has no posterior to sample"):
        reconstruct(vae, "mine", dataset, CPU, extractor="pixels", num_images=2, sample_posterior=True)
