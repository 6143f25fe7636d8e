"""Evaluate an image classifier: accuracy, per class, confusions, calibration and throughput.

    python eval/classify.py runs/digits-attnet_xxs --data digits --held_out 0.1 --confusion confusion.png
    python eval/classify.py attnet-t2 --data IMAGENET/val                       # a folder of synset folders
    python eval/classify.py attnet-t2 --data FLAT --ground_truth val.txt        # lines "FILE CLASS"

MODEL is a folder that timm loads (train/train_attnet.py leaves one, sit-atconv convert makes one), a run folder, or a
name of timm. docs/attnet.md describes the report.
"""

import shlex
import sys
from pathlib import Path

from sit_atconv.models.timm_names import check_timm_name
from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.source_names import check_source
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Evaluate, print a summary and write the report."""
    check_outputs_at_once(arguments, "output", "confusion")
    parser = OptionParser(prog="classify.py", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=str, help="a folder that timm loads, a run folder, or a name of timm")
    parser.add_argument("--data", type=str, required=True, help="labelled images; docs/data.md lists the sources")
    parser.add_argument("--ground_truth", type=str | None, help="a file with a line 'FILE CLASS' for each image")
    parser.add_argument("--held_out", type=float | None, help="only the images that a training held out, such as 0.1")
    parser.add_function_options("sit_atconv.classification.report", "classify", {"model", "dataset", "class_ids"})
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda; auto is the accelerator if there is one"
    )
    parser.add_argument("--output", type=str | None, help="a new JSON file for the report")
    options = parser.parse_options(arguments)
    check_source("data", options["data"])
    check_device("device", options["device"])
    if not Path(options["model"]).is_dir():
        check_timm_name("model", options["model"], options["model"].removeprefix("timm:"))
    # Only now, since these take seconds to import.
    from sit_atconv.classification.report import classify, load_classifier, match_classes, open_labelled, summary
    from sit_atconv.utils.environment import pick_device

    name, data, ground_truth, held_out, device, output = (
        options.pop(key) for key in ("model", "data", "ground_truth", "held_out", "device", "output")
    )
    dataset = open_labelled(data, ground_truth, held_out)
    model, names = load_classifier(name, pick_device(device))
    report = classify(model, dataset, match_classes(dataset, names, model.num_classes), **options)
    report = {"model": name, "data": data, **report, "command": shlex.join(["python", "eval/classify.py", *arguments])}
    print(printable(summary(report)))
    save_report(output, report)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("classify.py", interrupted="there is no report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
