"""Quality against network calls: several samplers of a flow, and MeanFlow, from the same noise.

    python eval/few_steps.py flow=runs/digits-atconv/pipeline MeanFlow=runs/digits-meanflow/pipeline \
        --reference digits --output runs/few-steps

Folders with the same NAME are seeds of one model. A flow is sampled with Euler's method, the midpoint method, heun3,
diffusers' DPM-Solver++ and an SDE; a model of mean velocities in steps of its own. Writes every result
(few-steps.json), a table (few-steps.md), a plot (few-steps.png), and pictures of each model's first folder
(pictures.png). Start it again to go on after an interruption, or with more pipelines.
"""

import sys

from sit_atconv.sharing.folder import check_pipeline_folder
from sit_atconv.utils.commands import named_folders, reporting_mistakes, values_of
from sit_atconv.utils.files import check_writable_folder
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Measure, print the table and write the figures."""
    for folder in values_of("output", arguments):
        check_writable_folder("output", folder)
    parser = OptionParser(
        prog="few_steps.py",
        description=__doc__.partition("\n")[0],
        usage="%(prog)s NAME=PIPELINE NAME=PIPELINE... --reference REFERENCE --output FOLDER [--OPTION VALUE ...]",
    )
    parser.add_argument("pipelines", type=str, nargs="+", help="pipeline folders, each with the name of its model")
    parser.add_function_options("sit_atconv.evaluation.few_steps", "measure_few_steps", {"pipelines"})
    options = parser.parse_options(arguments)
    named = named_folders(options.pop("pipelines"))
    for _, folder in named:
        check_pipeline_folder(folder)
    from sit_atconv.evaluation.few_steps_report import write_few_steps  # only now, since this takes seconds to import

    print(printable(write_few_steps(named, **options)))


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("few_steps.py", interrupted="start it again to go on"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
