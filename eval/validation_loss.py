"""Compare the errors of models on held-out images, by time and by spatial frequency.

    python eval/validation_loss.py SA=runs/SA/pipeline ATConv=runs/ATConv/pipeline --data cifar10/test.parquet

All models meet the same images, noise and times, so differences are taken sample by sample. The first one is the
baseline. Names that end in -seed0, -seed1… are trainings of one model. Prints a table; --output writes it as JSON, and
--plot draws the differences by time.
"""

import shlex
import sys

from sit_atconv.evaluation.validation_options import ValidationOptions
from sit_atconv.sharing.folder import check_pipeline_folder
from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, named_folders, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.source_names import check_source
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Validate the pipelines, print the table and write what was asked for."""
    check_outputs_at_once(arguments, "output", "plot")
    parser = OptionParser(
        prog="validation_loss.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s NAME=PIPELINE [NAME=PIPELINE...] --data DATA [--OPTION VALUE ...]",
    )
    parser.add_argument("pipelines", type=str, nargs="+", help="pipeline folders with names, the baseline's first")
    parser.add_class_arguments(ValidationOptions)
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda; auto is the accelerator if there is one"
    )
    parser.add_argument("--output", type=str | None, help="a new JSON file for the table")
    parser.add_argument("--plot", type=str | None, help="a new PNG file for the differences by time")
    options = parser.parse_options(arguments)
    named = named_folders(options.pop("pipelines"))
    device, output, plot = (options.pop(name) for name in ("device", "output", "plot"))
    validation = parser.build(ValidationOptions, options)
    check_source("data", validation.data)
    check_device("device", device)
    for _, folder in named:
        check_pipeline_folder(folder)
    # Only now, since these take seconds to import.
    from sit_atconv.evaluation.validation_report import validate_folders, write_plot

    report = validate_folders(named, validation, device)
    print(printable(report.text))
    save_report(output, report.record | {"command": shlex.join(["python", "eval/validation_loss.py", *arguments])})
    write_plot(plot, report)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("validation_loss.py", interrupted="there is no report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
