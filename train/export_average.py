"""Export a folder with other averaged weights than those that a run has saved, during the run or after it.

python train/export_average.py runs/faces --std 0.08 --out faces-0.08           # any length, from the snapshots
python train/export_average.py runs/faces --average decay-0.999 --out faces-999   # one of several decays
python train/export_average.py runs/faces --out faces-now                         # the first average, so far

Runs of train/train_sit.py give a pipeline folder, those of train/train_attnet.py a folder that timm loads.
"""

import argparse
import sys
from pathlib import Path

from sit_atconv.training.references import check_run_folder
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes
from sit_atconv.utils.home import expand_home
from sit_atconv.utils.text import printable


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake ends with a one-line message and exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--average", help="name of an average that the run tracks, such as decay-0.999")
    parser.add_argument(
        "--std", type=float, help="relative standard deviation of a power-function average, for post-hoc EMA"
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint or snapshot to use; defaults to the newest")
    with reporting_mistakes("export_average.py"):
        check_outputs_at_once(sys.argv[1:] if arguments is None else arguments, "out")
        args = expand_home(vars(parser.parse_args(arguments)))
        check_run_folder("run", args["run"])
        from sit_atconv.classification.export_average import export_average  # only now, since this takes seconds

        print(printable(export_average(args["run"], args["out"], args["average"], args["std"], args["step"])))


if __name__ == "__main__":
    main()
