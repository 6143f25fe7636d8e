"""How many network calls does a sampler need? Each solver against a fine solution of the same ODE.

    python eval/samplers.py runs/digits-atconv/pipeline

Every sampler starts from the same noise. Its error is the root mean square difference of its result to the fine
solution, in the units of the latents (pixels in [−1, 1] without a VAE).
"""

import sys
from pathlib import Path

from sit_atconv.sharing.folder import check_pipeline_folder
from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser


def run(arguments: list[str]) -> None:
    """Compare the samplers, print a table and write the results."""
    check_outputs_at_once(arguments, "output", "plot")
    parser = OptionParser(prog="samplers.py", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=str, help="pipeline folder of a model of the linear path")
    parser.add_function_options("sit_atconv.evaluation.solver_error", "compare_samplers", {"pipeline"})
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda or auto")
    parser.add_argument("--output", type=str | None, default=None, help="a new JSON file for the results")
    parser.add_argument("--plot", type=str | None, default=None, help="a new PNG file: error against network calls")
    options = parser.parse_options(arguments)
    check_pipeline_folder(options["folder"])
    check_device("device", options["device"])
    # Only now, since these take seconds to import.
    from sit_atconv.evaluation.sampling import load_pipeline
    from sit_atconv.evaluation.solver_error import compare_samplers, error_table
    from sit_atconv.evaluation.solver_plot import plot_errors
    from sit_atconv.utils.environment import pick_device
    from sit_atconv.utils.files import staged

    folder, device, output, plot = (options.pop(name) for name in ("folder", "device", "output", "plot"))
    rows = compare_samplers(load_pipeline(folder, pick_device(device)), **options)
    print(error_table(rows))
    if plot is not None:
        with staged(Path(plot)) as part:
            plot_errors(rows).savefig(part, dpi=120, format="png")
    save_report(output, {"folder": folder, "rows": rows, "command": sys.argv})


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("samplers.py", interrupted="there are no results"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
