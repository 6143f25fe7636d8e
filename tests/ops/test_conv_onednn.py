"""The depthwise convolution with its activation, against PyTorch's own in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sit_atconv.ops.conv_onednn import depthwise_conv_activation


@pytest.mark.parametrize("use_onednn", [True, False])
@pytest.mark.parametrize("activation, function", [("gelu", F.gelu), ("silu", F.silu)])
@pytest.mark.parametrize("side, dilation, has_bias", [(3, 1, True), (5, 2, False), (1, 1, True)])
def test_equals_float64(side, dilation, has_bias, activation, function, use_onednn):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 11, 7, 9, generator=generator).to(memory_format=torch.channels_last)
    weight = torch.randn(13, 1, side, side, generator=generator)[1:-1]  # as when some channels are computed at a time
    bias = torch.randn(11, generator=generator) if has_bias else None
    double = [t if t is None else t.double() for t in (x, weight, bias)]
    expected = function(F.conv2d(*double, padding=side // 2 * dilation, dilation=dilation, groups=11))
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=use_onednn), FlopCounterMode(display=False) as counter:
        y = depthwise_conv_activation(x, weight, bias, dilation, activation)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert counter.get_total_flops() == 2 * 2 * 11 * 7 * 9 * side**2
