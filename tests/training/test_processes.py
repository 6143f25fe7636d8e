"""What of accelerate's environment a run takes."""

import pytest

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.processes import REFUSED, start_accelerator


@pytest.fixture(autouse=True)
def fresh_accelerate():
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_options_alone_decide_on_accumulation_and_compilation(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = start_accelerator(TrainConfig(log_with="none"))
    assert accelerator.gradient_accumulation_steps == 1  # accelerate divides the loss by it
    assert accelerator.state.dynamo_plugin.backend.value == "NO"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_named(monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(ValueError, match=f"^{name}=true is not supported; unset it, or choose a configuration"):
        start_accelerator(TrainConfig(log_with="none"))
