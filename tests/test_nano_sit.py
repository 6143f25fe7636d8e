"""The method in one file, docs/nano_sit.py, is the method of the package."""

import importlib.util
from pathlib import Path

import pytest
import torch

from sit_atconv import ATConv, InterpolantODEScheduler


@pytest.fixture(scope="module")
def nano():
    spec = importlib.util.spec_from_file_location("nano_sit", Path(__file__).parents[1] / "docs" / "nano_sit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_operator_is_the_packages(nano, assert_close):
    torch.manual_seed(0)
    ours, theirs = ATConv(12), nano.ATConv(12)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(3, 35, 12)
    assert_close(theirs(tokens, (5, 7)), ours(tokens, (5, 7)), 1e-5)


def test_its_sampler_is_the_packages_euler_method(nano, assert_close):
    torch.manual_seed(0)
    model = nano.SiT(dim=16, depth=1).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    label = torch.tensor([3, 7])

    def guided(x, t):
        t = t.expand(len(x))
        cond, uncond = model(x, t, label), model(x, t, torch.full_like(label, model.null_class))
        return uncond + 1.5 * (cond - uncond)

    torch.manual_seed(1)
    sampled = nano.sample(model, label, steps=5)
    torch.manual_seed(1)
    noise = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert_close(InterpolantODEScheduler(solver="euler").solve(guided, noise, 5), sampled, 1e-5)


@pytest.mark.slow
def test_it_learns(nano):
    """Stripes across and along, as two classes: the loss falls well below that of predicting zero, about 1.5."""
    torch.manual_seed(0)
    stripes = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2).expand(8, 8)
    images = torch.stack([stripes, stripes.T])[:, None].repeat(32, 1, 1, 1)
    labels = torch.arange(2).repeat(32)
    assert nano.train(nano.SiT(dim=32, depth=2), images, labels, steps=100) < 0.6
