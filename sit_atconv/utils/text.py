"""Text that comes from files, and is shown to people."""

import os
import re
import shlex

# Characters that a terminal interprets instead of displaying: control characters, marks that reverse the direction of
# writing, line breaks other than "\n", and the stand-ins for bytes of a file name that are not text.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object) -> str:
    r"""Text that a terminal or a report can show: what it would interpret or hide becomes an escape, such as \x1b.

    Everything that a command prints passes through this function if any part of it may come from a file: names of
    files, tensors, classes and runs, configurations, error messages of libraries. A file from somebody else can thus
    not move the cursor, colour or erase what was printed, or forge another line by a carriage return. Line breaks
    ("\n") and tabs stay.
    """
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))


def one_line(text: object) -> str:
    r"""Like `printable`, for text that must not contain a line break either, such as a name: "\n" becomes an escape."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def joined_lines(text: object) -> str:
    """Like `printable`, with line breaks and the spaces around them as one space: for messages of libraries."""
    return re.sub(r"\s*\n\s*", " ", printable(text).strip())


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "1,797 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "sh", "ch")) else "s"
    return f"{number:,} {noun}{ending}"


def code_block(text: object, language: str = "") -> str:
    """Text of any lines as a code block of Markdown, which no backticks in it can close."""
    text = printable(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_text(text: object) -> str:
    """Text that Markdown shows as it is: no HTML, links, pictures, formulas or cells of a table begin in it."""
    text = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*~$|])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\_", text)  # within a word it stays as it is
    return re.sub(r"\](?=[(\[:])", r"\]", text)  # [1, 2] is an interval, [a](b) would be a link


def shell_word(text: str) -> str:
    r"""One word of a command line for bash. What `printable` would change is written as bytes: $'caf\xe9'."""
    if one_line(text) == text:
        return shlex.quote(text)
    plain = set(range(32, 127)) - set(b"\\'")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(text)) + "'"


def file_name_part(text: str) -> str:
    """Text as a part of a file name: letters, digits, dots, pluses and underscores; each run of others becomes "-"."""
    return re.sub(r"[^\w.+]+", "-", text).strip("-.")[:64] or "unnamed"
