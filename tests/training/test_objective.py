import pytest
import torch
from diffusers import AutoencoderKL

from sit_atconv.flow.interpolants import Interpolant
from sit_atconv.flow.losses import InterpolantLoss
from sit_atconv.models.vae import encode
from sit_atconv.training.objective import Objective
from sit_atconv.training.repa import AlignedTransformer, TargetEncoder, Targets, alignment_loss


@pytest.fixture
def batch():
    """What `TrainingView` gives of three images."""
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(3, 3, 8, 8, generator=generator).clamp(-1, 1),
        "label": torch.tensor([0, 3, 1]),
        "position": torch.tensor([6, 7, 8]),
        "noise": torch.randn(3, 3, 8, 8, generator=generator),
        "time": torch.randn(3, generator=generator),
        "dropout": torch.tensor([0.05, 0.15, 0.5]),
    }


@pytest.mark.parametrize("prediction", ["velocity", "score"])
def test_losses_are_those_of_the_interpolant(tiny_transformer, batch, prediction):
    """A label is dropped if its uniform number is below the probability: here the first two."""
    model, loss_fn = tiny_transformer().train(), InterpolantLoss(Interpolant("gvp", prediction), time_shift=2.0)
    losses = Objective(loss_fn, model, 0.2).losses(batch)
    t = loss_fn.time_from_normal(batch["time"])

    def expected(*dropped: bool) -> torch.Tensor:
        mask = torch.tensor(dropped)
        return loss_fn(
            lambda x_t, t: model(x_t, t, batch["label"], class_dropout=mask).sample, batch["x"], batch["noise"], t
        )

    torch.testing.assert_close(losses.diffusion, expected(True, True, False))
    assert (losses.diffusion != expected(False, False, False)).tolist() == [True, True, False]
    assert torch.equal(losses.t, t)
    assert not losses.alignment.any()


def test_pixels_are_encoded_with_the_noise_of_their_posterior(tiny_transformer, batch):
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3).eval()
    batch["posterior"] = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    objective = Objective(InterpolantLoss(Interpolant()), tiny_transformer(), 0.0, vae)
    expected = encode(vae, batch["x"], batch["posterior"])
    assert torch.equal(objective.latents(batch), expected)
    del batch["posterior"]  # precomputed latents
    assert objective.latents(batch) is batch["x"]


def test_alignment_compares_the_projected_tokens_with_the_encoder(tiny_transformer, batch):
    encoder = TargetEncoder("test_vit.r160_in1k", "random", (4, 4), "cpu")
    model = AlignedTransformer(tiny_transformer(), 1, encoder.features)
    loss_fn = InterpolantLoss(Interpolant())
    losses = Objective(loss_fn, model, 0.0, targets=Targets(encoder)).losses(batch)
    x_t = loss_fn.interpolant.interpolate(batch["noise"], batch["x"], losses.t)
    output = model(x_t, losses.t, batch["label"], class_dropout=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(losses.alignment, alignment_loss(output.projected, encoder(batch["x"])))


def test_alignment_ends_with_the_samples_that_it_is_for(tiny_transformer, batch):
    """The encoder is not asked any more, and the projector still has a gradient, of 0, as DDP needs it."""

    def targets(batch):
        raise AssertionError("the alignment has ended")

    model = AlignedTransformer(tiny_transformer(), 1, 5)
    objective = Objective(InterpolantLoss(Interpolant()), model, 0.0, targets=targets)
    objective.aligned_samples = int(batch["position"][0]) + 1
    with pytest.raises(AssertionError, match="the alignment has ended"):
        objective.losses(batch)
    objective.aligned_samples -= 1
    losses = objective.losses(batch)
    assert losses.alignment.tolist() == [0, 0, 0]
    (losses.diffusion + losses.alignment).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.projector.parameters())
