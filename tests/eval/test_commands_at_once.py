"""Output files that exist are refused before anything slow is imported; ~ is the home folder in every spelling."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EVAL = Path(__file__).parents[2] / "eval"
CODE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([name for name in ("torch", "diffusers", "scipy") if name in sys.modules])
"""


def refusal(tmp_path: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", CODE, str(EVAL / script), *arguments]
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (2, "[]\n"), result.stderr
    assert result.stderr.startswith(f"{script}: error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("fid.py", "output"),
        ("fid.py", "save_statistics"),
        ("parity.py", "output"),
        ("samplers.py", "output"),
        ("class_accuracy.py", "output"),
        ("class_accuracy.py", "grid"),
        ("latency.py", "output"),
        ("sample.py", "npz"),
    ],
)
def test_existing_outputs_are_refused_at_once(tmp_path, script, option):
    file = tmp_path / "there.npz"
    file.write_text("mine")
    for spelling in ([f"--{option}", str(file)], [f"--{option}=~/there.npz"]):
        message = refusal(tmp_path, script, "SAMPLES", "--reference", "REAL", *spelling)
        assert f"{option}={str(file)!r} already exists; choose another name or remove it" in message
    assert file.read_text() == "mine"


@pytest.mark.parametrize("script", ["sample.py", "compare.py"])
def test_folders_with_other_files_are_refused_at_once(tmp_path, script):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    message = refusal(tmp_path, script, "A", "B", "--output=~/full")
    assert "full' holds other files ('notes.txt'); name a new folder" in message


def test_two_outputs_cannot_be_one_file(tmp_path):
    file = str(tmp_path / "a.json")
    message = refusal(tmp_path, "class_accuracy.py", "A", "--output", file, f"--grid={file}")
    assert "is also the file of --output" in message
