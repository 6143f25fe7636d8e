"""Variations of images and new parts of them: where the solve begins, what is kept, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image

from sit_atconv import (
    InterpolantODEScheduler,
    InterpolantSDEScheduler,
    SiTImg2ImgPipeline,
    SiTInpaintPipeline,
    SiTPipeline,
)
from sit_atconv.schedulers.scheduling_mean_flow import MeanFlowScheduler

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
MASK = torch.zeros(1, 1, 8, 8)
MASK[..., 4:] = 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def editing(cls, pipe: SiTPipeline):
    edit = cls(**pipe.components, id2label=pipe.config.id2label)
    edit.set_progress_bar_config(disable=True)
    return edit


@pytest.fixture(scope="module")
def variations(tiny_pipeline):
    return editing(SiTImg2ImgPipeline, tiny_pipeline())


@pytest.fixture(scope="module")
def inpainting(tiny_pipeline):
    return editing(SiTInpaintPipeline, tiny_pipeline())


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**blocks, block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4).eval()


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "dopri5", "explicit_adams"])
def test_a_variation_is_the_solve_from_the_noisy_image(solver, path, tiny_pipeline, assert_close):
    pipe = editing(SiTImg2ImgPipeline, tiny_pipeline(InterpolantODEScheduler(path, solver=solver)))
    noise = torch.randn(2, 3, 8, 8, generator=seeded())
    t = torch.tensor(0.25)
    interpolant = pipe.scheduler.interpolant
    start = interpolant.alpha(t) * (2 * IMAGES - 1) + interpolant.sigma(t) * noise
    labels = torch.tensor([0, 3])
    expected = pipe.scheduler.solve(lambda x, t: pipe.transformer(x, t, labels).sample, start, 6, start_time=0.25)
    result = pipe(IMAGES, [0, 3], strength=0.75, num_inference_steps=8, latents=noise, output_type="latent").images
    assert_close(result, expected, 1e-5)


def test_steps_are_those_of_the_part(variations):
    times = []
    callback = lambda pipe, step, t, inputs: times.append(t)  # noqa: E731
    variations(IMAGES, [0, 3], strength=0.5, num_inference_steps=8, generator=seeded(), callback_on_step_end=callback)
    assert times == pytest.approx([0.625, 0.75, 0.875, 1.0])


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), InterpolantSDEScheduler()], ids=["ode", "sde"])
def test_full_strength_forgets_the_image(scheduler, tiny_pipeline, assert_close):
    plain = tiny_pipeline(scheduler)
    options = dict(num_inference_steps=4, output_type="latent")
    edited = editing(SiTImg2ImgPipeline, plain)(IMAGES, [1, 2], 1.0, generator=seeded(), **options).images
    assert_close(edited, plain([1, 2], generator=seeded(), **options).images, 1e-5)


def test_mean_flow_makes_its_steps_from_the_noisy_image(tiny_pipeline, assert_close):
    pipe = editing(SiTImg2ImgPipeline, tiny_pipeline(MeanFlowScheduler(), step_conditioning="span"))
    noise = torch.randn(2, 3, 8, 8, generator=seeded())
    start = 0.5 * (2 * IMAGES - 1) + 0.5 * noise
    with torch.no_grad():
        u = pipe.transformer(start, torch.tensor(0.5), torch.tensor([0, 3]), end_timestep=torch.tensor(1.0)).sample
    result = pipe(IMAGES, [0, 3], strength=0.5, num_inference_steps=2, latents=noise, output_type="latent").images
    assert_close(result, start + 0.5 * u, 1e-5)


def test_one_image_serves_many_labels(variations, assert_close):
    generators = [seeded(i) for i in range(3)]
    many = variations(IMAGES[:1], [0, 1, 2], num_inference_steps=4, generator=generators, output_type="pt").images
    one = variations(IMAGES[:1], "cat", num_inference_steps=4, generator=[seeded(2)], output_type="pt").images
    assert_close(many[2:], one, 1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [InterpolantODEScheduler(), InterpolantODEScheduler("gvp", solver="explicit_adams"), InterpolantSDEScheduler()],
    ids=["midpoint", "adams", "sde"],
)
def test_what_is_kept_is_the_image_with_the_noise_of_each_time(scheduler, tiny_pipeline, assert_close):
    pipe = editing(SiTInpaintPipeline, tiny_pipeline(scheduler))
    noise = torch.randn(2, 3, 8, 8, generator=seeded())
    seen = []

    def callback(pipe, step, t, inputs):
        expected = scheduler.interpolant.interpolate(noise, 2 * IMAGES - 1, torch.tensor(t))
        assert_close(inputs["latents"][..., :4], expected[..., :4], 1e-6)
        seen.append((inputs["latents"][..., 4:] - expected[..., 4:]).abs().max())

    options = dict(num_inference_steps=4, latents=noise, generator=seeded(), callback_on_step_end=callback)
    edited = pipe(IMAGES, MASK, [0, 3], output_type="pt", **options).images
    assert len(seen) == 4 and min(seen) > 1e-2
    assert_close(edited[..., :4], IMAGES[..., :4], 1e-6)
    assert (edited[..., 4:] - IMAGES[..., 4:]).abs().max() > 0.1


def test_the_new_part_continues_what_is_kept(inpainting):
    options = dict(num_inference_steps=4, output_type="pt")
    drawn = inpainting(IMAGES[:1], MASK, 0, generator=seeded(), **options).images
    other = inpainting(1 - IMAGES[:1], MASK, 0, generator=seeded(), **options).images
    assert (drawn[..., 4:] - other[..., 4:]).abs().max() > 1e-3


def test_with_a_vae_pixels_are_kept_and_any_touched_latent_is_new(vae, tiny_pipeline, assert_close):
    pipe = editing(SiTInpaintPipeline, tiny_pipeline(vae=vae, in_channels=4))
    images, mask = torch.rand(1, 3, 16, 16, generator=seeded()), torch.zeros(1, 1, 16, 16)
    mask[..., 3, 5] = 1
    options = dict(num_inference_steps=2, generator=seeded())
    edited = pipe(images, mask, 0, output_type="pt", **options).images
    changed = (edited - images).abs().amax(1)[0] > 1e-5
    assert changed.nonzero().tolist() == [[3, 5]]
    latents = pipe(images, mask, 0, output_type="latent", **options).images
    clean = pipe._encode(images)
    assert ((latents - clean).abs().amax(1)[0] > 1e-5).nonzero().tolist() == [[1, 2]]
    picture = Image.fromarray((images[0].permute(1, 2, 0).numpy() * 255).astype("uint8"))
    drawn = pipe(picture, Image.fromarray(mask[0, 0].numpy().astype("uint8") * 255), 0, **options).images[0]
    differing = (np.asarray(drawn).astype(int) - np.asarray(picture)).any(-1)
    assert np.argwhere(differing).tolist() == [[3, 5]]


@pytest.mark.parametrize("mask", [MASK.bool(), MASK.bool().permute(0, 2, 3, 1).numpy()], ids=["tensor", "array"])
def test_a_mask_may_be_of_bool(mask, inpainting, assert_close):
    options = dict(num_inference_steps=2, output_type="pt")
    expected = inpainting(IMAGES, MASK, [0, 1], generator=seeded(), **options).images
    assert_close(inpainting(IMAGES, mask, [0, 1], generator=seeded(), **options).images, expected, 0)


def test_a_callback_may_replace_what_is_drawn(inpainting):
    def callback(pipe, step, t, inputs):
        return {"latents": torch.zeros_like(inputs["latents"])} if t == 1 else {}

    options = dict(num_inference_steps=2, generator=seeded(), callback_on_step_end=callback, output_type="pt")
    edited = inpainting(IMAGES, MASK, [0, 1], **options).images
    assert (edited[..., 4:] == 0.5).all()


@pytest.mark.slow
@pytest.mark.parametrize("cls", [SiTImg2ImgPipeline, SiTInpaintPipeline])
def test_folders_are_those_of_the_plain_pipeline(cls, tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "plain")
    edit = cls.from_pretrained(tmp_path / "plain")
    assert type(edit) is cls and edit.labels == pipe.labels
    edit.save_pretrained(tmp_path / "again")
    index = (tmp_path / "plain" / "model_index.json").read_text()
    assert (tmp_path / "again" / "model_index.json").read_text() == index
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert type(loaded).__name__ == "SiTPipeline" and loaded.labels == pipe.labels
    assert type(cls.from_pipe(pipe)) is cls and type(SiTPipeline.from_pipe(edit)) is SiTPipeline


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0}, "strength=0 must be above 0 and at most 1"),
        ({"strength": 1.5}, "strength=1.5 must be above 0 and at most 1"),
        ({"strength": "half"}, "strength='half' must be above 0"),
        ({"strength": 0.1, "num_inference_steps": 4}, "strength=0.1 of num_inference_steps=4 leaves 0.*raise one"),
        ({"image": IMAGES[:, :, :7]}, "height=7 must be divisible by 2"),
        ({"image": "cat.png"}, "image is a str; give a tensor"),
        ({"image": 255 * IMAGES}, r"image: the values lie in \[.*give image / 255"),
        ({"class_labels": [0, 1, 2]}, "class_labels names 3 classes for 2 images"),
        ({"latents": torch.zeros(2, 3, 4, 4)}, "latents has shape"),
    ],
)
def test_what_cannot_be_varied(options, message, variations):
    with pytest.raises(ValueError, match=message):
        variations(**{"image": IMAGES, "class_labels": [0, 1], "num_inference_steps": 2, **options})


def test_schedulers_that_do_not_fit(tiny_pipeline):
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler begins with noise alone; use InterpolantODE"):
        editing(SiTImg2ImgPipeline, tiny_pipeline(FlowMatchEulerDiscreteScheduler()))(IMAGES, [0, 1])
    sde = editing(SiTImg2ImgPipeline, tiny_pipeline(InterpolantSDEScheduler()))
    with pytest.raises(ValueError, match="leaves 1, but InterpolantSDEScheduler needs 2; raise one"):
        sde(IMAGES, [0, 1], strength=0.1, num_inference_steps=10)
    with pytest.raises(ValueError, match=r"strength=0\.03 is too small: .*below 0\.96"):
        sde(IMAGES, [0, 1], strength=0.03, num_inference_steps=100)
    with pytest.raises(ValueError, match="solver='dopri5' chooses its own steps for each image"):
        adaptive = tiny_pipeline(InterpolantODEScheduler(solver="dopri5"))
        editing(SiTInpaintPipeline, adaptive)(IMAGES, MASK, [0, 1])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[..., :4], r"mask_image has shape \(1, 1, 8, 4\), but images .* height 8 and width 8"),
        (MASK.expand(3, -1, -1, -1), "for all or for each of them"),
        (torch.zeros(1, 1, 8, 8), "mask_image is 0 everywhere"),
        (IMAGES, "mask_image has shape .* must be"),
        (None, "mask_image is a NoneType; give a tensor"),
    ],
)
def test_masks_that_do_not_fit(mask, message, inpainting):
    with pytest.raises(ValueError, match=message):
        inpainting(IMAGES, mask, [0, 1])
