"""Numbers that are not finite: the error says where they come from."""

import pytest
import torch
from torch import nn

from sit_atconv.models.finite import NotFiniteError, check_finite

BAD = torch.tensor([0.0, torch.nan])


def test_finite_values_pass():
    check_finite("the latents", torch.zeros(3), None)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_weights_are_named(value):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].bias[0] = value
    with pytest.raises(NotFiniteError, match=r"^the latents are not finite, because weights of Sequential.*: 1\.bias;"):
        check_finite("the latents", BAD, None, model)


def test_float16_overflows():
    with pytest.raises(NotFiniteError, match=r"overflow in float16; load the pipeline again, and compute in bfloat16"):
        check_finite("the latents", BAD, nn.Linear(2, 2).half())


def test_other_reasons():
    with pytest.raises(NotFiniteError, match=r"although the weights are: .* lower guidance_scale"):
        check_finite("the latents", BAD, nn.Linear(2, 2))
