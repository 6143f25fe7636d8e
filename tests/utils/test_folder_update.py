"""Files that replace others in a folder do so all together, or the folder stays as it was."""

import errno
import os
from pathlib import Path

import pytest

from sit_atconv.utils.folder_update import updating_folder


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if not file.is_dir()}


OLD = {"a.txt": "old a", "sub/b.txt": "old b", "sub/c.txt": "old c", "mine.txt": "mine"}
NEW = {"a.txt": "new a", "sub/b.txt": "new b", "other/d.txt": "new d"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def update(folder: Path) -> None:
    with updating_folder(folder, lambda staging: [folder / "sub/c.txt"]) as staging:
        fill(staging, NEW)


def test_files_are_replaced_superseded_ones_removed_and_others_kept(tmp_path):
    fill(tmp_path / "x", OLD)
    update(tmp_path / "x")
    assert content(tmp_path / "x") == NEW | {"mine.txt": "mine"}


def test_a_new_folder_with_parents(tmp_path):
    with updating_folder(tmp_path / "a" / "b") as staging:
        assert staging.name == "b"
        fill(staging, NEW)
    assert content(tmp_path / "a" / "b") == NEW
    assert oct((tmp_path / "a" / "b" / "other").stat().st_mode) == oct((tmp_path / "a").stat().st_mode)


def test_files_of_lower_ranks_come_first(tmp_path, monkeypatch):
    order, replace = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, place: (order.append(Path(place).name), replace(file, place))[1])
    with updating_folder(tmp_path / "x", rank=lambda file: {"a": 1, "b": 0, "c": 2}[file.name]) as staging:
        fill(staging, dict.fromkeys("abc", "text"))
    assert order == ["b", "a", "c"]


@pytest.mark.parametrize("exists", [True, False])
def test_an_error_while_writing_leaves_everything_as_it_was(exists, tmp_path):
    if exists:
        fill(tmp_path / "x", OLD)
    with pytest.raises(OSError, match="No space"), updating_folder(tmp_path / "x") as staging:
        fill(staging, NEW)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert content(tmp_path) == ({f"x/{name}": text for name, text in OLD.items()} if exists else {})
    assert (tmp_path / "x").exists() == exists


def refuse(*args, **options):
    raise OSError(errno.EPERM, "no links")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("error", [OSError("broken"), KeyboardInterrupt()])
def test_an_error_at_any_renaming_is_undone(links, error, tmp_path, monkeypatch):
    replace = Path.replace
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    failures = 0
    for failing in range(20):
        folder = tmp_path / str(failing)
        fill(folder, OLD)
        calls = []

        def fail_once(file, place, failing=failing, calls=calls):
            calls.append(place)
            if len(calls) == failing + 1:
                raise error
            return replace(file, place)

        monkeypatch.setattr(Path, "replace", fail_once)
        try:
            update(folder)
        except (OSError, KeyboardInterrupt) as raised:
            assert raised is error
            failures += 1
            assert content(folder) == OLD
        else:
            assert content(folder) == NEW | {"mine.txt": "mine"}
    assert failures == (4 if links else 6)  # 3 files and a superseded one; without links, 2 former files are moved, too


def test_what_stands_in_the_way_is_named_and_nothing_is_touched(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match="file' is not a folder; name another"), updating_folder(tmp_path / "file"):
        pass
    for name, message in (("a.txt/inner", r"a\.txt' is a folder"), ("other", r"other' is a file")):
        folder = tmp_path / name.partition("/")[0]
        fill(folder, {name: "mine"})
        with pytest.raises(ValueError, match=message):
            update(folder)
        assert content(folder) == {name: "mine"}


def test_links_are_replaced_and_not_followed(tmp_path):
    fill(tmp_path, {"victim": "precious"})
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").symlink_to(tmp_path / "victim")
    with updating_folder(tmp_path / "x") as staging:
        fill(staging, NEW)
    assert (tmp_path / "victim").read_text() == "precious"
    assert content(tmp_path / "x") == NEW
