"""Generated images: functions of their label, the seed and their index; rounded as in a PNG file."""

import numpy as np
import pytest
import torch
from PIL import Image

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline
from sit_atconv.evaluation.sampling import SamplingOptions, balanced_labels, generate
from sit_atconv.utils.randomness import image_generator


@pytest.fixture(scope="module")
def digit_pipeline(tiny_transformer):
    """Function: a small untrained pipeline of 8×8 grey images, ten classes."""

    def build(scheduler=None, **overrides) -> SiTPipeline:
        transformer = tiny_transformer(**{"in_channels": 1, "num_classes": 10, **overrides})
        pipeline = SiTPipeline(transformer, scheduler or InterpolantODEScheduler())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler, InterpolantSDEScheduler])
def test_generated_image_depends_on_seed_and_index_alone(digit_pipeline, scheduler):
    pipeline = digit_pipeline(scheduler())
    labels = balanced_labels(11, 10)

    def draw(batch_size: int, seed: int = 0, count: int = 11) -> np.ndarray:
        options = SamplingOptions(seed=seed, batch_size=batch_size, guidance_scale=1.5, num_inference_steps=4)
        return np.concatenate(list(generate(pipeline, labels[:count], options))).astype(int)

    one_by_one = draw(1)
    assert one_by_one.shape == (11, 8, 8, 1)
    assert 0 < one_by_one.mean() < 255
    for other in (draw(4), draw(11)):
        assert abs(other - one_by_one).max() <= 1  # float32 sums in another order may round to the next grey level
    assert abs(draw(4, count=6) - one_by_one[:6]).max() <= 1
    assert abs(draw(11, seed=1) - one_by_one).mean() > 5
    assert abs(one_by_one[0] - one_by_one[10]).mean() > 5  # the same class, other noise


def test_generated_images_are_what_a_png_holds(digit_pipeline, tmp_path):
    pipeline = digit_pipeline()
    (images,) = generate(pipeline, [3, 4], SamplingOptions(seed=5, batch_size=2, num_inference_steps=3))
    generators = [image_generator(5, i) for i in range(2)]
    for i, picture in enumerate(pipeline([3, 4], num_inference_steps=3, generator=generators).images):
        picture.save(tmp_path / "image.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), images[i, ..., 0])


def test_image_that_is_not_finite_is_refused(digit_pipeline):
    pipeline = digit_pipeline()
    with torch.no_grad():
        pipeline.transformer.class_embed.weight[7] = float("nan")
    with pytest.raises(ValueError, match=r"image 2 .* class 7.* is not finite"):
        list(generate(pipeline, [1, 2, 7, 3], SamplingOptions(batch_size=4, num_inference_steps=2)))


def test_steps_and_solver_default_to_the_pipelines_and_the_schedulers(tiny_pipeline):
    for options, solver, steps in (
        ({}, "midpoint", 25),
        ({"solver": "rk4"}, "rk4", 12),
        ({"sampler": "sde"}, InterpolantSDEScheduler().config.solver, 50),
        ({"num_inference_steps": 3}, "midpoint", 3),
    ):
        pipeline, sampling = tiny_pipeline(), SamplingOptions(**options)
        configured = sampling.configure(pipeline)
        for each in (pipeline, configured):
            assert sampling.resolve(each).num_inference_steps == steps
        assert configured.scheduler.config.solver == solver
        assert pipeline.scheduler.config.solver == "midpoint", "the caller's pipeline was changed"
