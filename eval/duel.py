"""Train, sample and score several models under one recipe, and compare them: all from one YAML file.

    python eval/duel.py eval/configs/duel_digits.yaml

Interrupt it at any time, and start it again: whatever is done is skipped, and training continues from its newest
checkpoint. In the output folder, each model and seed has a run, NAME-seedS, and report/ holds the report of
eval/compare.py.
"""

import shlex
import sys
from pathlib import Path

from sit_atconv.evaluation.duel_options import Duel
from sit_atconv.utils.commands import reporting_mistakes
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import printable

HERE = Path(__file__).resolve().parent
TRAIN = HERE.parent / "train" / "train_sit.py"
SAMPLE = HERE / "sample.py"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = OptionParser(
        prog="duel.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s DUEL.yaml [--OPTION VALUE ...]",
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_class_arguments(Duel)
    names_file = arguments[:1] and not arguments[0].startswith("-")
    with reporting_mistakes("duel.py", interrupted="the same command goes on"):
        options = parser.parse_options(["--config", *arguments] if names_file else arguments)
        options.pop("config")
        duel = parser.build(Duel, options)
        from sit_atconv.evaluation.duel import run_duel  # only now, since these take seconds to import
        from sit_atconv.evaluation.duel_run import Scripts

        page = run_duel(duel, Scripts(TRAIN, SAMPLE), shlex.join(["python", "eval/duel.py", *arguments]))
        print(printable(page))


if __name__ == "__main__":
    main()
