"""The operator against its definition, its algebra and the reference's numbers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from sit_atconv import ATConv
from sit_atconv.ops.depthwise_conv import naive_depthwise_conv


def randomised(module: ATConv, seed: int = 0) -> ATConv:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.5
    return module


@pytest.mark.parametrize("kernel_pool", ["strips", "grid"])
@pytest.mark.parametrize("kernel_activation", ["gelu_tanh", "silu"])
def test_kernels_equal_the_published_order_of_operations(kernel_activation, kernel_pool, assert_close):
    """Projecting every token and pooling afterwards, as published, gives the kernels that pooling first gives."""
    grid = (5, 6)
    atconv = randomised(ATConv(8, 3, kernel_activation, kernel_pool))
    tokens = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(1))

    projected = atconv.kernel_proj(tokens)
    activation = F.silu if kernel_activation == "silu" else partial(F.gelu, approximate="tanh")
    g = activation(atconv.pool(projected, grid))  # (B, k², C)
    kernels = torch.einsum("ij,bjc->bci", atconv.kernel_gen.weight, g) + atconv.kernel_gen.bias
    kernels = kernels - atconv.inhibition.sigmoid()[None, :, None] * kernels.mean(2, keepdim=True)
    assert_close(atconv.kernels(tokens, grid), kernels, 1e-6)


@pytest.mark.parametrize("kernel_pool", ["strips", "grid"])
def test_pooling_commutes_with_modulation(kernel_pool, assert_close):
    grid = (7, 4)
    atconv = ATConv(6, kernel_pool=kernel_pool)
    tokens, scale, shift = torch.randn(2, 28, 6), torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    modulated_first = atconv.pool(tokens * (1 + scale) + shift, grid)
    assert_close(modulated_first, atconv.pool(tokens, grid) * (1 + scale) + shift, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_pool", ["strips", "grid"])
def test_export_leaves_every_size_open(kernel_pool, assert_close):
    """One program of PyTorch's own operations, for any batch and grid."""

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.atconv = randomised(ATConv(6, kernel_pool=kernel_pool))

        def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, H, W, C)
            return self.atconv(image.flatten(1, 2), tuple(image.shape[1:3]))

    module = Image()
    sizes = {i: torch.export.Dim(name) for i, name in enumerate("BHW")}
    program = torch.export.export(module, (torch.randn(2, 5, 4, 6),), dynamic_shapes=(sizes,))
    operations = [str(node.target) for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert operations and all(name.startswith("aten.") for name in operations)
    for shape in [(1, 3, 7), (3, 2, 2), (2, 6, 5)]:
        image = torch.randn(*shape, 6)
        assert_close(program.module()(image), module(image), 1e-5)


def test_forward_is_the_formula_of_the_paper(assert_close):
    grid = (5, 4)
    atconv = randomised(ATConv(6))
    tokens = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(2))
    values = tokens @ atconv.value_proj.weight.T + atconv.value_proj.bias
    y = naive_depthwise_conv(values, atconv.kernels(tokens, grid), grid)
    assert_close(atconv(tokens, grid), y @ atconv.out_proj.weight.T + atconv.out_proj.bias, 1e-6)


def test_full_inhibition_leaves_kernels_without_mean():
    atconv = randomised(ATConv(4)).double()
    atconv.inhibition.data.fill_(50.0)  # sigmoid -> 1
    kernels = atconv.kernels(torch.randn(2, 16, 4, dtype=torch.float64), (4, 4))
    torch.testing.assert_close(kernels.mean(-1), torch.zeros(2, 4, dtype=torch.float64))


def test_samples_do_not_mix(assert_close):
    atconv = randomised(ATConv(6))
    tokens = torch.randn(3, 12, 6, generator=torch.Generator().manual_seed(3))
    alone = torch.cat([atconv(tokens[i : i + 1], (4, 3)) for i in range(3)])
    assert_close(atconv(tokens, (4, 3)), alone, 1e-6)


def test_gradients_reach_every_parameter():
    atconv = randomised(ATConv(4))
    atconv(torch.randn(2, 9, 4), (3, 3)).square().sum().backward()
    for name, parameter in atconv.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.abs().sum() > 0, f"zero gradient for {name}"


def test_groups_of_channels_have_their_own_dilation(assert_close):
    """Seven channels in three groups: 3, 2 and 2 of them, each convolved as if it were alone."""
    grid, atconv = (6, 9), randomised(ATConv(7, dilation=[1, 2, 4]))
    tokens = torch.randn(2, 54, 7, generator=torch.Generator().manual_seed(1))
    values, kernels = atconv.value_proj(tokens), atconv.kernels(tokens, grid)
    parts = [
        naive_depthwise_conv(values[:, :, own], kernels[:, own], grid, dilation)
        for own, dilation in ((slice(0, 3), 1), (slice(3, 5), 2), (slice(5, 7), 4))
    ]
    assert_close(atconv(tokens, grid), atconv.out_proj(torch.cat(parts, dim=2)), 1e-6)


def test_the_channel_gate_scales_channels_by_the_mean_of_the_image(assert_close):
    grid, plain, gated = (3, 6), ATConv(4), ATConv(4, channel_gate=True)
    tokens = torch.randn(2, 18, 4, generator=torch.Generator().manual_seed(1))
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert_close(gated(tokens, grid), plain(tokens, grid), 1e-6)  # a fresh gate changes nothing
    gate, mean = randomised(gated).channel_gate, tokens.mean(1)  # 18 tokens in 9 bins of two: the pooled mean
    scale = 2 / (1 + torch.exp(-(mean @ gate.weight.T + gate.bias)))
    values = naive_depthwise_conv(gated.value_proj(tokens), gated.kernels(tokens, grid), grid)
    assert_close(gated(tokens, grid), gated.out_proj(values * scale[:, None]), 1e-6)


