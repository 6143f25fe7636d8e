"""Run the commands of a document as they are printed.

    python docs/run_commands.py README.md FOLDER

Every code block marked `bash` is run by bash, in order, in FOLDER, which must be new: it becomes a copy of this
checkout's last commit, so that nothing here is touched, with a folder photos/ of small pictures, cat and dog. Lines
that install packages, download from the Hub, need a GPU, or name something of the reader's in capitals are left out,
and named. A block that still runs after some minutes is interrupted, as Ctrl-C would, and counts as working. `--steps`
shortens every training, so that the blocks after it find a pipeline, and `--before` runs what a document takes for
granted:

    python docs/run_commands.py docs/samplers.md FOLDER --steps 20 --before "python train/train_sit.py"
"""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
LEFT_OUT = re.compile(
    r"pip install|^\s*pytest|--device cuda|stabilityai/|me/digits|\b(?!END\b)[A-Z][A-Z_0-9]{2,}\b|"
    # from the Hub, or made by lines that are left out
    r"--size large|sit-xl|photos-latents|photos-finetuned|at-4000|attnet-t2\b"
)

# Defined before a block where trainings are shortened; the block itself stays as it is printed.
SHORTER = """
shortened() {{
  case "$*" in
    *train/train_*.py*|*"sit-atconv train "*) command "$@" --max_steps {steps};;
    *) command "$@";;
  esac
}}
python() {{ shortened python "$@"; }}
accelerate() {{ shortened accelerate "$@"; }}
sit-atconv() {{ shortened sit-atconv "$@"; }}
"""


def is_left_out(line: str) -> bool:
    """Whether a line cannot be run here; its comment does not count."""
    return bool(LEFT_OUT.search(re.sub(r"(^|\s)#.*", "", line)))


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """The blocks of a document: the script of each, and the lines that are left out of it."""
    found = []
    for block in BLOCK.findall(text):
        lines = re.sub(r"(\\|&&)\n\s*", lambda match: " " if match[1] == "\\" else "&& ", block).splitlines()
        left_out = [line for line in lines if is_left_out(line)]
        script = "\n".join(line for line in lines if line not in left_out)
        if left_out and (chained := re.sub(r"^.*pip install[^&]*&& ", "", left_out[0])) != left_out[0]:
            # what comes after it in the same line
            left_out, script = ["the installation"], "" if is_left_out(chained) else chained
        found.append((script, left_out))
    return found


def prepare(folder: Path) -> None:
    """Copy the repository's tracked files to a new folder, with pictures in photos/."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    archive = subprocess.Popen(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:300], digits.target[:300], strict=True)):
        place = folder / "photos" / ("cat" if label % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((64, 64)).save(place / f"{index:03}.png")


def main(arguments: list[str] | None = None) -> None:
    """Command line; exit code 1 if a command fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("document", type=Path, help="a Markdown file")
    parser.add_argument("folder", type=Path, help="a new folder to run the commands in")
    parser.add_argument("--minutes", type=float, default=10, help="a block is interrupted after so many minutes")
    parser.add_argument("--steps", type=int, help="end every training after so many steps")
    parser.add_argument("--before", action="append", default=[], help="a command to run first")
    options = parser.parse_args(arguments)
    todo = [*((command, []) for command in options.before), *blocks(options.document.read_text(encoding="utf-8"))]
    setting = "" if options.steps is None else SHORTER.format(steps=options.steps)
    prepare(options.folder)
    failed = []
    for script, left_out in todo:
        for line in left_out:
            print(f"left out: {line}", flush=True)
        print(script, flush=True)
        code = run(setting + script, options.folder, 60 * options.minutes)
        if code:
            failed.append(script)
            print(f"exit code {code}", flush=True)
    print(f"{len(failed)} of {len(todo)} blocks failed", *failed, sep="\n")
    sys.exit(bool(failed))


def run(script: str, folder: Path, seconds: float) -> int:
    """Run a script and return its exit code, or 0 if it had to be interrupted after so many seconds."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell lets its background jobs ignore it
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        print(f"interrupted after {seconds / 60:g} minutes", flush=True)
        return 0


if __name__ == "__main__":
    main()
