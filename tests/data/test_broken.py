"""The list of broken images of a run."""

from sit_atconv.data import (
    BrokenImages,
)


def test_broken_images_are_listed_up_to_a_limit(tmp_path, capsys):
    file = tmp_path / "run" / "broken_images.txt"
    first, second = BrokenImages(file, 2), BrokenImages(file, 2)  # of two processes
    first.add([])
    assert not file.exists()
    first.add([(5, "a.png cannot\nbe read"), (5, "a.png cannot be read")])
    second.add([(5, "a.png cannot be read"), (7, "b.png is cut")])
    assert file.read_text() == "5\ta.png cannot be read\n7\tb.png is cut\n"
    assert capsys.readouterr().err.count("skipped") == 2
    resumed = BrokenImages(file, 2)
    resumed.add([(7, "b.png is cut")])
    assert not resumed.too_many
    resumed.add([(9, "c.png is cut")])
    assert resumed.too_many
    assert list(resumed.reasons) == [5, 7, 9]
    in_memory = BrokenImages(None, 0)
    in_memory.add([(7, "b.png is cut")])
    assert in_memory.too_many
    assert in_memory.reasons == {7: "b.png is cut"}


def test_a_line_that_was_cut_short_does_not_spoil_the_list(tmp_path):
    file = tmp_path / "broken_images.txt"
    file.write_bytes(b"5\ta.png\n1\xff\tb.png\n12")
    broken = BrokenImages(file, 9)
    assert broken.reasons == {5: "a.png"}
    broken.add([(12, "c.png")])
    assert BrokenImages(file, 9).reasons == {5: "a.png", 12: "c.png"}
