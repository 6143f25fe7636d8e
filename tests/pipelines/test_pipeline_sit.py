"""SiTPipeline from labels to images: what it depends on, what it gives and what it refuses."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline
from sit_atconv.flow import conditioning
from sit_atconv.models.vae import decode


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipe, labels=(0, 3), **options) -> torch.Tensor:
    """The solver's result, before decoding and clamping."""
    options = dict(generator=seeded(), num_inference_steps=4, output_type="latent") | options
    return pipe(list(labels), **options).images


@pytest.fixture(scope="module")
def pipe(tiny_pipeline):
    """Shared by tests that leave it as it is."""
    return tiny_pipeline()


@pytest.fixture(scope="module")
def autoencoder_kl():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()


@pytest.fixture(scope="module")
def autoencoder_tiny():
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        upsampling_scaling_factor=2,
        scaling_factor=0.8,
    ).eval()


@pytest.mark.parametrize(
    "labels",
    [[1, 2], ["goldfish", "cat"], ["Carassius auratus", 2], (1, 2), torch.tensor([1, 2]), range(1, 3)],
    ids=str,
)
def test_labels_are_ids_or_names(labels, pipe):
    torch.testing.assert_close(
        pipe(labels, generator=seeded(), num_inference_steps=2, output_type="latent").images,
        draw(pipe, (1, 2), num_inference_steps=2),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("label", [1, "goldfish", "goldfish, Carassius auratus", torch.tensor(1)], ids=str)
def test_one_label_is_one_image(label, pipe):
    assert pipe.get_label_ids(label) == [1]


def test_class_names_may_contain_commas(tiny_pipeline):
    pipe = tiny_pipeline()
    assert pipe.get_label_ids([pipe.config.id2label["1"], "deer"]) == [1, 3]


def test_labels_matter(pipe):
    images = draw(pipe, (0, 3))
    assert not torch.allclose(images[1], draw(pipe, (0, 4))[1])
    torch.testing.assert_close(images[0], draw(pipe, (0, 4))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), InterpolantSDEScheduler()], ids=["ODE", "SDE"])
def test_the_same_seed_gives_the_same_image(scheduler, tiny_pipeline):
    pipe = tiny_pipeline(scheduler)
    torch.testing.assert_close(draw(pipe), draw(pipe), rtol=0, atol=0)
    assert not torch.allclose(draw(pipe), draw(pipe, generator=seeded(1)))


@pytest.mark.parametrize(
    "scheduler",
    [
        InterpolantODEScheduler(),
        InterpolantODEScheduler(solver="dopri5", rtol=1e-2),
        InterpolantSDEScheduler(),
        InterpolantSDEScheduler(solver="heun"),
    ],
    ids=["euler", "dopri5", "euler_maruyama", "heun"],
)
@pytest.mark.parametrize("mixer", ["atconv", "hybrid"])
def test_an_image_depends_on_its_own_generator_and_label_alone(mixer, scheduler, tiny_pipeline, assert_close):
    pipe = tiny_pipeline(scheduler, mixer=mixer)
    options = dict(guidance_scale=2.0, guidance_interval=(0.2, 0.8))
    together = draw(pipe, (0, 3, 1), generator=[seeded(5), seeded(6), seeded(7)], **options)
    alone = draw(pipe, (3,), generator=[seeded(6)], **options)
    others = draw(pipe, (4, 3), generator=[seeded(8), seeded(6)], **options)
    assert_close(together[1:2], alone, 1e-4)
    assert_close(others[1:2], alone, 1e-4)


def test_guidance_scale_one_is_no_guidance(pipe, tiny_pipeline):
    expected = draw(pipe)
    torch.testing.assert_close(draw(pipe, guidance_scale=1.0, guidance_interval=(0.2, 0.3)), expected, rtol=0, atol=0)
    assert not torch.allclose(draw(pipe, guidance_scale=2.0), expected)
    unguided = draw(tiny_pipeline(class_dropout_prob=0.0), guidance_scale=1.0)
    assert torch.isfinite(unguided).all()


