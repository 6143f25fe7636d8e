import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.cli import build_parser, main


@pytest.fixture
def folder(tmp_path):
    transformer = SiTTransformer2DModel.from_preset(
        "SiT-ATConv-Nano/2", sample_size=8, in_channels=1, num_classes=3, num_layers=1
    )
    pipeline = SiTPipeline(transformer, InterpolantODEScheduler(), id2label={0: "cat", 1: "dog", 2: "owl"})
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.mark.parametrize("arguments", [["sample", "pipeline", "--out"], ["convert", "model.pt"]])
def test_existing_outputs_are_refused_before_anything_slow_is_imported(arguments, tmp_path):
    (tmp_path / "there.png").write_bytes(b"mine")
    code = (
        "import sys; from sit_atconv.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'diffusers') if name in sys.modules])"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in (str(tmp_path / "there.png"), "~/there.png"):
        command = [sys.executable, "-c", code, *arguments, name]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (result.returncode, result.stdout) == (2, "[]\n")
        remedy = (
            "choose another name, or add --overwrite"
            if arguments[0] == "sample"
            else "choose another name or remove it"
        )
        assert result.stderr.endswith(f"'{tmp_path / 'there.png'}' already exists; {remedy}\n")


def test_a_full_disk_ends_with_one_line_and_leaves_no_picture(folder, tmp_path, capsys, monkeypatch):
    def full(self, file, *args, **kwargs):
        Path(file).write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(folder), "--num_inference_steps", "1", "--out", str(tmp_path / "grid.png")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sit-atconv: error: [Errno 28] No space left on device")
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_folder_says_cannot_steer_the_terminal(folder, capsys):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace('"midpoint"', '"mid\\u001b[2Jpoint\\nclasses  9"'))
    main(["info", str(folder)])
    output = capsys.readouterr().out
    assert "solver mid\\x1b[2Jpoint\\nclasses  9\n" in output and "\x1b" not in output
    with pytest.raises(SystemExit):
        main(["info", str(folder / "no\x1b[2J")])
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "info", "convert", "push"])
def test_help_fits_a_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80


def test_info_says_what_the_folder_holds(folder, capsys):
    main(["info", str(folder)])
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    transformer = SiTTransformer2DModel.from_pretrained(folder / "transformer")
    assert facts["parameters"] == f"{sum(p.numel() for p in transformer.parameters()) / 1e6:.2f} M"
    assert facts["blocks"] == "1 × atconv, width 96, 4 heads, patch 2"
    assert facts["images"] == "8 × 8 pixels; the network sees 1 × 8 × 8"
    assert facts["classes"] == "3, and a null class; 3 names"
    assert facts["scheduler"] == "InterpolantODEScheduler: path linear, prediction velocity, solver midpoint"
    assert facts["code"] == "as it was saved"
    code = next((folder / "transformer").glob("*.py"))
    code.write_text(code.read_text() + "# mine\n")
    main(["info", str(folder)])
    assert f"edited: transformer/{code.name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["info", "sample", "push"])
