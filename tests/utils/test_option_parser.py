"""Configuration files of the scripts cannot take the machine's memory or stack."""

import pytest
from test_bounded_text import CHAIN, LAUGHS

from sit_atconv.utils.option_parser import OptionParser


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
