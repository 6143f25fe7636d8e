"""Commands end with one line, refuse output files at once, and lose no report."""

import json
import subprocess
import sys

import pytest

from sit_atconv.utils.commands import check_outputs_at_once, is_spokesman, reporting_mistakes, save_report


def ends(capsys, error: BaseException) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped, reporting_mistakes("prog.py", "go on"):
        raise error
    return stopped.value.code, capsys.readouterr().err


def test_mistakes_end_with_one_line(capsys):
    assert ends(capsys, ValueError("a\x1b[2J")) == (2, "prog.py: error: a\\x1b[2J\n")
    assert ends(capsys, OSError(28, "No space left on device")) == (
        2,
        "prog.py: error: [Errno 28] No space left on device\n",
    )
    assert ends(capsys, KeyboardInterrupt()) == (130, "prog.py: interrupted; go on\n")
    with pytest.raises(ZeroDivisionError), reporting_mistakes("prog.py"):
        raise ZeroDivisionError


def test_a_reader_that_leaves_early_is_no_mistake():
    code = (
        "from sit_atconv.utils.commands import reporting_mistakes\n"
        "with reporting_mistakes('prog.py'):\n"
        "    print('first')\n"
        "    print('x' * {size})\n"
    )
    for size in (1, 1_000_000):  # noticed as Python ends, or while the text is written
        command = subprocess.Popen(
            [sys.executable, "-c", code.format(size=size)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        command.stdout.close()
        assert (command.stderr.read(), command.wait()) == ("", 141)
        command.stderr.close()


def test_outputs_are_checked_in_every_spelling(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    for name in ("there.json", "link.json"):
        for arguments in (["--output", str(tmp_path / name)], [f"--output={tmp_path / name}"], [f"--output=~/{name}"]):
            with pytest.raises(ValueError, match=f"output='{tmp_path / name}' already exists"):
                check_outputs_at_once(["samples", *arguments, "--seed", "1"], "output", "grid")
    same = ["--grid", str(tmp_path / "a.png"), f"--output={tmp_path}/a.png"]
    with pytest.raises(ValueError, match=r"grid=.* is also the file of --output; name two files"):
        check_outputs_at_once(same, "output", "grid")
    for arguments in (["--output", ""], ["--output="]):
        with pytest.raises(ValueError, match=r"output='.*' already exists; choose another name"):
            check_outputs_at_once(arguments, "output")
    for arguments in (["--output", str(tmp_path / "new.json")], ["--output", "null"], ["--output"], ["--out", "x"], []):
        check_outputs_at_once(arguments, "output", "grid")


def test_the_check_needs_no_slow_imports():
    code = "import sys, sit_atconv.utils.commands; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_report_that_cannot_be_written_is_printed(tmp_path, capsys):
    file = tmp_path / "report.json"
    save_report(None, {"fid": 1.0})
    save_report(str(file), {"fid": 1.5})
    assert json.loads(file.read_text()) == {"fid": 1.5} and capsys.readouterr().out == ""
    with pytest.raises(FileExistsError):
        save_report(str(file), {"fid": 2.5, "samples": "\x1b[2J"})
    assert json.loads(capsys.readouterr().out) == {"fid": 2.5, "samples": "\x1b[2J"}
    assert json.loads(file.read_text()) == {"fid": 1.5}
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "rank, speaks", [(None, True), ("0", True), ("1", False), ("7", False), ("abc", True), ("", True)]
)
def test_one_process_speaks_unless_its_number_is_the_mistake(rank, speaks, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert is_spokesman() is speaks
