"""Every way to compute the per-sample depthwise convolution against its definition in float64.

Without a GPU the Triton kernels run in Triton's interpreter (tests/conftest.py); with one they are compiled, and what
only a GPU can show is tested, too.
"""

import importlib.util
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from sit_atconv.ops import depthwise_conv_triton
from sit_atconv.ops.depthwise_conv import (
    channels_last_depthwise_conv,
    depthwise_conv,
    naive_depthwise_conv,
    planes_depthwise_conv,
)
from sit_atconv.sharing.bundle import bundle_source

# (B, (H, W), C, k), drawn from a seed, so that a test that fails fails again.
dice = random.Random(0)
RANDOM_SHAPES = [
    (dice.randint(1, 5), (dice.randint(1, 20), dice.randint(1, 20)), dice.randint(1, 40), dice.choice([1, 3, 5, 7]))
    for _ in range(24)
]
GRIDS = [(1, 1), (1, 7), (5, 3), (4, 4), (6, 11), (9, 2)]
PATHS = [planes_depthwise_conv, channels_last_depthwise_conv, depthwise_conv]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(depthwise_conv_triton.triton is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
# Triton's interpreter cuts bfloat16 off instead of rounding it.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def triton_conv(tokens: torch.Tensor, kernels: torch.Tensor, grid: tuple[int, int], dilation: int = 1) -> torch.Tensor:
    return torch.ops.sit_atconv.depthwise_conv_v3(tokens, kernels, *grid, dilation)


def draw(B, grid, C, k, dtype=torch.float64, device="cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, kernels and the gradient of the output; both inputs ask for theirs."""
    N = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(1000 * N + 10 * C + k)
    tokens, upstream = torch.randn(2, B, N, C, generator=generator, dtype=torch.float64).to(device, dtype).unbind()
    kernels = torch.randn(B, C, k * k, generator=generator, dtype=torch.float64).to(device, dtype)
    return tokens.requires_grad_(), kernels.requires_grad_(), upstream


def results(conv, tokens, kernels, upstream, grid) -> tuple[torch.Tensor, ...]:
    """(output, gradient of tokens, gradient of kernels)."""
    out = conv(tokens, kernels, grid)
    return out.detach(), *torch.autograd.grad(out, (tokens, kernels), upstream)


def expected_results(tokens, kernels, upstream, grid) -> tuple[torch.Tensor, ...]:
    """The same by the definition, in float64."""
    tokens, kernels = (x.detach().double().requires_grad_() for x in (tokens, kernels))
    return results(naive_depthwise_conv, tokens, kernels, upstream.double(), grid)


@pytest.mark.parametrize("conv", PATHS)
@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("grid", GRIDS)
def test_paths_equal_the_definition(conv, grid, k):
    inputs = draw(2, grid, 3, k)
    for actual, expected in zip(results(conv, *inputs, grid), expected_results(*inputs, grid), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("conv", PATHS)
@pytest.mark.parametrize(("B", "grid", "C", "k"), RANDOM_SHAPES)
def test_paths_equal_the_definition_for_random_shapes(conv, B, grid, C, k, assert_close):
    """As models call it: float32, and kernels with channels adjacent."""
    tokens, kernels, upstream = draw(B, grid, C, k, torch.float32)
    kernels = kernels.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    expected = expected_results(tokens, kernels, upstream, grid)
    for actual, exact in zip(results(conv, tokens, kernels, upstream, grid), expected, strict=True):
        assert_close(actual, exact, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("together", [1, 100, 10**6])
def test_samples_in_one_convolution_or_in_several(together, dtype, monkeypatch, assert_close):
    monkeypatch.setattr("sit_atconv.ops.depthwise_conv.CACHED_ELEMENTS", together)
    grid = (4, 6)
    inputs = draw(5, grid, 2, 3, dtype)
    actual = results(channels_last_depthwise_conv, *inputs, grid)
    for a, b in zip(actual, expected_results(*inputs, grid), strict=True):
        assert_close(a, b, TOLERANCES[dtype])


@pytest.mark.parametrize("conv", [*PATHS, naive_depthwise_conv, pytest.param(triton_conv, marks=needs_triton)])
def test_cross_correlation_with_row_major_taps(conv):
    H, W = 4, 5
    image = torch.arange(1.0, H * W + 1, device=DEVICE).view(1, H * W, 1)
    taps = range(9) if conv is not triton_conv else (1, 3, 8)  # its interpreter is slow
    for j in taps:
        kernels = F.one_hot(torch.tensor(j), 9).float().view(1, 1, 9).to(DEVICE)
        dy, dx = j // 3 - 1, j % 3 - 1
        expected = torch.zeros(H, W, device=DEVICE)
        for y in range(H):
            for x in range(W):
                if 0 <= y + dy < H and 0 <= x + dx < W:
                    expected[y, x] = image.view(H, W)[y + dy, x + dx]
        torch.testing.assert_close(conv(image, kernels, (H, W)).view(H, W), expected)


@needs_triton
@pytest.mark.parametrize(
    ("B", "grid", "C", "k", "dtype"),
    [
        (2, (5, 7), 10, 3, torch.float32),
        (1, (9, 17), 3, 3, torch.float32),
        (2, (3, 2), 70, 3, torch.float32),
        (1, (4, 6), 8, 3, torch.float16),
        (1, (6, 5), 8, 5, torch.bfloat16),
        (1, (3, 9), 5, 7, torch.float32),
        (3, (1, 1), 2, 3, torch.float32),
    ],
)
def test_triton_kernels(B, grid, C, k, dtype, assert_close):
    inputs = draw(B, grid, C, k, dtype, DEVICE)
    actual = results(triton_conv, *inputs, grid)
    for a, b, like in zip(actual, expected_results(*inputs, grid), (*inputs[:1], *inputs[:2]), strict=True):
        assert a.dtype == dtype and a.shape == like.shape
        assert_close(a, b, TOLERANCES[dtype])


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(("B", "grid", "C", "k"), [s for s in RANDOM_SHAPES if s[0] * s[1][0] * s[1][1] * s[3] < 600])
def test_triton_kernels_for_random_shapes(B, grid, C, k, assert_close):
    inputs = draw(B, grid, C, k, torch.float32, DEVICE)
    for a, b in zip(results(triton_conv, *inputs, grid), expected_results(*inputs, grid), strict=True):
        assert_close(a, b, 2e-6)


@needs_triton
@pytest.mark.parametrize(("grid", "k", "dilation"), [((6, 9), 3, 2), ((5, 4), 3, 4), ((3, 8), 5, 3)])
def test_dilated_triton_kernels(grid, k, dilation, assert_close):
    """Result, gradients and the derivative along tangents; also where taps lie beyond the grid on both sides."""
    tokens, kernels, upstream = draw(2, grid, 3, k, torch.float32, DEVICE)
    found = results(lambda *inputs: triton_conv(*inputs, dilation), tokens, kernels, upstream, grid)
    doubles = [x.detach().double().requires_grad_() for x in (tokens, kernels)]
    expected = results(lambda *inputs: naive_depthwise_conv(*inputs, dilation), *doubles, upstream.double(), grid)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 2e-6)
    x, w, dx, dw = (each.detach() for each in (tokens, kernels, upstream, kernels.flip(1)))
    tangent = torch.func.jvp(lambda x, w: triton_conv(x, w, grid, dilation), (x, w), (dx, dw))[1]
    by_rule = naive_depthwise_conv(dx, w, grid, dilation) + naive_depthwise_conv(x, dw, grid, dilation)
    assert_close(tangent, by_rule, 2e-6)


@needs_triton
def test_triton_kernels_on_the_tiles_of_large_batches(monkeypatch, assert_close):
    """8×8 tokens, which small inputs are cut up from so that more programs run."""
    monkeypatch.setattr(depthwise_conv_triton, "ENOUGH_PROGRAMS", 1)
    grid = (9, 10)
    assert depthwise_conv_triton.choose_tile(1, *grid, 70) == (8, 8)
    inputs = draw(1, grid, 70, 3, torch.float32, DEVICE)
    for a, b in zip(results(triton_conv, *inputs, grid), expected_results(*inputs, grid), strict=True):
        assert_close(a, b, TOLERANCES[torch.float32])


@needs_triton
def test_triton_kernels_take_any_strides_and_kernels_in_float32(assert_close):
    """As ATConv's are under autocast: tokens in 16 bits, kernels in 32 and with the taps outermost."""
    grid = (4, 3)
    tokens, kernels, upstream = draw(2, grid, 6, 3, torch.float32, DEVICE)
    tokens = tokens.detach().half().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    kernels = kernels.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    upstream = upstream.half()[:, :1].expand(-1, 12, -1)
    actual = results(triton_conv, tokens, kernels, upstream, grid)
    assert [x.dtype for x in actual] == [torch.float16, torch.float16, torch.float32]
    for a, b in zip(actual, expected_results(tokens, kernels, upstream, grid), strict=True):
        assert_close(a, b, 1e-3)


@pytest.mark.slow
@needs_triton
def test_triton_backward_is_deterministic_and_sums_its_tiles_in_float32(assert_close):
    """1 + 2⁻¹⁰ each, 153 times, over several tiles: sums in float16 would lose the small part."""
    grid = (9, 17)
    tokens = torch.full((1, 153, 2), 1 + 2.0**-10, dtype=torch.float16, device=DEVICE)
    kernels = torch.ones(1, 2, 9, device=DEVICE)
    first, second = (
        depthwise_conv_triton.triton_backward(torch.ones_like(tokens), tokens, kernels, *grid, 1) for _ in "ab"
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first[1][0, :, 4], torch.full((2,), 153 * (1 + 2.0**-10), device=DEVICE))


@needs_triton
def test_triton_operator_can_be_differentiated_twice(assert_close):
    grid = (2, 3)
    tokens, kernels, _ = draw(1, grid, 2, 3, torch.float32, DEVICE)

    def second_gradients(conv):
        first = torch.autograd.grad(conv(tokens, kernels, grid).pow(3).sum(), (tokens, kernels), create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), (tokens, kernels))

    for a, b in zip(second_gradients(triton_conv), second_gradients(naive_depthwise_conv), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("transposed", [False, True])
def test_operator_keeps_pytorchs_rules(transposed):
    tokens, kernels, upstream = draw(2, (2, 3), 4, 3, torch.float32, DEVICE)
    if transposed:
        kernels = kernels.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    operators = torch.ops.sit_atconv
    torch.library.opcheck(operators.depthwise_conv_v3.default, (tokens, kernels, 2, 3, 1))
    torch.library.opcheck(operators.depthwise_conv_backward_v3.default, (upstream, tokens, kernels, 2, 3, 2))


@needs_triton
def test_operator_stays_whole_in_compiled_and_exported_programs(assert_close):
    grid = (3, 4)
    inputs = draw(2, grid, 4, 3, torch.float32, DEVICE)
    compiled = torch.compile(triton_conv, backend="aot_eager", fullgraph=True)
    for a, b in zip(results(compiled, *inputs, grid), results(triton_conv, *inputs, grid), strict=True):
        assert_close(a, b, 1e-6)

    class Module(torch.nn.Module):
        def forward(self, tokens, kernels):
            return triton_conv(2 * tokens, kernels, grid)

    sizes = {0: torch.export.Dim("batch")}
    tensors = tuple(x.detach() for x in inputs[:2])
    program = torch.export.export(Module(), tensors, dynamic_shapes=(sizes, sizes))
    assert torch.ops.sit_atconv.depthwise_conv_v3.default in {node.target for node in program.graph.nodes}
    assert_close(program.module()(*tensors), 2 * naive_depthwise_conv(*tensors, grid), 1e-5)


@pytest.mark.slow
def test_compiled_on_a_cpu(assert_close):
    """The definition is traced, forward and backward, without a graph break and once for all sizes."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(depthwise_conv, backend=backend, fullgraph=True, dynamic=True)
    for B, grid in [(2, (5, 6)), (3, (4, 7))]:
        inputs = [x.detach().clone() for x in draw(B, grid, 8, 3, torch.float32)]
        inputs[0].requires_grad_(), inputs[1].requires_grad_()
        for a, b in zip(results(compiled, *inputs, grid), expected_results(*inputs, grid), strict=True):
            assert_close(a, b, 1e-6)
    assert len(graphs) == 1
    assert not [node for node in graphs[0].graph.nodes if "conv" in str(node.target)]


@pytest.mark.slow
def test_compiled_by_inductor(assert_close):
    """The code that runs, forward and backward, on CPUs and on GPUs."""
    torch.compiler.reset()
    compiled = torch.compile(depthwise_conv, fullgraph=True, dynamic=True)
    for B, grid in [(2, (5, 6)), (3, (4, 7))]:
        inputs = draw(B, grid, 8, 3, torch.float32, DEVICE)
        for a, b in zip(results(compiled, *inputs, grid), expected_results(*inputs, grid), strict=True):
            assert_close(a, b, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conv", [depthwise_conv, torch.compile(depthwise_conv, backend="eager", fullgraph=True)])
def test_autocast_decides_the_dtype(conv, dtype, assert_close):
    grid = (4, 5)
    tokens, kernels, upstream = draw(2, grid, 3, 3, torch.float32, DEVICE)
    with torch.autocast(DEVICE, dtype):
        out = conv(tokens, kernels, grid)
        assert out.dtype == dtype
        double = conv(tokens.double(), kernels.double(), grid)
    assert double.dtype == torch.float64
    gradients = torch.autograd.grad(out, (tokens, kernels), upstream.to(dtype))
    assert all(x.dtype == torch.float32 for x in gradients)
    for a, b in zip((out, *gradients), expected_results(tokens, kernels, upstream, grid), strict=True):
        assert_close(a, b, 2e-2)


def test_shapes_alone_on_the_meta_device():
    tokens, kernels = torch.empty(2, 12, 4, device="meta"), torch.empty(2, 4, 9, device="meta")
    assert depthwise_conv(tokens, kernels, (3, 4)).shape == (2, 12, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_may_have_another_dtype(dtype, assert_close):
    grid = (3, 4)
    tokens, kernels, _ = draw(1, grid, 3, 3, torch.float64, DEVICE)
    out = depthwise_conv(tokens.to(dtype), kernels, grid)
    assert out.dtype == dtype
    assert_close(out, naive_depthwise_conv(tokens, kernels, grid), 1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(
    ("tokens", "kernels", "grid", "message"),
    [
        ((1, 12, 4), (1, 4, 9), (4, 4), "grid=4×4 has 16 places, but there are 12 tokens"),
        ((2, 12, 4), (1, 4, 9), (3, 4), r"kernels has shape \(1, 4, 9\), but must be \(2, 4, k²\)"),
        ((1, 12, 4), (1, 4, 8), (3, 4), r"kernels has shape \(1, 4, 8\)"),
        ((1, 12, 4), (1, 4, 16), (3, 4), "odd k"),
    ],
)
def test_shapes_that_do_not_fit(tokens, kernels, grid, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(torch.zeros(tokens), torch.zeros(kernels), grid)


@pytest.mark.slow
def test_without_triton(tmp_path):
    """As on Windows, macOS and CPU builds: everything works but the operator, in portable folders, too."""
    (tmp_path / "portable.py").write_text(bundle_source("sit_atconv.models.transformer_sit"))
    code = """
import sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch
import portable
assert portable.triton is None and not hasattr(torch.ops.sit_atconv, "depthwise_conv_v3")
assert "sit_atconv" not in sys.modules
tokens, kernels = torch.randn(1, 6, 3), torch.randn(1, 3, 9)
expected = portable.naive_depthwise_conv(tokens, kernels, (2, 3))
torch.testing.assert_close(portable.depthwise_conv(tokens, kernels, (2, 3)), expected)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@needs_triton
def test_copies_of_the_code_share_the_operator(tmp_path, assert_close):
    """A portable folder brings the kernels again, in one file of its own; either copy still works after that."""
    before = torch.ops.sit_atconv.depthwise_conv_v3.default
    path = tmp_path / "portable_copy.py"
    path.write_text(bundle_source("sit_atconv.models.transformer_sit"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    assert torch.ops.sit_atconv.depthwise_conv_v3.default is before
    tokens, kernels, upstream = (x.detach() for x in draw(1, (2, 3), 4, 3, torch.float32, DEVICE))
    expected = naive_depthwise_conv(tokens, kernels, (2, 3))
    assert_close(triton_conv(tokens, kernels, (2, 3)), expected, 1e-6)
    assert_close(copy.triton_forward(tokens, kernels, 2, 3, 1), expected, 1e-6)
    assert copy.triton_backward(upstream, tokens, kernels, 2, 3, 1)[1].shape == kernels.shape


@needs_triton
@pytest.mark.parametrize("B", [1, 2, 32, 1000])
@pytest.mark.parametrize("grid", [(1, 1), (16, 16), (32, 32), (1, 256), (5, 77)])
def test_tiles_are_powers_of_two_that_fit_the_grid(grid, B):
    rows, columns = depthwise_conv_triton.choose_tile(B, *grid, 384)
    assert rows & (rows - 1) == 0 and columns & (columns - 1) == 0
    assert rows < 2 * grid[0] and columns < 2 * grid[1]
    assert rows * columns <= depthwise_conv_triton.LARGEST_TILE


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("B", "grid", "C", "k"),
    [(4, (16, 16), 1152, 3), (2, (33, 65), 384, 3), (1, (31, 17), 100, 5), (3, (8, 40), 65, 7), (2, (1, 300), 1, 3)],
)
def test_compiled_kernels_on_a_gpu(B, grid, C, k, dtype, assert_close):
    inputs = draw(B, grid, C, k, dtype, "cuda")
    first, second = (results(depthwise_conv, *inputs, grid) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first, expected_results(*inputs, grid), strict=True):
        assert_close(a, b, {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype])


@needs_gpu
def test_compiled_model_on_a_gpu(tiny_transformer, assert_close):
    """Forward and backward through Inductor, which asserts the strides that the operator promised."""
    model = tiny_transformer(mixer="hybrid", num_attention_heads=4, attention_head_dim=16).to("cuda")
    x, t, y = torch.randn(3, 3, 16, 8, device="cuda"), torch.rand(3, device="cuda"), torch.arange(3, device="cuda")
    expected = model(x, t, y).sample
    (gradient,) = torch.autograd.grad(expected.square().sum(), model.proj_out.weight)
    output = torch.compile(model, fullgraph=True)(x, t, y).sample
    (compiled,) = torch.autograd.grad(output.square().sum(), model.proj_out.weight)
    assert_close(output, expected, 1e-3)
    assert_close(compiled, gradient, 1e-3)


@needs_gpu
def test_more_than_two_to_the_31_elements(assert_close):
    grid, B, C = (64, 64), 8, 2**16
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    tokens = torch.ones(B, 4096, C, dtype=torch.bfloat16, device="cuda")  # 2³¹ elements
    kernels = torch.zeros(B, C, 9, dtype=torch.bfloat16, device="cuda")
    kernels[..., 5] = 3.0  # the right neighbour
    out = depthwise_conv(tokens, kernels, grid)[-1].view(64, 64, C)
    assert (out[:, :-1] == 3).all() and (out[:, -1] == 0).all()


@pytest.mark.parametrize("dilation", [2, 3])
@pytest.mark.parametrize("batch", [1, 3])
def test_dilated_taps_lie_apart(dilation, batch, assert_close):
    """Every path on this device against the definition, and the definition against a kernel filled with zeros."""
    generator = torch.Generator().manual_seed(0)
    grid, k = (6, 5), 3
    tokens = torch.randn(batch, 30, 4, generator=generator, dtype=torch.float64)
    kernels = torch.randn(batch, 4, k * k, generator=generator, dtype=torch.float64)
    wide = torch.zeros(batch, 4, dilation * (k - 1) + 1, dilation * (k - 1) + 1, dtype=torch.float64)
    wide[:, :, ::dilation, ::dilation] = kernels.unflatten(2, (k, k))
    expected = naive_depthwise_conv(tokens, wide.flatten(2), grid)
    assert_close(naive_depthwise_conv(tokens, kernels, grid, dilation), expected, 1e-12)
    assert_close(planes_depthwise_conv(tokens, kernels, grid, dilation), expected, 1e-12)
    assert_close(depthwise_conv(tokens, kernels, grid, dilation), expected, 1e-12)
