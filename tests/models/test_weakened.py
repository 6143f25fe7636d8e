"""Weaker copies of a model: which weights they share, and what they compute."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import FirstBlockCacheConfig

from sit_atconv.models.generated_kernels import blocks_with_kernels
from sit_atconv.models.presets import MIXERS
from sit_atconv.models.weakened import perturb_mixers, skip_blocks

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
T, LABELS = torch.tensor(0.3), torch.tensor([0, 3])


@torch.no_grad()
def output(model):
    return model(X, T, LABELS).sample


def test_without_a_block_is_the_smaller_model(tiny_transformer, assert_close):
    model, smaller = tiny_transformer(num_layers=3, mixer="hybrid"), tiny_transformer(num_layers=1, mixer="atconv")
    state = model.state_dict()
    kept = {name.replace("blocks.1.", "blocks.0."): v for name, v in state.items() if "blocks.0." not in name}
    smaller.load_state_dict({name: v for name, v in kept.items() if "blocks.2." not in name})
    before = output(model)
    smaller.position_embedding = model.position_embedding
    weaker = skip_blocks(model, [0, 2])
    assert_close(output(weaker), output(smaller), 1e-5)
    assert_close(output(model), before, 0)
    assert weaker.blocks[1] is model.blocks[1]
    ahead = weaker.modulations(T[None], LABELS)[0]
    assert_close(weaker(X, None, None, modulation=ahead).sample, output(smaller), 1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_perturbed_tokens_see_themselves_alone(mixer, tiny_transformer, assert_close):
    """With all blocks perturbed, a patch of the output depends on the same patch of the input alone."""
    model = tiny_transformer(mixer=mixer, attention_pool=2)
    before = output(model)
    weaker = perturb_mixers(model, [0, 1])
    plain = output(weaker)
    changed = X.clone()
    changed[..., :2, :2] += 1
    with torch.no_grad():
        differs = (weaker(changed, T, LABELS).sample - plain).abs().amax((0, 1)) > 1e-6
    assert differs[:2, :2].all() and not differs[2:].any() and not differs[:, 2:].any()
    assert_close(output(model), before, 0)
    assert {id(p) for p in weaker.parameters()} <= {id(p) for p in model.parameters()}


def test_a_perturbed_convolution_is_that_of_identity_kernels(tiny_transformer, assert_close, monkeypatch):
    model = tiny_transformer(mixer="atconv")
    weaker = output(perturb_mixers(model, [1]))

    def identity(self, context):
        kernels = torch.zeros(len(context), context.shape[2], 9)
        kernels[..., 4] = 1
        return kernels

    monkeypatch.setattr(model.blocks[1].mixer, "_kernels_of", identity.__get__(model.blocks[1].mixer))
    assert_close(output(model), weaker, 1e-5)


@pytest.mark.parametrize("weaken", [skip_blocks, perturb_mixers])
def test_they_guide(weaken, tiny_pipeline, assert_close):
    """weak + s·(cond − weak) at each call of Euler's method, also for a model without a null class."""
    pipe = tiny_pipeline(class_dropout_prob=0.0)
    weaker = weaken(pipe.transformer, [1])
    options = dict(latents=X, num_inference_steps=1, output_type="latent")
    pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, solver="euler")
    guided = pipe([0, 3], guidance_scale=2.5, guidance_model=weaker, **options).images
    with torch.no_grad():
        cond, weak = (each(X, torch.tensor(0.0), LABELS).sample for each in (pipe.transformer, weaker))
    assert_close(guided, X + weak + 2.5 * (cond - weak), 1e-5)


@pytest.mark.parametrize("weaken", [skip_blocks, perturb_mixers])
def test_blocks_that_are_none(weaken, tiny_transformer):
    model = tiny_transformer()
    for blocks in ([], [2], [-1], ["0"]):
        with pytest.raises(ValueError, match=r"must be numbers from 0 to 1, at least one"):
            weaken(model, blocks)
    with pytest.raises(ValueError, match="are all blocks of the model"):
        skip_blocks(model, [0, 1])


@pytest.mark.parametrize("weaken", [skip_blocks, perturb_mixers])
def test_models_in_other_hands(weaken, tiny_transformer, assert_close):
    """A compiled one is looked into; one with hooks is refused; one in training stays so, with all of its blocks."""
    model = tiny_transformer()
    assert_close(output(weaken(torch.compile(model), [1])), output(weaken(model, [1])), 0)
    model.train()
    weaken(model, [1])
    assert all(module.training for module in model.modules())
    add_hook_to_module(model, ModelHook())
    with pytest.raises(ValueError, match="the model is offloaded or cached"):
        weaken(model, [1])


def test_a_weaker_model_is_weakened_and_cached_as_any(tiny_transformer, assert_close):
    model = tiny_transformer(num_layers=3)
    weak = skip_blocks(model, [1])
    assert_close(output(perturb_mixers(weak, [0, 1])), output(perturb_mixers(skip_blocks(model, [1]), [0])), 0)
    assert blocks_with_kernels(weak) == [i for i in blocks_with_kernels(model) if i != 1]
    expected = output(weak)
    weak.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    with weak.cache_context("here"):
        assert_close(output(weak), expected, 1e-6)
