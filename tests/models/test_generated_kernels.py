"""Generated kernels are those with which the blocks convolve."""

import pytest
import torch
import torch.nn.functional as F

from sit_atconv.models.generated_kernels import blocks_with_kernels, generated_kernels


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([0.3, 0.7]), torch.tensor([1, 4])


def test_a_block_convolves_its_values_with_these_kernels(tiny_transformer, inputs):
    model = tiny_transformer(kernel_size=3)
    mixer, seen = model.blocks[1].mixer, []
    handle = mixer.register_forward_hook(lambda _, arguments, output: seen.append((arguments[0], output)))
    kernels = generated_kernels(model, *inputs)
    handle.remove()
    assert list(kernels) == [0, 1] and kernels[1].shape == (2, 16, 3, 3)
    ((tokens, output),) = seen
    values = mixer.value_proj(tokens).transpose(1, 2).reshape(1, 32, 4, 4)  # the grid is 4 × 4
    y = F.conv2d(values, kernels[1].reshape(32, 1, 3, 3), padding=1, groups=32)
    expected = mixer.out_proj(y.view(2, 16, 16).transpose(1, 2))
    torch.testing.assert_close(output, expected)


def test_hooks_do_not_stay_and_attention_has_no_kernels(tiny_transformer, inputs):
    model = tiny_transformer(mixer="hybrid")
    assert blocks_with_kernels(model) == [1] == list(generated_kernels(model, *inputs))
    assert blocks_with_kernels(tiny_transformer(mixer="attention")) == []
    with pytest.raises(ValueError, match="channels"):
        generated_kernels(model, inputs[0][:, :2], *inputs[1:])
    assert not any(module._forward_pre_hooks for module in model.modules())
