"""Measure the forward pass of AttNet against other backbones of timm, and against the layout of its reference.

    python eval/backbone_latency.py --threads 1                        # one core, float32, batch 1, 224 pixels
    python eval/backbone_latency.py --threads 1 --clock cpu            # where other programs share the machine
    python eval/backbone_latency.py --models '[attnet_t2, convnext_tiny]' --batch_size 4 --profile

All models take turns within every round, so that slow and fast phases of the machine affect them alike, and ratios are
taken within each round before their median.
"""

import shlex
import sys

from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes
from sit_atconv.utils.option_parser import OptionParser


def run(arguments: list[str]) -> None:
    """Measure, and print the table."""
    check_outputs_at_once(arguments, "output")
    parser = OptionParser(prog="backbone_latency.py", description=__doc__.splitlines()[0])
    parser.add_function_options("sit_atconv.benchmarks.backbones", "backbone_latency")
    options = parser.parse_options(arguments, ["profile"])
    # Only now, since this takes seconds to import.
    from sit_atconv.benchmarks.backbones import backbone_latency, backbone_table

    report = backbone_latency(**options)
    print(f"{shlex.join(['python', 'eval/backbone_latency.py', *arguments])}\n\n{backbone_table(report)}")


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("backbone_latency.py", interrupted="nothing was measured"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
