"""Weights of timm models: loaded completely or not at all, and without running code."""

import os
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file

from sit_atconv.models.timm_encoders import load_timm_model
from sit_atconv.models.timm_names import check_timm_name, defined_models
from sit_atconv.training.repa import TargetEncoder

TINY_TIMM = "test_efficientnet"  # timm's own, for tests: 0.4 M parameters, 160×160


@pytest.fixture(scope="module")
def tiny_timm(tmp_path_factory):
    """A randomly initialised timm model with 7 classes, and the file of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(TINY_TIMM, pretrained=False, num_classes=7).eval()
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, str(file)


def test_timm_weights_must_fit_without_remainder(tiny_timm, tmp_path):
    model, _ = tiny_timm
    state = model.state_dict()
    extra = {**state, "nothing.weight": torch.zeros(2)}
    missing = {name: tensor for name, tensor in state.items() if name != "conv_stem.weight"}
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    for name, tensors in {"extra": extra, "missing": missing, "headless": headless}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"do not fit test_efficientnet: Unexpected key.*nothing\.weight"):
        load_timm_model(TINY_TIMM, str(tmp_path / "extra.safetensors"))
    with pytest.raises(ValueError, match=r"do not fit test_efficientnet: Missing key.*conv_stem\.weight"):
        load_timm_model(TINY_TIMM, str(tmp_path / "missing.safetensors"))
    assert torch.equal(
        load_timm_model(TINY_TIMM, str(tmp_path / "headless.safetensors")).conv_stem.weight,
        state["conv_stem.weight"],
    )


def test_timm_weights_run_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"conv_stem.weight": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="cannot be read as safetensors or as a state dict"):
        load_timm_model(TINY_TIMM, str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "training.pth")
    with pytest.raises(ValueError, match="is not a state dict"):
        load_timm_model(TINY_TIMM, str(tmp_path / "training.pth"))


@pytest.mark.parametrize("kind", ["compressed", "nested", "pipe.pth", "pipe.safetensors"])
def test_crafted_weights_take_neither_memory_nor_the_process(kind, tmp_path):
    """Like checkpoints that are converted, and the file of REPA's encoder with them."""
    file = tmp_path / (kind if kind.startswith("pipe") else "weights.pth")
    if kind.startswith("pipe"):
        os.mkfifo(file)
    else:
        pickled = b"\x80\x02})" + b"\x85" * 1000 + b"K\x01s." if kind == "nested" else b"\x80\x02}."
        compression = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("weights/data.pkl", pickled)
            archive.writestr("weights/version", "3\n")
    reason = {"compressed": "is compressed", "nested": "nests containers more than"}.get(kind, "is not a regular file")
    with pytest.raises(ValueError, match=reason):
        load_timm_model(TINY_TIMM, str(file))
    with pytest.raises(ValueError, match=rf"repa_weights=.*({reason}|is neither a file)"):
        TargetEncoder("test_vit.r160_in1k", str(file), (4, 4), torch.device("cpu"))


def test_names_in_the_source_code_are_those_that_timm_offers():
    assert set(defined_models()) == set(timm.list_models())
    assert timm.is_model("tf_efficientnet_b0_ns")  # an old name
    for name in ("tf_efficientnet_b0_ns", "resnet50.a1_in1k", "attnet_t2"):
        check_timm_name("model", name, name)
    with pytest.raises(ValueError, match=r"^repa='resnet5\.a1': timm has no model 'resnet5'; did you mean resnet50, "):
        check_timm_name("repa", "resnet5.a1", "resnet5.a1")
