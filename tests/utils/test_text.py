"""Text from files can be printed: nothing in it is obeyed by a terminal, or read as Markdown."""

import os
import subprocess

import pytest

from sit_atconv.utils.text import counted, joined_lines, markdown_text, one_line, printable, shell_word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain σ ≤ 1, 猫 and \u200d", "plain σ ≤ 1, 猫 and \u200d"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("safe\rforged", r"safe\rforged"),
        ("\x9b31m", r"\x9b31m"),  # one character that begins a control sequence, too
        ("gnp.\u202etxt", r"gnp.\u202etxt"),
        ("a\u2028b\x85c\x00d\x7f", r"a\u2028b\x85c\x00d\x7f"),
        (b"bad\xff".decode("utf-8", "surrogateescape"), r"bad\udcff"),
        (ValueError("no\x1b[0m"), r"no\x1b[0m"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()  # nothing that cannot be printed is left


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "image", "1 image"), (0, "image", "0 images"), (1797, "image", "1,797 images"), (2, "class", "2 classes")],
)
def test_things_are_counted(number, noun, text):
    assert counted(number, noun) == text


def test_a_name_stays_on_one_line():
    assert one_line("a\nb\tc\x1bd") == r"a\nb\tc\x1bd"


def test_messages_of_several_lines_are_joined():
    assert (
        joined_lines("while parsing\n  line 2,\n\n column 1 of 'a  b'\n") == "while parsing line 2, column 1 of 'a  b'"
    )
    assert joined_lines("a\x1b[2J\r\nb") == r"a\x1b[2J\r b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SA-seed0: 1.5 [1.2, 1.8] (means of 2 seeds)", "SA-seed0: 1.5 [1.2, 1.8] (means of 2 seeds)"),
        ("sit_b_2", "sit_b_2"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("a|b", r"a\|b"),
        ("![x](http://y)", r"![x\](http://y)"),
        ("[x][1]", r"[x\][1]"),
        ("`code` *bold* _it_ ~~no~~ $x$ \\<", r"\`code\` \*bold\* \_it\_ \~\~no\~\~ \$x\$ \\&lt;"),
        ("a\n# heading", r"a\\n# heading"),
    ],
)
def test_markdown_shows_text_as_it_is(text, shown):
    assert markdown_text(text) == shown


@pytest.mark.parametrize("name", ["a", "a b", "it's", "caf\udce9", "caf\udce9 it's \\ \x1b", "é\udcff", "two\nlines"])
def test_words_of_a_command_line_are_read_by_bash(name):
    word = shell_word(name)
    assert printable(word) == word
    echoed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
    assert echoed == os.fsencode(name)
