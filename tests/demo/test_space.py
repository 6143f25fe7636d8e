"""A Space: what is written to the Hub, and its program where this package is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from without_package import WITHOUT_PACKAGE

from sit_atconv.cli import main
from sit_atconv.demo.space import NEEDED, app_source, space_files

# Builds the page as the Space does, and draws, without a server.
DRAW = """
import sys
sys.path.insert(0, ".")
import app
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

launched = []
app.launch = launched.append
app.serve({"model": None})
(page,) = launched
button = next(each for each in page.fns.values() if each.api_name == "draw")
drawings, image, *_ = button.fn(1, 0.5, 3, 7, 1.5, 4, "euler", 8, 8)
print(drawings[0].network_calls, image.size, type(drawings[0]).__module__)
assert "sit_atconv" not in sys.modules
"""


def test_the_oldest_versions_are_those_of_the_package():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{requirement}"' in text for requirement in NEEDED)


def test_the_files_of_a_space():
    files = space_files({"someone/digits": "fp16"})
    _, settings, text = files["README.md"].split("---\n")
    assert yaml.safe_load(settings)["sdk"] == "gradio" and yaml.safe_load(settings)["models"] == ["someone/digits"]
    assert "[someone/digits](https://huggingface.co/someone/digits)" in text
    assert files["requirements.txt"].splitlines() == list(NEEDED)
    assert files["app.py"].endswith("""serve({'someone/digits': 'fp16'})\n""")
    assert not re.search(r"^\s*(from|import) (sit_atconv|\.)", files["app.py"], flags=re.MULTILINE)


@pytest.mark.slow
def test_the_program_runs_without_this_package(tiny_pipeline, tmp_path):
    pytest.importorskip("gradio")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "app.py").write_text(app_source({"model": None}), encoding="utf-8")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", WITHOUT_PACKAGE + DRAW]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "4 (512, 512) app"


def test_push_writes_a_space(online, tiny_pipeline, tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "digits")
    main(["push", str(tmp_path / "digits"), "someone/digits", "--demo", "--private"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("spaces/someone/digits-demo")
    files = online.repositories["spaces/someone/digits-demo"]
    expected = space_files({"someone/digits": None})
    assert {name: content.decode() for name, content in files.items()} == expected
    assert online.private["spaces/someone/digits-demo"] and "app.py" not in online.repositories["someone/digits"]

    files |= {"README.md": b"edited", "app.py": files["app.py"] + b"# old"}
    main(["push", str(tmp_path / "digits"), "someone/digits", "--demo"])
    assert files["README.md"] == b"edited" and files["app.py"].decode() == expected["app.py"]


def test_an_app_of_somebody_else_stays(online, tiny_pipeline, tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "digits")
    online.repositories["spaces/someone/digits-demo"] = {"app.py": b"import mine"}
    with pytest.raises(SystemExit):
        main(["push", str(tmp_path / "digits"), "someone/digits", "--demo"])
    assert "has an app.py of its own; remove or rename it" in capsys.readouterr().err
    assert online.repositories["spaces/someone/digits-demo"] == {"app.py": b"import mine"}