def test_guidance_options_reach_the_model(pipe):
    full = draw(pipe, guidance_scale=3.0)
    assert not torch.allclose(full, draw(pipe, guidance_scale=3.0, guidance_interval=(0.0, 0.5)))
    assert not torch.allclose(full, draw(pipe, guidance_scale=3.0, guidance_channels=1))
    torch.testing.assert_close(full, draw(pipe, guidance_scale=3.0, guidance_channels=3), rtol=1e-4, atol=1e-5)
    outside = draw(pipe, guidance_scale=3.0, guidance_interval=(0.9, 1.0))  # Euler's times are 0, ¼, ½, ¾
    torch.testing.assert_close(outside, draw(pipe), rtol=0, atol=0)


def test_guidance_by_a_weaker_model(tiny_pipeline, tiny_transformer, assert_close):
    """One Euler step from known noise: x + weak + s·(cond − weak)."""
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="euler"), class_dropout_prob=0.0)
    weaker = tiny_transformer(seed=1, num_layers=1, class_dropout_prob=0.0)
    noise = torch.randn(2, 3, 8, 8, generator=seeded())
    image = draw(pipe, latents=noise, num_inference_steps=1, guidance_scale=3.0, guidance_model=weaker)
    with torch.no_grad():
        cond, weak = (model(noise, 0.0, torch.tensor([0, 3])).sample for model in (pipe.transformer, weaker))
    assert_close(image, noise + weak + 3.0 * (cond - weak), 1e-5)


def test_a_weaker_model_guides_in_eval_mode_and_keeps_its_own(tiny_pipeline, tiny_transformer):
    pipe, weaker = tiny_pipeline(), tiny_transformer(seed=1, num_layers=1).train()
    modes = []
    weaker.register_forward_hook(lambda module, *_: modes.append(module.training))
    images = draw(pipe, guidance_scale=2.0, guidance_model=weaker, output_type="pt")
    called = len(modes)
    pipe.invert(images, [0, 3], num_inference_steps=2, guidance_scale=2.0, guidance_model=weaker)
    assert len(modes) > called > 0
    assert not any(modes)
    assert weaker.training


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_inverting_computes_the_conditioning_once(solver, tiny_pipeline):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver=solver))
    calls = []
    pipe.transformer.blocks[0].modulation.register_forward_hook(lambda *_: calls.append(1))
    pipe.invert(torch.rand(2, 3, 8, 8, generator=seeded()), [0, 3], num_inference_steps=3)
    assert calls == [1]


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        (InterpolantODEScheduler(), 50),
        (InterpolantODEScheduler(solver="euler"), 50),
        (InterpolantODEScheduler(solver="rk4"), 48),
        (InterpolantSDEScheduler(), 50),
        (FlowMatchHeunDiscreteScheduler(), 49),
    ],
)
def test_default_steps_make_fifty_network_calls(scheduler, calls, tiny_pipeline):
    pipe = tiny_pipeline()
    pipe.scheduler = scheduler
    counted = 0

    def count(*_):
        nonlocal counted
        counted += 1

    pipe.transformer.register_forward_hook(count)
    pipe([0], output_type="latent")
    assert counted == calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_latents_are_the_noise(dtype, pipe, assert_close):
    noise = torch.randn(2, 3, 8, 8, generator=seeded()).to(dtype)
    before = noise.clone()
    result = draw(pipe, latents=noise, generator=None)
    assert result.dtype == torch.float32
    assert_close(result, draw(pipe), 1e-6 if dtype != torch.float16 else 1e-2)
    assert torch.equal(noise, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types(channels, tiny_pipeline):
    pipe = tiny_pipeline(in_channels=channels)

    def images(output_type):
        options = dict(num_inference_steps=2, height=6, width=10, output_type=output_type)
        return pipe([0, 3], generator=seeded(), **options).images

    latents = images("latent")
    assert latents.shape == (2, channels, 6, 10)
    assert latents.dtype == torch.float32
    expected = (latents / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images("pt"), expected)
    np.testing.assert_allclose(images("np"), expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    pictures = images("pil")
    assert [picture.size for picture in pictures] == [(10, 6)] * 2
    assert [picture.mode for picture in pictures] == ["L" if channels == 1 else "RGB"] * 2
    pixels = np.stack([np.asarray(picture) for picture in pictures]).reshape(2, 6, 10, channels)
    np.testing.assert_allclose(pixels, expected.permute(0, 2, 3, 1) * 255, atol=0.51)


def test_return_dict(pipe):
    output = pipe([0], generator=seeded(), num_inference_steps=2, output_type="pt", return_dict=False)
    assert isinstance(output, tuple)
    torch.testing.assert_close(
        output[0], pipe([0], generator=seeded(), num_inference_steps=2, output_type="pt").images, rtol=0, atol=0
    )


@pytest.mark.parametrize("mixer", ["atconv", "attention"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (6, 10), (16, 2)])
def test_any_size(height, width, mixer, tiny_pipeline, assert_close):
    pipe = tiny_pipeline(mixer=mixer)
    images = draw(pipe, height=height, width=width)
    assert images.shape == (2, 3, height, width)
    noise = torch.randn(2, 3, height, width, generator=seeded())
    assert_close(images, draw(pipe, latents=noise, height=height, width=width), 1e-6)


def test_default_size_is_the_training_size(pipe, tiny_pipeline, autoencoder_kl):
    assert draw(pipe).shape[2:] == (8, 8)
    with_vae = tiny_pipeline(vae=autoencoder_kl, in_channels=4)
    assert with_vae([0], num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 16)


def test_autoencoder_kl_is_unscaled_and_unshifted(tiny_pipeline, autoencoder_kl):
    pipe = tiny_pipeline(vae=autoencoder_kl, in_channels=4)
    assert pipe.vae_scale_factor == 2
    options = dict(num_inference_steps=2, height=12, width=20)
    latents = pipe([1, 2], generator=seeded(), output_type="latent", **options).images
    assert latents.shape == (2, 4, 6, 10)
    with torch.no_grad():
        decoded = autoencoder_kl.decode(latents / 0.5 + 0.25).sample
    images = pipe([1, 2], generator=seeded(), output_type="pt", **options).images
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))


