"""What a folder from somebody else may do to the installed classes: name a class that is known, and nothing more."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.utils import dynamic_modules_utils
from safetensors.torch import load_file

from sit_atconv import SiTPipeline
from sit_atconv.models.vae import load_vae


@pytest.fixture(scope="module")
def saved(tiny_pipeline, vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline(vae=AutoencoderKL.from_pretrained(vae), in_channels=4).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A pipeline folder of its own for each test."""
    return shutil.copytree(saved, tmp_path / "folder")


def edit(folder, **entries) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("name", ["vae", "transformer", "scheduler", "unknown"])
@pytest.mark.parametrize(
    "entry",
    [
        ["evil", "Evil"],
        ["diffusers_modules.local.evil", "Evil"],
        ["diffusers", "StableDiffusionPipeline"],  # a whole pipeline inside of this one, with rules of its own
        ["diffusers", "DiffusionPipeline"],
        ["diffusers", "logging"],
        ["diffusers", "NoSuchClass"],
        ["diffusers.pipelines", "DiffusionPipeline"],
        ["stable_diffusion", "StableDiffusionSafetyChecker"],
        ["transformers", "pipeline"],
        ["sit_atconv.convert.folder", "Path"],
        ["transformer_sit", "MLP"],
        ["os", "system"],
        [None, "Evil"],
        ["evil", None],
        ["evil"],
        [],
        ["evil", "Evil", "Evil"],
    ],
    ids=str,
)
def test_foreign_classes_are_refused(entry, name, folder, tmp_path):
    (folder / name).mkdir(exist_ok=True)
    for file in (folder / "evil.py", folder / name / "evil.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit(folder, **{name: entry})
    with pytest.raises(ValueError, match=f"{name} is .* no model or scheduler of sit-atconv, diffusers or"):
        SiTPipeline.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


def test_an_absent_vae_passes(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    edit(tmp_path, vae=[None, None])
    assert SiTPipeline.from_pretrained(tmp_path).vae is None


def test_loading_leaves_the_cache_of_modules_alone(folder, monkeypatch):
    """So that processes that load one folder at the same time cannot meet in it."""
    for name in ("get_cached_module_file", "init_hf_modules", "create_dynamic_module"):
        monkeypatch.setattr(dynamic_modules_utils, name, lambda *_, **__: pytest.fail("the cache was used"))
    SiTPipeline.from_pretrained(folder)


def as_pickle(folder) -> None:
    """Store the weights of a model in a .bin file."""
    file = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), folder / "diffusion_pytorch_model.bin")
    file.unlink()


@pytest.mark.parametrize("component", ["vae", "transformer"])
def test_pickles_in_a_pipeline_folder_are_not_read(component, folder, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(ValueError, match="use_safetensors=False would read pickles"):
        SiTPipeline.from_pretrained(folder, use_safetensors=False)
    as_pickle(folder / component)
    with pytest.raises(OSError, match="safetensors"):
        SiTPipeline.from_pretrained(folder)
    index = {"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model.bin"}}
    (folder / component / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the file 'diffusion_pytorch_model\.bin'"):
        SiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize("whole", [True, False])
def test_pickles_of_a_vae_are_not_read(whole, folder, monkeypatch):
    as_pickle(folder / "vae")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    name = str(folder if whole else folder / "vae")
    with pytest.raises(ValueError, match=r"has no safetensors, and its \.bin files are pickles"):
        load_vae(name)
    index = {"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model.bin"}}
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the file 'diffusion_pytorch_model\.bin'"):
        load_vae(name)


@pytest.mark.parametrize(
    ("field", "value"), [("layers_per_block", 10**6), ("block_out_channels", [10**7, 4]), ("latent_channels", 10**9)]
)
def test_absurd_sizes_of_a_vae_are_refused(field, value, folder):
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    for load in (lambda: SiTPipeline.from_pretrained(folder), lambda: load_vae(str(folder))):
        with pytest.raises(ValueError, match=f"{field}=.* of the VAE is beyond"):
            load()
