"""YAML and JSON whose cost is out of proportion to their size are refused, at once and by name."""

import json
import os

import pytest

from sit_atconv.utils.bounded_text import (
    MAX_DEPTH,
    MAX_YAML_CHARACTERS,
    load_json,
    load_yaml,
    read_bounded,
    read_json,
    read_json_object,
    read_yaml,
)

LAUGHS = "l0: &l0 lol\n" + "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12))
CHAIN = "a0: &a0 [1]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 2 * MAX_DEPTH))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "aliases .* stand for more than"),
        (LAUGHS.replace("[", "{").replace("]", "}").replace("*l", "? *l"), "aliases .* stand for more than"),
        ("a: &a {}\n" + "\n".join(f"b{i}: &b{i} {{<<: [{', '.join(['*a'] * 99)}]}}" for i in range(3)), None),
        (f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 200)}]", "aliases .* stand for more than"),
        ("[" * 100_000, "deep"),
        ("- " * 1000 + "x", "deep"),
        ("{a: " * 1000, "deep"),
        (CHAIN, "deep"),
        ("a: &a [1, *a]", "&a contains itself"),
        ("a: &a {b: {c: *a}}", "&a contains itself"),
        ("x" * (MAX_YAML_CHARACTERS + 1), "more than"),
        ("a: [1", "is not YAML"),
        ("a: *b", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("a: 2026-02-30", "is not YAML"),
        ("a: 1" + ":59" * 300_000, ":1: a number has 900001 characters"),
        ('b: 1\na: !!int "1' + ":59" * 300_000 + '"', ":2: a number has 900001 characters"),
        ("a: 0x" + "f" * 900_000, ":1: a number has 900002 characters"),
        ("[a]: {}\n? {a: 1}\n: 2", "is not YAML"),
    ],
)
def test_crafted_yaml(text, message):
    if message is None:
        assert load_yaml(text, "file.yaml")["a"] == {}
        return
    with pytest.raises(ValueError, match=rf"file\.yaml.*{message}"):
        load_yaml(text, "file.yaml")


def test_aliases_and_merges_of_moderate_size_are_read():
    text = "base: &base {lr: 0.1, steps: [1, 2]}\na: {<<: *base, lr: 0.2}\nb: [*base, *base]\nc: &c 3\nd: *c"
    base = {"lr": 0.1, "steps": [1, 2]}
    expected = {"base": base, "a": {"lr": 0.2, "steps": [1, 2]}, "b": [base, base], "c": 3, "d": 3}
    assert load_yaml(text, "file.yaml") == expected
    assert load_yaml(f"a: '{'5' * 2000}'\nb: 1:00", "file.yaml") == {"a": "5" * 2000, "b": 60}
    assert load_yaml("", "file.yaml") is None


@pytest.mark.parametrize("depth, fits", [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (900, False), (100_000, False)])
@pytest.mark.parametrize("load", [load_json, load_yaml])
@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a": ', "}")])
def test_the_depth_is_bounded(depth, fits, load, opening, closing):
    text = opening * depth + ("1" if ":" in opening else "") + closing * depth
    if fits:
        assert load(text, "file") == json.loads(text)
    else:
        with pytest.raises(ValueError, match=r"file.*deep"):
            load(text, "file")


@pytest.mark.parametrize("text", ["{", "", "[1,]", "9" * 5000])
def test_damaged_json(text):
    with pytest.raises(ValueError, match=r"x\.json is damaged, or no JSON"):
        load_json(text, "x.json")


@pytest.mark.parametrize("read", [read_bounded, read_json, read_yaml])
def test_only_files_of_text_are_read(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            read(file)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="bytes is damaged, or no UTF-8 text"):
        read(tmp_path / "bytes")
    with pytest.raises(OSError, match="nothing"):
        read(tmp_path / "nothing")


def test_the_size_is_bounded(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert read_bounded(tmp_path / "file", 11) == "x" * 11
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_bounded(tmp_path / "file", 10)


def test_an_object_is_told_from_a_list(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": [1]}')
    assert read_json_object(file) == {"a": [1]}
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json holds a list"):
        read_json_object(file)
