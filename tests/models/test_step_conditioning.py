"""The end of a step: how the transformer learns it, and that a model that does not know it is what it was."""

import pytest
import torch

from sit_atconv import SiTTransformer2DModel
from sit_atconv.models.costs import closed_form_macs
from sit_atconv.models.macs import count_macs

CONDITIONINGS = ("span", "decoupled")
SIZES = dict(sample_size=8, in_channels=3, num_layers=3, num_attention_heads=2, attention_head_dim=8, num_classes=5)


def inputs(batch_size: int = 4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, 3, 8, 8, generator=generator)
    t = 0.5 * torch.rand(batch_size, generator=generator)
    s = t + 0.5 * torch.rand(batch_size, generator=generator)
    return x, t, s, torch.arange(batch_size)


def tokens_of(model) -> list[torch.Tensor]:
    """A list to which every block will add its tokens."""
    tokens: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *args: tokens.append(args[-1]))
    return tokens


@pytest.mark.parametrize("step_conditioning", CONDITIONINGS)
@pytest.mark.parametrize("mixer", ["atconv", "attention"])
def test_the_end_matters_and_without_one_it_is_the_start(mixer, step_conditioning, tiny_transformer):
    model = tiny_transformer(mixer=mixer, step_conditioning=step_conditioning).requires_grad_(False)
    x, t, s, y = inputs()
    velocity = model(x, t, y).sample
    assert torch.equal(model(x, t, y, end_timestep=t).sample, velocity)
    mean = model(x, t, y, end_timestep=s).sample
    assert ((mean - velocity).flatten(1).norm(dim=1) > 1e-4 * velocity.flatten(1).norm(dim=1)).all()
    for i in range(4):
        one = model(x[i : i + 1], t[i].item(), y[i : i + 1], end_timestep=s[i].item()).sample
        torch.testing.assert_close(mean[i : i + 1], one)


def test_weights_of_a_flow_load_into_a_model_that_spans(tiny_transformer):
    """A fresh span embedding has no effect, whatever the end of the step; its gradient is not zero."""
    flow = tiny_transformer(num_layers=3)
    with torch.random.fork_rng(devices=[]):
        model = SiTTransformer2DModel(**{**flow.config, "step_conditioning": "span"}).eval()
    missing, unexpected = model.load_state_dict(flow.state_dict(), strict=False)
    assert all(name.startswith("span_embed.") for name in missing) and len(missing) == 4 and not unexpected
    x, t, s, y = inputs()
    mean = model(x, t, y, end_timestep=s).sample
    torch.testing.assert_close(mean, flow(x, t, y).sample, rtol=0, atol=0)
    mean.square().mean().backward()
    assert model.span_embed.linear_2.weight.grad.any()


def test_decoupled_has_the_weights_of_a_flow_and_its_last_blocks_see_the_end(tiny_transformer):
    """With s in every block, the model is the flow at s; with t in the others, they do not know s."""
    flow = tiny_transformer(num_layers=3).requires_grad_(False)
    x, t, s, y = inputs()
    for blocks in (1, 2, 3):
        model = SiTTransformer2DModel(**{**flow.config, "step_conditioning": "decoupled", "end_time_blocks": blocks})
        model.eval().load_state_dict(flow.state_dict())
        tokens, at_start_tokens = tokens_of(model), tokens_of(flow)
        sample, at_start = model(x, t, y, end_timestep=s).sample, flow(x, t, y).sample
        unaware = 3 - blocks
        for i in range(3):
            assert torch.equal(tokens[i], at_start_tokens[i]) == (i < unaware)
        assert torch.equal(sample, flow(x, s, y).sample) == (unaware == 0)
        assert torch.equal(model(x, t, y).sample, at_start)


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 1), (6, 2), (12, 3), (28, 8)])
def test_number_of_blocks_that_see_the_end(num_layers, expected):
    with torch.device("meta"):
        model = SiTTransformer2DModel(**{**SIZES, "num_layers": num_layers}, step_conditioning="decoupled")
    assert model.end_time_blocks == expected


@pytest.mark.parametrize("step_conditioning", CONDITIONINGS)
def test_modulations_of_many_steps_at_once(step_conditioning, tiny_transformer, assert_close):
    model = tiny_transformer(num_layers=3, step_conditioning=step_conditioning).requires_grad_(False)
    x, t, s, y = inputs()
    modulations = model.modulations(t, y, s)
    for i in range(4):
        expected = model(x, t[i], y, end_timestep=s[i]).sample
        assert_close(model(x, None, None, modulation=modulations[i]).sample, expected, 1e-5)
    assert torch.equal(model.modulations(t, y), model.modulations(t, y, t))


def test_a_flow_refuses_an_end(tiny_transformer):
    model = tiny_transformer()
    x, t, s, y = inputs()
    with pytest.raises(ValueError, match="step_conditioning='none'"):
        model(x, t, y, end_timestep=s)
    with pytest.raises(ValueError, match="step_conditioning='none'"):
        model.modulations(t, y, s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(step_conditioning="both"), "step_conditioning='both'"),
        (dict(end_time_blocks=1), "end_time_blocks=1 is for"),
        (dict(step_conditioning="span", end_time_blocks=1), "end_time_blocks=1 is for"),
        (dict(step_conditioning="decoupled", end_time_blocks=0), "end_time_blocks=0"),
        (dict(step_conditioning="decoupled", end_time_blocks=4), "num_layers=3; choose at most"),
        (dict(trained_guidance_scale=0.0), "trained_guidance_scale=0.0"),
    ],
)
def test_arguments_without_meaning(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        SiTTransformer2DModel(**SIZES, **arguments)


@pytest.mark.parametrize("step_conditioning", CONDITIONINGS)
def test_saved_and_loaded(step_conditioning, tiny_transformer, tmp_path):
    model = tiny_transformer(num_layers=3, step_conditioning=step_conditioning).requires_grad_(False)
    model.save_pretrained(tmp_path)
    loaded = SiTTransformer2DModel.from_pretrained(tmp_path)
    x, t, s, y = inputs()
    assert torch.equal(loaded(x, t, y, end_timestep=s).sample, model(x, t, y, end_timestep=s).sample)


@pytest.mark.parametrize("step_conditioning", CONDITIONINGS)
def test_the_embedding_of_the_end_is_counted(step_conditioning):
    with torch.device("meta"):
        model = SiTTransformer2DModel(**SIZES, step_conditioning=step_conditioning)
    assert count_macs(model, 8, 8) == closed_form_macs(model.config, 8, 8)


@pytest.mark.parametrize("step_conditioning", CONDITIONINGS)
def test_gradient_checkpointing(step_conditioning, tiny_transformer):
    model = tiny_transformer(num_layers=3, step_conditioning=step_conditioning)
    x, t, s, y = inputs()
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(x, t, y, end_timestep=s).sample.square().sum().backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad.any(), f"no gradient for {name}"
        torch.testing.assert_close(grads[1][name], grad)
