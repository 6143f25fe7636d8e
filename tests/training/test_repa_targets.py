"""Features of an encoder beside precomputed latents: what is stored, how it is encoded, and what is refused."""

import json
import shutil

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from latents_stand_in import IMAGES, contents, options
from safetensors.torch import save_file

from sit_atconv.data import TrainingView, open_dataset
from sit_atconv.data.streams import Stream, draw
from sit_atconv.training import encode
from sit_atconv.training.repa import TargetEncoder, Targets
from sit_atconv.training.repa_targets import HalfPrecisionError, check_stored_targets, encode_targets

VIT = "test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Each encoding starts as in a new process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of a small vision transformer."""
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(timm.create_model(VIT, num_classes=0).state_dict(), file)
    return file


def with_targets(weights, **others) -> dict:
    return dict(targets=f"timm:{VIT}", targets_weights=str(weights)) | others


@pytest.fixture(scope="module")
def cache(photos, vae, weights, tmp_path_factory):
    """The latents of the photos with the features of that transformer, for tokens of 2 × 2 latents."""
    folder = tmp_path_factory.mktemp("targets") / "cache"
    AcceleratorState._reset_state(reset_partial_state=True)
    encode.encode_latents(**options(photos, vae, folder, **with_targets(weights)))
    return folder


def test_features_are_those_of_the_image_as_its_latents_see_it(cache, photos, weights, latents):
    images, cached, plain = open_dataset(photos, 16), open_dataset(cache), open_dataset(latents)
    encoder = TargetEncoder(VIT, str(weights), (4, 4), "cpu")
    view = TrainingView(cached, 0, True, (4, 8, 8), posterior=True, target_samples=9)
    flips = set()
    for position in range(9):
        item = view[position, position]
        noise = draw(0, Stream.POSTERIOR, position, (4, 8, 8))
        [flip] = [
            each for each in (False, True) if torch.equal(item["targets"], cached.target_features(position, each))
        ]
        flips.add(flip)
        expected = encoder(images.tensor(position, flip)[None])
        stored = Targets(None)({"targets": item["targets"][None]})
        torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-3)  # half precision
        assert torch.equal(item["x"], plain.latents(position, flip, noise))
    assert flips == {False, True}
    assert "targets" not in view[9, 9]


def test_an_interrupted_encoding_goes_on_with_its_encoder(cache, photos, vae, weights, tmp_path, monkeypatch):
    original, calls = encode.encode_batch, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    arguments = options(photos, vae, tmp_path / "cache", **with_targets(weights))
    with monkeypatch.context() as patched:
        patched.setattr(encode, "encode_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode.encode_latents(**arguments)
    for others, named in (
        (dict(targets=None, targets_weights="pretrained"), "targets: "),
        ({"targets_patch_size": 4}, "grid"),
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(ValueError, match=rf"holds other latents: .*{named}"):
            encode.encode_latents(**arguments | others)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert encode.encode_latents(**arguments)["num_images"] == IMAGES
    assert contents(tmp_path / "cache") == contents(cache)


def test_a_cache_of_other_features_is_refused(cache, latents, weights, tmp_path):
    dataset, file = open_dataset(cache), str(weights)
    assert check_stored_targets(dataset, VIT, file, (4, 4))["features"] == 64
    shutil.copy(file, tmp_path / "moved.safetensors")
    check_stored_targets(dataset, VIT, str(tmp_path / "moved.safetensors"), (4, 4))
    save_file({"other": torch.ones(3)}, tmp_path / "other.safetensors")
    for arguments, message in (
        (("test_vit2.r160_in1k", file, (4, 4)), f"holds features of '{VIT}'; give --repa {VIT}, or encode the images"),
        ((VIT, "pretrained", (4, 4)), r"repa_weights='pretrained' .*other weights, 'sha256:[0-9a-f]{64}'"),
        (
            (VIT, str(tmp_path / "other.safetensors"), (4, 4)),
            r"repa_weights=.*\(sha256:[0-9a-f]{64}\): .*other weights",
        ),
        ((VIT, "nowhere.safetensors", (4, 4)), "repa_weights='nowhere.safetensors' is neither a file"),
        ((VIT, file, (8, 8)), "features of 4×4 tokens, but the model has 8×8; .*--targets_patch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            check_stored_targets(dataset, *arguments)
    with pytest.raises(ValueError, match=rf"encode the images with --targets timm:{VIT}.*holds precomputed latents"):
        check_stored_targets(open_dataset(latents), VIT, file, (4, 4))
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["targets"]["grid"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json, targets is damaged: grid"):
        open_dataset(copy)


def test_features_beyond_half_precision_are_refused(weights):
    encoder = TargetEncoder(VIT, str(weights), (4, 4), "cpu")
    torch.nn.init.constant_(encoder.model.norm.bias, 1e5)
    with pytest.raises(HalfPrecisionError, match=r"features of up to 1e\+05 cannot be stored in half precision"):
        encode_targets(encoder, torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(targets=VIT), f"targets='{VIT}' must be timm:NAME"),
        (dict(targets="timm:vit_of_nobody"), "targets='timm:vit_of_nobody': timm has no model"),
        (dict(targets=f"timm:{VIT}", targets_weights="nowhere.pt"), "targets_weights='nowhere.pt' is neither a file"),
        (dict(targets_weights="random"), "targets_weights='random' are those of an encoder"),
        (dict(targets_patch_size=4), "targets_patch_size=4 is for stored features; also give --targets"),
        (dict(targets=f"timm:{VIT}", targets_patch_size=0), "targets_patch_size=0 must be"),
        (
            dict(targets=f"timm:{VIT}", targets_weights="random", targets_patch_size=3),
            "targets_patch_size=3 must divide 8",
        ),
    ],
)
def test_options_that_cannot_be_used(options, message, photos, vae, tmp_path):
    arguments = dict(data=str(photos), vae=str(vae), output_dir=str(tmp_path / "cache"), image_size=16, num_workers=0)
    with pytest.raises(ValueError, match=message):
        encode.encode_latents(**arguments | options)
    assert not (tmp_path / "cache").exists()
