"""Run a command in a child process, and see that it has not imported what takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "timm", "transformers", "accelerate", "scipy", "sklearn", "matplotlib")
# Runs the code given first under the arguments that follow, and prints which of `HEAVY` it has imported.
CODE = f"""
import runpy, sys
try:
    exec(sys.argv.pop(1))
finally:
    print("imported:", *[name for name in {HEAVY} if name in sys.modules])
"""


def run(code: str, *arguments: str, columns: int = 120) -> tuple[int, str, str]:
    """The exit code, the output without its last line, which must say that nothing was imported, and stderr."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, code, *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "COLUMNS": str(columns)},
    )
    output, _, imported = result.stdout.rpartition("imported:")
    assert imported == "\n", f"imported{imported}"
    return result.returncode, output, result.stderr
