"""The parts of a block: the MLP and its depthwise convolution."""

import torch
import torch.nn.functional as F

from sit_atconv.models.sit_block import MLP


def test_the_depthwise_convolution_stands_before_the_activation(assert_close):
    grid, plain, convolving = (3, 5), MLP(4, 8), MLP(4, 8, depthwise=True)
    tokens = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(0))
    convolving.load_state_dict(plain.state_dict(), strict=False)
    assert_close(convolving(tokens, grid), plain(tokens, grid), 1e-6)  # a fresh kernel is the identity
    convolving.depthwise.data.normal_(generator=torch.Generator().manual_seed(1))
    images = plain.fc1(tokens).unflatten(1, grid).movedim(3, 1)  # (B, hidden, H, W)
    images = F.conv2d(images, convolving.depthwise[:, None], padding=1, groups=8)
    expected = plain.fc2(F.gelu(images.movedim(1, 3).flatten(1, 2), approximate="tanh"))
    assert_close(convolving(tokens, grid), expected, 1e-6)
    convolving(tokens, grid).square().sum().backward()
    assert (convolving.depthwise.grad != 0).any(dim=0).all()


def test_models_with_new_options_are_loaded_as_they_were_saved(tiny_transformer, tmp_path):
    model = tiny_transformer(kernel_groups=2, mlp_depthwise=True)
    model.blocks[1].mlp.depthwise.data.normal_()
    x, t, labels = torch.randn(2, 3, 8, 12), torch.rand(2), torch.arange(2)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(x, t, labels).sample, model(x, t, labels).sample)
