"""Model cards, and the Hub: uploaded to and loaded from a local stand-in for its HTTP interface."""

import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
import yaml
from hub_stand_in import COMMIT
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from without_package import WITHOUT_PACKAGE

from sit_atconv import SiTPipeline
from sit_atconv.cli import main
from sit_atconv.convert.folder import convert_checkpoint, restore_state_dict
from sit_atconv.sharing.hub import (
    add_report,
    add_samples,
    example_label,
    finish_folder,
    model_card,
    publish,
    write_model_card,
    write_training_config,
)
from sit_atconv.utils.files import write_report


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


def test_the_folder_of_a_training_is_complete_even_where_the_upload_fails(online, tiny_pipeline, tmp_path):
    folder, grid = tmp_path / "pipeline", tmp_path / "step.png"
    tiny_pipeline().save_pretrained(folder)
    Image.new("RGB", (4, 4)).save(grid)
    assert finish_folder(folder, {"seed": 3}, tmp_path / "none.png", None) is None
    assert finish_folder(folder, {"seed": 3}, grid, "me/run") == f"{online.url}/me/run/commit/{COMMIT}"
    card = online.repositories["me/run"]["README.md"].decode()
    assert "seed: 3" in card
    assert online.repositories["me/run"]["samples.png"] == grid.read_bytes()
    with pytest.raises(ValueError, match=r"complete; upload it with: sit-atconv push .*pipeline no one"):
        finish_folder(folder, {"seed": 4}, grid, "no one")
    assert "seed: 4" in (folder / "README.md").read_text()


def test_without_a_network_or_a_name_the_upload_is_one_error(tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="push_to_hub: 'a/b' cannot be written"):  # the tests are offline
        publish(tmp_path, "a/b")
    with pytest.raises(ValueError, match="push_to_hub: 'a b' cannot be written"):
        publish(tmp_path, "a b")
    with pytest.raises(ValueError, match=r"it has no model_index\.json"):
        publish(tmp_path / "transformer", "a/b")


def test_the_card_of_a_pipeline(tiny_pipeline, tmp_path, monkeypatch, capsys):
    """Its snippet runs; its front matter is what the Hub reads."""
    folder = tmp_path / "digits"
    pipe = tiny_pipeline()
    pipe.save_pretrained(folder, license="mit")
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {
        "library_name": "diffusers",
        "license": "mit",
        "model_name": "digits",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["sit", "atconv", "class-conditional", "diffusers:SiTPipeline"],
    }
    snippet = re.search(r"```python\n(.*?)```", card.text, flags=re.DOTALL)[1]
    snippet = snippet.replace("trust_remote_code=True)", "trust_remote_code=True); print(type(pipe).__module__)")
    monkeypatch.chdir(tmp_path)
    exec(snippet)
    assert "diffusers_modules.local.pipeline_sit_" in capsys.readouterr().out
    with Image.open(tmp_path / "sample.png") as image:
        assert image.size == (8, 8)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "crane, bird", "1": "dog"}, "crane"),
        ({"0": "crane, bird", "1": "crane, machine"}, "crane, bird"),
        ({"0": "crane", "1": "crane"}, 0),
        ({}, 0),
    ],
)
def test_the_snippet_names_a_class_that_can_be_told_apart(labels, expected):
    assert example_label(labels) == expected


def test_the_card_shows_training_metrics_and_samples(tiny_pipeline, tmp_path):
    folder = tmp_path / "digits"
    tiny_pipeline().save_pretrained(folder)
    config = {"data": str(tmp_path / "photos"), "max_steps": 7, "output_dir": "runs/x", "win": "C:\\x"}
    config |= {"hub_token": "hf_x", "more": {"places": ["file:///srv", "a", "/b"], "api_key": 1}, "url": "file:///srv"}
    write_training_config(folder, config)
    report = {"fid": 12.3456, "num_samples": 50, "reference": str(tmp_path / "real"), "extractor": "pixels"}
    write_report(tmp_path / "fid.json", report)
    add_report(folder, tmp_path / "fid.json")
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    add_samples(folder, tmp_path / "grid.png")
    write_model_card(folder)
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("fid", 12.3456, "real")
    assert "| FID | 12.35 | real | num_samples 50, extractor pixels |" in card.text
    assert "![Samples](samples.png)" in card.text
    training = re.search(r"```yaml\n(.*?)```", card.text, flags=re.DOTALL)[1]
    assert yaml.safe_load(training) == {"max_steps": 7, "output_dir": "runs/x", "more": {"places": ["a"]}}
    for file in (*folder.glob("*.json"), *folder.glob("*.yaml"), folder / "README.md"):
        assert str(tmp_path) not in file.read_text(), file.name


def test_an_edited_card_is_kept(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, license="mit")
    file = tmp_path / "README.md"
    made = file.read_text()
    pipe.save_pretrained(tmp_path)  # nobody has touched it: made anew, its licence kept
    assert file.read_text() == made
    for edited in (made.replace("## Use", "## How to use"), "mine"):
        file.write_text(edited)
        with pytest.warns(UserWarning, match="was edited and stays as it is: neither the licence"):
            pipe.save_pretrained(tmp_path, license="apache-2.0")
        assert file.read_text() == edited


@pytest.mark.parametrize("content", ["hello", "[1]", '{"loss": 0.5}', '{"fid": "low"}'])
def test_a_report_without_metrics_is_refused(content, tiny_pipeline, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "folder")
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match="report="):
        add_report(tmp_path / "folder", tmp_path / "report.json")
    with pytest.raises(ValueError, match="is no picture"):
        add_samples(tmp_path / "folder", tmp_path / "report.json")


def test_the_snippet_names_the_variant_where_there_is_no_other(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert 'variant="fp16")' in model_card(tmp_path, "x")
    pipe.save_pretrained(tmp_path)
    assert "variant" not in model_card(tmp_path, "x").split("## Model")[0]
