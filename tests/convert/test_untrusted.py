"""Files of unknown origin: what is in them comes out, and nothing in them runs."""

import argparse
import json
import os
import pathlib
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from sit_atconv.convert.untrusted import read_checkpoint

EMA, RAW = {"a": torch.tensor([1.0])}, {"a": torch.tensor([2.0])}


class Payload:
    """Runs a command when it is unpickled by the usual means."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def save_zip(content, file):
    torch.save(content, file)


def save_legacy(content, file):
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_pickle(content, file):
    with open(file, "wb") as opened:
        pickle.dump(content, opened, protocol=4)


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("place", ["args", "model", "opt"])
def test_a_malicious_file_is_refused_and_nothing_runs(place, save, tmp_path):
    file, proof = tmp_path / "evil.pt", tmp_path / "it-ran"
    save({"model": RAW, "args": argparse.Namespace(x=1), place: Payload(proof)}, file)
    with pytest.raises(ValueError, match=r"evil\.pt was refused: it holds .*posix\.system"):
        read_checkpoint(file)
    assert not proof.exists()
    if save is save_zip:  # the payload is a real one
        torch.load(file, weights_only=False)
        assert proof.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (argparse.Namespace(data=pathlib.PurePosixPath("photos")), r"pathlib\.PurePosixPath"),
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (print, "print"),
    ],
)
def test_other_objects_are_refused_by_name(content, name, tmp_path):
    torch.save({"model": RAW, "args": content}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / "file.pt")


def test_every_object_of_a_file_is_listed_and_nothing_harmless(tmp_path):
    content = {"model": RAW, "args": argparse.Namespace(data=pathlib.PurePosixPath("a")), "more": [print, slice(1)]}
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"it holds [\w., ]*, which is neither") as refused:
        read_checkpoint(tmp_path / "file.pt")
    listed = set(str(refused.value).partition("it holds ")[2].partition(", which")[0].split(", "))
    assert listed == {"builtins.print", "builtins.slice", "pathlib.PurePosixPath"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickles_is_refused_by_name(protocol, tmp_path):
    proof = tmp_path / "it-ran"
    torch.save({"model": RAW, "opt": Payload(proof)}, tmp_path / "evil.pt", pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"was refused: it holds .*posix\.system"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not proof.exists()


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_containers_of_training_scripts(save, tmp_path):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).state_dict()
    args = argparse.Namespace(model="SiT-S/2", num_classes=10)
    save({"model": RAW, "ema": EMA, "opt": optimizer, "args": args, "steps": 3}, tmp_path / "both.pt")
    assert read_checkpoint(tmp_path / "both.pt") == (EMA, vars(args), "ema")
    assert read_checkpoint(tmp_path / "both.pt", "model") == (RAW, vars(args), "model")
    save({"model": RAW}, tmp_path / "raw.pt")
    assert read_checkpoint(tmp_path / "raw.pt") == (RAW, {}, "model")
    with pytest.raises(ValueError, match=r"weights='ema'.*holds model"):
        read_checkpoint(tmp_path / "raw.pt", "ema")


def test_plain_state_dicts(tmp_path):
    torch.save(RAW, tmp_path / "plain.pt")
    torch.save({"state_dict": RAW}, tmp_path / "wrapped.pt")
    torch.save({"module._orig_mod.a": RAW["a"]}, tmp_path / "prefixed.pt")
    save_file(RAW, tmp_path / "file.safetensors")
    for file in tmp_path.iterdir():
        assert read_checkpoint(file) == (RAW, {}, "only"), file.name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.pt", b"hello"),
        ("empty.pt", b""),
        ("text.safetensors", b"hello"),
        ("cut.pt", None),
        ("bad.pt", b"PK\x03\x04" + b"x" * 50 + b"PK\x05\x06" + b"\0" * 18),
        ("byte.pt", b"\x80\x02J1"),
    ],
)
def test_damaged_files_are_named(name, content, tmp_path):
    if content is None:
        torch.save({"model": {"a": torch.zeros(1000)}}, tmp_path / "whole")
        content = (tmp_path / "whole").read_bytes()[:2000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "holds a list"), ({}, "no tensors"), ({"epoch": 3, "a": torch.zeros(1)}, "epoch are not tensors")],
)
def test_files_without_weights(content, message, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "file.pt")


def test_options_come_as_plain_values(tmp_path):
    loop = []
    loop.append(loop)
    args = argparse.Namespace(size=8, more=OrderedDict(rate=torch.ones(1), names=("a", 2)), loop=loop)
    torch.save({"model": RAW, "args": args}, tmp_path / "file.pt")
    _, read, _ = read_checkpoint(tmp_path / "file.pt")
    assert (read["size"], read["more"]) == (8, {"rate": None, "names": ["a", 2]})
    assert type(read["more"]) is dict
    json.dumps(read)


@pytest.mark.parametrize(
    ("names", "message"), [(["module.a", "a"], "holds module.a and a, which are one name"), ([1], "1 is not the name")]
)
def test_names_that_cannot_be_told_apart(names, message, tmp_path):
    torch.save(dict.fromkeys(names, torch.ones(1)), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "file.pt")


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        read_checkpoint(tmp_path / "nothing.pt")
