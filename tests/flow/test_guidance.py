"""Classifier-free guidance: its formula, where it applies and what it costs."""

import copy
import dataclasses
import math

import pytest
import torch
from diffusers import guiders

from sit_atconv import InterpolantODEScheduler
from sit_atconv.flow.guidance import Guidance, GuidedModel, guide


class CountingTransformer:
    """Stands in front of a transformer and keeps the rows of every call."""

    def __init__(self, transformer):
        self.transformer = transformer
        self.rows = []

    def __getattr__(self, name):
        return getattr(self.transformer, name)

    def __call__(self, x, t, labels, **options):
        self.rows.append(len(x))
        return self.transformer(x, t, labels, **options)


@pytest.fixture
def transformer(tiny_transformer):
    return CountingTransformer(tiny_transformer().requires_grad_(False))


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 4, 2])


def halves(transformer, x, t):
    null = torch.full_like(LABELS, transformer.null_class)
    model = transformer.transformer
    return model(x, t, LABELS).sample, model(x, t, null).sample


@pytest.mark.parametrize("channels", [None, 1, 2, 3])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.tensor([0.1, 0.4, 0.9])], ids=["one time", "own times"])
def test_formula(t, scale, channels, transformer, x):
    cond, uncond = halves(transformer, x, t)
    expected = cond.clone()
    expected[:, :channels] = (uncond + scale * (cond - uncond))[:, :channels]
    guided = GuidedModel(transformer, LABELS, Guidance(scale, channels=channels))
    torch.testing.assert_close(guided(x, t), expected, rtol=1e-4, atol=1e-5)
    assert transformer.rows == [6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=-1.0), "guidance_scale=-1.0"),
        (dict(scale="2"), "guidance_scale='2'"),
        (dict(scale=True), "guidance_scale=True"),
        (dict(scale=math.nan), "guidance_scale=nan"),
        (dict(scale=math.inf), "guidance_scale=inf"),
        (dict(interval=(0.5, 0.2)), r"guidance_interval=\(0.5, 0.2\)"),
        (dict(interval=(0.0, 1.1)), "guidance_interval"),
        (dict(interval=(0.5,)), "guidance_interval"),
        (dict(interval=0.5), "guidance_interval=0.5"),
        (dict(channels=0), "guidance_channels=0"),
        (dict(channels=2.0), "guidance_channels=2.0"),
        (dict(channels=True), "guidance_channels=True"),
        (dict(model="weaker"), "guidance_model='weaker'"),
    ],
    ids=str,
)
def test_guidance_checks_itself(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


def test_guidance_is_checked_against_the_transformer(tiny_transformer):
    transformer, unconditional = tiny_transformer(), tiny_transformer(class_dropout_prob=0.0)
    Guidance(2.0, channels=3).check(transformer)
    Guidance(1.0, channels=3).check(unconditional)
    Guidance(2.0, model=transformer).check(unconditional)
    with pytest.raises(ValueError, match=r"guidance_channels=4 must be between 1 and 3"):
        Guidance(channels=4).check(transformer)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0: .* cannot be guided"):
        Guidance(2.0).check(unconditional)


def test_guidance_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Guidance().scale = 2.0


def test_guide_in_closed_form():
    cond, uncond = torch.full((2, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), 1.0)
    assert guide(cond, uncond, 3.0, None).unique().tolist() == [4.0]
    assert guide(cond, uncond, 3.0, 2)[:, :, 0, 0].tolist() == [[4.0, 4.0, 2.0]] * 2
    assert guide(cond, uncond, 0.0, None).unique().tolist() == [1.0]


def test_scale_one_costs_nothing(transformer, x):
    t = torch.tensor(0.4)
    guided = GuidedModel(transformer, LABELS, Guidance(scale=1.0))
    torch.testing.assert_close(guided(x, t), halves(transformer, x, t)[0], rtol=0, atol=0)
    assert transformer.rows == [3]


def test_scale_one_needs_no_null_class(tiny_transformer, x):
    transformer = tiny_transformer(class_dropout_prob=0.0)
    with torch.no_grad():
        GuidedModel(transformer, LABELS)(x, torch.tensor(0.5))
    with pytest.raises(ValueError, match="cannot be guided"):
        GuidedModel(transformer, LABELS, Guidance(2.0))


@pytest.mark.parametrize(
    ("t", "guided_rows"),
    [(0.0, 0), (0.24, 0), (0.25, 3), (0.5, 3), (0.75, 3), (0.76, 0), (1.0, 0)],
)
def test_interval(t, guided_rows, transformer, x):
    t = torch.tensor(t)
    cond, uncond = halves(transformer, x, t)
    expected = uncond + 2.0 * (cond - uncond) if guided_rows else cond
    guided = GuidedModel(transformer, LABELS, Guidance(2.0, interval=(0.25, 0.75)))
    torch.testing.assert_close(guided(x, t), expected, rtol=1e-4, atol=1e-5)
    assert transformer.rows == [3 + guided_rows]


@pytest.mark.parametrize("inside", [[], [0], [1, 2], [0, 1, 2]])
def test_interval_of_samples_at_different_times(inside, transformer, x):
    """Adaptive solvers give every sample its own time: guided are the rows that are inside, and no others run twice."""
    t = torch.tensor([0.1, 0.15, 0.9])
    t[inside] = torch.tensor([0.3, 0.5, 0.7])[: len(inside)]
    cond, uncond = halves(transformer, x, t)
    expected = cond.clone()
    expected[inside] = (uncond + 2.0 * (cond - uncond))[inside]
    guided = GuidedModel(transformer, LABELS, Guidance(2.0, interval=(0.25, 0.75)))
    torch.testing.assert_close(guided(x, t), expected, rtol=1e-4, atol=1e-5)
    assert transformer.rows == [3 + len(inside)]


def test_samples_do_not_mix(transformer, x):
    t = torch.tensor([0.1, 0.5, 0.6])
    together = GuidedModel(transformer, LABELS, Guidance(3.0, (0.3, 0.55)))(x, t)
    for i in range(3):
        rows = slice(i, i + 1)
        alone = GuidedModel(transformer, LABELS[rows], Guidance(3.0, (0.3, 0.55)))(x[rows], t[rows])
        torch.testing.assert_close(together[rows], alone, rtol=1e-4, atol=1e-5)


def test_output_is_float32_for_any_weights(tiny_transformer, x, assert_close):
    full = tiny_transformer().requires_grad_(False)
    half = tiny_transformer().requires_grad_(False).bfloat16()
    t = torch.tensor(0.5)
    output = GuidedModel(half, LABELS, Guidance(2.0))(x, t)
    assert output.dtype == torch.float32
    assert_close(output, GuidedModel(full, LABELS, Guidance(2.0))(x, t), 0.1)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75)])
