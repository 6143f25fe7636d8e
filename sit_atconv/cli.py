"""The command line for everyday use: `sit-atconv sample FOLDER --classes 3 cat --out grid.png`, info, convert, push.

Each command imports what it needs when it runs, so that `--help`, mistakes in the options and output files that exist
are answered before PyTorch and diffusers are imported.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from .utils.commands import reporting_mistakes
from .utils.files import check_new_file, check_new_folder
from .utils.home import expand_home
from .utils.text import one_line, printable

FIRST_CLASSES = 10  # drawn if none are named
NAME_WIDTH = 16  # characters, of the names of facts
# Options of `convert` for a checkpoint of AttNet, and for one of all others.
ATTNET_OPTIONS = ("weights", "act_layer", "glu_norm_rule", "license")
SIT_OPTIONS = (
    "weights",
    "vae",
    "layout",
    "num_attention_heads",
    "num_classes",
    "sample_size",
    "path",
    "prediction",
    "license",
)


def print_facts(facts: dict[str, str]) -> None:
    """Print named facts, one per line."""
    for name, value in facts.items():
        print(f"{name:{NAME_WIDTH}}{one_line(value)}")


def sample(args: argparse.Namespace) -> None:
    """Draw images from a pipeline folder into one picture, one class per row.

    Raises:
        ValueError: naming what cannot be used.
    """
    check_new_file("out", args.out)
    from PIL import Image

    from .pipelines.pipeline_sit import SiTPipeline
    from .sharing.folder import reading_folder, weights_variant
    from .utils.checks import check_count
    from .utils.class_labels import labels_from_words
    from .utils.environment import pick_device
    from .utils.image_grid import save_grid
    from .utils.randomness import image_generator

    check_count("images_per_class", args.images_per_class)
    if Path(args.out).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"out={args.out!r}: unknown image format; use .png")
    device = pick_device(args.device)
    with reading_folder(args.folder):
        pipeline = SiTPipeline.from_pretrained(args.folder, variant=weights_variant(args.folder))
    pipeline.to(device)
    first = range(min(FIRST_CLASSES, pipeline.transformer.config.num_classes))
    rows = pipeline.get_label_ids(labels_from_words(args.classes, pipeline.labels) or first)
    labels = [label for label in rows for _ in range(args.images_per_class)]
    images = pipeline(
        labels,
        guidance_scale=args.guidance_scale,
        num_inference_steps=args.num_inference_steps,
        generator=[image_generator(args.seed, i) for i in range(len(labels))],
        output_type="pt",
    ).images
    save_grid(images, args.out, columns=args.images_per_class)
    print(printable(f"{len(labels)} images of classes {', '.join(map(str, rows))} in {args.out}"))


def info(args: argparse.Namespace) -> None:
    """Describe what a pipeline folder holds, without loading its weights; with --verify, compare their hashes.

    Raises:
        ValueError: if the folder is not a pipeline folder, one of a newer format, or damaged.
    """
    from .models.presets import preset_name
    from .models.weight_files import stored_variants
    from .sharing.folder import check_pipeline_folder, describe_folder, describe_verification, read_json, reading_folder
    from .sharing.installed import edited_sources
    from .sharing.portable import check_format

    folder = Path(args.folder)
    check_pipeline_folder(folder)
    index = read_json(folder / "model_index.json")
    check_format(index)
    edited = edited_sources(folder)
    verified = {"weights": describe_verification(folder)} if args.verify else {}
    with reading_folder(folder):
        described = {
            "preset": preset_name(read_json(folder / "transformer" / "config.json")) or "none",
            **describe_folder(folder),
        }
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print_facts(
        {
            **described,
            "variants": ", ".join(sorted(variant or "none" for variant in stored_variants(folder / "transformer"))),
            "format": f"{index.get('_format_version', 0)}, of diffusers {index.get('_diffusers_version', 'unknown')}",
            **verified,
            "code": f"edited: {', '.join(edited)}" if edited else "as it was saved",
            "size": f"{size / 2**20:.1f} MiB",
        }
    )


def convert(args: argparse.Namespace) -> None:
    """Convert a checkpoint of the reference to a pipeline folder, or of AttNet to a timm folder, or a folder back.

    Raises:
        ValueError: naming what cannot be read, inferred or written.
    """
    if Path(args.output).is_dir():
        check_new_folder("output", args.output)
    else:
        check_new_file("output", args.output)
    from .convert import convert_checkpoint, export_checkpoint
    from .convert.attnet import convert_attnet, export_attnet, holds_attnet, is_attnet_folder
    from .sharing.folder import is_pipeline_folder, reading_folder

    options = {name: value for name, value in vars(args).items() if name not in ("run", "checkpoint", "output")}
    given = {name: value for name, value in options.items() if value is not None}
    of_pipeline = is_pipeline_folder(args.checkpoint)
    if of_pipeline or is_attnet_folder(args.checkpoint):
        if given:
            raise ValueError(f"{', '.join(given)}: only apply when converting to a folder; leave them out here")
        if of_pipeline:
            with reading_folder(args.checkpoint):
                state_dict = export_checkpoint(args.checkpoint, args.output)
        else:
            state_dict = export_attnet(args.checkpoint, args.output)
        print(printable(f"{len(state_dict)} tensors under the reference's names in {args.output}"))
        return
    attnet = holds_attnet(args.checkpoint)
    if others := [name for name in given if name not in (ATTNET_OPTIONS if attnet else SIT_OPTIONS)]:
        kind = "an AttNet" if attnet else "a SiT, ATConv, REPA or DiT model"
        raise ValueError(f"{', '.join(others)}: no option for {kind}, which {args.checkpoint} holds; leave them out")
    if attnet:
        print_facts(convert_attnet(args.checkpoint, args.output, **given))
        call = f'timm.create_model("local-dir:{args.output}", pretrained=True)'
        print(printable(f"written to {args.output}; load it in Python: import sit_atconv, timm; {call}"))
        return
    reference = convert_checkpoint(args.checkpoint, args.output, **given)
    print_facts(reference.describe())
    print(printable(f"written to {args.output}; sample it with: sit-atconv sample {args.output} --out samples.png"))


def push(args: argparse.Namespace) -> None:
    """Upload a pipeline folder to the Hub, with a model card that shows metrics and samples.

    Raises:
        ValueError: if the folder is not a pipeline folder, or the Hub refuses or cannot be reached.
    """
    from .sharing.card import add_report, add_samples
    from .sharing.folder import check_pipeline_folder
    from .sharing.hub import publish

    check_pipeline_folder(args.folder)
    for report in args.report:
        add_report(args.folder, report)
    if args.samples is not None:
        add_samples(args.folder, args.samples)
    print(printable(publish(args.folder, args.repo_id, license=args.license, private=args.private or None)))


def add_sample(command: argparse.ArgumentParser) -> None:
    """Add the options of `sample`."""
    command.add_argument("folder", help="a pipeline folder, or the name of one on the Hub")
    command.add_argument("--out", default="samples.png", help="a new PNG file (default: %(default)s)")
    command.add_argument("--classes", nargs="+", default=[], help="class ids or names (default: the first ten)")
    command.add_argument("--images_per_class", type=int, default=8, help="images per row (default: %(default)s)")
    command.add_argument("--guidance_scale", type=float, default=1.0, help="1 disables guidance (default: %(default)s)")
    command.add_argument("--num_inference_steps", type=int, help="solver steps (default: about 50 network calls)")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    command.add_argument("--device", default="auto", help="cpu, cuda, … (default: the GPU, if there is one)")


def add_info(command: argparse.ArgumentParser) -> None:
    """Add the options of `info`."""
    command.add_argument("folder", help="a pipeline folder")
    command.add_argument("--verify", action="store_true", help="compare all weights with their stored SHA-256")


def add_convert(command: argparse.ArgumentParser) -> None:
    """Add the options of `convert`."""
    command.usage = "%(prog)s CHECKPOINT OUTPUT [OPTIONS]\n       %(prog)s FOLDER OUTPUT.pt|.safetensors"
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=".pt or .safetensors; no code in it runs")
    command.add_argument("output", metavar="OUTPUT", help="the new folder, or the new file")
    command.add_argument("--weights", choices=("ema", "model"), help="EMA or raw (default: EMA, if there is one)")
    command.add_argument(
        "--vae", help='VAE folder or Hub name; "none" for pixel models (default: SiT\'s VAE for 4 channels)'
    )
    command.add_argument("--layout", choices=("sit", "repa", "dit"), help="family of the model (default: inferred)")
    command.add_argument("--num_attention_heads", metavar="N", type=int, help="needed if no preset has this width")
    command.add_argument("--num_classes", metavar="N", type=int, help="shows whether there is a null class")
    command.add_argument("--sample_size", metavar="N", type=int, help="side of the latents (default: inferred, or 32)")
    command.add_argument("--path", metavar="PATH", help="linear, gvp or vp (default: as trained)")
    command.add_argument("--prediction", metavar="WHAT", help="velocity, noise, score, data (default: as trained)")
    command.add_argument("--act_layer", choices=("GELU", "SiLU"), help="activation of AttNet (default: GELU)")
    rules = ("rms", "variance")
    command.add_argument("--glu_norm_rule", choices=rules, help="RMSNorm of AttNet (default: rms)")
    command.add_argument("--license", metavar="ID", help="license of the weights, for the card, such as mit")


def add_push(command: argparse.ArgumentParser) -> None:
    """Add the options of `push`."""
    command.add_argument("folder", help="a pipeline folder")
    command.add_argument("repo_id", help="USER/NAME on the Hub; created if it does not exist")
    command.add_argument("--license", metavar="ID", help="license of the weights, for the card, such as mit")
    command.add_argument("--report", metavar="FILE", nargs="+", default=[], help="reports of eval/*.py, for the card")
    command.add_argument("--samples", metavar="PNG", help="a grid of samples, for the card")
    command.add_argument("--private", action="store_true", help="make a new repository private")


# The function that runs a command, named as the command; the one that adds its options; and its line in --help.
COMMANDS: tuple[tuple[Callable, Callable, str], ...] = (
    (sample, add_sample, "draw images from a pipeline folder, one class per row"),
    (info, add_info, "describe what a pipeline folder holds"),
    (convert, add_convert, "convert a checkpoint of SiT, ATConv, REPA, DiT or AttNet to a folder, or back"),
    (push, add_push, "upload a pipeline folder to the Hugging Face Hub"),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    # Not jsonargparse, which parses the training's options: its import takes three times as long as this module's, and
    # it knows no list of plain words, such as `--classes 3 cat`.
    parser = argparse.ArgumentParser(prog="sit-atconv", description="SiT with ATConv: everyday commands.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, add_options, text in COMMANDS:
        command = commands.add_parser(
            run.__name__,
            help=text,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
        )
        add_options(command)
        command.set_defaults(run=run)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run `sit-atconv`; a mistake ends with one line and exit code 2."""
    args = argparse.Namespace(**expand_home(vars(build_parser().parse_args(arguments))))
    with reporting_mistakes("sit-atconv"):
        args.run(args)


if __name__ == "__main__":
    main()
