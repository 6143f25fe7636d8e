"""Statistics of each channel of encoded latents: how they are added up, and what normalizes by them."""

import json

import pytest
import torch
from latents_stand_in import contents, options

from sit_atconv.data import open_dataset
from sit_atconv.data.latent_statistics import channel_statistics, file_moments, shard_moments
from sit_atconv.models.latent_scaling import latent_statistics
from sit_atconv.models.vae import load_vae
from sit_atconv.training import encode


def test_shards_add_up_to_the_statistics_of_all_samples():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(7, 3, 4, 4, generator=generator) * 2 + 100
    std = torch.rand(7, 3, 4, 4, generator=generator)
    shards = [{"mean": mean[a:b], "std": std[a:b]} for a, b in ((0, 1), (1, 5), (5, 7))]
    found = channel_statistics([shard_moments({}), *map(shard_moments, shards)])
    expected = mean.double().transpose(0, 1).flatten(1).mean(1)
    variance = ((mean.double() - expected[:, None, None]) ** 2 + std.double() ** 2).mean((0, 2, 3))
    torch.testing.assert_close(torch.tensor(found["mean"]).double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(found["std"]).double(), variance.sqrt(), rtol=1e-6, atol=0)


def test_latents_can_be_normalized_by_their_own_statistics(photos, vae, tmp_path):
    folder = tmp_path / "cache"
    arguments = options(photos, vae, folder, statistics="channels", flip=False)
    manifest = encode.encode_latents(**arguments)
    assert [name for name in (path.name for path in folder.iterdir()) if name[0] != "."]
    data = open_dataset(folder)
    noise = torch.randn(len(data), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = torch.stack([data.latents(i, False, noise[i]) for i in range(len(data))]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(seen.mean(1), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(seen.std(1), torch.ones(4), rtol=0, atol=0.1)
    assert not data.notes

    own = load_vae(str(folder))  # the VAE with these statistics, which the manifest records
    assert own.config.latents_std == manifest["statistics"]["std"]
    assert latent_statistics(own) == latent_statistics(manifest["vae"])
    data.check_training(own, horizontal_flip=False)
    with pytest.raises(ValueError, match=rf"latents_mean: .* -> None; .*give --vae {folder}"):
        data.check_training(load_vae(str(vae)), horizontal_flip=False)
    before = {name: data for name, data in contents_of_files(folder).items() if name != "weights.json"}
    assert encode.encode_latents(**arguments) is None  # complete
    assert {name: data for name, data in contents_of_files(folder).items() if name != "weights.json"} == before
    with pytest.raises(ValueError, match=r"holds other latents: .*scaling_factor: 1\.0 -> 0\.18215"):
        encode.encode_latents(**options(photos, vae, folder, flip=False))


def contents_of_files(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_statistics_of_shards_that_an_earlier_version_wrote(latents):
    recorded = json.loads((latents / "manifest.json").read_text())["statistics"]
    files = [file for name in contents(latents) if (file := latents / name).suffix == ".safetensors"]
    assert channel_statistics(map(file_moments, files)) == recorded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(scaling_factor=None), "neither a scaling_factor nor latents_mean"),
        (dict(latents_mean=[0.0] * 4, latents_std=[1.0, 1.0, -1.0, 1.0]), "latents_std .* above 0"),
        (dict(latents_mean=[0.0] * 3, latents_std=[1.0] * 3), "one for each of 4 channels"),
    ],
)
def test_manifests_with_wrong_statistics(latents, tmp_path, change, message):
    manifest = json.loads((latents / "manifest.json").read_text())
    manifest["vae"] |= change
    manifest["shards"] = []
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged: .*{message}"):
        open_dataset(f"latents:{tmp_path}")


def test_latents_on_an_unusual_scale_are_noted(latents):
    note = " ".join(open_dataset(latents).notes)
    assert "where 1 and 0 train best; encode with --statistics channels" in note  # this VAE is untrained