def test_the_average_branch_adds_the_mean_of_the_image(assert_close):
    grid, plain, branched = (3, 5), ATConv(4), ATConv(4, average_branch=True)
    tokens = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(1))
    branched.load_state_dict(plain.state_dict(), strict=False)
    assert_close(branched(tokens, grid), plain(tokens, grid), 1e-6)  # a fresh branch changes nothing
    values = randomised(branched).value_proj(tokens)
    result = naive_depthwise_conv(values, branched.kernels(tokens, grid), grid)
    mean = torch.stack([image.sum(0) / 15 for image in values])[:, None]
    assert_close(branched(tokens, grid), branched.out_proj(result + branched.average * mean), 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_groups_of_channels_have_their_own_map_to_kernels(bias, assert_close):
    """Each group is a layer of its own on the same context; with equal maps, the layer is the published one."""
    grid, grouped = (4, 5), randomised(ATConv(6, kernel_groups=3, bias=bias))
    tokens = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(1))
    plain = ATConv(6, bias=bias)
    state = {name: value for name, value in grouped.state_dict().items() if "kernel_gen" not in name}
    kernels = []
    for i in range(3):
        own = {f"kernel_gen.{name}": value[i] for name, value in grouped.kernel_gen.state_dict().items()}
        plain.load_state_dict(state | own)
        kernels.append(plain.kernels(tokens, grid)[:, 2 * i : 2 * i + 2])
    assert_close(grouped.kernels(tokens, grid), torch.cat(kernels, dim=1), 1e-6)
    assert_close(torch.jit.script(grouped)(tokens, grid), grouped(tokens, grid), 1e-6)
    for parameter in grouped.kernel_gen.parameters():
        parameter.data[:] = parameter.data[2].clone()
    assert_close(grouped(tokens, grid), plain(tokens, grid), 1e-6)


def test_parity(parity_model, assert_close):
    model, reference = parity_model("atconv")
    atconv = model.blocks[0].mixer
    tokens = reference["in.tokens"]
    assert_close(atconv.kernels(tokens, (4, 4)), reference["out.kernels_block0"].flatten(2), 1e-5)
    assert_close(atconv(tokens, (4, 4)), reference["out.atconv_block0"], 1e-5)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (dict(kernel_size=2), "kernel_size=2"),
        (dict(kernel_size=0), "kernel_size=0"),
        (dict(kernel_size=-3), "kernel_size=-3"),
        (dict(kernel_activation="relu"), "kernel_activation='relu'"),
        (dict(kernel_pool="max"), "kernel_pool='max'"),
        (dict(dilation=0), "dilation=0"),
        (dict(dilation=[1, 2, 2.5]), "dilation=2.5"),
        (dict(dilation=[]), "dilation lists 0 dilations for 4 channels"),
        (dict(dilation=[1] * 5), "dilation lists 5 dilations for 4 channels"),
        (dict(kernel_groups=3), "kernel_groups=3 must divide the 4 channels"),
        (dict(kernel_groups=0), "kernel_groups=0"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, field):
    with pytest.raises(ValueError, match=field):
        ATConv(4, **arguments)


def test_a_grid_that_is_not_the_tokens_fails():
    with pytest.raises(ValueError, match="grid=4×4 has 16 places, but there are 12 tokens"):
        ATConv(4)(torch.randn(1, 12, 4), (4, 4))


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_of_the_backward_pass_run(register):
    module, seen = ATConv(8), []
    for name in ("kernel_proj", "kernel_gen"):
        getattr(getattr(module, name), register)(lambda *_, name=name: seen.append(name))
    module(torch.randn(2, 12, 8), (3, 4)).sum().backward()
    assert sorted(seen) == ["kernel_gen", "kernel_proj"]


def test_the_operator_of_attnet_equals_the_references(attnet_files, assert_close):
    """Exact GELU, with and without biases; the reference's 1×1 convolutions are linear layers here."""
    names = {"x_proj": "value_proj", "proj": "out_proj", "difference_control": "inhibition"}
    for entry, tensors, state in attnet_files("ATConv"):
        arguments, grid = entry["constructor"], tuple(entry["grid"])
        module = ATConv(arguments["dim"], arguments["kernel_size"], "gelu", bias=arguments["bias"]).eval()
        ours = {}
        for name, value in state.items():
            layer, _, slot = name.partition(".")
            ours[".".join(filter(None, (names.get(layer, layer), slot)))] = (
                value.flatten(1) if value.ndim == 4 else value
            )
        module.load_state_dict(ours)
        tokens = tensors["in.tokens"]
        with torch.no_grad():
            assert_close(module.kernels(tokens, grid), tensors["out.kernels"].flatten(2), 1e-5)
            assert_close(module(tokens, grid), tensors["out.op"], 1e-5)
            scripted = torch.jit.script(module)
            assert_close(scripted(tokens, grid), tensors["out.op"], 1e-5)
            assert_close(module.double()(tokens.double(), grid), tensors["out64.op"], 1e-10)


def test_biases_are_optional():
    assert [name for name in ATConv(4, bias=False).state_dict() if "bias" in name] == []
    assert len([name for name in ATConv(4).state_dict() if "bias" in name]) == 4


@pytest.mark.parametrize("dim", [0, -4, 2.5])
def test_a_width_that_is_none_is_refused(dim):
    with pytest.raises(ValueError, match=rf"dim={dim} must be a whole number of at least 1"):
        ATConv(dim)
