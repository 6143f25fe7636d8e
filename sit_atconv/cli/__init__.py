"""The command line for everyday use: `sit-atconv sample FOLDER --classes 3 cat --out grid.png`, info, convert, push.

A file for each command holds its `add_options` and its `run`; commands.py is their table. Each `run` imports what it
needs, so that `--help`, mistakes in the options and output files that exist are answered before PyTorch and diffusers
are imported.
"""

from .commands import build_parser, main

__all__ = ["build_parser", "main"]
