from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType

from sit_atconv.training.build import build_components
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.optimizer import MuonWithAdamW, learning_rate, masked_step


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


def test_muon_updates_matrices_orthogonally_and_the_rest_as_adamw_does():
    """With the root mean square of an update of AdamW, 0.2 × the learning rate."""
    matrix, bias = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((6, 4), (6,)))
    alone = torch.nn.Parameter(bias.detach().clone())
    generator = torch.Generator().manual_seed(0)
    optimizer, adamw = MuonWithAdamW([matrix], [bias], 0.1, 0.0), torch.optim.AdamW([alone], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        before = matrix.detach().clone()
        matrix.grad, bias.grad = torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)
        alone.grad = bias.grad.clone()
        optimizer.step()
        adamw.step()
        update = (before - matrix.detach()) / 0.1
        assert torch.linalg.svdvals(update).allclose(torch.full((4,), 0.2 * 6**0.5), rtol=0.35)
    torch.testing.assert_close(bias, alone)


def test_a_masked_step_of_muon_changes_nothing_and_the_next_is_as_without_it():
    def steps(gradients: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        layer = torch.nn.Linear(4, 6)
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.bias)
        optimizer = Accelerator(cpu=True).prepare(MuonWithAdamW([layer.weight], [layer.bias], 0.1, 0.01))
        for gradient in gradients:
            layer.weight.grad, layer.bias.grad = gradient.clone(), gradient[:, 0].clone()
            masked_step(optimizer, gradient.isfinite().all().float(), None)
        states = optimizer.optimizer.state
        return layer.weight, layer.bias, states[layer.weight]["momentum_buffer"], states[layer.bias]["exp_avg"]

    good, bad = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(2)], torch.ones(6, 4)
    bad[2, 1] = float("nan")
    for one, other in zip(steps([bad, good[0], bad, good[1]]), steps(good), strict=True):
        assert torch.equal(one, other)


def test_muon_needs_whole_matrices():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match="optimizer=muon: its updates need whole matrices, which FSDP shards; use DDP"):
        build_components(TrainConfig(optimizer="muon"), accelerator)
