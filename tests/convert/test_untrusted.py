"""Files of unknown origin: what is in them comes out, and nothing in them runs."""

import argparse
import copy
import json
import os
import pathlib
import pickle
import tracemalloc
import zipfile
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


KINDS = {
    "int64": torch.ones(2, dtype=torch.int64),
    "bool": torch.ones(2, dtype=torch.bool),
    "complex64": torch.ones(2, dtype=torch.complex64),
    "float8_e4m3fn": torch.ones(2).to(torch.float8_e4m3fn),
    "sparse_coo": torch.eye(2).to_sparse(),
    "sparse_csr": torch.eye(2).to_sparse_csr(),
    "on the device meta": torch.ones(2, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_other_kinds_are_named(kind, tmp_path):
    torch.save({"model": RAW | {"odd.weight": KINDS[kind]}}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=rf"dense tensors of float64.*odd\.weight \({kind}\); convert them"):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_broken_weights_are_named(value, dtype, ending, tmp_path):
    state = {"whole": torch.ones(5, dtype=dtype), "broken": torch.full((5,), value, dtype=dtype)}
    file = tmp_path / f"file.{ending}"
    (torch.save if ending == "pt" else save_file)(state, file)
    with pytest.raises(ValueError, match=r"file\.\w+: broken holds NaN or infinity"):
        read_checkpoint(file)


def rewrite(file, data: bytes | None = None, compression=zipfile.ZIP_STORED):
    """Write a file of torch.save anew, with another pickle or another compression."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, data if data is not None and name.endswith("data.pkl") else content)


def test_compressed_parts_are_refused_before_they_are_read(tmp_path):
    file = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(2_500_000)}, file)
    rewrite(file, compression=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.pt was refused: .*data\.pkl in it is compressed"):
        read_checkpoint(file)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_parts_that_overlap_are_refused(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("bomb/data.pkl", b"x" * 10_000)
        for i in range(10):
            archive.filelist.append(copy.copy(archive.filelist[0]))
            archive.filelist[-1].filename = f"bomb/data/{i}"
    with pytest.raises(ValueError, match="its parts are larger than the file"):
        read_checkpoint(file)


@pytest.mark.slow
@pytest.mark.parametrize("as_zip", [True, False])
def test_nested_tuples_cannot_end_the_process(as_zip, tmp_path):
    file, nested = tmp_path / "deep.pt", b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."
    torch.save(RAW, file)
    if as_zip:
        rewrite(file, nested)
    else:
        file.write_bytes(nested)
    with pytest.raises(ValueError, match=r"deep\.pt is damaged.*nests containers more than"):
        read_checkpoint(file)


def test_nothing_larger_than_the_file_is_made(tmp_path):
    file = tmp_path / "large.pt"
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, file)
    with pytest.raises(ValueError, match="its tensors have 4000000000000 bytes"):
        read_checkpoint(file)
    numbers = torch.ones(10_000)
    torch.save({f"a{i}": numbers for i in range(100)}, file)
    with pytest.raises(ValueError, match="it repeats numbers"):
        read_checkpoint(file)
    torch.save({"model": RAW, "opt": bytearray(8)}, file, pickle_protocol=2)
    rewrite(file, b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R.")
    with pytest.raises(ValueError, match=r"it holds .*bytearray"):
        read_checkpoint(file)


def test_deep_options_in_the_metadata(tmp_path):
    save_file(RAW, tmp_path / "file.safetensors", metadata={"args": "[" * 100_000 + "]" * 100_000})
    with pytest.raises(ValueError, match="args in its metadata nests lists and dictionaries more than"):
        read_checkpoint(tmp_path / "file.safetensors")


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        read_checkpoint(tmp_path / "nothing.pt")
