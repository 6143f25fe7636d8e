"""Time ATConv's convolution in each way it can be computed, the linear layers, and ATConv against self-attention.

    python eval/operator_bench.py --threads 1
    python eval/operator_bench.py --device cuda --dtype bfloat16 --compile true \
        --shapes '[[32, 256, 1152], [32, 1024, 1152], [32, 4096, 1152], [1, 256, 1152]]'

Shapes are (B, N, C), and N must be a square number. All candidates take turns within every round, so that slow phases
of the machine affect them alike. Ratios are to the first row of a table and are taken within each round before their
median. Times are wall-clock; if other programs share the machine, the best time says the most.
"""

import sys

from sit_atconv.utils.commands import reporting_mistakes
from sit_atconv.utils.option_parser import OptionParser


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    parser = OptionParser(prog="operator_bench.py", description=__doc__.partition("\n")[0])
    parser.add_function_options("sit_atconv.benchmarks.operator_bench", "bench")
    with reporting_mistakes("operator_bench.py", interrupted="the tables above are complete"):
        options = parser.parse_options(sys.argv[1:] if arguments is None else arguments, ["compile"])
        from sit_atconv.benchmarks.operator_bench import bench  # only now, since this takes seconds to import

        bench(**options)


if __name__ == "__main__":
    main()