def test_what_is_no_pipeline_folder_is_named(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([command, str(tmp_path), *(["someone/model"] if command == "push" else [])])
    assert "is not a pipeline folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "push", "convert"])
def test_a_folder_of_another_pipeline_is_named(command, folder, tmp_path, capsys):
    file = folder / "model_index.json"
    file.write_text(re.sub('"SiTPipeline"', '"DiTPipeline"', file.read_text()))
    more = {"info": [], "push": ["someone/model"], "convert": [str(tmp_path / "out.pt")]}[command]
    with pytest.raises(SystemExit):
        main([command, str(folder), *more])
    assert "not a folder of a SiTPipeline, but of DiTPipeline" in capsys.readouterr().err


@pytest.mark.slow
def test_folders_with_one_variant_alone(folder, tmp_path, capsys):
    pipeline = SiTPipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "both", variant="fp16")
    for name in ("both", "pipeline"):
        (tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    out = tmp_path / "grid.png"
    main(["sample", str(tmp_path / "both"), "--num_inference_steps", "1", "--images_per_class", "1", "--out", str(out)])
    main(["convert", str(tmp_path / "both"), str(tmp_path / "out.pt")])
    assert out.is_file()
    assert (tmp_path / "out.pt").is_file()
    pipeline.save_pretrained(tmp_path / "both", variant="bf16")
    main(["info", str(tmp_path / "both")])
    assert "variants        bf16, fp16\n" in capsys.readouterr().out


def test_convert_both_ways(folder, tmp_path, capsys):
    main(["convert", str(folder), str(tmp_path / "model.safetensors")])
    main(["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "copy"), "--vae", "none"])
    output = capsys.readouterr().out
    assert "classes         3, and a null class" in output
    assert "mixers          1 × atconv" in output
    original = SiTTransformer2DModel.from_pretrained(folder / "transformer").state_dict()
    copy = SiTTransformer2DModel.from_pretrained(tmp_path / "copy" / "transformer").state_dict()
    assert all(original[name].equal(copy[name]) for name in original)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.pt", "out"], "checkpoint='nothing.pt' does not exist; correct the path"),
        (["{folder}", "out.zip"], "ending of output='.zip'"),
        (["{folder}", "out.pt", "--layout", "repa"], "layout: only apply when converting to a folder"),
    ],
)
def test_mistakes_in_converting_end_with_one_line(arguments, expected, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *(argument.format(folder=folder) for argument in arguments)])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_info_verifies_the_weights(folder, capsys):
    main(["info", str(folder), "--verify"])
    assert re.search(r"^weights +1 file as saved$", capsys.readouterr().out, flags=re.MULTILINE)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    copy = file.with_name("diffusion_pytorch_model.fp16.safetensors")
    copy.write_bytes(file.read_bytes())
    main(["info", str(folder), "--verify"])
    assert "1 file as saved; 1 without a stored SHA-256" in capsys.readouterr().out
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for command in (["info", str(folder), "--verify"], ["sample", str(folder), "--out", str(folder.parent / "a.png")]):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch(r"sit-atconv: error: .* has another SHA-256; .*", last)
    main(["info", str(folder)])
    (folder / "transformer" / "weights.json").unlink()
    main(["info", str(folder), "--verify"])
    assert "0 files as saved; 2 without a stored SHA-256" in capsys.readouterr().out


DEEP = '{"a": ' * 100_000 + "1" + "}" * 100_000
DAMAGE = [
    ("model_index.json", "{"),
    ("model_index.json", "[]"),
    ("model_index.json", DEEP),
    ("transformer/config.json", DEEP),
    ("transformer/config.json", "3"),
    ("transformer/config.json", "{}"),
    ("transformer/config.json", '{"num_layers": "two", "mixer": 3}'),
    ("transformer/diffusion_pytorch_model.safetensors", "text"),
    ("transformer/weights.json", DEEP),
    ("scheduler/scheduler_config.json", "[" * 5000),
]


@pytest.mark.parametrize(("name", "content"), DAMAGE)
@pytest.mark.parametrize("command", ["sample", "info", "convert"])
def test_damaged_folders_end_with_one_line(command, name, content, folder, tmp_path, capsys):
    (folder / name).write_text(content)
    out = {"sample": ["--out", str(tmp_path / "a.png")], "info": ["--verify"], "convert": [str(tmp_path / "a.pt")]}
    with pytest.raises(SystemExit) as stopped:
        main([command, str(folder), *out[command]])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sit-atconv: error: ")
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("command", ["sample", "info"])
@pytest.mark.parametrize("name", ["no/such/folder/at/all", "/no/such", "./none", "~/none", "none"])
def test_mistyped_paths_end_with_one_line(command, name, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, name, *(["--out", str(tmp_path / "a.png")] if command == "sample" else [])])
    assert stopped.value.code == 2
    expected = "is no folder here; correct the path" if command == "sample" else "does not exist; name a pipeline"
    assert expected in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "options",
    [
        ["--guidance_scale", "nan"],
        ["--guidance_scale", "inf"],
        ["--seed", "-1"],
        ["--images_per_class", "-3"],
        ["--classes", "9" * 5000],
    ],
)
def test_options_that_no_sampling_can_use_end_with_one_line(options, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(folder), "--out", str(tmp_path / "a.png"), "--num_inference_steps", "1", *options])
    assert stopped.value.code == 2
    assert "sit-atconv: error: " in capsys.readouterr().err
