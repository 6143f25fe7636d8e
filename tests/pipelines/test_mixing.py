"""Noises and classes between those of several images."""

import pytest
import torch
from sit_atconv.pipelines.mixing import frames_between, slerp

from sit_atconv.flow.guidance import with_null_class

NOISES = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_arc_keeps_the_norm_and_its_angles_are_equal(assert_close):
    # of unit vectors at a right angle, a third of the way is at 30 degrees
    start, end = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    assert_close(slerp(start, end, 1 / 3), torch.tensor([[[0.75**0.5, 0.5]]]), 1e-6)
    norms = torch.stack([slerp(NOISES[0], NOISES[1], share).norm() for share in (0.25, 0.5, 0.75)])
    assert norms.min() > 0.95 * NOISES[:2].flatten(1).norm(dim=1).min()
    assert torch.lerp(NOISES[0], NOISES[1], 0.5).norm() < 0.85 * norms[1]
    assert_close(slerp(NOISES[0], 2 * NOISES[0], 0.5), 1.5 * NOISES[0], 1e-6)


def test_frames_begin_at_each_point_and_end_at_the_last(assert_close):
    weights, latents = frames_between(NOISES, [1, 3, 0], 4, 2)
    assert weights.shape == (5, 4) and latents.shape == (5, 2, 4, 4)
    expected = [[0, 1, 0, 0], [0, 0.5, 0, 0.5], [0, 0, 0, 1], [0.5, 0, 0, 0.5], [1, 0, 0, 0]]
    assert_close(weights, torch.tensor(expected), 1e-6)
    assert_close(latents[::2], NOISES, 1e-6)
    assert_close(latents[1], slerp(NOISES[0], NOISES[1], 0.5), 1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_mixture_of_one_class_is_that_class(guidance_scale, tiny_pipeline, assert_close):
    pipe = tiny_pipeline()
    options = dict(latents=torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), output_type="latent")
    options |= dict(num_inference_steps=3, guidance_scale=guidance_scale)
    by_id = pipe([4, 1], **options).images
    weights = torch.eye(5)[[4, 1]]
    assert_close(pipe(weights, **options).images, by_id, 1e-5)
    assert_close(pipe(weights.numpy(), **options).images, by_id, 1e-5)
    halves = pipe(torch.full((2, 5), 0.2), **options).images
    assert (halves - by_id).abs().max() > 1e-3


def test_a_mixture_is_that_of_the_embeddings(tiny_transformer, assert_close):
    model = tiny_transformer()
    weights = torch.tensor([[0.3, 0.0, 0.7, 0.0, 0.0]])
    x, t = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3)
    with torch.no_grad():
        mixed = model(x, t, weights).sample
        table = model.class_embed.weight
        table[1] = 0.3 * table[0] + 0.7 * table[2]
        assert_close(model(x, t, torch.tensor([1])).sample, mixed, 1e-5)


def test_the_null_class_is_below_labels_and_weights():
    assert with_null_class(torch.tensor([1, 0]), 3).tolist() == [1, 0, 3, 3]
    weights = with_null_class(torch.tensor([[0.2, 0.8]]), 2)
    torch.testing.assert_close(weights, torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 4), r"class_labels: floating-point numbers are weights of the classes, \(images, 5\)"),
        (torch.ones(0, 5), "give whole numbers for class ids"),
        (torch.full((1, 5), torch.nan), "the weights of the classes hold NaN"),
    ],
)
def test_mixtures_that_do_not_fit(weights, message, tiny_pipeline):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline()(weights)
