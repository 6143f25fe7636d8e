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

from jsonargparse import ArgumentParser

from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.sampling import SamplingOptions, split_options
from sit_atconv.evaluation.score_report import summary
from sit_atconv.evaluation.scores import evaluate
from sit_atconv.utils.files import check_new_file, write_report


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(
        prog="fid.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s SAMPLES --reference REFERENCE [--OPTION VALUE ...]",
        allow_abbrev=False,
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
    options = parser.parse_args(arguments).as_dict()
    try:
        check_new_file("output", options["output"])
        metric_options, sampling = split_options(options, MetricOptions, SamplingOptions)
        report = evaluate(
            options["samples"],
            options["reference"],
            metric_options,
            sampling,
            options["device"],
            options["save_statistics"],
        )
    except ValueError as error:
        parser.error(str(error))
    report["command"] = shlex.join(["python", "eval/fid.py", *arguments])
    print(summary(report))
    if options["output"] is not None:
        write_report(options["output"], report)


if __name__ == "__main__":
    main()
