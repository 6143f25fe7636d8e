"""Search guidance scale, guidance interval and average of the weights over paired noise, and confirm the best.

    python eval/sweep.py runs/digits-atconv --reference digits --output runs/sweep
    python eval/sweep.py runs/faces --reference PHOTOS --output runs/sweep --stds '[0.05, 0.1]'

All settings draw the same images. After a quarter and after half of them, a setting is dropped if it is behind the best
by more than a twentieth, and by more than three standard errors of the paired difference. The best ones draw images
once more, with noise that the search has not seen. Writes all results (sweep.json), tables (sweep.md), a heat map
(sweep.png), and the features of the images (features/). Start it again to go on after an interruption, or with more
settings.
"""

import sys

from sit_atconv.evaluation.sweep_options import SweepOptions
from sit_atconv.utils.commands import reporting_mistakes, values_of
from sit_atconv.utils.files import check_writable_folder
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Search, print the tables and write the heat map."""
    for folder in values_of("output", arguments):
        check_writable_folder("output", folder)
    parser = OptionParser(
        prog="sweep.py",
        description=__doc__.partition("\n")[0],
        usage="%(prog)s FOLDER --reference REFERENCE --output FOLDER [--OPTION VALUE ...]",
    )
    names_folder = arguments[:1] and not arguments[0].startswith("-")
    parser.add_class_arguments(SweepOptions)
    parsed = parser.parse_options(["--folder", *arguments] if names_folder else arguments)
    options = parser.build(SweepOptions, parsed)
    options.check()
    from sit_atconv.evaluation.sweep_report import write_sweep  # only now, since this takes seconds to import

    print(printable(write_sweep(options)))


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("sweep.py", interrupted="start it again to go on"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
