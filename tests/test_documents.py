"""The documents: what they show is what their commands print, and links lead somewhere."""

import ast
import importlib.util
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    """GitHub's names of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_output_of_a_command_takes_its_place():
    figures = load("update_figures")
    text = "a\n<!-- output of: echo 1; echo 2 -->\nold\n<!-- end -->\nb\n"
    text += "<!-- output of: cat runs/none -->\nkept\n<!-- end -->\n"
    new, left_out = figures.updated(text)
    assert new == text.replace("old\n", "```text\n1\n2\n```\n") and left_out == ["cat runs/none"]
    assert figures.updated(new)[0] == new
    table = figures.updated("<!-- output of: echo '| a |' -->\n<!-- end -->")[0]
    assert table == "<!-- output of: echo '| a |' -->\n| a |\n<!-- end -->"
    with pytest.raises(subprocess.CalledProcessError):
        figures.updated("<!-- output of: false -->\n<!-- end -->")


@pytest.mark.slow
def test_documents_show_what_their_commands_print():
    result = subprocess.run(
        [sys.executable, "docs/update_figures.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_commands_are_found_in_documents():
    blocks = load("run_commands").blocks
    text = "```bash\npython -m venv v && . v/bin/activate &&\n  pip install -e . &&\n  a &&\n  b\n```\n"
    assert blocks(text) == [("a && b", ["the installation"])]
    text = "x\n```bash\n# why\na \\\n  --b\nsit-atconv demo FOLDER\n```\n```python\nno\n```\n"
    text += "```bash\ncat <<'END'\nc\nEND\n```\n"
    assert blocks("```bash\nv &&\n  pip install -e . &&\n  pytest\n```\n") == [("", ["the installation"])]
    assert blocks(text) == [("# why\na  --b", ["sit-atconv demo FOLDER"]), ("cat <<'END'\nc\nEND", [])]


@pytest.mark.slow
def test_the_python_of_the_readme_runs_without_a_warning(tiny_pipeline, tmp_path, monkeypatch, recwarn):
    """Block after block as a reader would paste it, with an untrained model of the digits in place of a trained one."""
    pipe = tiny_pipeline(in_channels=1, num_classes=10)
    pipe.register_to_config(id2label={str(i): str(i) for i in range(10)})
    pipe.save_pretrained(tmp_path / "runs" / "digits-atconv" / "pipeline")
    monkeypatch.chdir(tmp_path)
    complaints = []
    monkeypatch.setattr(logging.Logger, "warning", lambda logger, *arguments: complaints.append(arguments))
    space: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE):
        for statement in ast.parse(block).body:
            exec(compile(ast.Module([statement], []), "README.md", "exec"), space)
            if ast.unparse(statement).startswith("pipe.scheduler ="):  # every solver that it names also draws
                assert len(space["pipe"](["3", "7"], num_inference_steps=4).images) == 2
    assert len(space["images"]) == 2 and space["model"].num_classes == 10
    assert complaints == [] and [str(warning.message) for warning in recwarn] == []


def test_a_block_is_run_and_interrupted_in_time(tmp_path):
    run = load("run_commands").run
    assert run("echo a > b\nfalse\necho c > d", tmp_path, 60) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"b"}
    assert run("exec sleep 60", tmp_path, 0.1) == 0
