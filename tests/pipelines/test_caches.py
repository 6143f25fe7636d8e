"""diffusers' caches, which reuse what blocks computed in earlier network calls, with every mixer."""

import warnings

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.models.caching import FEW_CACHED_CALLS, TAYLOR_LAYERS

STEPS = 6
MIXTURE = ["atconv", "attention", "pooled_attention", "atconv"]
TAYLOR = dict(cache_interval=2, disable_cache_before_step=3, taylor_factors_dtype=torch.float32)
CONFIGS = {
    "first block": FirstBlockCacheConfig(threshold=100.0),
    "magnitudes": MagCacheConfig(mag_ratios=[1.0] * STEPS, num_inference_steps=STEPS, retention_ratio=0.0),
    "Taylor": TaylorSeerCacheConfig(**TAYLOR, cache_identifiers=TAYLOR_LAYERS),
}
pytestmark = pytest.mark.filterwarnings("ignore:a cache spoils")


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    model = SiTTransformer2DModel(
        sample_size=8,
        in_channels=1,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_classes=3,
        mixer=MIXTURE,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = SiTPipeline(model.eval(), InterpolantODEScheduler(solver="euler"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipe, seed=0, **options):
    """Two images, guided for a part of the solve: the network gets four rows in some calls, and two in others."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(2)]
    options = {"guidance_scale": 3.0, "guidance_interval": (0.0, 0.6), **options}
    return pipe([0, 2], num_inference_steps=STEPS, generator=generators, output_type="latent", **options).images


def count_calls(pipe, block):
    calls, inner = [], pipe.transformer.blocks[block].mlp.fc1
    handle = inner.register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def test_an_hourglass_takes_the_cache_of_layers_alone():
    torch.manual_seed(0)
    sizes = dict(sample_size=8, in_channels=1, num_attention_heads=2, attention_head_dim=8, num_classes=3)
    model = SiTTransformer2DModel(**sizes, num_layers=4, mixer=MIXTURE, middle_layers=2, middle_attention_heads=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe = SiTPipeline(model.eval(), InterpolantODEScheduler(solver="euler"))
    pipe.set_progress_bar_config(disable=True)
    expected = draw(pipe)
    for name in ("first block", "magnitudes"):
        with pytest.raises(ValueError, match="middle_layers=2; use TaylorSeerCacheConfig"):
            pipe.transformer.enable_cache(CONFIGS[name])
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=0)
    calls, handle = count_calls(pipe, 1)
    pipe.transformer.enable_cache(CONFIGS["Taylor"])
    with_cache = draw(pipe)
    handle.remove()
    assert 0 < len(calls) < STEPS
    assert 0 < (with_cache - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_cache_that_reuses_nothing_changes_nothing(pipe):
    expected = draw(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(draw(pipe), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_are_skipped_and_other_images_are_not_reused(pipe, name):
    expected = draw(pipe)
    calls, handle = count_calls(pipe, 2)
    pipe.transformer.enable_cache(CONFIGS[name])
    first = draw(pipe)
    assert 0 < len(calls) < STEPS
    draw(pipe, seed=7)
    torch.testing.assert_close(draw(pipe), first, rtol=0, atol=0)  # as if the others had never been drawn
    assert not torch.allclose(first, expected) and (first - expected).abs().max() < 1
    pipe.transformer.disable_cache()
    handle.remove()
    torch.testing.assert_close(draw(pipe), expected)


def test_without_a_cache_the_modulations_are_computed_ahead(pipe):
    """In every call: looking for caches at the end of the first leaves nothing that would forbid it in the second."""
    seen, modulation = [], pipe.transformer.blocks[0].modulation
    modulation.register_forward_hook(lambda *_: seen.append(1))
    for _ in range(2):
        draw(pipe)
    assert len(seen) == 2


def test_an_interrupted_solve_leaves_nothing_behind(pipe):
    pipe.transformer.enable_cache(CONFIGS["first block"])
    expected = draw(pipe)

    def stop(pipe, step, t, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, seed=7, callback_on_step_end=stop)
    torch.testing.assert_close(draw(pipe), expected, rtol=0, atol=0)


def test_first_block_cache_computes_the_other_blocks_once_for_each_number_of_rows(pipe):
    pipe.transformer.enable_cache(CONFIGS["first block"])
    calls, _ = count_calls(pipe, 3)
    draw(pipe)
    assert len(calls) == 2  # with guidance and without


@pytest.mark.parametrize("config", [FasterCacheConfig(), PyramidAttentionBroadcastConfig(), object()])
def test_caches_of_other_kinds_are_refused(pipe, config):
    with pytest.raises(ValueError, match=f"config={type(config).__name__} is not for the blocks of this model"):
        pipe.transformer.enable_cache(config)
    assert not pipe.transformer.is_cache_enabled


def test_a_cache_that_finds_no_layer_is_refused(pipe):
    with pytest.raises(ValueError, match="names no layer of this model; give cache_identifiers=") as error:
        pipe.transformer.enable_cache(TaylorSeerCacheConfig(**TAYLOR))
    assert not pipe.transformer.is_cache_enabled
    layers = eval(str(error.value).partition("cache_identifiers=")[2])
    pipe.transformer.enable_cache(TaylorSeerCacheConfig(**TAYLOR, cache_identifiers=layers))
    assert pipe.transformer.is_cache_enabled


@pytest.mark.filterwarnings("default:a cache spoils")
def test_few_calls_with_a_cache_are_warned_of(pipe):
    def warned(steps: int) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipe([0], num_inference_steps=steps, output_type="latent")
        return any("a cache spoils the images of a solve of" in str(warning.message) for warning in caught)

    assert not warned(FEW_CACHED_CALLS)
    pipe.transformer.enable_cache(CONFIGS["first block"])
    assert warned(FEW_CACHED_CALLS) and not warned(FEW_CACHED_CALLS + 1)
    pipe.scheduler = InterpolantODEScheduler(solver="midpoint")  # of two calls per step
    assert warned(FEW_CACHED_CALLS // 2) and not warned(FEW_CACHED_CALLS // 2 + 1)
