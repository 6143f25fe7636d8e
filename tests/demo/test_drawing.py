"""What the demo draws is what the pipeline draws, and the states on the way are those of the solver."""

import pytest
import torch

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler
from sit_atconv.demo.drawing import Choices, Frame, choose_frames, decode_frames, draw, enlarge, solver_names
from sit_atconv.models.vae import load_vae
from sit_atconv.utils.randomness import image_generator


def test_a_drawing_is_the_image_of_the_pipeline(tiny_pipeline):
    pipeline = tiny_pipeline()
    choices = Choices(label=2, seed=7, guidance_scale=2.0, num_inference_steps=4, solver="euler", height=16)
    drawing = draw(pipeline, choices)
    assert pipeline.scheduler.config.solver == "midpoint"  # the pipeline itself is not changed
    pipeline.scheduler = InterpolantODEScheduler(solver="euler")
    options = dict(guidance_scale=2.0, num_inference_steps=4, height=16, generator=[image_generator(7, 0)])
    assert drawing.image.tobytes() == pipeline([2], **options).images[0].tobytes()
    assert drawing.image.size == (8, 16) and drawing.network_calls == 4 and drawing.seconds > 0
    assert [frame.t for frame in drawing.frames] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert not pipeline.transformer._forward_hooks


def test_an_sde_draws_what_the_pipeline_draws(tiny_pipeline):
    pipeline = tiny_pipeline(InterpolantSDEScheduler())
    drawing = draw(pipeline, Choices(label=1, seed=3, num_inference_steps=3))
    expected = pipeline([1], num_inference_steps=3, generator=[image_generator(3, 0)]).images[0]
    assert drawing.image.tobytes() == expected.tobytes()


def test_two_pipelines_draw_from_the_same_noise(tiny_pipeline):
    drawings = [
        draw(tiny_pipeline(mixer=mixer), Choices(seed=5, num_inference_steps=1)) for mixer in ("atconv", "attention")
    ]
    first, second = (drawing.frames for drawing in drawings)
    assert torch.equal(first[0].latents, second[0].latents) and not torch.equal(first[-1].latents, second[-1].latents)


def test_the_last_frame_is_the_image(tiny_pipeline, vae):
    for pipeline in (tiny_pipeline(), tiny_pipeline(vae=load_vae(str(vae)), in_channels=4)):
        drawing = draw(pipeline, Choices(num_inference_steps=2))
        images = decode_frames(pipeline, drawing.frames)
        assert len(images) == 3 and images[-1].tobytes() == drawing.image.tobytes() != images[0].tobytes()


def test_choices_that_cannot_be_used_are_refused(tiny_pipeline):
    with pytest.raises(ValueError, match="height=9"):
        draw(tiny_pipeline(), Choices(height=9))
    with pytest.raises(ValueError, match="solver='nonsense'"):
        draw(tiny_pipeline(), Choices(solver="nonsense"))
    assert "dopri5" in solver_names(tiny_pipeline())


def test_frames_are_evenly_spaced_in_time():
    frames = [Frame(t, torch.empty(0)) for t in (0.0, 0.01, 0.02, 0.5, 0.5, 0.9, 1.0)]
    assert [frame.t for frame in choose_frames(frames, 3)] == [0.0, 0.5, 1.0]
    assert [frame.t for frame in choose_frames(frames, 101)] == [0.0, 0.01, 0.02, 0.5, 0.9, 1.0]
    assert choose_frames(frames[:1], 8) == frames[:1]


def test_small_images_are_enlarged_without_smoothing(tiny_pipeline):
    image = draw(tiny_pipeline(), Choices(num_inference_steps=1, width=16)).image  # 16 × 8
    large = enlarge(image, 20)
    assert large.size == (48, 24) and enlarge(large, 20) is large
    assert all(large.getpixel((3 * x + 1, 3 * y + 2)) == image.getpixel((x, y)) for x in range(16) for y in range(8))