def test_autoencoder_tiny_is_unscaled(tiny_pipeline, autoencoder_tiny):
    pipe = tiny_pipeline(vae=autoencoder_tiny, in_channels=4)
    assert pipe.vae_scale_factor == 4
    latents = pipe([1], generator=seeded(), output_type="latent", num_inference_steps=2).images
    with torch.no_grad():
        decoded = autoencoder_tiny.decode(latents / 0.8).sample
    images = pipe([1], generator=seeded(), output_type="pt", num_inference_steps=2).images
    assert images.shape == (1, 3, 32, 32)
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))


def test_half_precision_weights_keep_the_state_in_float32(tiny_pipeline, autoencoder_kl, assert_close):
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append(tensors["latents"].dtype)

    full = tiny_pipeline(vae=autoencoder_kl, in_channels=4)
    expected = draw(full)
    images = full([0, 3], generator=seeded(), num_inference_steps=4, output_type="pt").images
    half = tiny_pipeline(vae=autoencoder_kl, in_channels=4)
    half.to(torch.bfloat16)
    try:
        latents = draw(half, callback_on_step_end=callback)
        half_images = half([0, 3], generator=seeded(), num_inference_steps=4, output_type="pt").images
    finally:
        autoencoder_kl.float()
    assert half.transformer.dtype == torch.bfloat16
    assert latents.dtype == torch.float32
    assert set(seen) == {torch.float32}
    assert_close(latents, expected, 0.05)
    assert half_images.dtype == torch.float32
    assert_close(half_images, images, 0.1)


