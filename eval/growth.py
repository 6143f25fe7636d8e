"""Draw how time and memory grow with tokens, batch and GPUs, from reports of eval/latency.py.

    python eval/latency.py --presets '[SiT-Nano/2, SiT-ATConv-Nano/2]' --image_sizes '[128, 256, 512, 1024, 2048]' \
        --output tokens
    python eval/latency.py --presets '[SiT-Nano/2, SiT-ATConv-Nano/2]' --batch_sizes '[1, 2, 4, 8, 16]' --output batch
    python eval/growth.py tokens/latency.json batch/latency.json --output growth.png

Tokens and batch are measured. Training over many GPUs is a formula: the bytes of a ring all-reduce against the time of
a step; its table is printed.
"""

import sys

from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes
from sit_atconv.utils.option_parser import OptionParser


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with reporting_mistakes("growth.py"):
        check_outputs_at_once(arguments, "output")
        parser = OptionParser(
            prog="growth.py",
            description=__doc__.splitlines()[0],
            usage="%(prog)s LATENCY.JSON ... --output PICTURE [--OPTION VALUE ...]",
        )
        parser.add_argument("files", type=str, nargs="+", help="reports of eval/latency.py: latency.json")
        parser.add_argument("--output", type=str, required=True, help="a new picture, .png")
        parser.add_function_options("sit_atconv.benchmarks.growth", "draw_growth", {"files", "output"})
        options = parser.parse_options(arguments)
        from sit_atconv.benchmarks.growth import draw_growth  # only now, since this takes a second to import

        print(draw_growth(**options))


if __name__ == "__main__":
    main()
