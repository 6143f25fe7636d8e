"""The command line of eval/fid.py and `sit-atconv evaluate`."""

import shlex
from collections.abc import Sequence

from ..utils.checks import check_device
from ..utils.commands import check_outputs_at_once, save_report
from ..utils.option_parser import OptionParser
from ..utils.source_names import SOURCES, check_source
from ..utils.text import printable
from .metric_options import MetricOptions
from .sampling_options import SamplingOptions, split_options

KINDS = {
    "samples": f"a pipeline folder, a .npz batch, {SOURCES}",
    "reference": f"a .npz batch or statistics, {SOURCES}",
}
TITLE = "Score samples against real images: FID (lower is better), KID, Inception Score, precision, recall…"


def build_parser(prog: str) -> OptionParser:
    """The parser of all options."""
    parser = OptionParser(
        prog=prog,
        description=TITLE,
        usage="%(prog)s SAMPLES --reference REFERENCE [--OPTION VALUE ...]",
    )
    parser.add_argument("samples", type=str, help="a pipeline folder, a folder of images, a .npz batch, or digits")
    parser.add_argument(
        "--reference",
        type=str,
        required=True,
        help="real images: a folder, a .npz batch or statistics, a parquet file, or digits",
    )
    parser.add_class_arguments(MetricOptions)
    parser.add_class_arguments(SamplingOptions)
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda; auto is the accelerator if there is one"
    )
    parser.add_argument("--output", type=str | None, help="a new JSON file for the report")
    parser.add_argument(
        "--save_statistics", type=str | None, help="a new .npz file for the statistics of the reference"
    )
    return parser


def run_evaluation(arguments: list[str], prog: str, command: Sequence[str]) -> None:
    """Score samples, print a summary and write the report.

    Args:
        arguments: the command line.
        prog: name of the command, for --help and messages.
        command: the words that start it, for the report.

    Raises:
        ValueError: naming what cannot be used.
    """
    check_outputs_at_once(arguments, "output", "save_statistics")
    parser = build_parser(prog)
    options = parser.parse_options(arguments, switches=["trust_torchscript"])
    metric_options, sampling = split_options(options, MetricOptions, SamplingOptions)
    metric_options.check()
    sampling.check()
    for side in ("samples", "reference"):
        check_source(side, options[side], KINDS[side])
    check_device("device", options["device"])
    # Only now, since these take seconds to import.
    from .score_report import summary
    from .scores import evaluate

    report = evaluate(
        options["samples"],
        options["reference"],
        metric_options,
        sampling,
        options["device"],
        options["save_statistics"],
    )
    report["command"] = shlex.join([*command, *arguments])
    print(printable(summary(report)))
    save_report(options["output"], report)
