"""Pickles are measured without being run; those that would exhaust the stack or the memory are refused."""

import argparse
import collections
import pickle
import struct

import pytest

from sit_atconv.utils.pickles import MAX_DEPTH, check_pickle

N = 20_000
VALUES = [
    None,
    (b"\xff\xd8" * 500, 7),
    {"image": b"png", "label": 3, "more": [1.5, "text", (1, 2, 3, 4), {1, 2}, frozenset([3])]},
    [(i, {str(i): [i]}) for i in range(500)],
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES)
def test_plain_values_pass(value, protocol):
    imported = check_pickle(pickle.dumps(value, protocol), "file")
    assert all(name.split(".")[0] in ("_codecs", "__builtin__", "builtins") for name in imported)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_imports_are_listed(protocol):
    value = [collections.OrderedDict(a=1), argparse.Namespace(b=2)]
    imported = check_pickle(pickle.dumps(value, protocol), "file")
    assert {"collections.OrderedDict", "argparse.Namespace"} <= set(imported)


@pytest.mark.parametrize(
    "body",
    [
        b")" + b"\x85" * N,  # tuples of one
        b"}" + b")" + b"\x85" * N + b"K\x01s",  # as a key, whose hash ends the process
        b")" + b"2\x86" * N,  # pairs of the same tuple twice
        b"(" * N + b"t" * N,
        b"]" * N + b"a" * (N - 1),
        b"(" * N + b"l" * N,
        # lists that grow after they were put into others
        b"]q\x00" + b"".join(b"]q" + bytes([i]) + b"a" + b"h" + bytes([i]) for i in range(1, 250)),
        b"}" + b"K\x01}" * N + b"s" * N,
        b"\x8f(" * N + b"\x90" * N,  # sets
        b")" + b"\x85\x94" * N,
    ],
    ids=["tuple", "key", "doubled", "marked", "lists", "old lists", "growing", "dictionaries", "sets", "memoised"],
)
def test_deep_containers_are_refused(body):
    with pytest.raises(ValueError, match="file holds a damaged or crafted pickle"):
        check_pickle(b"\x80\x04" + body + b".", "file")


@pytest.mark.parametrize("depth, fits", [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
@pytest.mark.parametrize("wrap", [lambda value: (value,), lambda value: [value], lambda value: {"a": value}])
def test_the_depth_is_that_of_containers(depth, fits, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    if fits:
        check_pickle(pickle.dumps(value), "file")
    else:
        with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} deep"):
            check_pickle(pickle.dumps(value), "file")


def test_what_contains_itself_is_not_deep():
    loop = []
    loop.append(loop)
    check_pickle(pickle.dumps(loop), "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "STOP"),
        (b"hello", "remain|key|0"),
        (pickle.dumps(VALUES[1])[:-1], "STOP"),
        (b"\x80\x04.", "pop"),
        (b"\x80\x04h\x07.", "7"),
        (b"\x80\x04(\x85.", "a mark"),
        (b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b".", "number 2147483647"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "only 2 remain"),
        (b"\x80\x04" + b"N0" * 1000 + b"N.", "more than 1000 operations"),
    ],
    ids=["empty", "text", "cut", "nothing", "unknown", "mark", "memory", "size", "long"],
)
def test_damaged_and_crafted_pickles(content, message):
    with pytest.raises(ValueError, match=f"file holds a damaged or crafted pickle: .*({message})"):
        check_pickle(content, "file", max_operations=1000)
