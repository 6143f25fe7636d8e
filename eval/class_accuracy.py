"""How often a classifier fitted to real images sees the requested class in generated ones.

    python eval/class_accuracy.py runs/digits-atconv/pipeline --reference digits --grid samples.png

For small labelled data: the classifier is a support vector machine on raw pixels. Its accuracy on held-out real images
is reported as well: it bounds what the accuracy on samples can mean.
"""

import shlex
import sys

from sit_atconv.sharing.folder import check_pipeline_folder
from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.source_names import check_source
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Judge the samples, print a summary and write the report."""
    check_outputs_at_once(arguments, "output", "grid")
    parser = OptionParser(prog="class_accuracy.py", description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=str, help="a pipeline folder")
    parser.add_argument(
        "--reference", type=str, default="digits", help="real images: digits, or a folder with one folder per class"
    )
    parser.add_argument(
        "--image_size", type=int | None, help="side of the images of a folder; defaults to that of the pipeline"
    )
    parser.add_function_options("sit_atconv.evaluation.class_accuracy", "class_accuracy", {"pipeline", "dataset"})
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda; auto is the accelerator if there is one"
    )
    parser.add_argument("--output", type=str | None, help="a new JSON file for the report")
    options = parser.parse_options(arguments)
    check_pipeline_folder(options["samples"])
    check_source("reference", options["reference"])
    check_device("device", options["device"])
    # Only now, since these take seconds to import.
    from sit_atconv.data import open_dataset
    from sit_atconv.evaluation.class_accuracy import class_accuracy, class_summary
    from sit_atconv.evaluation.sampling import image_shape, load_pipeline
    from sit_atconv.utils.environment import pick_device

    samples, reference, image_size, device, output = (
        options.pop(name) for name in ("samples", "reference", "image_size", "device", "output")
    )
    pipeline = load_pipeline(samples, pick_device(device))
    if image_size is None and reference != "digits":
        image_size = image_shape(pipeline)[0]
    report = class_accuracy(pipeline, open_dataset(reference, image_size), **options)
    report = {"samples": samples, **report, "command": shlex.join(["python", "eval/class_accuracy.py", *arguments])}
    print(printable(class_summary(report)))
    save_report(output, report)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("class_accuracy.py", interrupted="there is no report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
