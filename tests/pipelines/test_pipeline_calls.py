"""Calls of one pipeline do not meet in its state: threads, nested calls, interruption, callbacks of diffusers."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler

FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
NOISE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def draw(pipe, seed: int = 0, **options) -> torch.Tensor:
    options = dict(num_inference_steps=4 + seed % 3, output_type="latent") | options
    return pipe([seed % 5, 3], generator=torch.Generator().manual_seed(seed), **options).images


@pytest.mark.parametrize(
    "scheduler",
    [
        InterpolantODEScheduler(),
        InterpolantODEScheduler(solver="dopri5"),
        InterpolantSDEScheduler(),
        FlowMatchEulerDiscreteScheduler(),
        FlowMatchHeunDiscreteScheduler(),
        DPMSolverMultistepScheduler(**FLOW),
        UniPCMultistepScheduler(**FLOW),
    ],
    ids=lambda scheduler: f"{type(scheduler).__name__}-{scheduler.config.get('solver')}",
)
def test_concurrent_calls_equal_sequential_ones(scheduler, tiny_pipeline):
    pipe = tiny_pipeline(scheduler)
    pipe.transformer.train()  # each call samples in eval mode all the same
    expected = [draw(pipe, seed, guidance_scale=1.0 + seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(lambda seed: draw(pipe, seed, guidance_scale=1.0 + seed), range(8)))
    for image, alone in zip(images, expected, strict=True):
        torch.testing.assert_close(image, alone, rtol=0, atol=0)
    assert all(module.training for module in pipe.transformer.modules())


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_interruption_ends_its_own_call_alone(scheduler, tiny_pipeline):
    """Two calls are in the middle of their loops at the same time, and one of them is interrupted."""
    pipe = tiny_pipeline(scheduler)
    expected = draw(pipe)
    both = threading.Barrier(2, timeout=60)
    steps = {True: 0, False: 0}

    def run(stops: bool) -> tuple[torch.Tensor, bool]:
        def callback(_, step, t, tensors):
            steps[stops] += 1
            if step == 0:
                both.wait()
                if stops:
                    pipe._interrupt = True  # of the pipeline itself, not of what the callback was given
                both.wait()

        return draw(pipe, callback_on_step_end=callback), pipe.interrupt

    with ThreadPoolExecutor(2) as threads:
        (_, was_stopped), (image, other_was_stopped) = threads.map(run, [True, False])
    assert (was_stopped, other_was_stopped) == (True, False)
    assert steps == {True: 1, False: 4}
    torch.testing.assert_close(image, expected, rtol=0, atol=0)


def test_a_call_in_a_callback_has_its_own_state(tiny_pipeline):
    pipe = tiny_pipeline()
    steps = []

    def inner(pipe, step, t, tensors):
        pipe._interrupt = True

    def outer(pipe, step, t, tensors):
        steps.append(pipe.num_timesteps)
        draw(pipe, num_inference_steps=7, callback_on_step_end=inner)
        assert not pipe.interrupt

    result = draw(pipe, callback_on_step_end=outer)
    assert steps == [4] * 4
    torch.testing.assert_close(result, draw(pipe), rtol=0, atol=0)


def test_a_stop_button_ends_calls_of_other_threads(tiny_pipeline):
    pipe = tiny_pipeline()
    began, pressed = threading.Event(), threading.Event()
    steps = []

    def callback(pipe, step, t, tensors):
        steps.append(step)
        began.set()
        assert pressed.wait(60)

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(draw, pipe, callback_on_step_end=callback)
        assert began.wait(60)
        pipe._interrupt = True
        pressed.set()
        call.result()
    assert steps == [0]
    draw(pipe, callback_on_step_end=callback)
    assert len(steps) == 5  # the next call starts over


def test_an_interrupting_callback_may_replace_the_latents(tiny_pipeline):
    def callback(pipe, step, t, tensors):
        pipe._interrupt = True
        return {"latents": torch.full_like(tensors["latents"], 0.5)}

    assert (draw(tiny_pipeline(), callback_on_step_end=callback) == 0.5).all()


def test_a_pipeline_can_be_copied(tiny_pipeline):
    pipe = tiny_pipeline()
    expected = draw(pipe)
    twin = copy.deepcopy(pipe)
    twin._interrupt = True
    assert not pipe.interrupt
    torch.testing.assert_close(draw(twin), expected, rtol=0, atol=0)


@pytest.mark.parametrize("options", [dict(cutoff_step_ratio=0.5), dict(cutoff_step_ratio=None, cutoff_step_index=3)])
def test_cutoff_callback_of_diffusers_ends_guidance(options, tiny_pipeline):
    """After step i of 6, guidance is off: as if it applied up to t = (i + 1) / 6."""
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="euler"))
    sampling = dict(num_inference_steps=6, guidance_scale=3.0)
    result = draw(pipe, callback_on_step_end=SDCFGCutoffCallback(**options), **sampling)
    expected = draw(pipe, guidance_interval=(0.0, 3.5 / 6), **sampling)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (result - draw(pipe, **sampling)).abs().max() > 1e-3
    assert (draw(pipe, **sampling) - result).abs().max() > 1e-3  # the next call is guided again


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda pipe, step, t, tensors: {"latents": tensors["latents"][:1]}, r"latents of the shape \(1, 3, 8, 8\)"),
        (lambda pipe, step, t, tensors: {"latents": tensors["latents"].mean()}, r"latents of the shape \(\)"),
        (lambda pipe, step, t, tensors: {"latents": tensors["latents"].numpy()}, "returned a ndarray for latents"),
        (lambda pipe, step, t, tensors: tensors["latents"], "callback_on_step_end returned a Tensor"),
        (lambda pipe, step, t, tensors: (tensors["latents"],), "callback_on_step_end returned a tuple"),
        (lambda pipe, step, t, tensors: True, "callback_on_step_end returned a bool"),
        (lambda pipe, step, t, tensors: {"latent": None}, "callback_on_step_end returned latent; only latents"),
        (lambda pipe, step, t, tensors: {"latents": tensors["latents"] * torch.nan}, "the latents are not finite"),
        (lambda pipe, step, t, tensors: setattr(pipe, "_guidance_scale", 2.0), "_guidance_scale=2.0 in a callback"),
        ("print", "callback_on_step_end='print' cannot be called"),
        (SDXLCFGCutoffCallback(cutoff_step_ratio=0.5), r"needs add_text_embeds, .*guidance_interval=\(0\.0, end\)"),
    ],
)
@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_callbacks_that_cannot_be_used(scheduler, callback, message, tiny_pipeline):
    with pytest.raises(ValueError, match=message):
        draw(tiny_pipeline(scheduler), callback_on_step_end=callback)
