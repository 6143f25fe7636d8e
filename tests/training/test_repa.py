import pytest
import timm
import torch
import torch.nn.functional as F

from sit_atconv.training.config import TrainConfig
from sit_atconv.training.repa import AlignedTransformer, TargetEncoder, Targets, alignment_loss

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


def test_the_middle_of_an_hourglass_is_refused(tiny_transformer):
    """Its tokens are not those of the encoder; before and after it, a block is aligned as in any model."""
    model = tiny_transformer(num_layers=4, middle_layers=2, middle_attention_heads=3)
    for depth in (2, 3):
        with pytest.raises(ValueError, match=f"repa_depth={depth} is in the middle .* choose 1 to 1, or 4 to 4"):
            AlignedTransformer(model, depth, 7)
    for depth in (1, 4):
        output = AlignedTransformer(model, depth, 7)(torch.randn(2, 3, 8, 8), torch.rand(2), torch.arange(2))
        assert output.projected.shape == (2, 16, 7)


def test_a_convolution_sees_the_neighbours_of_a_token(tiny_transformer):
    """On a grid of 4 × 6 tokens; two tokens away, nothing changes."""
    aligned = AlignedTransformer(tiny_transformer(), 1, 7, projector="conv").eval()
    hidden = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0))
    aligned.transformer.blocks[0].register_forward_hook(lambda *_: setattr(aligned, "_hidden", hidden))
    arguments = (torch.zeros(1, 3, 8, 12), torch.tensor(0.5), torch.tensor([0]))
    with torch.no_grad():
        before = aligned(*arguments, return_dict=False).projected
        maps = torch.nn.functional.conv2d(
            hidden.mT.reshape(1, 16, 4, 6), aligned.projector.weight, aligned.projector.bias, padding=1
        )
        torch.testing.assert_close(before, maps.reshape(1, 7, 24).mT)
        hidden[0, 6 * 1 + 2] += 1  # row 1, column 2
        differs = (aligned(*arguments, return_dict=False).projected - before).abs().amax(2)[0].view(4, 6) > 1e-6
    assert differs[:3, 1:4].all() and differs.sum() == 9


def test_spatial_norm_takes_away_what_all_tokens_share():
    encoder = TargetEncoder(VIT, "random", (4, 4), CPU)
    plain, whole, part = (Targets(encoder, share) for share in (None, 1.0, 0.5))
    batch = {"x": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1}
    z = plain(batch)
    assert torch.equal(z, encoder(batch["x"]))
    torch.testing.assert_close(
        whole(batch), (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(part(batch).mean(1), 0.5 * z.mean(1) / z.std(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(part(batch).std(1), torch.ones(2, encoder.features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"repa_projector": "conv"}, "repa_projector='conv' needs a model to align with"),
        ({"repa_steps": 5}, "repa_steps=5 needs a model to align with"),
        ({"repa": VIT, "repa_spatial_norm": 0.0}, "repa_spatial_norm=0.0 must be above 0"),
        ({"repa": VIT, "repa_spatial_norm": 1.5}, "repa_spatial_norm=1.5 must be above 0"),
        ({"repa": VIT, "repa_projector": "attention"}, "repa_projector='attention' is not one of: mlp, conv"),
        ({"repa": VIT, "repa_steps": 0}, "repa_steps=0 must be"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_a_model_may_be_named_as_for_encode_latents():
    assert TrainConfig(repa=f"timm:{VIT}").repa == VIT


def test_the_projector_is_drawn_from_the_seed_alone(tiny_transformer):
    projector = AlignedTransformer(tiny_transformer(), 1, 7, seed=4).projector
    torch.manual_seed(4)
    first = torch.nn.Linear(16, 2048)
    assert torch.equal(projector[0].weight, first.weight)