def test_callback_sees_and_changes_the_latents(pipe):
    seen = []

    def watch(pipe, step, t, tensors):
        seen.append((step, t, tensors["latents"]))

    result = draw(pipe, callback_on_step_end=watch)
    assert [(step, t) for step, t, _ in seen] == [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0)]
    torch.testing.assert_close(seen[-1][2], result, rtol=0, atol=0)

    def replace(pipe, step, t, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    assert not draw(pipe, callback_on_step_end=replace).any()

    def in_another_type(pipe, step, t, tensors):
        assert tensors["latents"].dtype == torch.float32
        return {"latents": tensors["latents"].double()}

    again = draw(pipe, callback_on_step_end=in_another_type)
    assert again.dtype == torch.float32
    assert torch.equal(again, result)


@pytest.mark.parametrize(
    "scheduler",
    [
        InterpolantODEScheduler(),
        InterpolantODEScheduler(solver="dopri5"),
        InterpolantSDEScheduler(),
        FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_callback_can_interrupt(scheduler, tiny_pipeline):
    pipe = tiny_pipeline(scheduler)
    seen = []

    def callback(pipe, step, t, tensors):
        seen.append(tensors["latents"])
        pipe._interrupt = step == 1

    result = draw(pipe, callback_on_step_end=callback, num_inference_steps=6)
    assert len(seen) == 2
    assert pipe.interrupt
    torch.testing.assert_close(result, seen[-1], rtol=0, atol=0)
    draw(pipe)
    assert not pipe.interrupt  # the next call starts over


def test_sampling_needs_no_gradients_and_no_training_mode(tiny_pipeline):
    pipe = tiny_pipeline(class_dropout_prob=0.9)
    expected = draw(pipe)
    pipe.transformer.train()
    images = draw(pipe)
    torch.testing.assert_close(images, expected, rtol=0, atol=0)
    assert not images.requires_grad


def test_sampling_leaves_a_training_model_in_training_mode(tiny_pipeline):
    """Samples are drawn in the middle of training; class dropout must go on afterwards."""
    pipe = tiny_pipeline()
    pipe.transformer.train()
    draw(pipe)
    assert pipe.transformer.training


def test_flow_match_euler_is_our_euler(tiny_pipeline, assert_close):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="euler"))
    expected = draw(pipe, num_inference_steps=7, guidance_scale=2.0)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert_close(draw(pipe, num_inference_steps=7, guidance_scale=2.0), expected, 1e-4)


@pytest.mark.parametrize(
    ("scheduler_class", "options"),
    [
        (FlowMatchHeunDiscreteScheduler, {}),
        (DPMSolverMultistepScheduler, dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
        (UniPCMultistepScheduler, dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
    ],
)
def test_flow_schedulers_approach_our_solution(scheduler_class, options, tiny_pipeline):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="rk4"))
    exact = draw(pipe, num_inference_steps=20)
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **options)
    errors = [((draw(pipe, num_inference_steps=n) - exact).abs().max() / exact.abs().max()).item() for n in (4, 12, 40)]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.02


@pytest.mark.parametrize("prediction", ["score", "noise", "data"])
def test_flow_schedulers_take_other_predictions(prediction, tiny_pipeline, gaussian, monkeypatch):
    """With the exact output for Gaussian data in place of the network, both samplers reach the same images."""
    pipe = tiny_pipeline(InterpolantODEScheduler(prediction=prediction))

    def forward(x, t, labels, return_dict=True):
        return (gaussian("linear", x, t, 0.3, 0.5)[prediction],)

    pipe.transformer.forward = forward
    monkeypatch.setattr(conditioning, "MODULATION_BYTES", 0)  # this network needs the times themselves
    expected = draw(pipe, num_inference_steps=50)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    images = draw(pipe, num_inference_steps=50)
    assert torch.isfinite(images).all()
    torch.testing.assert_close(images, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("path", ["gvp", "vp"])
def test_flow_schedulers_take_the_linear_path_alone(path, tiny_pipeline):
    pipe = tiny_pipeline(InterpolantODEScheduler(path=path))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=f"path='{path}'"):
        draw(pipe)


