"""Model cards: what they show, and that an edited one is kept."""

import os
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from sit_atconv.sharing.card import (
    LINEAGE_FILE,
    add_report,
    add_samples,
    example_label,
    model_card,
    write_lineage,
    write_model_card,
    write_training_config,
)
from sit_atconv.utils.files import write_report


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


@pytest.mark.slow
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
    with pytest.raises(ValueError, match="is not a picture"):
        add_samples(tmp_path / "folder", tmp_path / "report.json")


@pytest.mark.parametrize("kind", ["postscript", "pipe", "damaged"])
def test_what_is_no_picture_is_neither_opened_nor_waited_for(kind, tmp_path):
    """A browser could not show PostScript, and Pillow would take it, whatever the name of the file."""
    picture = tmp_path / "grid.png"
    if kind == "pipe":
        os.mkfifo(picture)
    else:
        content = {
            "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n",
            "damaged": b"\x89PNG",
        }
        picture.write_bytes(content[kind])
    with pytest.raises(ValueError, match=r"samples=.*grid\.png' is not a picture, PNG or JPEG or WEBP"):
        add_samples(tmp_path, picture)
    assert not (tmp_path / "samples.png").exists()


def test_the_snippet_names_the_variant_where_there_is_no_other(tiny_pipeline, tmp_path):
    pipe = tiny_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert 'variant="fp16")' in model_card(tmp_path, "x")
    pipe.save_pretrained(tmp_path)
    assert "variant" not in model_card(tmp_path, "x").split("## Model")[0]


def test_the_card_shows_text_from_elsewhere_as_it_is(tiny_pipeline, tmp_path):
    folder = tmp_path / "digits"
    tiny_pipeline().save_pretrained(folder)
    write_report(tmp_path / "fid.json", {"fid": 1.5, "reference": "<b>|a", "extractor": "![x](http://y)\x1b"})
    add_report(folder, tmp_path / "fid.json")
    write_training_config(folder, {"model": "```\n<script>\n"})
    text = model_card(folder, "someone/<i>")
    body = text.partition("\n---\n")[2]
    assert "# &lt;i&gt;\n" in body
    assert r"| FID | 1.5 | &lt;b&gt;\|a | extractor ![x\](http://y)\\x1b |" in body
    assert "````yaml\n" in body and body.rstrip().endswith("\n````")
    assert "\x1b" not in text


def test_the_card_of_a_training_bears_the_name_of_the_run_and_the_mixer(tiny_pipeline, tmp_path):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    write_training_config(folder, {"output_dir": "runs/photos-hybrid"})
    tiny_pipeline(mixer="hybrid").save_pretrained(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "model_name: photos-hybrid" in text and "# photos-hybrid\n" in text
    assert "SiT with ATConv and self-attention, for diffusers" in text
    models = (
        (dict(mixer="atconv"), "ATConv"),
        (dict(mixer="attention"), "self-attention"),
        (dict(mixer="atconv", num_layers=3, middle_layers=1), "ATConv in an hourglass"),
    )
    for i, (arguments, words) in enumerate(models):
        tiny_pipeline(**arguments).save_pretrained(tmp_path / str(i))
        assert f"SiT with {words}, for diffusers" in (tmp_path / str(i) / "README.md").read_text(encoding="utf-8")


def test_what_a_model_was_made_of(tiny_pipeline, tmp_path):
    """A teacher that is also the origin is hashed once, and a strange record is text, or nothing."""
    folder = tmp_path / "digits"
    tiny_pipeline().save_pretrained(folder)
    origin = {"name": "sa\n# heading", "sha256": {"weights.safetensors": "abc"}}
    write_lineage(folder, {"init_from": origin, "teacher": origin, "replaced_blocks": [0, 2]})
    card = model_card(folder, "digits")
    assert "self-attention is replaced in blocks 0, 2, from 0" in card and card.count("abc") == 1
    assert not re.search("^# heading", card, flags=re.MULTILINE)
    write_lineage(folder, {"init_from": origin})
    assert "Fine-tuned from " in model_card(folder, "digits")
    write_lineage(folder, {"init_from": 3, "teacher": {"sha256": [1]}})
    assert "a teacher, None." in model_card(folder, "digits")
    (folder / LINEAGE_FILE).unlink()
    assert "teacher" not in model_card(folder, "digits")
