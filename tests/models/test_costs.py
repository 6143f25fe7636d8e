"""The formulas agree with the models: parameters, activations; test_macs.py compares the operations."""

import pytest
import torch
from diffusers import AutoencoderKL

from sit_atconv import SiTTransformer2DModel
from sit_atconv.benchmarks.calls import VAE_CONFIG
from sit_atconv.benchmarks.profiling import peak_memory
from sit_atconv.models.codecs import DECODING_BYTES, decoding_bytes
from sit_atconv.models.costs import (
    STABLE_DIFFUSION_VAE,
    VAE_PARAMETERS,
    closed_form_activation_bytes,
    closed_form_macs,
    count_parameters,
    preset_config,
    sampling_bytes,
    token_bytes,
    training_bytes,
)
from sit_atconv.models.macs import count_macs
from sit_atconv.models.presets import PRESETS
from sit_atconv.training.plan import activation_bytes


def build(name: str, sample_size: int, **options) -> SiTTransformer2DModel:
    with torch.device("meta"):
        return SiTTransformer2DModel(**PRESETS[name], sample_size=sample_size, in_channels=4, **options)


@pytest.mark.parametrize(
    "name",
    [
        "SiT-Nano/2",
        "SiT-ATConv-Nano/4",
        "SiT-ATConv-S/8-Hybrid",
        "SiT-ATConv-S/8-Pooled",
        "SiT-S/4",
        "SiT-ATConv-U-S/4",
        "SiT-ATConv-U-Nano/2-Hybrid",
    ],
)
def test_parameters_are_those_of_the_model(name):
    model = build(name, 32, num_classes=1000)
    assert count_parameters(preset_config(name)) == sum(p.numel() for p in model.parameters())
    model = build(name, 32, num_classes=7, class_dropout_prob=0.0, mlp_ratio=2.0)
    config = preset_config(name, num_classes=7) | {"class_dropout_prob": 0.0, "mlp_ratio": 2.0}
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "sample_size"),
    [
        ("SiT-Nano/2", 32),
        ("SiT-ATConv-Nano/4", 32),
        ("SiT-ATConv-Nano/2-Hybrid", 64),
        ("SiT-ATConv-Nano/2-Pooled", 32),
        ("SiT-ATConv-Nano/2-Pooled", 64),
        ("SiT-ATConv-U-Nano/2", 32),
        ("SiT-ATConv-U-Nano/2", 36),
        ("SiT-ATConv-U-Nano/1-Hybrid", 16),
    ],
)
def test_activations_are_those_that_the_backward_pass_needs(name, sample_size):
    model = build(name, sample_size, num_classes=10)
    assert closed_form_activation_bytes(preset_config(name), sample_size) == activation_bytes(model)


def test_the_options_of_atconv_are_counted():
    options = dict(channel_gate=True, kernel_dilation=[1, 2], average_branch=True, kernel_groups=4, mlp_depthwise=True)
    model = build("SiT-ATConv-Nano/2", 16, num_classes=10, **options)
    assert count_parameters(model.config) == sum(p.numel() for p in model.parameters())
    assert closed_form_macs(model.config, 16, 16) == count_macs(model, 16, 16)


def test_memory():
    config = preset_config("SiT-ATConv-XL/2")
    weights = 4 * (count_parameters(config) + VAE_PARAMETERS)
    one = decoding_bytes(STABLE_DIFFUSION_VAE, 256, 256)
    assert 0.9 * one < 242.3 * 2**20 < one  # as docs/performance.md has it, measured
    assert sampling_bytes(config, 32, 1) == weights + one  # more than the tokens of one image
    assert sampling_bytes(config, 32, 64) == weights + DECODING_BYTES  # eight images at a time
    assert sampling_bytes(config, 32, 1000) == weights + 1000 * token_bytes(config, 32, 32)
    assert training_bytes(config, 32, 8) - training_bytes(config, 32, 7) == closed_form_activation_bytes(config, 32)


@pytest.mark.slow
def test_the_memory_of_sampling_is_what_is_measured():
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE_CONFIG)
    assert VAE_PARAMETERS == sum(p.numel() for p in vae.parameters())
    assert tuple(vae.config.block_out_channels) == STABLE_DIFFUSION_VAE["block_out_channels"]
    device = torch.device("cpu")
    with torch.no_grad():
        for name, side in ("SiT-Nano/2", 32), ("SiT-ATConv-Nano/4", 64):
            model = SiTTransformer2DModel.from_preset(name, sample_size=side)
            inputs = torch.randn(8, 4, side, side), torch.rand(8), torch.arange(8)
            measured = peak_memory(lambda call=model, given=inputs: call(*given), device)
            assert 0.6 < measured / (8 * token_bytes(model.config, side, side)) < 1.1
        small = AutoencoderKL(**VAE_CONFIG | {"block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8})
        for side in 64, 128:
            measured = peak_memory(lambda: small.decode(torch.randn(1, 4, side // 8, side // 8)), device)  # noqa: B023
            assert 0.8 < measured / decoding_bytes(small, side, side) < 1.05
