"""`python -m sit_atconv.convert`: the same as `sit-atconv convert`."""

import sys

from ..cli import main

main(["convert", *sys.argv[1:]])
