"""Generated images: functions of their label, the seed and their index; rounded as in a PNG file."""

import numpy as np
import pytest
import torch
from PIL import Image

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline
from sit_atconv.evaluation.sampling import draw_images, generate
from sit_atconv.evaluation.sampling_options import SamplingOptions, balanced_labels
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
    labels = balanced_labels(range(11), 10)

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


def test_random_labels_depend_on_seed_and_index_alone():
    labels = [SamplingOptions(labels="random", seed=seed).label_ids(range(500), 10) for seed in (0, 1)]
    assert sum(a == b for a, b in zip(*labels, strict=True)) < 100  # 50 are expected
    assert set(labels[0]) == set(range(10))
    assert SamplingOptions(labels="random").label_ids([7, 400], 10) == [labels[0][7], labels[0][400]]
    assert SamplingOptions(labels="balanced").label_ids([7, 12, 400], 10) == [7, 2, 0]


def test_every_option_reaches_the_pipeline(digit_pipeline, monkeypatch):
    received = {}
    call = SiTPipeline.__call__

    def recorded(self, labels, **options):
        received.update(options, labels=labels)
        return call(self, labels, **options)

    monkeypatch.setattr(SiTPipeline, "__call__", recorded)
    options = SamplingOptions(
        labels="random",
        seed=5,
        guidance_scale=2.5,
        guidance_interval=(0.25, 0.75),
        guidance_channels=1,
        num_inference_steps=3,
    )
    draw_images(digit_pipeline(), [4, 9], options)
    assert received["labels"] == options.label_ids([4, 9], 10)
    assert received["guidance_scale"] == 2.5
    assert received["guidance_interval"] == (0.25, 0.75)
    assert received["guidance_channels"] == 1
    assert received["num_inference_steps"] == 3
    assert [g.initial_seed() for g in received["generator"]] == [image_generator(5, i).initial_seed() for i in (4, 9)]
