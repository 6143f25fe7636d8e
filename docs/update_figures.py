"""Run the commands whose output the documents show, and put the output in its place.

    python docs/update_figures.py            # rewrite README.md and docs/*.md
    python docs/update_figures.py --check    # only say what is out of date, with exit code 1

A document shows the output of a command between two comments, `<!-- output of: COMMAND -->` and `<!-- end -->`. Each
command is run by bash in the root of the repository. Where one reads a path in runs/ that does not exist, because
nobody has trained that model here, the output stays as it is, and the script says so. Tables of Markdown are shown as
they are, other output as a code block.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- output of: (?P<command>.+?) -->\n)(?P<output>.*?)(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """README.md and the documents beside this script."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def shown(output: str) -> str:
    """What a document shows of the output of a command."""
    output = output.strip("\n")
    return f"{output}\n" if output.startswith("|") else f"```text\n{output}\n```\n"


def updated(text: str) -> tuple[str, list[str]]:
    """Run the commands of a document.

    Args:
        text: the document.

    Returns:
        The document with their output, and the commands that could not be run, since a path in runs/ is missing.

    Raises:
        subprocess.CalledProcessError: if a command fails.
    """
    left_out = []

    def run(match: re.Match) -> str:
        command = match["command"]
        if any(not (ROOT / path).exists() for path in re.findall(r"runs/\S+", command)):
            left_out.append(command)
            return match[0]
        print(command, file=sys.stderr)
        bash = ["bash", "-euo", "pipefail", "-c", command]
        output = subprocess.run(bash, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        return match[1] + shown(output) + match[4]

    return BLOCK.sub(run, text), left_out


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if a document is out of date")
    check = parser.parse_args(arguments).check
    stale = []
    for document in documents():
        text = document.read_text(encoding="utf-8")
        new, left_out = updated(text)
        for command in left_out:
            print(f"{document.relative_to(ROOT)}: not run, since its folder in runs/ is missing: {command}")
        if new != text:
            stale.append(document)
            print(f"{document.relative_to(ROOT)}: {'out of date' if check else 'updated'}")
            if not check:
                document.write_text(new, encoding="utf-8")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
