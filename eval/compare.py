"""Compare evaluated runs, such as SA, ATConv and hybrid with several seeds each, in one report.

    python eval/compare.py runs/duel/SA-seed0 runs/duel/ATConv-seed0 --output runs/duel/report

A run is a folder of train/train_sit.py with reports of eval/fid.py in evaluation/*.json; eval/duel.py makes both. Runs
of one model are called NAME-seed0, NAME-seed1… The first model named is the baseline. Writes report.md with its
pictures, and report.html, one page that needs no other file. Reports that cannot be compared are refused.
"""

import shlex
import sys
from pathlib import Path

from sit_atconv.evaluation.output_files import check_report_folder
from sit_atconv.training.references import check_run_folder
from sit_atconv.utils.commands import reporting_mistakes, values_of
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Compare the runs, and print the name of the report."""
    for folder in values_of("output", arguments):
        check_report_folder(folder)
    parser = OptionParser(
        prog="compare.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s RUN RUN... --output FOLDER [--OPTION VALUE ...]",
    )
    parser.add_argument("runs", type=str, nargs="+", help="evaluated run folders, the baseline's first")
    parser.add_argument("--output", type=str, required=True, help="folder for the report")
    parser.add_function_options("sit_atconv.evaluation.comparison", "write_comparison", {"runs", "output", "command"})
    options = parser.parse_options(arguments)
    for folder in options["runs"]:
        check_run_folder("run", folder)
    # Only now, since these take seconds to import.
    from sit_atconv.evaluation.comparison import write_comparison
    from sit_atconv.evaluation.evaluated_runs import load_run

    runs = [load_run(Path(folder)) for folder in options.pop("runs")]
    command = shlex.join(["python", "eval/compare.py", *arguments])
    print(printable(write_comparison(runs, command=command, **options)))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("compare.py", interrupted="start it again for a complete report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
