"""How many network calls does a sampler need? Each solver against a fine solution of the same ODE.

    python eval/samplers.py runs/digits-atconv/pipeline

Every sampler starts from the same noise. Its error is the root mean square difference of its result to the fine
solution, in the units of the latents (pixels in [−1, 1] without a VAE).
"""

import sys

from jsonargparse import ArgumentParser

from sit_atconv.evaluation.sampling import load_pipeline
from sit_atconv.evaluation.solver_error import compare_samplers, error_table
from sit_atconv.utils.checks import check_count
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.files import check_new_file, write_report


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    parser = ArgumentParser(prog="samplers.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=str, help="pipeline folder of a model of the linear path")
    parser.add_argument("--num_images", type=int, default=16, help="number of images in the batch")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="guidance scale; 1 disables guidance")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda or auto")
    parser.add_argument("--output", type=str | None, default=None, help="a new JSON file for the results")
    options = parser.parse_args(arguments)
    try:
        check_count("num_images", options.num_images)
        check_new_file("output", options.output)
        pipeline = load_pipeline(options.folder, pick_device(options.device))
        rows = compare_samplers(pipeline, options.num_images, guidance_scale=options.guidance_scale, seed=options.seed)
    except ValueError as error:
        parser.error(str(error))
    print(error_table(rows))
    if options.output is not None:
        write_report(options.output, {"folder": options.folder, "rows": rows, "command": sys.argv})


if __name__ == "__main__":
    main()
