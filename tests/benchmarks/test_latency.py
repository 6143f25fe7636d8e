"""Parts of the latency benchmark's run: the attention that is named, and Ctrl-C while files are written."""

import signal

import pytest
import torch
from torch.nn.attention import SDPBackend

from sit_atconv.benchmarks.latency import attention_backend, uninterrupted
from sit_atconv.benchmarks.settings import Setting
from sit_atconv.models.transformer_sit import SiTTransformer2DModel

CPU = torch.device("cpu")


def test_attention_in_training_is_that_of_tensors_with_gradients(monkeypatch):
    seen = []

    def choice(q, k, v):
        seen.append((tuple(q.shape), q.dtype, q.requires_grad, torch.is_grad_enabled()))
        return SDPBackend.MATH.value

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    model = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/2-Hybrid")
    for measurement in ("forward", "training"):
        setting = Setting(measurement, (), 64, 3, "bfloat16")
        assert attention_backend(model, setting, CPU) == "MATH"
    shape = (3, 4, 16, 24)
    assert seen == [(shape, torch.bfloat16, False, False), (shape, torch.bfloat16, True, True)]


def test_an_interrupt_waits_for_what_must_be_whole(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
