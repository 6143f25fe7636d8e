"""Sizes of models: how many parameters follow from a config, and which are too many."""

import pytest

from sit_atconv import SiTTransformer2DModel
from sit_atconv.models.arguments import check_arguments, estimate_parameters
from sit_atconv.models.costs import count_parameters
from sit_atconv.models.presets import PRESETS
from sit_atconv.training.model_arguments import model_arguments


@pytest.mark.parametrize("name", ["SiT-S/2", "SiT-ATConv-S/2", "SiT-ATConv-S/8-Hybrid", "SiT-ATConv-Nano/2"])
def test_parameters_are_estimated(name):
    model = SiTTransformer2DModel.from_preset(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert estimate_parameters(model.config) == pytest.approx(count, rel=0.15)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_of_moderate_size(name):
    config = {**model_arguments(), **PRESETS[name]}
    check_arguments(config)
    assert estimate_parameters(config) == pytest.approx(count_parameters(config), rel=0.15)
