"""What a report says of its origin, and which device a name stands for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sit_atconv import __version__
from sit_atconv.utils import environment
from sit_atconv.utils.environment import (
    describe_environment,
    device_name,
    emulates_bfloat16,
    free_in_container,
    git_commit,
    has_amx,
    package_versions,
    pick_device,
)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "expected"),
    [
        (True, True, (True, False)),
        (False, True, (False, False)),
        (False, False, (False, True)),
        (None, None, (False, False)),
    ],
)
def test_units_for_bfloat16_are_asked_of_cpus_alone(monkeypatch, amx, avx512_bf16, expected):
    monkeypatch.setattr(environment.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    for name, value in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx512_bf16)):
        if value is None:  # a version of PyTorch that does not tell
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda value=value: value, raising=False)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert (has_amx(cpu), emulates_bfloat16(cpu)) == expected
    assert not has_amx(gpu) and not emulates_bfloat16(gpu)
    monkeypatch.setattr(environment.platform, "machine", lambda: "arm64")
    assert not emulates_bfloat16(cpu)


def test_environment_is_described():
    found = describe_environment(torch.device("cpu"))
    assert found["versions"].keys() >= {"torch", "diffusers", "numpy", "scipy", "Pillow", "clean-fid", "torchdiffeq"}
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["tf32"] == {"matmul": False, "cudnn": False} and found["device_name"]
    assert (found["git_commit"] is None) == (not (Path(__file__).parents[2] / ".git").exists())


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_the_code_is_known(tmp_path):
    def git(*arguments: str) -> str:
        options = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        command = ["git", "-C", str(tmp_path), *options, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "code.py"
    file.write_text("1")
    assert git_commit(file) is None  # no checkout
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    assert git_commit(file) is None  # as a package in a virtual environment within somebody's checkout
    git("add", "code.py")
    git("commit", "--quiet", "--message", "second")
    assert git_commit(file) == git("rev-parse", "HEAD")
    file.write_text("2")
    assert git_commit(file) == git("rev-parse", "HEAD") + "-dirty"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_packages_that_are_not_installed_have_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    versions = package_versions()
    assert versions["no-such-package"] is None
    assert versions["numpy"] == __import__("numpy").__version__
    assert (versions["sit_atconv"], versions["torch"]) == (__version__, torch.__version__)


def test_auto_is_the_accelerator_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert pick_device("auto") == torch.device("mps")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["quantum", "", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"device='{name}' cannot be used: .*; try cpu or auto"):
        pick_device(name)


def test_the_model_of_the_cpu_is_known():
    name = device_name(torch.device("cpu"))
    assert name and name == name.strip()
    if (cpuinfo := Path("/proc/cpuinfo")).exists() and "model name" in cpuinfo.read_text():
        assert f": {name}\n" in cpuinfo.read_text()


def test_what_is_kept_of_files_is_free_memory(tmp_path):
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nfile 700\ninactive_file 600\n")
    assert free_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_in_container(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert free_in_container(tmp_path) is None
