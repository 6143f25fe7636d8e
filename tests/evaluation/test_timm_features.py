"""Features and probabilities of timm models are those of the models themselves."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from sit_atconv.evaluation.features import build_extractor
from sit_atconv.evaluation.timm_features import set_input_size

TINY_TIMM = "test_efficientnet"  # timm's own, for tests: 0.4 M parameters, 160×160


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_timm(tmp_path_factory):
    """A randomly initialised timm model with 7 classes, and the file of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(TINY_TIMM, pretrained=False, num_classes=7).eval()
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, str(file)


def test_timm_extractor_embeds_as_the_model_does(tiny_timm):
    model, file = tiny_timm
    extractor = build_extractor(f"timm:{TINY_TIMM}", file, CPU)
    config = timm.data.resolve_model_data_config(model)
    size = config["input_size"][1]
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)  # no resize is left to do
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    x = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        actual = extractor.embed(torch.stack([extractor.prepare(image) for image in images]))["features"]
    assert expected.std() > 1e-6
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_weights_hash_depends_on_the_tensors_alone(tiny_timm, tmp_path):
    model, file = tiny_timm
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed["conv_stem.weight"][0, 0, 0, 0] += 1e-3
    save_file(changed, tmp_path / "changed.safetensors")
    files = [file, tmp_path / "weights.pth", tmp_path / "changed.safetensors"]
    one, same, other = (build_extractor(f"timm:{TINY_TIMM}", str(f), CPU).weights["sha256"] for f in files)
    assert one == same != other


def test_timm_probabilities_and_size(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    extractor = build_extractor(
        "timm:test_vit@96", str(tmp_path / "model.safetensors"), CPU, {"features", "probabilities"}
    )
    with torch.no_grad():
        result = extractor.embed(torch.stack([extractor.prepare(image) for image in images]))
        model.set_input_size(img_size=(96, 96))
        config = timm.data.resolve_model_data_config(model)
        mean, std = (torch.tensor(config[key]) for key in ("mean", "std"))
        expected = model(((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)).softmax(dim=1)
    torch.testing.assert_close(result["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert extractor.resize.endswith("96×96")


@pytest.mark.parametrize("name", ["vit_large_patch14_dinov2.lvd142m", "vit_large_patch14_reg4_dinov2.lvd142m"])
def test_dinov2_resamples_its_position_embedding_as_published(name):
    """Against `grid_sample` at the centres (i + ½) / scale, with scale = 16.1 / 37: bicubic, and not blurred."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=518, patch_size=14, embed_dim=8, depth=1, num_heads=2)
        model.pos_embed.data.normal_()
    learned = model.pos_embed.detach().clone()
    set_input_size(model, name, 224)
    centres = (torch.arange(16) + 0.5) / (16.1 / 37) / 37 * 2 - 1  # in [−1, 1] from edge to edge
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)[None]  # (1, 16, 16, 2)
    image = learned[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    expected = F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)
    found = model.pos_embed[:, 1:].unflatten(1, (16, 16)).permute(0, 3, 1, 2)
    assert torch.allclose(found, expected, atol=1e-4) == ("reg4" not in name)  # with registers, timm's antialiasing
    torch.testing.assert_close(model.pos_embed[:, :1], learned[:, :1])
