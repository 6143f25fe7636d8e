"""Reference weights under our names."""

import pytest
import torch

from sit_atconv import SiTTransformer2DModel
from sit_atconv.convert.weights import convert_state_dict


@pytest.mark.parametrize("name", ["sa", "atconv", "hybrid"])
def test_learn_sigma_half_is_sliced_off(name, parity_model, reference_state):
    """The whole last layer and the sliced one agree on the channels that the reference returns."""
    model, tensors = parity_model(name)
    state = reference_state(name)
    converted = convert_state_dict(state)
    assert converted["proj_out.weight"].shape == (16, 48)
    assert converted["proj_out.bias"].shape == (16,)
    whole = SiTTransformer2DModel.from_config(model.config, out_channels=8).eval()
    whole.load_state_dict(
        {
            **converted,
            "proj_out.weight": state["final_layer.linear.weight"],
            "proj_out.bias": state["final_layer.linear.bias"],
        }
    )
    arguments = [tensors[f"in.{key}"] for key in "xty"]
    torch.testing.assert_close(whole(*arguments).sample[:, :4], model(*arguments).sample)


def test_a_layer_without_learn_sigma_is_kept(reference_state):
    state = reference_state("atconv_nosigma")
    converted = convert_state_dict(state)
    assert converted["proj_out.weight"] is state["final_layer.linear.weight"]
    assert converted["proj_out.bias"] is state["final_layer.linear.bias"]


@pytest.mark.parametrize("name", ["sa", "atconv", "atconv_nosigma", "hybrid"])
def test_every_parameter_is_renamed_once(name, parity_model, reference_state):
    model, _ = parity_model(name)
    state = reference_state(name)
    converted = convert_state_dict(state)
    assert set(converted) == set(model.state_dict())
    assert len(converted) == len([key for key in state if key != "pos_embed"])
    assert "pos_embed" not in converted


def test_one_by_one_convolutions_become_linear_layers(reference_state):
    """The authors' REPA models hold the same operator as 1×1 convolutions."""
    state = reference_state("atconv")
    as_convolutions = {
        key: value[:, :, None, None]
        if key.endswith(("attn.kernel_proj.weight", "attn.x_proj.weight", "attn.proj.weight"))
        else value
        for key, value in state.items()
    }
    expected = convert_state_dict(state)
    converted = convert_state_dict(as_convolutions)
    for name, value in expected.items():
        assert converted[name].shape == value.shape, name
        assert torch.equal(converted[name], value), name


def test_the_input_is_left_as_it_was(reference_state):
    state = reference_state("hybrid")
    before = {key: value.clone() for key, value in state.items()}
    convert_state_dict(state)
    assert state.keys() == before.keys()
    torch.testing.assert_close(state, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.attn.relative_position", "xx_embedder.proj.weight"])
def test_unknown_parameters_are_named(name, reference_state):
    with pytest.raises(ValueError, match=name):
        convert_state_dict({**reference_state("atconv"), name: torch.zeros(1)})
