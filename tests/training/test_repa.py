import pytest
import timm
import torch
import torch.nn.functional as F

from sit_atconv.training.repa import AlignedTransformer, TargetEncoder, alignment_loss

CPU = torch.device("cpu")
VIT = "test_vit.r160_in1k"  # a tiny one, patch 16


def test_vision_transformer_gives_one_feature_a_token_of_the_grid():
    """224 pixels for a 14 × 14 grid of patches of 16: no resizing of features."""
    encoder = TargetEncoder(VIT, "random", (4, 6), CPU)
    assert encoder.input_size == (64, 96)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = encoder(images)  # (B, N, Z)
    normalised = (images * 0.5 + 0.5 - encoder.mean) / encoder.std
    tokens = encoder.model.forward_features(normalised)
    torch.testing.assert_close(z, tokens[:, encoder.model.num_prefix_tokens :])
    assert z.shape == (2, 24, encoder.features)
    assert not z.requires_grad


def test_convolutional_encoder_is_resized_to_the_grid():
    encoder = TargetEncoder("test_resnet.r160_in1k", "random", (4, 4), CPU)
    z = encoder(torch.zeros(1, 1, 8, 8))  # grey images, too
    assert z.shape == (1, 16, encoder.features)


def test_weights_of_a_file(tmp_path):
    from safetensors.torch import save_file

    model = timm.create_model(VIT, num_classes=0)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    encoder = TargetEncoder(VIT, str(tmp_path / "vit.safetensors"), (10, 10), CPU)
    for name, value in model.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    "name, weights, expected",
    [
        ("vit_of_nobody", "random", "timm has no model 'vit_of_nobody'"),
        (VIT, "nowhere.pt", "repa_weights='nowhere.pt' is neither a file"),
    ],
)
def test_what_cannot_be_loaded_is_named(name, weights, expected):
    with pytest.raises(ValueError, match=expected):
        TargetEncoder(name, weights, (4, 4), CPU)


def test_alignment_is_the_mean_cosine():
    a, b = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    expected = torch.stack(
        [-torch.stack([F.cosine_similarity(a[i, n], b[i, n], dim=0) for n in range(3)]).mean() for i in (0, 1)]
    )
    torch.testing.assert_close(alignment_loss(a, b), expected)
    torch.testing.assert_close(alignment_loss(3 * a, a), -torch.ones(2))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_projector_sees_the_block_and_teaches_those_before_it_alone(tiny_transformer, checkpointing):
    transformer = tiny_transformer(num_layers=3).train()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    aligned = AlignedTransformer(transformer, 2, 7)
    x, t, labels, dropout = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 1]), torch.tensor([False, False])
    seen = []
    transformer.blocks[1].register_forward_hook(lambda block, inputs, output: seen.append(output))
    sample, projected = aligned(x, t, labels, class_dropout=dropout)
    torch.testing.assert_close(projected, aligned.projector(seen[0]))
    torch.testing.assert_close(sample, transformer(x, t, labels, class_dropout=dropout).sample)
    assert projected.shape == (2, 16, 7)
    projected.square().sum().backward()
    for n, block in enumerate(transformer.blocks):
        gradients = [p.grad is not None and bool(p.grad.any()) for p in block.parameters()]
        assert any(gradients) == (n < 2), n


def test_depth_beyond_the_model_is_refused(tiny_transformer):
    with pytest.raises(ValueError, match="repa_depth=8: the model has 2 blocks"):
        AlignedTransformer(tiny_transformer(), 8, 7)
