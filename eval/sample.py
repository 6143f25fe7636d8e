"""Draw many images from a pipeline, for evaluation, over any number of processes.

    accelerate launch eval/sample.py runs/digits-atconv/pipeline --output runs/digits-atconv/samples --num_samples 1797
    accelerate launch --num_processes 8 eval/sample.py PIPELINE --output FOLDER --num_samples 50000 --npz FOLDER.npz

Image i, 000123.png for i = 123, depends on its label and on (seed, i) only. The folder also gets labels.csv;
samples.json, which records how the images were made; and costs.jsonl, which records what each batch cost. Run again,
the same command draws the images that are missing or broken and writes identical files, however many processes share
the work.
"""

import shlex
import sys

from sit_atconv.evaluation.output_files import SamplingError, check_batch_file, check_sample_folder
from sit_atconv.evaluation.sampling_options import SamplingOptions, split_options
from sit_atconv.sharing.folder import check_pipeline_folder
from sit_atconv.utils.commands import INTERRUPTED, is_spokesman, values_of
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import counted, joined_lines, printable


def run(arguments: list[str]) -> str:
    """Sample, and return what there is to say about it; empty in all processes but the main one."""
    for check, option in ((check_sample_folder, "output"), (check_batch_file, "npz")):
        for value in values_of(option, arguments):
            check(value)
    parser = OptionParser(prog="sample.py", description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=str, help="a pipeline folder")
    parser.add_argument(
        "--output", type=str, required=True, help="folder for the images: a new one, or one to be completed"
    )
    parser.add_argument("--npz", type=str | None, help="a new .npz file for all images (arr_0) and labels (arr_1)")
    parser.add_class_arguments(SamplingOptions)
    options = parser.parse_options(arguments)
    (sampling,) = split_options(options, SamplingOptions)
    sampling.check()
    check_pipeline_folder(options["pipeline"])
    from sit_atconv.evaluation.sample_folder import sample_to_folder  # only now, since this takes seconds to import

    command = shlex.join(["python", "eval/sample.py", *arguments])
    record = sample_to_folder(options["pipeline"], options["output"], sampling, options["npz"], command)
    if record is None:
        return ""
    costs = "their cost is not known"
    if "seconds_per_image" in record:
        costs = (
            f"{record['network_calls_per_image']:.4g} network calls and {record['seconds_per_image']:.3g} s of one "
            "process each"
        )
    return f"{counted(record['num_samples'], 'image')} in {options['output']}: {costs}"


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    is_first = is_spokesman()
    try:
        if summary := run(sys.argv[1:] if arguments is None else arguments):
            print(printable(summary))
    except (ValueError, OSError) as error:
        # Every process finds the same mistake in the options, and one reports it; later failures are each one's own.
        if is_first or isinstance(error, (SamplingError, OSError)):
            print(f"sample.py: error: {joined_lines(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if is_first:
            print("sample.py: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
