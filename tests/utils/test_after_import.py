"""Importing one module after another one."""

import importlib.util
import subprocess
import sys

import pytest

from sit_atconv.utils.after_import import import_after


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two modules on the path, of which the second one notes that the first one is complete."""
    (tmp_path / "leader_module.py").write_text("ready = True\n")
    (tmp_path / "follower_module.py").write_text("import leader_module\nsaw = leader_module.ready\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield "leader_module", "follower_module"
    sys.meta_path[:] = finders
    for name in ("leader_module", "follower_module"):
        sys.modules.pop(name, None)


def test_the_follower_comes_once_the_other_is_complete(modules):
    leader, follower = modules
    before = len(sys.meta_path)
    import_after(leader, follower)
    import_after(leader, follower)
    assert len(sys.meta_path) == before + 1
    assert importlib.util.find_spec(leader) is not None  # looking is not importing
    assert leader not in sys.modules and follower not in sys.modules
    importlib.import_module(leader)
    assert sys.modules[follower].saw
    assert len(sys.meta_path) == before


def test_a_module_that_is_there_is_followed_at_once(modules):
    leader, follower = modules
    importlib.import_module(leader)
    import_after(leader, follower)
    assert sys.modules[follower].saw


def test_a_module_that_does_not_exist_is_still_missing(modules):
    import_after("no_such_module", modules[1])
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module("no_such_module")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import sit_atconv, timm", "import timm, sit_atconv"])
def test_timm_knows_attnet_in_either_order(order):
    code = f"{order}; print(len(timm.list_models('attnet_*')), timm.is_model('attnet_t2'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "7 True\n"
