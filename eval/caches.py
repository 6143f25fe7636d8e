"""What does a cache save, and what does it spoil? Each of diffusers' caches against a fine solution without one.

    python eval/caches.py runs/digits-atconv/pipeline

Every solve starts from the same noise, with the pipeline's own scheduler. The error is the root mean square difference
to the fine solution, in the units of the latents (pixels in [−1, 1] without a VAE).
"""

import sys
import warnings

from sit_atconv.sharing.folder import check_pipeline_folder
from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser


def run(arguments: list[str]) -> None:
    """Compare the caches, print a table and write the results."""
    check_outputs_at_once(arguments, "output")
    parser = OptionParser(prog="caches.py", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=str, help="a pipeline folder")
    parser.add_function_options("sit_atconv.evaluation.cache_error", "compare_caches", {"pipeline"})
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda or auto")
    parser.add_argument("--output", type=str | None, default=None, help="a new JSON file for the results")
    options = parser.parse_options(arguments)
    folder, device, output = (options.pop(name) for name in ("folder", "device", "output"))
    check_pipeline_folder(folder)
    check_device("device", device)
    # Only now, since these take seconds to import.
    from sit_atconv.evaluation.cache_error import cache_table, compare_caches
    from sit_atconv.evaluation.sampling import load_pipeline
    from sit_atconv.utils.environment import pick_device

    warnings.filterwarnings("ignore", "a cache spoils")  # that is what the table shows
    rows = compare_caches(load_pipeline(folder, pick_device(device)), **options)
    print(cache_table(rows))
    save_report(output, {"folder": folder, "rows": rows, "command": sys.argv})


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("caches.py", interrupted="there are no results"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
