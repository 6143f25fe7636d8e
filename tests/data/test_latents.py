"""Precomputed latents: what a folder holds, and what training sees of it."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny
from latents_stand_in import IMAGES, contents, options
from safetensors.torch import load_file

from sit_atconv.data import LatentsDataset, TrainingView, open_dataset
from sit_atconv.data.latent_shards import published_shards
from sit_atconv.models.vae import encode as vae_encode
from sit_atconv.models.vae import load_vae
from sit_atconv.training import encode
from sit_atconv.utils.hashing import tensors_sha256


def test_folder_holds_the_posterior_of_every_image(latents, photos, vae):
    assert list(contents(latents)) == [
        "manifest.json",
        *(f"shard-{i:05d}.safetensors" for i in range(6)),
    ]
    shards = [load_file(file) for file in sorted(latents.glob("*.safetensors"))]
    assert [len(shard["label"]) for shard in shards] == [4, 4, 4, 4, 4, 2]
    merged = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    images, model = open_dataset(photos, 16), load_vae(str(vae))
    assert merged["index"].tolist() == list(range(IMAGES))
    assert merged["label"].tolist() == images.labels.tolist()
    for suffix, flip in (("", False), ("_flipped", True)):
        posterior = model.encode(torch.stack([images.tensor(i, flip) for i in range(IMAGES)])).latent_dist
        torch.testing.assert_close(merged[f"mean{suffix}"], posterior.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged[f"std{suffix}"], posterior.std, rtol=1e-4, atol=1e-5)

    manifest = json.loads((latents / "manifest.json").read_text())
    assert manifest["vae"] == {
        "name": str(vae),
        "class": "AutoencoderKL",
        "sha256": tensors_sha256(model.state_dict()),
        "scaling_factor": 0.18215,
        "shift_factor": 0.1,
        "latents_mean": None,
        "latents_std": None,
    }
    assert manifest["latents"] == {"shape": [4, 8, 8], "dtype": "float32", "std": True, "flip": True}
    assert (manifest["num_images"], manifest["image_size"], manifest["classes"]) == (IMAGES, 16, ["cat", "dog"])
    assert (manifest["source"], manifest["source_fingerprint"]) == (str(photos), images.fingerprint())
    for shard in manifest["shards"]:
        file = latents / shard["file"]
        data = file.read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_training_sees_what_it_would_see_from_images(latents, photos, vae):
    cached, images, model = open_dataset(latents), open_dataset(photos, 16), load_vae(str(vae))
    assert isinstance(cached, LatentsDataset)
    assert (cached.name, cached.classes, cached.image_size, cached.channels) == ("photos", ["cat", "dog"], 16, 3)
    views = [TrainingView(data, 0, True, (4, 8, 8), posterior=True) for data in (cached, images)]
    flipped = 0
    for index in range(IMAGES):
        for position in (index, index + 1000):
            seen, expected = (view[index, position] for view in views)
            x = vae_encode(model, expected["x"][None], expected["posterior"][None])[0]
            torch.testing.assert_close(seen["x"], x, rtol=1e-4, atol=1e-5)
            for name in ("noise", "time", "dropout", "label"):
                assert torch.equal(torch.as_tensor(seen[name]), torch.as_tensor(expected[name]))
            flipped += not torch.equal(expected["x"], images.tensor(index))
    assert 10 < flipped < 34
    first, second = (views[0][3, position]["x"] for position in (3, 4))
    assert not torch.isclose(first, second).all()  # each epoch draws anew


def test_half_precision_and_tiny_autoencoders(photos, vae, latents, tmp_path):
    encode.encode_latents(**options(photos, vae, tmp_path / "half", dtype="float16", flip=False))
    half, full = open_dataset(tmp_path / "half"), open_dataset(latents)
    noise = torch.zeros(4, 8, 8)
    assert half.latents(5, False, noise).dtype == torch.float32
    torch.testing.assert_close(half.latents(5, False, noise), full.latents(5, False, noise), rtol=2e-3, atol=2e-3)
    assert (tmp_path / "half" / "shard-00000.safetensors").stat().st_size < 0.3 * (
        latents / "shard-00000.safetensors"
    ).stat().st_size

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")
    encode.encode_latents(**options(photos, tmp_path / "tiny", tmp_path / "tinys"))
    arguments = options(photos, tmp_path / "tiny", tmp_path / "half-tinys", dtype="float16")
    encode.encode_latents(**arguments)
    assert open_dataset(tmp_path / "half-tinys").latents(5, True, noise).dtype == torch.float32
    tiny, model = open_dataset(tmp_path / "tinys"), load_vae(str(tmp_path / "tiny"))
    expected = vae_encode(model, open_dataset(photos, 16).tensor(5, flip=True)[None])[0]
    torch.testing.assert_close(tiny.latents(5, True, noise), expected, rtol=1e-4, atol=1e-5)


def test_fingerprint_is_that_of_the_shards(latents, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    assert open_dataset(copy).fingerprint() == open_dataset(latents).fingerprint()
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][3]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(copy).fingerprint() != open_dataset(latents).fingerprint()


def test_evaluation_names_the_images_of_latents(latents, photos):
    dataset = open_dataset(latents)
    assert dataset.reference == str(photos)
    with pytest.raises(ValueError, match="no images; give the images that they were made of"):
        dataset.image(0)


@pytest.mark.parametrize(
    "name",
    ["../shard-00000.safetensors", "/etc/hostname", "inner/shard-00000.safetensors", "shard-0.safetensors\n", "", "."],
)
def test_shards_outside_of_their_folder_are_refused(latents, tmp_path, name):
    shutil.copytree(latents, tmp_path / "copy")
    shutil.copy(latents / "shard-00000.safetensors", tmp_path)
    manifest = json.loads((latents / "manifest.json").read_text())
    manifest["shards"][0]["file"] = name
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json names the shard .* lie in the folder itself"):
        open_dataset(tmp_path / "copy")


def test_shards_that_are_links_or_pipes_are_refused(latents, tmp_path):
    shutil.copytree(latents, tmp_path / "copy")
    file = tmp_path / "copy" / "shard-00000.safetensors"
    file.unlink()
    file.symlink_to(latents / "shard-00000.safetensors")
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is a link; replace it"):
        open_dataset(tmp_path / "copy")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"shard-00000\.safetensors is missing"):
        open_dataset(tmp_path / "copy")


@pytest.mark.parametrize(
    "change", [{"shards": 5}, {"classes": [1]}, {"latents": {}}, {"vae": None}, {"image_size": "a"}]
)
def test_damaged_manifests_are_named(latents, tmp_path, change):
    shutil.copytree(latents, tmp_path / "copy")
    file = tmp_path / "copy" / "manifest.json"
    manifest = json.loads(file.read_text()) | change
    file.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json.* is damaged: .*; copy the folder again"):
        open_dataset(f"latents:{tmp_path / 'copy'}")
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"no readable manifest\.json: .* deep"):
        open_dataset(f"latents:{tmp_path / 'copy'}")


def test_labels_that_are_not_those_of_the_manifest(latents, tmp_path):
    shutil.copytree(latents, tmp_path / "copy")
    file = tmp_path / "copy" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"classes": ["cat"]}))
    with pytest.raises(
        ValueError, match=r"the labels in shard-0000\d\.safetensors are not those of [0-9]+ images of 1 classes"
    ):
        open_dataset(tmp_path / "copy")


def test_latents_are_not_written_through_links(photos, vae, tmp_path):
    (tmp_path / "victim").write_text("mine")
    folder = tmp_path / "latents"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="is a link, and nothing is written through links"):
        encode.encode_latents(**options(photos, vae, folder))
    (folder / ".lock").unlink()
    (folder / f".staging-{os.getpid()}-encoding.json").symlink_to(tmp_path / "victim")
    encode.encode_latents(**options(photos, vae, folder))
    assert (tmp_path / "victim").read_text() == "mine"
    assert not any(file.is_symlink() for file in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b"{}", b'{"file": 1}'])
def test_damaged_records_of_shards_are_named(tmp_path, content):
    settings = {"source_images": 2, "shard_size": 2}
    record = tmp_path / "shard-00000.json"
    (tmp_path / "shard-00000.safetensors").write_bytes(b"")
    record.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{record} .*; remove it, so that its shard is encoded again$"):
        published_shards(tmp_path, settings)
