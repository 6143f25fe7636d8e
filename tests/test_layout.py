"""The rooms of the package: what may import what, and how long a file or a function may be."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import sit_atconv

REPO = Path(__file__).parents[1]
# Each room imports from itself and from rooms before it, so that there can be no circle.
ROOMS = (
    "utils",
    "ops",
    "models",
    "flow",
    "schedulers",
    "sharing",
    "pipelines",
    "data",
    "training",
    "classification",
    "benchmarks",
    "evaluation",
    "convert",
    "demo",
    "cli",
)
SOURCES = sorted(
    path
    for folder in ("sit_atconv", "pipelines", "train", "eval", "examples")
    for path in (REPO / folder).rglob("*.py")
)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(REPO)) for path in paths]


def module_name(file: Path) -> str:
    """The name under which the package has a file, such as sit_atconv.pipelines.pipeline_sit."""
    parts = file.relative_to(REPO).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "sit_atconv" else ("sit_atconv", *parts))


def imported_modules(file: Path) -> Iterator[str]:
    """The modules of this package that a file of it imports, at its top or inside of functions."""
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            target = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if target.split(".")[0] == "sit_atconv":
                yield from (f"{target}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sit_atconv")


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


PACKAGE = [path for path in SOURCES if path.parts[len(REPO.parts)] in ("sit_atconv", "pipelines")]
SCRIPTS = [path for path in SOURCES if path not in PACKAGE]
EXAMPLES = [path for path in SCRIPTS if path.parent.name == "examples"]
COMMANDS = [path for path in SCRIPTS if path not in EXAMPLES]


@pytest.mark.parametrize("file", PACKAGE, ids=names(PACKAGE))
def test_rooms_import_only_from_rooms_before_them(file):
    room = room_of(module_name(file))
    if room is None or file.name == "__main__.py":  # the package's own __init__; a script
        return
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for module in imported_modules(file):
        assert room_of(module) in (*allowed, None), f"{module_name(file)} imports {module}"


def test_every_module_imports():
    for module in pkgutil.walk_packages(sit_atconv.__path__, "sit_atconv."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("sit_atconv.pipelines.pipeline_sit")


@pytest.mark.parametrize("file", SCRIPTS, ids=names(SCRIPTS))
def test_scripts_stand_on_the_package_alone(file):
    """No script is imported by another one, and none edits the path on which modules are found."""
    text = file.read_text(encoding="utf-8")
    assert "sys.path" not in text
    scripts = {path.stem for path in SCRIPTS}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in scripts
        elif isinstance(node, ast.Import):
            assert not scripts & {alias.name for alias in node.names}


# What a reader takes in at once. The coefficients of solvers are tables and may be longer.
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SCRIPT_LINES, MAX_EXAMPLE_LINES = 400, 80, 80, 200


@pytest.mark.parametrize("file", PACKAGE, ids=names(PACKAGE))
def test_files_and_functions_are_short(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("file", COMMANDS, ids=names(COMMANDS))
def test_scripts_are_a_parser_and_a_main(file):
    assert file.read_text(encoding="utf-8").count("\n") <= MAX_SCRIPT_LINES


@pytest.mark.parametrize("file", EXAMPLES, ids=names(EXAMPLES))
def test_examples_are_read_at_one_sitting(file):
    assert file.read_text(encoding="utf-8").count("\n") <= MAX_EXAMPLE_LINES


def test_tests_mirror_the_layout():
    """Each folder of tests is named after a room, or holds the tests of the scripts."""
    folders = {path.parent.name for path in (REPO / "tests").glob("*/test_*.py")}
    assert folders <= {*ROOMS, "train", "eval", "examples"}


def test_names_of_test_files_are_unique():
    """pytest imports them by that name alone."""
    tests = [path.name for path in (REPO / "tests").rglob("test_*.py")]
    assert sorted(tests) == sorted(set(tests))
