import pytest
import torch
from accelerate import Accelerator

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.optimizer import learning_rate, masked_step


def test_learning_rate_is_a_function_of_the_step():
    config = TrainConfig(learning_rate=0.1, lr_warmup_steps=9, max_steps=100)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[50] == pytest.approx(0.05)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    constant = TrainConfig(learning_rate=0.1, lr_warmup_steps=0, lr_schedule="constant")
    assert {learning_rate(constant, step) for step in (0, 7, 10**6)} == {0.1}


def test_fp16_skips_the_step_whose_gradient_overflows():
    parameter = torch.nn.Parameter(torch.ones(3))
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.AdamW([parameter], fused=True))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor, scale in ((float("inf"), 512.0), (1.0, 512.0)):
        before = parameter.detach().clone()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.unscale_(optimizer.optimizer)
        applied = parameter.grad.isfinite().all().float()
        masked_step(optimizer, applied, scaler)
        optimizer.zero_grad()
        assert scaler.get_scale() == scale
        assert torch.equal(parameter, before) == (factor != 1.0)
    assert optimizer.optimizer.state[parameter]["step"] == 1
