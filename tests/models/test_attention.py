"""Attention through diffusers' backends: which one computes it, and what does not depend on that."""

import copy

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor2_0

from sit_atconv.models.attention import DispatchedAttention, PooledAttention, SelfAttention
from sit_atconv.ops.pooling import pool_tokens

GRID = (3, 4)


@pytest.fixture(autouse=True)
def _active_backend():
    """`set_attention_backend` also changes diffusers' default, for all models of the process."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(before)


def mixer_and_tokens(kind, **options):
    torch.manual_seed(0)
    mixer = kind(16, 2, **options)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return mixer, torch.randn(2, 12, 16)


def attend(q, k, v):
    """softmax(q·kᵀ/√d)·v of (B, N, 16) and (B, M, 16) with two heads, by its definition."""
    heads = [x.unflatten(2, (2, 8)).transpose(1, 2) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(2, 3) / 8**0.5).softmax(-1)
    return (weights @ heads[2]).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_is_that_of_the_definition(backend):
    mixer, tokens = mixer_and_tokens(SelfAttention)
    mixer.set_attention_backend(backend)
    expected = mixer.out_proj(attend(*mixer.qkv(tokens).chunk(3, -1)))
    torch.testing.assert_close(mixer(tokens, GRID), expected)


def test_pooled_attention_is_that_of_the_definition():
    mixer, tokens = mixer_and_tokens(PooledAttention, pool=2)
    pooled = pool_tokens(tokens, GRID, 2, "grid")
    expected = mixer.out_proj(attend(mixer.q_proj(tokens), *mixer.kv_proj(pooled).chunk(2, -1)))
    torch.testing.assert_close(mixer(tokens, GRID), expected)


def test_each_model_has_its_backend(tiny_transformer, monkeypatch):
    """That of the model, then that of the context; a copy keeps it."""
    seen = []
    for name in ("native", "_native_math"):
        function = _AttentionBackendRegistry._backends[name]
        monkeypatch.setitem(
            _AttentionBackendRegistry._backends,
            name,
            lambda *a, name=name, f=function, **k: seen.append(name) or f(*a, **k),
        )
    model = tiny_transformer(mixer=["attention", "pooled_attention", "atconv"], num_layers=3)

    def backends(model):
        seen.clear()
        with torch.no_grad():
            model(torch.zeros(1, 3, 8, 8), 0.5, torch.zeros(1, dtype=torch.long))
        return seen.copy()

    assert backends(model) == ["native"] * 2
    with attention_backend("_native_math"):
        assert backends(model) == ["_native_math"] * 2
    other = copy.deepcopy(model)
    model.set_attention_backend("_native_math")
    other.set_attention_backend("native")
    assert backends(model) == ["_native_math"] * 2 and backends(copy.deepcopy(model)) == ["_native_math"] * 2
    assert backends(other) == ["native"] * 2


@pytest.mark.parametrize("backend", ["native", "_native_flash"])
def test_forward_mode_needs_no_choice_of_a_backend(backend):
    mixer, tokens = mixer_and_tokens(SelfAttention)
    mixer.double().set_attention_backend(backend)
    tokens, change = tokens.double(), torch.randn(2, 12, 16, dtype=torch.float64)
    with torch.no_grad():
        derivative = torch.func.jvp(lambda x: mixer(x, GRID), (tokens,), (change,))[1]
        h = 1e-5
        difference = (mixer(tokens + h * change, GRID) - mixer(tokens - h * change, GRID)) / (2 * h)
    torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-8)


def test_projections_are_fused_already(tiny_transformer):
    model = tiny_transformer(mixer=["attention", "pooled_attention"])
    before = model.state_dict()
    model.fuse_qkv_projections()
    assert model.state_dict().keys() == before.keys() and model.blocks[0].mixer.qkv.out_features == 48
    model.unfuse_qkv_projections()
    assert model.state_dict().keys() == before.keys()
    assert {type(processor) for processor in model.attn_processors.values()} == {DispatchedAttention}


def test_processors_of_other_models_are_refused(tiny_transformer):
    model = tiny_transformer(mixer=["attention", "pooled_attention"])
    with pytest.raises(ValueError, match=r"processor=AttnProcessor2_0 is not .*set_attention_backend\(name\)"):
        model.set_attn_processor(AttnProcessor2_0())
    model.set_attn_processor(model.attn_processors)


def test_it_compiles_whole():
    mixer, tokens = mixer_and_tokens(SelfAttention, qk_norm=True)
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens, GRID), mixer(tokens, GRID))
