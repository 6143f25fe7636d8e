"""The package as it is imported."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import sit_atconv


@pytest.mark.parametrize("name", sit_atconv.__all__)
def test_public_names_resolve(name):
    public = getattr(sit_atconv, name)
    assert name == "__version__" or public.__name__ == name
    assert name in dir(sit_atconv)


def test_public_names_are_complete():
    assert {
        "ATConv",
        "SiTTransformer2DModel",
        "Interpolant",
        "InterpolantLoss",
        "InterpolantODEScheduler",
        "InterpolantSDEScheduler",
        "SiTPipeline",
    } <= set(sit_atconv.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'SiTTransformer3DModel'"):
        _ = sit_atconv.SiTTransformer3DModel


def test_importing_is_cheap(tmp_path):
    """No torch, no diffusers, until a name is used."""
    code = "import sys, sit_atconv; print(sorted({'torch', 'diffusers', 'numpy', 'torchvision'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_version_is_the_packages_own():
    assert sit_atconv.__version__ == importlib.metadata.version("sit-atconv")


def test_every_package_folder_is_listed():
    """Packages are named one by one in pyproject.toml; a new folder must not be left out of the wheel."""
    tomllib = pytest.importorskip("tomllib")
    repo = Path(__file__).parents[1]
    project = tomllib.loads((repo / "pyproject.toml").read_text())
    packages = {".".join(file.parent.relative_to(repo).parts) for file in (repo / "sit_atconv").rglob("*.py")}
    assert packages <= set(project["tool"]["setuptools"]["packages"])
