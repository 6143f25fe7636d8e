"""Score samples against real images: FID (lower is better), KID, Inception Score, precision, recall…

    python eval/fid.py runs/photos-atconv/pipeline --reference PHOTOS --image_size 64 --num_samples 10000
    python eval/fid.py runs/digits-atconv/pipeline --reference digits --extractor pixels
    python eval/fid.py FOLDER_OF_IMAGES --reference PHOTOS --metrics fid,kid,precision_recall --output fid.json
    python eval/fid.py samples.npz --reference VIRTUAL_imagenet256_labeled.npz --extractor inception-adm

By default the features are clean-fid's: its resizing (arXiv 2104.11222) and the InceptionV3 of the original TensorFlow
code. docs/evaluation.md explains what each metric needs and means.
"""

import sys

from sit_atconv.evaluation.command_line import run_evaluation
from sit_atconv.utils.commands import reporting_mistakes


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("fid.py", interrupted="there is no report"):
        run_evaluation(sys.argv[1:] if arguments is None else arguments, "fid.py", ["python", "eval/fid.py"])


if __name__ == "__main__":
    main()