def test_a_vae_with_missing_weights_is_an_error(tiny_pipeline, autoencoder_tiny, tmp_path):
    tiny_pipeline(vae=autoencoder_tiny, in_channels=autoencoder_tiny.config.latent_channels).save_pretrained(tmp_path)
    SiTPipeline.from_pretrained(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["extra.weight"] = tensors.pop(name := min(tensors))
    save_file(tensors, file)
    (tmp_path / "vae" / "weights.json").unlink()  # as in a folder without hashes
    with pytest.raises(ValueError, match=f"vae: missing or unexpected weights: {name}, extra.weight"):
        SiTPipeline.from_pretrained(tmp_path)


def quiet_pipeline(tiny_pipeline, scheduler):
    """A pipeline whose images lie within [0, 1] if the noise is small."""
    pipe = tiny_pipeline(scheduler)
    with torch.no_grad():
        for parameter in pipe.transformer.proj_out.parameters():
            parameter *= 0.4
    return pipe


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_invert_finds_the_noise(solver, tiny_pipeline, assert_close):
    pipe = quiet_pipeline(tiny_pipeline, InterpolantODEScheduler(solver=solver, rtol=1e-4))
    noise = 0.1 * torch.randn(2, 3, 8, 8, generator=seeded())
    images = draw(pipe, latents=noise, num_inference_steps=20) / 2 + 0.5
    assert_close(pipe.invert(images, [0, 3], num_inference_steps=20), noise, 1e-2)


def test_invert_undoes_guidance(tiny_pipeline, assert_close):
    pipe = quiet_pipeline(tiny_pipeline, InterpolantODEScheduler(solver="rk4"))
    guidance = dict(guidance_scale=4.0, guidance_interval=(0.0, 0.5), guidance_channels=2)
    noise = 0.1 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = pipe([0, 3], latents=noise, num_inference_steps=40, output_type="latent", **guidance).images
    found = pipe.invert(latents / 2 + 0.5, [0, 3], num_inference_steps=40, **guidance)
    assert_close(found, noise, 1e-2)
    unguided = pipe.invert(latents / 2 + 0.5, [0, 3], num_inference_steps=40)
    assert (unguided - noise).abs().max() > 5 * (found - noise).abs().max()
    with pytest.raises(ValueError, match="guidance_interval"):
        pipe.invert(latents / 2 + 0.5, [0, 3], guidance_interval=(0.5, 0.2))


def test_invert_encodes_with_the_vae(tiny_pipeline, autoencoder_kl, assert_close):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="euler"), vae=autoencoder_kl, in_channels=4)
    images = torch.rand(1, 3, 16, 16, generator=seeded())
    with torch.no_grad():
        mean = autoencoder_kl.encode(images * 2 - 1).latent_dist.mean
        latents = (mean - 0.25) * 0.5
        velocity = pipe.transformer(latents, 1.0, torch.tensor([2])).sample
    assert_close(pipe.invert(images, 2, num_inference_steps=1), latents - velocity, 1e-5)


def test_invert_takes_what_a_pipeline_returns(tiny_pipeline, assert_close):
    pipe = quiet_pipeline(tiny_pipeline, InterpolantODEScheduler(solver="euler"))
    noise = 0.1 * torch.randn(2, 3, 8, 8, generator=seeded())
    for output_type, tolerance in (("pt", 1e-5), ("np", 1e-5), ("pil", 0.1)):
        images = pipe([0, 3], latents=noise, num_inference_steps=4, output_type=output_type).images
        expected = pipe.invert(pipe([0, 3], latents=noise, num_inference_steps=4, output_type="pt").images, [0, 3], 4)
        assert_close(pipe.invert(images, [0, 3], 4), expected, tolerance)
    single = pipe([3], latents=noise[1:], num_inference_steps=4).images[0]
    assert pipe.invert(single, 3, 4).shape == (1, 3, 8, 8)


def test_invert_refuses_what_it_cannot_do(pipe, tiny_pipeline):
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="class_labels names 1 classes for 2 images"):
        pipe.invert(images, [0])
    for scheduler in (InterpolantSDEScheduler(), FlowMatchEulerDiscreteScheduler()):
        with pytest.raises(ValueError, match="cannot be inverted"):
            tiny_pipeline(scheduler).invert(images, [0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (-1, "class_labels: -1"),
        ([0, 5], "class_labels: 5"),
        (1.0, "class_labels: 1.0"),
        (torch.tensor([0.0]), "class_labels: 0.0"),
        (True, "class_labels: True"),
        ("zebra", "class_labels: unknown name 'zebra'"),
        ([0, "zebra"], "class_labels: unknown name 'zebra'"),
        ("", "class_labels: unknown name ''"),
        ("3", "class_labels: unknown name '3'"),
        (None, "class_labels: None"),
        ([[0, 1]], "class_labels"),
        ([], "class_labels is empty"),
        (torch.tensor([], dtype=torch.long), "class_labels is empty"),
    ],
)
def test_labels_that_cannot_be_used(labels, message, pipe):
    with pytest.raises(ValueError, match=message):
        pipe(labels, num_inference_steps=1)


