"""Validation losses: closed forms, the pairing of samples, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.data import open_dataset
from sit_atconv.evaluation.validation_loss import (
    BANDS,
    TIME_BINS,
    ValidationLoss,
    band_powers,
    describe_samples,
    draw_samples,
    validation_loss,
)
from sit_atconv.evaluation.validation_options import ValidationOptions
from sit_atconv.evaluation.validation_tables import PARTS, loss_differences, loss_table

OPTIONS = ValidationOptions("digits", num_images=40, num_times=5, seed=3, batch_size=64)


def pipeline(prediction="velocity", mixer="atconv", **config):
    torch.manual_seed(0)
    config = {"sample_size": 8, "in_channels": 1, "num_classes": 10, **config}
    model = SiTTransformer2DModel(
        num_layers=1, num_attention_heads=1, attention_head_dim=8, mixer=mixer, position_embedding="none", **config
    )
    return SiTPipeline(model.eval(), InterpolantODEScheduler(prediction=prediction))


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits")


def test_loss_of_an_untrained_model_is_that_of_velocity_zero(digits):
    """A fresh model predicts 0, so that the error is the velocity x_1 − x_0 itself, whose mean square is known."""
    loss = validation_loss(pipeline(), digits, OPTIONS)
    pixels = torch.stack([digits.tensor(int(i)) for i in loss.image])
    expected = 1 + pixels.square().mean()  # E[(x_1 − x_0)²] with x_0 standard normal
    assert len(loss.loss) == 200
    assert loss.loss.mean() == pytest.approx(float(expected), abs=0.05)


def test_losses_do_not_depend_on_the_batch_size_and_are_those_of_the_seed(digits):
    first, other, another = (
        validation_loss(pipeline(), digits, dataclasses.replace(OPTIONS, **change))
        for change in ({}, {"batch_size": 7}, {"seed": 4})
    )
    np.testing.assert_allclose(first.loss, other.loss, rtol=1e-5)
    assert first.settings == other.settings != another.settings
    assert not np.array_equal(first.image, another.image)


def test_times_cover_the_interval_evenly_and_meet_each_image_once_in_each_part():
    image, time = draw_samples(1797, OPTIONS)
    np.testing.assert_allclose(np.sort(time), (np.arange(200) + 0.5) / 200)
    for index in np.unique(image):
        np.testing.assert_array_equal(np.sort((time[image == index] * 5).astype(int)), np.arange(5))
    assert len(np.unique(image)) == 40
    assert len(np.unique(draw_samples(10, OPTIONS)[0])) == 10  # there are fewer


def test_bands_hold_all_of_the_error():
    error = torch.randn(3, 2, 16, 12, generator=torch.Generator().manual_seed(0))
    powers = band_powers(error)  # (3, bands)
    frequency = torch.hypot(torch.fft.fftfreq(16)[:, None], torch.fft.fftfreq(12))
    ends = (0, 1 / 16, 1 / 8, 1 / 4, 1)
    counts = [int(((low <= frequency) & (frequency < high)).sum()) for low, high in zip(ends, ends[1:], strict=False)]
    total = (powers * torch.tensor(counts)).sum(1) / (16 * 12)
    torch.testing.assert_close(total, error.square().mean((1, 2, 3)))


@pytest.mark.parametrize(("cycles", "band"), [(0, 0), (1, 1), (3, 2), (4, 3)])
def test_a_wave_is_in_the_band_of_its_frequency(cycles, band):
    wave = torch.cos(2 * torch.pi * cycles * torch.arange(16) / 16 + 0.3).expand(1, 1, 16, 16)
    powers = band_powers(wave)[0]
    assert int(powers.argmax()) == band and powers.sum() == pytest.approx(float(powers[band]), rel=1e-5)


def test_other_predictions_are_judged_by_their_velocity(digits):
    """A network that predicts data exactly as another predicts velocity has the same loss."""
    velocity, data = pipeline(), pipeline("data")

    def constant(x, t, labels, return_dict):
        return (torch.full_like(x, 0.25),)

    class AsData(torch.nn.Module):
        config, dtype = data.transformer.config, torch.float32

        def forward(self, x, t, labels, return_dict):
            return (x + (1 - t[:, None, None, None]) * 0.25,)  # the data that the velocity 0.25 leads to

    velocity.transformer.forward = constant
    data.transformer.forward = AsData().forward
    options = dataclasses.replace(OPTIONS, seed=1)
    one, other = validation_loss(velocity, digits, options), validation_loss(data, digits, options)
    middle = (0.05 < one.time) & (one.time < 0.95)
    bins = [values.loss[middle].mean() for values in (one, other)]
    assert bins[0] == pytest.approx(bins[1], rel=0.02)


def test_differences_are_paired_and_seeds_are_the_unit_of_several_runs():
    rng = np.random.default_rng(0)
    time, image = (np.arange(100) + 0.5) / 100, np.arange(100)

    def losses(offset):
        return ValidationLoss("s", image, time, spread + offset, np.tile(spread[:, None] + offset, (1, len(BANDS))))

    spread = rng.uniform(0, 9, 100)
    one_seed = loss_differences({("SA", 0): losses(0), ("A", 0): losses(0.5)})
    assert one_seed[1].mean == pytest.approx(np.full(len(PARTS), 0.5))
    assert one_seed[1].error == pytest.approx(np.zeros(len(PARTS)), abs=1e-12)  # the spread of images cancels
    assert one_seed[0].mean[0] == pytest.approx(spread.mean())
    several = loss_differences(
        {("SA", 0): losses(0), ("SA", 1): losses(1), ("A", 0): losses(0.5), ("A", 1): losses(1.7), ("A", 2): losses(9)}
    )
    assert several[1].mean[0] == pytest.approx(0.6) and several[1].seeds == 2
    assert several[1].error[0] == pytest.approx(0.1)  # the standard deviation of 0.5 and 0.7, over the root of 2
    assert loss_table(several).rows[0] == ["all", f"{spread.mean() + 0.5:.4f}", "+0.6000 ± 0.1000"]
    assert loss_table(several).head == ["part", "SA", "A − SA ↓"]
    assert len(loss_table(several).rows) == 1 + TIME_BINS + len(BANDS)


def test_losses_are_saved_and_damaged_files_named(digits, tmp_path):
    loss = validation_loss(pipeline(), digits, dataclasses.replace(OPTIONS, num_images=3))
    loss.save(tmp_path / "a" / "loss.npz")
    found = ValidationLoss.load(tmp_path / "a" / "loss.npz")
    assert found.settings == loss.settings == describe_samples(digits, dataclasses.replace(OPTIONS, num_images=3))
    np.testing.assert_array_equal(found.spectrum, loss.spectrum)
    (tmp_path / "loss.npz").write_bytes((tmp_path / "a" / "loss.npz").read_bytes()[:-40])
    with pytest.raises(ValueError, match="is damaged"):
        ValidationLoss.load(tmp_path / "loss.npz")


def test_what_does_not_fit_is_refused(digits):
    with pytest.raises(ValueError, match="num_times=0"):
        ValidationOptions("digits", num_times=0)
    with pytest.raises(ValueError, match="8×8×1, the pipeline's 16×16×1"):
        validation_loss(pipeline(sample_size=16), digits, OPTIONS)
    with pytest.raises(ValueError, match="10 classes, the pipeline 11"):
        validation_loss(pipeline(num_classes=11), digits, OPTIONS)
    flow = pipeline()
    flow.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="scheduler=FlowMatchEulerDiscreteScheduler does not know the path"):
        validation_loss(flow, digits, OPTIONS)
    one, other = (
        validation_loss(pipeline(), digits, dataclasses.replace(OPTIONS, num_images=3, seed=seed)) for seed in (0, 1)
    )
    with pytest.raises(ValueError, match="different samples"):
        loss_differences({("SA", 0): one, ("A", 0): other})
    with pytest.raises(ValueError, match="no seed in common"):
        loss_differences({("SA", 0): one, ("A", 1): one})
