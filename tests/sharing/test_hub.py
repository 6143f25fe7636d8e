"""The Hub: uploaded to and loaded from a local stand-in for its HTTP interface."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hub_stand_in import COMMIT
from safetensors.torch import load_file, save_file
from without_package import WITHOUT_PACKAGE

from sit_atconv import SiTPipeline
from sit_atconv.cli import main
from sit_atconv.convert import convert_checkpoint
from sit_atconv.convert.weights import restore_state_dict
from sit_atconv.sharing.hub import publish


@pytest.mark.slow
def test_pushed_and_loaded_from_the_hub_without_the_package(online, tiny_pipeline, tmp_path):
    """A checkpoint of the reference is converted, uploaded in three ways, and sampled by a process without us."""
    hub = online
    save_file(restore_state_dict(tiny_pipeline(mixer="hybrid").transformer), tmp_path / "reference.safetensors")
    convert_checkpoint(tmp_path / "reference.safetensors", tmp_path / "local", num_attention_heads=2)
    pipe = SiTPipeline.from_pretrained(tmp_path / "local")
    options = dict(repo_id="someone/saved", license="mit", private=True)
    pipe.save_pretrained(tmp_path / "saved", push_to_hub=True, **options)
    assert pipe.push_to_hub("pushed") == f"{hub.url}/someone/pushed/commit/{COMMIT}"
    main(["push", str(tmp_path / "local"), "someone/from-cli", "--license", "apache-2.0"])
    assert set(hub.repositories) == {"someone/saved", "someone/pushed", "someone/from-cli"}
    assert hub.private["someone/saved"] is True
    saved = hub.repositories["someone/saved"]
    files = {str(file.relative_to(tmp_path / "saved")): file for file in (tmp_path / "saved").rglob("*.*")}
    assert {name: file.read_bytes() for name, file in files.items() if file.is_file()} == saved
    assert {name for name in saved if name != "README.md"} == {
        name for name in hub.repositories["someone/pushed"] if name != "README.md"
    }
    for name, license in (("saved", "mit"), ("pushed", "unknown"), ("from-cli", "apache-2.0")):
        card = hub.repositories[f"someone/{name}"]["README.md"].decode()
        assert f'DiffusionPipeline.from_pretrained("someone/{name}", trust_remote_code=True)' in card
        assert f"license: {license}\n" in card

    script = WITHOUT_PACKAGE + textwrap.dedent("""
        import torch
        from diffusers import DiffusionPipeline
        from safetensors.torch import save_file

        pipe = DiffusionPipeline.from_pretrained("someone/from-cli", trust_remote_code=True)
        options = dict(num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0))
        save_file({"images": pipe([3], **options).images.contiguous()}, "images.safetensors")
    """)
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    expected = pipe([3], num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(load_file(tmp_path / "images.safetensors")["images"], expected)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_installed_classes_load_from_the_hub_and_run_nothing(variant, online, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    if variant:
        pipe.to(torch.float16).save_pretrained(tmp_path / "folder", variant=variant)
    publish(tmp_path / "folder", "someone/model")
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    loaded = SiTPipeline.from_pretrained("someone/model", variant=variant)
    if variant is None:  # its file is not fetched in vain, and the shell takes the same way
        out = tmp_path / "grid.png"
        main(["sample", "someone/model", "--num_inference_steps", "1", "--images_per_class", "1", "--out", str(out)])
        assert out.is_file()
    assert not [name for name in sys.modules if name.startswith("diffusers_modules")]
    assert type(loaded) is SiTPipeline
    for key, value in pipe.transformer.state_dict().items():
        torch.testing.assert_close(loaded.transformer.state_dict()[key], value.float(), rtol=0, atol=0)
    fetched = {file.name for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert fetched == {f"diffusion_pytorch_model{'.fp16' if variant else ''}.safetensors"}


def test_an_upload_replaces_the_shards_and_the_code_of_the_one_before(online, tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="5KB", push_to_hub=True, repo_id="someone/model")
    pipe.push_to_hub("someone/model", variant="fp16")
    files = online.repositories["someone/model"]
    files |= {"transformer/transformer_sit_01234567.py": b"", "notes.txt": b"", "transformer/notes.py": b""}
    pipe.save_pretrained(tmp_path / "whole", push_to_hub=True, repo_id="someone/model")
    kept = {"notes.txt", "transformer/notes.py", "transformer/diffusion_pytorch_model.fp16.safetensors"}
    whole = {str(file.relative_to(tmp_path / "whole")) for file in (tmp_path / "whole").rglob("*") if file.is_file()}
    assert set(files) == whole | kept


def test_a_refusal_of_the_hub_is_one_error(online, tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"push_to_hub: 'someone/model' cannot be written: .*401"):
        publish(tmp_path, "someone/model", token="bad")
    assert not online.repositories
    publish(tmp_path, "someone/model", token="good")
    online.shutdown()
    online.server_close()
    with pytest.raises(ValueError, match=r"push_to_hub: 'someone/model' cannot be written: .*refused"):
        publish(tmp_path, "someone/model", token="good")


def test_without_a_network_or_a_name_the_upload_is_one_error(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="push_to_hub: 'a/b' cannot be written"):  # the tests are offline
        publish(tmp_path, "a/b")
    with pytest.raises(ValueError, match="push_to_hub: 'a b' cannot be written"):
        publish(tmp_path, "a b")
    with pytest.raises(ValueError, match=r"it has no model_index\.json"):
        publish(tmp_path / "transformer", "a/b")