def test_the_null_class_is_no_label(pipe):
    with pytest.raises(ValueError, match=r"class_labels: 5 must be between 0 and 4"):
        pipe(pipe.transformer.null_class, num_inference_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(guidance_scale=-1.0), "guidance_scale=-1.0"),
        (dict(guidance_scale="2"), "guidance_scale='2'"),
        (dict(guidance_scale=None), "guidance_scale=None"),
        (dict(guidance_scale=math.nan), "guidance_scale=nan"),
        (dict(guidance_interval=(0.5, 0.2)), "guidance_interval"),
        (dict(guidance_interval=(-0.1, 1.0)), "guidance_interval"),
        (dict(guidance_interval=(0.0, 1.1)), "guidance_interval"),
        (dict(guidance_interval=(0.5,)), "guidance_interval"),
        (dict(guidance_interval=0.5), "guidance_interval"),
        (dict(guidance_channels=0), "guidance_channels=0"),
        (dict(guidance_channels=4), "guidance_channels=4"),
        (dict(guidance_channels=1.5), "guidance_channels=1.5"),
        (dict(num_inference_steps=0), "num_inference_steps=0"),
        (dict(num_inference_steps=2.0), "num_inference_steps=2.0"),
        (dict(height=7), "height=7"),
        (dict(width=9), "width=9"),
        (dict(height=0), "height=0"),
        (dict(height=-8), "height=-8"),
        (dict(width=8.0), "width=8.0"),
        (dict(generator=[seeded()]), "generator lists 1 generators for 2 images"),
        (dict(generator=[seeded()] * 3), "generator lists 3 generators for 2 images"),
        (dict(latents=torch.zeros(2, 3, 8, 9)), "latents has shape"),
        (dict(latents=torch.zeros(1, 3, 8, 8)), "latents has shape"),
        (dict(latents=torch.zeros(2, 3, 8, 8), height=16), "latents has shape"),
        (dict(output_type="jpeg"), "output_type='jpeg'"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_arguments_that_cannot_be_used(options, message, pipe):
    with pytest.raises(ValueError, match=message):
        pipe([0, 3], **dict(num_inference_steps=1, output_type="pt") | options)


def test_numbers_of_numpy(pipe):
    options = dict(
        guidance_scale=np.float32(2.0),
        guidance_interval=(np.float64(0.0), np.float32(0.5)),
        guidance_channels=np.int64(2),
        num_inference_steps=np.int64(3),
        height=np.int32(8),
        width=np.uint16(16),
    )
    plain = {name: value.item() for name, value in options.items() if isinstance(value, np.generic)}
    expected = draw(pipe, guidance_interval=(0.0, 0.5), **plain)
    torch.testing.assert_close(draw(pipe, **options), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), InterpolantODEScheduler(solver="dopri5")])
def test_broken_weights_make_no_image(scheduler, tiny_pipeline):
    pipe = tiny_pipeline(scheduler)
    with torch.no_grad():
        pipe.transformer.blocks[1].mlp.fc2.weight[0, 0] = math.nan
    steps = []
    for sample in (
        lambda: draw(pipe, num_inference_steps=50, callback_on_step_end=lambda *_: steps.append(1)),
        lambda: pipe.invert(torch.rand(2, 3, 8, 8), [0, 3]),
    ):
        with pytest.raises(ValueError, match=r"because weights of SiT.*: blocks\.1\.mlp\.fc2\.weight"):
            sample()
    assert not steps  # it is noticed after the first step


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_vae_that_overflows_in_half_precision(force_upcast, autoencoder_kl, assert_close):
    """Images that overflow are decoded in float32, the others as they were, and the weights stay as they are."""
    vae = copy.deepcopy(autoencoder_kl)
    vae.register_to_config(force_upcast=force_upcast)
    latents = torch.randn(2, 4, 8, 8, generator=seeded())
    latents[1] *= 3e5  # above 65504
    with torch.no_grad():
        expected = decode(vae, latents)
        half = vae.half()
        weights = {name: value.clone() for name, value in half.state_dict().items()}
        images = decode(half, latents)
        assert_close(images, expected, 2e-2)
        torch.testing.assert_close(images[:1], decode(half, latents[:1]), rtol=0, atol=5e-3)
    assert all(torch.equal(value, weights[name]) for name, value in half.state_dict().items())
    with torch.no_grad():
        half.decoder.conv_out.bias[0] = math.nan
    with pytest.raises(ValueError, match=r"the images from the VAE .*: decoder\.conv_out\.bias"), torch.no_grad():
        decode(half, latents)


