"""FID and KID of two sets of images, as computed here and by clean-fid's own functions.

    python eval/parity.py SAMPLES --reference PHOTOS
    python eval/parity.py test.parquet --reference train.parquet --image_size 32 --num_images 600 \
        --extractor efficientnet-lite0@64

clean-fid gets folders of images and the same network; it reads, resizes and batches the images, and computes the
distances, by itself. Data sets and .npz batches are written to a temporary folder as PNG files for it.
"""

import sys

from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.source_names import check_source


def run(arguments: list[str]) -> None:
    """Compare, print the differences and write the result."""
    check_outputs_at_once(arguments, "output")
    parser = OptionParser(prog="parity.py", description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=str, help="images: a folder, a .npz batch, or a data set such as digits")
    parser.add_argument("--reference", type=str, required=True, help="other images, in the same forms")
    parser.add_argument("--extractor", type=str, default="inception", help="as in eval/fid.py; one that resizes images")
    parser.add_argument("--weights", type=str | None, help="a file with the weights of the extractor")
    parser.add_argument("--trust_torchscript", type=bool, default=False, help="as in eval/fid.py")
    parser.add_argument("--image_size", type=int | None, help="side of the centre square; needed for parquet files")
    parser.add_function_options("sit_atconv.evaluation.parity", "check_parity", {"samples", "reference", "options"})
    parser.add_argument("--output", type=str | None, help="a new JSON file for the result")
    given = parser.parse_options(arguments, switches=["trust_torchscript"])
    options = MetricOptions(
        "fid,kid",
        **{name: given[name] for name in ("extractor", "weights", "trust_torchscript", "image_size")},
    )
    options.check()
    for side in ("samples", "reference"):
        check_source(side, given[side])
    check_device("device", given["device"])
    from sit_atconv.evaluation.parity import check_parity  # only now, since this takes seconds to import

    result = check_parity(given["samples"], given["reference"], options, given["num_images"], given["device"])
    for name in ("fid", "kid"):
        row = result[name]
        print(
            f"{name.upper()} {row['ours']:.9g}, clean-fid's {row['clean-fid']:.9g}, relative difference "
            f"{row['relative_difference']:.1e}"
        )
    save_report(given["output"], {"samples": given["samples"], "reference": given["reference"], **result})


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("parity.py", interrupted="there is no report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
