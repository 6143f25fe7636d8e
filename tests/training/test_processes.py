"""What of accelerate's environment a run takes."""

import pytest

from sit_atconv.evaluation.sample_folder import sample_to_folder
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.training.config import TrainConfig
from sit_atconv.training.processes import OFF, REFUSED, join_processes, start_accelerator


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


@pytest.mark.parametrize("value", OFF)
def test_what_is_switched_off_is_supported(monkeypatch, value):
    for name in REFUSED[:-1]:
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_FP8_BACKEND", "NO")  # which accelerate knows in this spelling only
    assert join_processes().num_processes == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
        ("ACCELERATE_USE_CPU", "maybe"),
        ("ACCELERATE_TORCH_DEVICE", "toaster"),
        ("ACCELERATE_DEBUG_MODE", "x"),
    ],
)
def test_values_that_make_no_sense_are_named(monkeypatch, name, value):
    """Accelerate's own messages name neither the variable nor, some of them, the value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^accelerate cannot start with {name}={value} in the environment: "):
        start_accelerator(TrainConfig(log_with="none"))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("LOCAL_RANK", "abc", "LOCAL_RANK='abc' in the environment must be a whole number"),
        ("WORLD_SIZE", "-1", "WORLD_SIZE='-1' in the environment must be a whole number"),
        ("RANK", "", "RANK='' in the environment must be a whole number"),
        ("ACCELERATE_TORCH_DEVICE", "meta", "ACCELERATE_TORCH_DEVICE=meta is no device to compute on; unset it"),
        ("ACCELERATE_TORCH_DEVICE", "meta:0", "ACCELERATE_TORCH_DEVICE=meta:0 is no device to compute on; unset it"),
    ],
)
def test_what_no_launcher_says_is_named(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{message}"):
        join_processes()
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_to_folder("nowhere", "nowhere", SamplingOptions(num_samples=1))
