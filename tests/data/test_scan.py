"""Which files of a folder are images: links, hidden files, names that are no text, and what is left out."""

import json
import os
import socket

import pytest
import yaml
from pictures import png

from sit_atconv.data import BrokenImages, FolderDataset, open_dataset, scan_folder
from sit_atconv.evaluation.image_sets import FolderImages, is_dataset
from sit_atconv.utils.files import write_json


def write(folder, *names):
    """Images of these names; each folder that is missing is created."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png("red"))


def both(folder) -> list[str]:
    """The images that training finds, relative to the folder; evaluation must find the same."""
    trained, evaluated = FolderDataset(folder, 4).files, FolderImages(folder).files
    assert trained == evaluated
    return [file.relative_to(folder).as_posix() for file in trained]


def test_class_folders_that_are_links(tmp_path):
    write(tmp_path / "elsewhere", "a.png", "b.png")
    write(tmp_path / "data", "cat/c.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    assert both(tmp_path / "data") == ["cat/c.png", "dog/a.png", "dog/b.png"]
    assert open_dataset(tmp_path / "data", 4).labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("target", ["..", "../..", "../../..", ".", "../dog", "/"])
def test_links_that_lead_back(tmp_path, target):
    """To a parent, to the folder itself, above the data, to another class: each real folder is entered once."""
    write(tmp_path / "inner" / "data", "cat/a.png", "dog/b.png", "dog/deeper/c.png")
    write(tmp_path, "of_nobody.png")
    data = tmp_path / "inner" / "data"
    (data / "cat" / "aa").symlink_to(target)
    (data / "cat" / "up").symlink_to(target)
    assert both(data) == ["cat/a.png", "dog/b.png", "dog/deeper/c.png"]
    dataset = open_dataset(data, 4)
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.notes == ["2 files left out: 2 linked to a folder that is entered elsewhere (aa, up)"]


def test_links_to_each_other_and_twice_to_one_folder(tmp_path):
    write(tmp_path / "out", "x.png", "inner/y.png")
    write(tmp_path / "data", "a/1.png", "b/2.png")
    (tmp_path / "data" / "a" / "to_b").symlink_to("../b")
    (tmp_path / "data" / "b" / "to_a").symlink_to("../a")
    (tmp_path / "data" / "a" / "one").symlink_to(tmp_path / "out" / "inner")
    (tmp_path / "data" / "b" / "two").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "inner" / "back").symlink_to(tmp_path / "out")
    assert both(tmp_path / "data") == ["a/1.png", "a/one/y.png", "b/2.png", "b/two/x.png"]
    # a link at the top level to a real class, sorted before it, is no class
    (tmp_path / "data" / "_first").symlink_to("a")
    assert open_dataset(tmp_path / "data", 4).classes == ["a", "b"]


def test_what_is_no_file_is_left_out_and_named(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "real/b.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "linked.png").symlink_to("real/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "to_pipe.png").symlink_to("pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        listening.bind("socket.png")
        found = scan_folder(tmp_path)
    assert [file.name for file in found.files] == ["a.png", "linked.png", "b.png"]
    assert found.summary() == (
        "6 files left out: 4 not a regular file (pipe.png, socket.png, to_pipe.png, …), "
        "2 linked to nowhere (gone.png, loop.png)"
    )
    assert len(open_dataset(f"{tmp_path}?label=none", 4).fingerprint()) == 64


def test_files_left_out_are_counted_by_ending(tmp_path):
    write(tmp_path, "a.png", *(f"{i}.HEIC" for i in range(17)), "x.heic", "README", "LICENSE")
    summary = "20 files left out: 18 .HEIC (not read here), 2 without ending"
    assert open_dataset(tmp_path, 4).notes == [summary]
    assert FolderImages(tmp_path).notes == [f"{tmp_path}: {summary}"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no images.*18 \.HEIC \(not read here\)"):
        open_dataset(tmp_path, 4)
    with pytest.raises(ValueError, match=r"holds no images.*18 \.HEIC \(not read here\)"):
        FolderImages(tmp_path)


def test_hidden_files_and_those_of_programs(tmp_path):
    write(tmp_path, "cat/a.png", "cat/.ipynb_checkpoints/a-checkpoint.png", "__MACOSX/cat/._a.png", "cat/._a.png")
    write(tmp_path, "cat/@eaDir/a.png/thumb.jpg", "cat/.DS_Store", "Thumbs.db", ".staging-7-a.png", "dog/b.png")
    assert both(tmp_path) == ["cat/a.png", "dog/b.png"]
    assert open_dataset(tmp_path, 4).classes == ["cat", "dog"]
    assert open_dataset(tmp_path, 4).notes == []
    write(tmp_path, "cat/.hidden.png", ".old/c.png")
    assert open_dataset(tmp_path, 4).notes == ["2 files left out: 2 hidden (.old, .hidden.png)"]


@pytest.mark.parametrize("ending", ["GIF", "avif", "jpe", "pbm", "mpo", "JP2", "apng", "tga", "dib"])
def test_training_and_evaluation_read_the_same_formats(tmp_path, ending):
    write(tmp_path, f"a.{ending}")
    assert both(tmp_path) == [f"a.{ending}"]
    assert FolderImages(tmp_path).image(0).shape == (4, 4, 3)  # the content decides what it is


def test_a_folder_of_images_is_one_for_both(tmp_path):
    write(tmp_path / "photos", "a.png")
    (tmp_path / "photos" / "manifest.json").write_text("[]")
    assert not is_dataset(str(tmp_path / "photos"))
    (tmp_path / "photos" / "train.tar").write_bytes(b"")  # which makes it a folder of shards, in training, too
    assert is_dataset(str(tmp_path / "photos"))


def test_names_that_are_no_text(tmp_path):
    """They come from file systems of other encodings, and must not end a run when they are written to its records."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    os.mkdir(folder + b"/cl\xe4ss")
    for name in (b"/good\xff.png", b"/bad\xfe.png"):
        with open(folder + b"/cl\xe4ss" + name, "wb") as opened:
            opened.write(png("red") if name.startswith(b"/good") else b"no image")
    dataset = open_dataset(os.fsdecode(folder), 4)
    assert dataset.classes == [r"cl\udce4ss"]
    assert len(dataset.fingerprint()) == 64
    assert [dataset.image(1).shape, len(FolderImages(os.fsdecode(folder)))] == [(4, 4, 3), 2]
    with pytest.raises(ValueError, match=r"bad\\udcfe.png cannot be read") as caught:
        dataset.image(0)
    broken = BrokenImages(tmp_path / "broken_images.txt", 3)
    broken.add([(0, str(caught.value))])
    assert BrokenImages(tmp_path / "broken_images.txt", 3).reasons == broken.reasons
    write_json(tmp_path / "record.json", {"source": dataset.source})
    assert json.loads((tmp_path / "record.json").read_text()) == {"source": dataset.source}
    yaml.safe_dump({"data": dataset.source}).encode()


def test_folders_without_permission_are_named(tmp_path, monkeypatch):
    write(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(folder):
        if os.path.basename(folder) == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert scan_folder(tmp_path).summary() == "1 file left out: 1 without permission (closed)"


def test_output_inside_the_data(tmp_path):
    write(tmp_path / "out", "x.png")
    write(tmp_path / "data", "cat/a.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "out")
    dataset = open_dataset(tmp_path / "data", 4)
    dataset.check_output("output_dir", tmp_path / "data-run")
    for inside in ("data/run", "data/cat/new/run", "data", "out/run", "data/dog/run", "data/../data/run"):
        with pytest.raises(ValueError, match=r"output_dir=.* lies inside data=.*; name a folder outside"):
            dataset.check_output("output_dir", tmp_path / inside)
