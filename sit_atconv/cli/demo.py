"""`sit-atconv demo`: a page in the browser that draws with one pipeline, or with two side by side."""

import argparse

from ..demo.address import check_address, check_gradio
from ..sharing.folder import check_pipeline_name
from ..utils.checks import check_device


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("folder", metavar="FOLDER", help="a pipeline folder, or the name of one on the Hub")
    command.add_argument("other", metavar="FOLDER2", nargs="?", help="another one, to compare from the same noise")
    command.add_argument("--port", type=int, help="port of the page (default: a free one from 7860 on)")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines (default: %(default)s)")
    command.add_argument("--share", action="store_true", help="also serve it at a public address of gradio.live")
    command.add_argument("--device", default="auto", help="cpu, cuda, … (default: the GPU, if there is one)")


def run(args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted.

    Raises:
        ValueError: if Gradio is missing, the port is taken, or a pipeline cannot be used.
    """
    check_gradio()
    check_address(args.host, args.port)
    folders = [args.folder] if args.other is None else [args.folder, args.other]
    for folder in folders:
        check_pipeline_name(folder)
    check_device("device", args.device)
    from ..demo.folders import load_pipelines
    from ..demo.page import Demo, launch
    from ..utils.environment import pick_device

    pipelines = load_pipelines(folders, pick_device(args.device))
    print("drawing the first image …", flush=True)
    launch(Demo(pipelines).build(), server_name=args.host, server_port=args.port, share=args.share)
