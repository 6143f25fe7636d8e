import numpy as np
import pytest
import torch

from sit_atconv.training.checkpoints import save_checkpoint
from sit_atconv.training.ema import WeightAverages
from sit_atconv.training.posthoc_ema import reconstruct, reconstruction_weights


def test_stored_profile_is_its_own_reconstruction():
    weights = reconstruction_weights([100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1], 0.1, 200)
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-6)


@pytest.fixture
def trajectory(tmp_path):
    """Snapshots of a random walk, and averages of other lengths that were tracked on the way."""
    generator = torch.Generator().manual_seed(0)
    value, tracked = torch.zeros(50), [0.06, 0.075, 0.12]
    averages = WeightAverages([value], [], [0.05, 0.1, *tracked])
    for step in range(1, 1001):
        value = value + torch.randn(50, generator=generator) * 0.1 + 0.01
        averages.update([value], step, torch.tensor(1.0))
        if step % 50 == 0:
            stored = {name: {"w": averages.averages[name][0]} for name in ("std-0.05", "std-0.1")}
            save_checkpoint(tmp_path / "ema", step, stored, {"step": step})
    return tmp_path / "ema", {std: averages.averages[f"std-{std:g}"][0] for std in tracked}, averages


def test_reconstruction_equals_the_average_that_was_tracked(trajectory):
    folder, tracked, averages = trajectory
    nearest = averages.averages["std-0.1"][0]
    for std, expected in tracked.items():
        error = (reconstruct(folder, std)["w"] - expected).norm()
        assert error < 0.02 * expected.std() * 50**0.5, std
        assert error < 0.1 * (nearest - expected).norm(), std  # far closer than what is stored
    torch.testing.assert_close(reconstruct(folder, 0.1)["w"], nearest, rtol=1e-4, atol=1e-4)


def test_reconstruction_refuses_what_it_cannot_do(trajectory, tmp_path):
    folder, *_ = trajectory
    with pytest.raises(ValueError, match="step=33"):
        reconstruct(folder, 0.1, step=33)
    with pytest.raises(ValueError, match=r"std=0\.4"):
        reconstruct(folder, 0.4)
    with pytest.raises(ValueError, match="holds no snapshots"):
        reconstruct(tmp_path / "nothing", 0.1)
    (folder / "step-00000500" / "std-0.05.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="step-00000500"):
        reconstruct(folder, 0.08)
