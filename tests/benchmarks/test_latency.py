"""Parts of the latency benchmark's run: the attention that is named, and Ctrl-C while files are written."""

import signal

import pytest
import torch
from torch.nn.attention import SDPBackend

from sit_atconv.benchmarks import latency
from sit_atconv.benchmarks.latency import attention_backend, uninterrupted
from sit_atconv.benchmarks.settings import LatencyOptions, Setting
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


def test_a_plan_ends_with_its_minutes_and_keeps_what_was_measured(monkeypatch, tmp_path, capsys):
    """Each setting takes 40 seconds here, and may take twice its share of the time that is left; two fit."""
    now, shares = [0.0], []

    def measure_setting(models, setting, options, device, rates, vae, share):
        now[0] += 40
        shares.append(share)
        return [{"name": "SiT-Nano/2", "image_size": setting.image_size}], False

    monkeypatch.setattr(latency, "measure_setting", measure_setting)
    monkeypatch.setattr(latency, "matrix_rate", lambda *_: 1e10)
    monkeypatch.setattr(latency, "copy_bandwidth", lambda *_: 1e9)
    monkeypatch.setattr(latency, "write_results", lambda folder, report: None)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    options = LatencyOptions(
        presets=["SiT-Nano/2"], image_sizes=[32, 64, 96, 128], device="cpu", minutes=1, max_seconds=29
    )
    report = {"results": [], "interrupted": True}
    latency.measure_plan(options, tmp_path, report, None)
    assert shares == [(29.0, 60.0), (2 * 20 / 3, 60.0)]
    assert [row["image_size"] for row in report["results"]] == [32, 64] and report["interrupted"] is False
    assert [setting["image_size"] for setting in report["left_out"]] == [96, 128]
    assert "minutes=1 are over: 2 of 4 settings measured" in capsys.readouterr().err


def test_an_interrupt_waits_for_what_must_be_whole(ctrl_c):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
