"""`sit-atconv evaluate`: the scores of samples, as eval/fid.py computes them."""

from typing import TYPE_CHECKING

from ..utils.commands import reporting_mistakes

if TYPE_CHECKING:
    from ..utils.option_parser import OptionParser

PROG = "sit-atconv evaluate"


def build_parser() -> "OptionParser":
    """The parser of all options."""
    from ..evaluation import command_line  # jsonargparse, which most commands do not need

    return command_line.build_parser(PROG)


def main(arguments: list[str]) -> None:
    """Score samples; a mistake ends with one line and exit code 2."""
    with reporting_mistakes(PROG, interrupted="there is no report"):
        from ..evaluation.command_line import run_evaluation

        run_evaluation(arguments, PROG, PROG.split())
