"""Modules merged into one file: it stands alone, and holds what it needs and nothing else."""

import ast
import builtins
import sys
import textwrap

import pytest

from sit_atconv.sharing.bundle import bundle_source
from sit_atconv.sharing.installed import PORTABLE_MODULES


def imported_modules(source: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    return modules


def bound_names(node: ast.stmt) -> dict[str, str]:
    """Names that a top-level statement binds, with what they are bound to."""
    if isinstance(node, ast.Import):
        return {(a.asname or a.name.split(".")[0]): f"{a.name if a.asname else ''}" for a in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names}
    names = []
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        names = [node.name]
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return dict.fromkeys(names, f"line {node.lineno}")


@pytest.mark.parametrize("module", PORTABLE_MODULES.values())
def test_bundles_stand_alone(module):
    source = bundle_source(module)
    compile(source, module, "exec")
    for name in imported_modules(source):
        assert not name.startswith((".", "sit_atconv")), name
    assert "from __future__" not in source


@pytest.mark.parametrize("module", PORTABLE_MODULES.values())
def test_bundles_bind_each_name_to_one_thing(module):
    """The inlined modules share a namespace, so an import must not be hidden by a definition either."""
    bound = {}
    for node in ast.parse(bundle_source(module)).body:
        for name, what in bound_names(node).items():
            assert bound.setdefault(name, what) == what, f"{name} is bound twice"


@pytest.mark.parametrize(("stem", "module"), PORTABLE_MODULES.items())
def test_bundles_use_no_name_they_lack(stem, module):
    tree = ast.parse(bundle_source(module))
    bound = {name for node in ast.walk(tree) if isinstance(node, ast.stmt) for name in bound_names(node)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert used <= bound | set(dir(builtins))
    assert module.endswith(f".{stem}")


@pytest.fixture
def made_up_package(tmp_path, monkeypatch):
    """Function: files of a package `made_up` by module name -> bundle of one of them."""

    def build(**sources: str) -> None:
        folder = tmp_path / "made_up"
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.split(".")[0] == "made_up"]:
            monkeypatch.delitem(sys.modules, name)

    yield build
    for name in [name for name in sys.modules if name.split(".")[0] == "made_up"]:
        del sys.modules[name]


def test_a_bundle_holds_each_module_once_and_in_order(made_up_package):
    made_up_package(
        top='''
            """The top."""
            import math
            from .middle import double
            from .bottom import ONE
            def answer():
                return double(ONE) + math.floor(0.5)
        ''',
        middle="""
            import math
            from .bottom import ONE
            def double(x):
                return 2 * x * ONE
        """,
        bottom="ONE = 1\n",
    )
    source = bundle_source("made_up.top")
    namespace = {}
    exec(compile(source, "bundle", "exec"), namespace)
    assert namespace["answer"]() == 2
    assert namespace["__doc__"].startswith("The top.")
    assert source.count("ONE = 1") == 1
    assert source.count("import math") == 1


@pytest.mark.parametrize(
    ("top", "bottom"),
    [
        ("def helper(): return 1", "def helper(): return 2"),
        ("class Thing: pass", "Thing = 3"),
        ("LIMIT: int = 3", "LIMIT = 4"),
        ("A, LIMIT = 3, 4", "LIMIT = 4"),
        ("import random as noise", "def noise(): return 4"),
        ("from math import floor", "def floor(x): return 0"),
        ("if True:\n    def helper(): return 1", "def helper(): return 2"),
    ],
)
def test_a_name_of_two_modules_is_refused(top, bottom, made_up_package):
    made_up_package(top=f"from .bottom import OTHER\n{top}\n", bottom=f"OTHER = 1\n{bottom}\n")
    with pytest.raises(ValueError, match=r"made_up\.(top|bottom)"):
        bundle_source("made_up.top")


@pytest.mark.parametrize("statement", ["from .bottom import OTHER as X", "from .bottom import *"])
def test_an_import_that_cannot_be_inlined_is_refused(statement, made_up_package):
    made_up_package(top=f"{statement}\n", bottom="OTHER = 1\n")
    with pytest.raises(ValueError, match="cannot inline"):
        bundle_source("made_up.top")


def run(source: str) -> dict:
    """The names that a bundle defines."""
    namespace: dict = {}
    exec(compile(source, "bundle", "exec"), namespace)
    return namespace


def test_statements_before_an_import_keep_their_place(made_up_package):
    made_up_package(
        top="""
            LIMIT = 3  # before any import
            # A comment of its own.
            HALF = LIMIT / 2
            import math

            if LIMIT > 2:
                WORD = "large"
            else:
                WORD = "small"

            from .bottom import ONE

            def answer():
                return math.floor(HALF) + ONE, WORD
        """,
        bottom="""
            import random
            COUNT = 2
            from itertools import chain
            ONE = len(list(chain([COUNT]))) + random.Random(0).randrange(1)
        """,
    )
    source = bundle_source("made_up.top")
    assert run(source)["answer"]() == (2, "large")
    places = [source.index(text) for text in ("COUNT = 2", "ONE = len", "LIMIT = 3  # before", "# A comment", "HALF =")]
    assert places == sorted(places)


@pytest.mark.parametrize("package", ["math", "no_such_package"])
def test_an_optional_package_stays_optional(package, made_up_package):
    top = f"""
        from .bottom import ONE
        try:
            import {package} as optional
        except ImportError:
            optional = None
        import math
        def answer():
            return None if optional is None else optional.floor(ONE)
    """
    made_up_package(top=top, bottom="ONE = 1.5\n")
    assert run(bundle_source("made_up.top"))["answer"]() == (1 if package == "math" else None)


@pytest.mark.parametrize("condition", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_imports_for_type_checkers_are_left_out(condition, made_up_package):
    top = f"""
        import typing
        from typing import TYPE_CHECKING
        if {condition}:
            from .bottom import Thing
            from random import Random
        import math
        def answer(thing: "Thing" = None):
            return math.floor(0.5)
    """
    made_up_package(top=top, bottom="class Thing: pass\n")
    source = bundle_source("made_up.top")
    assert run(source)["answer"]() == 0
    assert "bottom" not in source
    assert "class Thing" not in source
    assert "random" not in source


def test_of_other_modules_only_what_is_needed_is_taken(made_up_package):
    bottom = """
        import math
        import json
        import tarfile
        from collections.abc import Callable, Iterator
        from functools import lru_cache
        STEPS = {}
        UNUSED = 1
        SCALE = 2

        def register(function: Callable) -> Callable:
            STEPS[function.__name__] = function
            return function

        @register
        def first():
            return SCALE

        @lru_cache
        def unused() -> Iterator:
            return json.loads(UNUSED)

        @lru_cache
        def used():
            return helper()

        def helper():
            return math.floor(2.5)

        STEPS["second"] = len

        if UNUSED:
            def unused_too():
                pass
    """
    made_up_package(
        top="from .bottom import STEPS, used\ndef answer():\n    return used(), sorted(STEPS)\n",
        bottom=bottom,
    )
    source = bundle_source("made_up.top")
    assert run(source)["answer"]() == (2, ["first", "second"])
    assert "UNUSED" not in source
    assert "unused" not in source
    assert "json" not in source
    assert "Iterator" not in source
    assert "import tarfile\n" in source


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ("from . import bottom", r"line 1: cannot inline 'from \. import bottom'; import plain names"),
        ("from .bottom import OTHER as X", "cannot inline .*; import plain names"),
        ("from math import *", "cannot inline .*; import plain names"),
        ("import sit_atconv.flow", "cannot inline .*; import plain names"),
        ("from __future__ import annotations", "it would change the meaning of the other modules"),
        ("def f():\n    from .bottom import OTHER", "line 2: cannot inline .*; import from this package at the top"),
        ("if OTHER:\n    from .bottom import OTHER", "import from this package at the top level"),
        ("try:\n    from .bottom import OTHER\nexcept ImportError: pass", "import from this package at the top level"),
        ("print(1)\nimport math", "line 1: cannot inline 'print.1.'; move it below the imports"),
        ("import os\nos.environ['A'] = 'x'\nfrom .bottom import OTHER", "line 2: .*; move it below the imports"),
        ("A = 1; B = 2", "cannot inline 'B = 2'; write each statement on a line of its own"),
    ],
)
def test_what_cannot_be_merged_is_refused(top, message, made_up_package):
    made_up_package(top=f"{top}\n", bottom="OTHER = 1\n")
    with pytest.raises(ValueError, match=message):
        bundle_source("made_up.top")