@pytest.mark.parametrize("out_channels", [1, 6])
def test_another_number_of_output_channels_is_refused(out_channels, tiny_pipeline, tiny_transformer):
    with pytest.raises(ValueError, match=f"out_channels={out_channels} and in_channels=3 must be equal"):
        draw(tiny_pipeline(out_channels=out_channels))
    with pytest.raises(ValueError, match=f"guidance_model: out_channels={out_channels}"):
        draw(tiny_pipeline(), guidance_scale=2.0, guidance_model=tiny_transformer(out_channels=out_channels))
    with pytest.raises(ValueError, match=r"guidance_model has num_classes=4, .* has 5"):
        draw(tiny_pipeline(), guidance_scale=2.0, guidance_model=tiny_transformer(num_classes=4))


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), InterpolantSDEScheduler()])
def test_a_network_whose_output_would_be_broadcast(scheduler):
    with pytest.raises(ValueError, match=r"output has the shape \(2, 1, 4, 4\), but must have .* \(2, 3, 4, 4\)"):
        scheduler.solve(lambda x, t: x[:, :1], torch.zeros(2, 3, 4, 4), 4)


def test_a_model_without_null_class_cannot_be_guided(tiny_pipeline):
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0"):
        draw(tiny_pipeline(class_dropout_prob=0.0), guidance_scale=2.0)


def test_sizes_must_fit_vae_and_patches(tiny_pipeline, autoencoder_tiny):
    pipe = tiny_pipeline(vae=autoencoder_tiny, in_channels=4)
    with pytest.raises(ValueError, match="height=12 must be divisible by 8"):
        pipe([0], height=12, num_inference_steps=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("offload", ["enable_model_cpu_offload", "enable_sequential_cpu_offload", None])
@pytest.mark.parametrize("solver", ["euler", "dopri5"])
def test_on_a_gpu(solver, offload, tiny_pipeline, assert_close):
    expected = draw(tiny_pipeline(InterpolantODEScheduler(solver=solver)), guidance_scale=2.0)
    pipe = tiny_pipeline(InterpolantODEScheduler(solver=solver))
    if offload:
        getattr(pipe, offload)()
    else:
        pipe.to("cuda")
    assert_close(draw(pipe, guidance_scale=2.0).cpu(), expected, 1e-2)


def test_a_model_without_classes_needs_no_labels(tiny_transformer):
    pipe = SiTPipeline(tiny_transformer(num_classes=1, class_dropout_prob=0.0), InterpolantODEScheduler())
    pipe.set_progress_bar_config(disable=True)

    def sample(**arguments):
        generator = torch.Generator().manual_seed(0)
        return pipe(generator=generator, num_inference_steps=2, output_type="pt", **arguments).images

    expected = sample(class_labels=[0, 0, 0])
    assert torch.equal(sample(batch_size=3), expected)
    assert torch.equal(sample(), sample(class_labels=0))
    assert torch.equal(
        pipe.invert(expected, num_inference_steps=2), pipe.invert(expected, [0, 0, 0], num_inference_steps=2)
    )
    with pytest.raises(ValueError, match="batch_size=3: class_labels says"):
        sample(class_labels=[0, 0, 0], batch_size=3)
    with pytest.raises(ValueError, match="batch_size=0"):
        sample(batch_size=0)
