"""Strict loading: what a folder lacks, or holds beyond the model, is an error."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sit_atconv import SiTTransformer2DModel


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_missing_and_extra_weights_are_errors(low_cpu_mem_usage, tiny_transformer, tmp_path):
    tiny_transformer().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)

    save_file({name: value for name, value in weights.items() if name != "proj_out.bias"}, file)
    with pytest.raises(ValueError, match=r"missing weights: proj_out\.bias"):
        SiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)

    save_file({**weights, "blocks.9.extra": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"unexpected weights: blocks\.9\.extra"):
        SiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)

    save_file(weights, file)
    _, info = SiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
