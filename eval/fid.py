"""Score samples against real images: FID (lower is better), KID, Inception Score, precision, recall…

    python eval/fid.py runs/photos-atconv/pipeline --reference PHOTOS --image_size 64 --num_samples 10000
    python eval/fid.py runs/digits-atconv/pipeline --reference digits --extractor pixels
    python eval/fid.py FOLDER_OF_IMAGES --reference PHOTOS --metrics fid,kid,precision_recall --output fid.json
    python eval/fid.py samples.npz --reference VIRTUAL_imagenet256_labeled.npz --extractor inception-adm

By default the features are clean-fid's: its resizing (arXiv 2104.11222) and the InceptionV3 of the original TensorFlow
code. docs/evaluation.md explains what each metric needs and means.
"""

import shlex
import sys

from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.sampling_options import SamplingOptions, split_options
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Score the samples, print a summary and write the report."""
    check_outputs_at_once(arguments, "output", "save_statistics")
    parser = OptionParser(
        prog="fid.py",
        description=__doc__.splitlines()[0],
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
    options = parser.parse_options(arguments, switches=["trust_torchscript"])
    # Only now, since these take seconds to import.
    from sit_atconv.evaluation.score_report import summary
    from sit_atconv.evaluation.scores import evaluate

    metric_options, sampling = split_options(options, MetricOptions, SamplingOptions)
    report = evaluate(
        options["samples"],
        options["reference"],
        metric_options,
        sampling,
        options["device"],
        options["save_statistics"],
    )
    report["command"] = shlex.join(["python", "eval/fid.py", *arguments])
    print(printable(summary(report)))
    save_report(options["output"], report)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("fid.py", interrupted="there is no report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
