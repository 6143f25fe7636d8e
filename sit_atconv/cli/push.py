"""`sit-atconv push`: a pipeline folder to the Hugging Face Hub."""

import argparse

from ..sharing.folder import check_pipeline_folder
from ..utils.text import printable


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("folder", help="a pipeline folder")
    command.add_argument("repo_id", help="USER/NAME on the Hub; created if it does not exist")
    command.add_argument("--license", metavar="ID", help="license of the weights, for the card, such as mit")
    command.add_argument("--report", metavar="FILE", nargs="+", default=[], help="reports of eval/*.py, for the card")
    command.add_argument("--samples", metavar="PNG", help="a grid of samples, for the card")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    command.add_argument("--demo", action="store_true", help="also write a Space with a demo, USER/NAME-demo")


def run(args: argparse.Namespace) -> None:
    """Upload a pipeline folder to the Hub, with a model card that shows metrics and samples.

    Raises:
        ValueError: if the folder is not a pipeline folder, or the Hub refuses or cannot be reached.
    """
    check_pipeline_folder(args.folder)
    from ..sharing.card import add_report, add_samples
    from ..sharing.hub import publish

    for report in args.report:
        add_report(args.folder, report)
    if args.samples is not None:
        add_samples(args.folder, args.samples)
    private = args.private or None
    print(printable(publish(args.folder, args.repo_id, license=args.license, private=private)))
    if args.demo:
        from ..demo.space import publish_demo

        print(printable(publish_demo(args.folder, args.repo_id, private)))
