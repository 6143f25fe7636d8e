"""AttNet's inference on CPUs against the modules that it bypasses, and when it must not bypass them."""

import copy

import pytest
import timm
import torch
from torch import nn

import sit_atconv
from sit_atconv import ATConv
from sit_atconv.models import attnet_blocks, attnet_cpu
from sit_atconv.ops import linear_onednn

assert sit_atconv  # timm knows the models because of this import


def tiny_model(name: str = "attnet_t2", **arguments) -> nn.Module:
    """A network whose parameters are far from their initial values."""
    torch.manual_seed(0)
    arguments = dict(depths=[1, 2, 1, 1], dims=[8, 12, 16, 20], num_classes=7) | arguments
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.fixture
def stages_run(monkeypatch):
    """Collects the inputs of stages that ran without calls of their layers."""
    seen = []
    monkeypatch.setattr(
        attnet_blocks, "run_blocks", lambda blocks, x: seen.append(x.shape) or attnet_cpu.run_blocks(blocks, x)
    )
    return seen


@pytest.mark.parametrize("with_onednn", [False, True])
@pytest.mark.parametrize("channels_at_once", [None, 1])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(glu_norm=False, use_layer_scale=False, conv_bias=False, act_layer="SiLU"),
        dict(glu_norm_rule="variance", output_stride=8),
        dict(glu_dconv=[False, True, False, True], kernel_sizes=[3, 5, 1, 7]),
        dict(dims=[64, 12, 64, 20], glu_dconv=False),
    ],
)
def test_computes_what_the_modules_compute(arguments, channels_at_once, with_onednn, stages_run, monkeypatch):
    monkeypatch.setattr(linear_onednn, "WORTHWHILE_PRODUCTS", 0 if with_onednn else 2**62)
    if channels_at_once:
        monkeypatch.setattr(attnet_cpu, "CACHED_ELEMENTS", channels_at_once)
    model = tiny_model(**arguments)
    for shape in ((3, 3, 96, 81), (1, 3, 33, 50), (1, 3, 1, 1), (2, 3, 1, 300)):
        x = torch.randn(shape)
        expected = model(x).detach()
        assert not stages_run  # gradients were asked for
        kept = x.clone()
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
            assert len(stages_run) == 4 and torch.equal(x, kept)
            stages_run.clear()


def test_maps_of_earlier_stages_are_left_alone():
    model, x = tiny_model(), torch.randn(2, 3, 64, 64)
    expected = [each.detach() for each in model.forward_intermediates(x, intermediates_only=True)]
    with torch.no_grad():
        for found, each in zip(model.forward_intermediates(x, intermediates_only=True), expected, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-4)


class Shifted(nn.Module):
    """As an adapter wraps a layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *arguments):
        return self.layer(*arguments) + 1


def shift_output(module, inputs, output):
    return output + 1


LAYERS = (
    "norm1",
    "token_mixer",
    "token_mixer.kernel_gen",
    "token_mixer.value_proj",
    "channel_mixer",
    "channel_mixer.fc1_g",
    "channel_mixer.dwconv",
    "channel_mixer.act",
    "channel_mixer.norm",
    "channel_mixer.fc2",
)


@pytest.mark.parametrize("layer", LAYERS)
def test_changed_layers_are_called(layer, stages_run):
    """Hooks, adapters, replaced forwards; here they add 1 to the output of a layer."""
    x = torch.randn(1, 3, 64, 64)

    def hooked(block):
        block.get_submodule(layer).register_forward_hook(shift_output)

    def adapted(block):
        block.set_submodule(layer, Shifted(block.get_submodule(layer)))

    def patched(block):
        module = block.get_submodule(layer)
        forward = module.forward
        module.forward = lambda *arguments: forward(*arguments) + 1

    model = tiny_model(depths=[1, 1, 1, 1])
    with torch.no_grad():
        untouched = model(x)
    for change in (hooked, adapted, patched):
        changed = copy.deepcopy(model)
        change(changed.stages[1].blocks[0])
        expected = changed(x).detach()
        assert not torch.allclose(expected, untouched, rtol=1e-3)
        stages_run.clear()
        with torch.no_grad():
            torch.testing.assert_close(changed(x), expected)
        assert len(stages_run) == 3


@pytest.mark.parametrize(
    "layer, other",
    [
        ("token_mixer", lambda: ATConv(12, 3, "gelu", channel_gate=True)),
        ("token_mixer", lambda: ATConv(12, 3, "gelu", average_branch=True)),
        ("token_mixer", lambda: ATConv(12, 3, "gelu", dilation=[1, 2])),
        ("token_mixer", lambda: ATConv(12, 3, "gelu", kernel_groups=2)),
        ("token_mixer", lambda: ATConv(12, 3, "gelu", "grid")),
        ("token_mixer", lambda: ATConv(12, 3)),
        ("channel_mixer.dwconv", lambda: nn.Conv2d(64, 64, 3, padding=1, groups=64, padding_mode="reflect")),
        ("channel_mixer.dwconv", lambda: nn.Conv2d(64, 64, 3, padding=1, groups=32)),
        ("channel_mixer.act", lambda: nn.SiLU()),
        ("channel_mixer.act", nn.Identity),
        ("norm1", nn.Identity),
        ("token_mixer.out_proj", nn.Identity),
        ("", nn.Identity),  # the whole block
    ],
)
def test_other_layers_in_their_places(layer, other):
    model, x = tiny_model(depths=[1, 1, 1, 1]), torch.randn(1, 3, 64, 64)
    replacement = other().eval()
    with torch.no_grad():
        for parameter in replacement.parameters():
            parameter.normal_(std=0.3)
        untouched = model(x)
    model.stages[1].set_submodule(f"blocks.0.{layer}".rstrip("."), replacement)
    expected = model(x).detach()
    assert not torch.allclose(expected, untouched, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_what_must_see_every_operation_runs_the_modules(stages_run):
    model, x = tiny_model(drop_path_rate=0.5), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        torch.jit.trace(model, x, check_trace=False)  # the check calls the model itself
        torch.func.jvp(model, (x,), (x,))
        copy.deepcopy(model).double()(x.double())
        copy.deepcopy(model).train()(x)
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        model(x)
        handle.remove()
        assert not stages_run
        model.stages[3].blocks[0].drop_path1.train()  # as for samples of what dropout leaves
        model(x)
        assert len(stages_run) == 3


def test_a_changed_container_is_called(stages_run):
    model, x = tiny_model(depths=[1, 1, 1, 1]), torch.randn(1, 3, 64, 64)
    model.stages[1].blocks.register_forward_hook(shift_output)
    expected = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(stages_run) == 3


@pytest.mark.parametrize("channels_at_once", [None, 1])
def test_layers_without_biases(channels_at_once, stages_run, monkeypatch):
    if channels_at_once:
        monkeypatch.setattr(attnet_cpu, "CACHED_ELEMENTS", channels_at_once)
    model, x = tiny_model(depths=[1, 1, 1, 1]), torch.randn(1, 3, 64, 64)
    mixer = model.stages[1].blocks[0].channel_mixer
    for layer in (mixer.fc1_g, mixer.fc1_x, mixer.fc2, mixer.dwconv):
        layer.bias = None
    expected = model(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(stages_run) == 4
