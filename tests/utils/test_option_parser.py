"""The scripts' parser: its messages, its help; its configuration files cannot take the machine's memory or stack."""

import inspect
import re
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from test_bounded_text import CHAIN, LAUGHS

from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.outlines import function_outline


@pytest.fixture
def parser():
    parser = OptionParser(prog="prog")
    parser.add_argument("--config", action="config")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--sizes", type=list[int], default=[])
    parser.add_argument("--more", type=dict, default={})
    return parser


@pytest.mark.parametrize(
    "text", [LAUGHS, CHAIN, "[" * 100_000, "more: " + '{"a": ' * 2000 + "1" + "}" * 2000, "more: &a {b: *a}"]
)
def test_crafted_configurations_end_with_one_line(text, parser, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err
    assert "Traceback" not in lines
    assert "flatten" in lines or "write" in lines


def test_a_deep_json_file_ends_with_one_line(parser, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text('{"a": ' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", str(tmp_path / "config.yaml")])
    assert "flatten" in capsys.readouterr().err


def test_plain_configurations_are_read_as_before(parser, tmp_path):
    (tmp_path / "config.yaml").write_text("rate: 1e-4\nsizes: &s [1, 2]\nmore: {x: *s}")
    read = parser.parse_args(["--config", str(tmp_path / "config.yaml"), "--sizes", "[3]"])
    assert (read.rate, read.sizes, read.more) == (1e-4, [3], {"x": [1, 2]})


@dataclass
class Options:
    """Options

    Args:
        rate: how fast. This sentence is not in the list of options.
        path: linear, gvp or vp.
        sizes: sides. Any number of them.
        switch: whether.
        more: anything else.
    """

    rate: float = 1.0
    path: Literal["linear", "gvp", "vp"] = "linear"
    sizes: list[int] | None = None
    switch: bool = False
    more: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate > 5:
            raise ValueError(f"rate={self.rate} is too high")


def read(arguments: list[str]) -> Options:
    parser = OptionParser(prog="prog", usage="%(prog)s [--OPTION VALUE ...]")
    parser.add_argument("--config", action="config", help="a YAML file")
    parser.add_class_arguments(Options)
    options = parser.parse_options(arguments, ["switch"])
    options.pop("config")
    return parser.build(Options, options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--ratte", "3"], "there is no option --ratte; did you mean --rate?"),
        (["--ratte=3"], "there is no option --ratte; did you mean --rate?"),
        (["--zzz", "3"], "there is no option --zzz; --help lists them"),
        (["surplus"], "'surplus' belongs to no option; --help lists them"),
        (["--rate"], "--rate needs a value"),
        (["--rate", "fast"], "rate='fast' must be a number"),
        (["--path", "lineer"], "path='lineer' must be one of linear, gvp, vp; did you mean linear?"),
        (["--sizes", "x"], "sizes='x' must be a list such as [1, 2] or null"),
        (["--switch", "maybe"], "switch='maybe' must be true or false"),
        (["--config", "nowhere.yaml"], "config='nowhere.yaml': No such file or directory"),
    ],
)
def test_mistakes_of_the_command_line_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(arguments)
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"prog: error: {message}\n")


@pytest.mark.parametrize(
    "text, message",
    [
        ("path: gvp\nratte: 2\n", "2: there is no option ratte; did you mean rate?"),
        ("\n# a comment\nrate: fast\n", "3: rate='fast' must be a number"),
        ("path: gvp\nrate: ''\n", "2: rate='' must be a number"),
        ("path: gvp\nmore:\n  a: 1\n  b: x\n", "2: more="),
        ("rate: 2\nsizes: [3\npath: gvp\n", "3: this is not YAML: "),
    ],
)
def test_mistakes_of_a_file_name_the_line(text, message, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(text)
    with pytest.raises(SystemExit):
        read(["--config", str(tmp_path / "options.yaml")])
    error = capsys.readouterr().err
    assert error.startswith(f"prog: error: {tmp_path}/options.yaml:{message}") and error.count("\n") == 1


def test_values_that_the_class_refuses_name_the_line_of_the_file_that_set_them(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("path: gvp\nrate: 7\n")
    with pytest.raises(ValueError, match=rf"^{file}:2: rate=7.0 is too high$"):
        read(["--config", str(file)])
    with pytest.raises(ValueError, match=r"^rate=8\.0 is too high$"):  # the command line set it
        read(["--config", str(file), "--rate", "8"])


def test_one_process_of_a_machine_reports_a_mistake(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        read(["--ratte", "3"])
    assert capsys.readouterr().err == ""


def shown(arguments: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        read(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_has_a_line_for_each_option_and_the_whole_text_of_one(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = shown(["--help"], capsys)
    assert re.search(r"^  --rate NUMBER +how fast \[1.0\]$", listed, flags=re.MULTILINE)
    assert "This sentence" not in listed and "--sizes LIST" in listed and "--more VALUE" in listed
    explained = shown(["--help", "rate"], capsys)
    assert explained.startswith("--rate NUMBER\n    how fast. This sentence is not in the list")
    assert "Default: 1.0." in " ".join(explained.split()) and "sides" not in explained
    assert shown(["--help", "no_such_option"], capsys) == listed


def test_an_outline_makes_the_first_checks_of_the_function(tmp_path, monkeypatch):
    (tmp_path / "checked").mkdir()
    (tmp_path / "checked" / "__init__.py").write_text("")
    (tmp_path / "checked" / "checks.py").write_text(
        "def check_low(name, value, most):\n"
        "    if value > most:\n        raise ValueError(f'{name}={value} > {most}')\n"
    )
    (tmp_path / "checked" / "heavy.py").write_text(
        "from .absent import work_hard, check_absent\nfrom .checks import check_low\n"
        "MOST = 2\nTABLE = {1: work_hard}\n\n"
        "def work(model, sizes: list[int] = [], rate: int = 1, late: int = 0) -> int:\n"
        '    """Work."""\n'
        "    for size in sizes:\n        check_low('sizes', size, MOST)\n"
        "    if rate == 5:\n        raise ValueError('rate=5 is odd')\n"
        "    model.check()\n    check_low('late', late, MOST)\n    return work_hard(model)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parser = OptionParser(prog="prog")
    parser.add_argument("--config", action="config")
    parser.add_function_options("checked.heavy", "work", {"model"})
    assert parser.parse_options(["--sizes", "[1, 2]", "--late", "9"])["late"] == 9  # after what the outline lacks
    (tmp_path / "a.yaml").write_text("rate: 1\nsizes: [1, 3]\n")
    with pytest.raises(ValueError, match=r"a\.yaml:2: sizes=3 > 2"):
        parser.parse_options(["--config", str(tmp_path / "a.yaml")])
    with pytest.raises(ValueError, match="rate=5 is odd"):
        parser.parse_options(["--rate", "5"])
    assert "checked.heavy" not in sys.modules


def test_an_outline_is_the_function_without_its_module(tmp_path, monkeypatch):
    (tmp_path / "heavy.py").write_text(
        "raise RuntimeError\nSHAPES = [[1, 2]]\n\n"
        "def work(model: 'Model', shapes: list[list[int]] = SHAPES, rate: float = 0.5) -> Model:\n"
        '    """Work.\n\n    Args:\n        rate: how fast.\n    """\n    return model\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    outline = function_outline("heavy", "work", {"model"})
    parameters = inspect.signature(outline).parameters
    assert {name: each.default for name, each in parameters.items()} == {"shapes": [[1, 2]], "rate": 0.5}
    assert parameters["rate"].annotation is float and "how fast" in outline.__doc__
    assert "heavy" not in sys.modules