def test_gradients_flow(interval, tiny_transformer, x):
    """Sampling runs without gradients, but nothing here forbids them: d/dx equals that of the formula."""
    transformer = tiny_transformer()
    t = torch.tensor([0.1, 0.4, 0.9])
    x = x.requires_grad_()
    (actual,) = torch.autograd.grad(GuidedModel(transformer, LABELS, Guidance(2.0, interval))(x, t).square().sum(), x)

    cond = transformer(x, t, LABELS).sample
    uncond = transformer(x, t, torch.full_like(LABELS, transformer.null_class)).sample
    scale = torch.where((t >= interval[0]) & (t <= interval[1]), 2.0, 1.0).view(3, 1, 1, 1)
    (expected,) = torch.autograd.grad((uncond + scale * (cond - uncond)).square().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_a_scale_beyond_float32_is_named():
    with pytest.raises(
        ValueError, match=r"^guidance_scale=1e\+300 is beyond 3.4e\+38, the largest float32; choose less$"
    ):
        Guidance(scale=1e300)


CALLS = 3


@pytest.mark.parametrize(
    "guider",
    [
        guiders.ClassifierFreeGuidance(2.5),
        guiders.AdaptiveProjectedGuidance(2.5, adaptive_projected_guidance_momentum=-0.5),
        guiders.ClassifierFreeZeroStarGuidance(2.5, zero_init_steps=1),
        guiders.TangentialClassifierFreeGuidance(2.5),
        guiders.ClassifierFreeGuidance(2.5, start=0.4),
    ],
    ids=lambda guider: f"{type(guider).__name__} from {guider._start}",
)
def test_guiders_of_diffusers(guider, tiny_pipeline, assert_close):
    """As a loop that hands both predictions to the guider, step by step, draws it; a second call begins anew."""
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="euler"))
    x, labels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])
    expected, own = x, copy.deepcopy(guider)
    for i in range(CALLS):
        t = torch.tensor(i / CALLS)
        with torch.no_grad():
            cond, weak = (pipe.transformer(expected, t, y).sample for y in (labels, torch.full_like(labels, 5)))
        own.set_state(i, CALLS, None)
        own.prepare_inputs({})
        expected = expected + own.forward(cond, weak).pred / CALLS
    options = dict(latents=x, num_inference_steps=CALLS, output_type="latent")
    for _ in range(2):
        assert_close(pipe([0, 3], guider=guider, **options).images, expected, 1e-5)
    if type(guider) is guiders.ClassifierFreeGuidance and guider._start == 0:
        assert_close(pipe([0, 3], guidance_scale=2.5, **options).images, expected, 1e-5)


def test_guiders_that_do_not_fit(tiny_pipeline):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="guider is a PerturbedAttentionGuidance; give one of diffusers"):
        pipe([0], guider=guiders.PerturbedAttentionGuidance(perturbed_guidance_layers=[0]))
    with pytest.raises(ValueError, match="guider is a AutoGuidance"):  # it weakens the model by hooks
        pipe([0], guider=guiders.AutoGuidance(2.0, auto_guidance_layers=[0], dropout=0.5))
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0: the guider has a scale of its own"):
        pipe([0], guidance_scale=2.0, guider=guiders.ClassifierFreeGuidance(2.0))
    for solver in ("dopri5", "explicit_adams"):
        other = tiny_pipeline(InterpolantODEScheduler(solver=solver))
        with pytest.raises(ValueError, match=f"follows the network calls of a solve, which solver='{solver}'"):
            other([0], guider=guiders.ClassifierFreeGuidance(2.0))


def test_a_callback_switches_a_guider_off(tiny_pipeline, assert_close):
    pipe = tiny_pipeline(InterpolantODEScheduler(solver="euler"))
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def callback(scale):
        def set_scale(pipe, step, t, inputs):
            pipe._guidance_scale = scale
            return {}

        return set_scale

    options = dict(latents=x, num_inference_steps=2, output_type="latent")
    cut = pipe([3], guider=guiders.ClassifierFreeGuidance(2.5), callback_on_step_end=callback(0.0), **options).images
    expected = pipe([3], guidance_scale=2.5, callback_on_step_end=callback(0.0), **options).images
    assert_close(cut, expected, 1e-5)
    with pytest.raises(ValueError, match=r"_guidance_scale=2\.0 in a callback: the guider of this call has a scale"):
        pipe([3], guider=guiders.ClassifierFreeGuidance(2.5), callback_on_step_end=callback(2.0), **options)
