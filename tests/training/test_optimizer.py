import pytest

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.optimizer import learning_rate


def test_learning_rate_is_a_function_of_the_step():
    config = TrainConfig(learning_rate=0.1, lr_warmup_steps=9, max_steps=100)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[50] == pytest.approx(0.05)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    constant = TrainConfig(learning_rate=0.1, lr_warmup_steps=0, lr_schedule="constant")
    assert {learning_rate(constant, step) for step in (0, 7, 10**6)} == {0.1}
