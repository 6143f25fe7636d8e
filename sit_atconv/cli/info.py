"""`sit-atconv info`: what a pipeline folder holds, or how a picture was sampled."""

import argparse
from pathlib import Path

from .facts import print_facts


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument(
        "folder", metavar="FOLDER|PICTURE", help="a pipeline folder, or a picture of sit-atconv sample"
    )
    command.add_argument("--verify", action="store_true", help="compare all weights with their stored SHA-256")


def run(args: argparse.Namespace) -> None:
    """Describe what a pipeline folder holds, without loading its weights; with --verify, compare their hashes.

    Raises:
        ValueError: if the folder is not a pipeline folder, one of a newer format, or damaged.
    """
    if not Path(args.folder).exists():
        raise ValueError(f"{args.folder!r} does not exist; name a pipeline folder, or a picture of sit-atconv sample")
    if Path(args.folder).is_file():
        describe_picture(args.folder)
        return
    from ..models.presets import preset_name
    from ..models.weight_files import stored_variants
    from ..sharing.folder import (
        check_pipeline_folder,
        describe_folder,
        describe_verification,
        read_json,
        reading_folder,
    )
    from ..sharing.formats import check_format, edited_sources

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


def describe_picture(file: str) -> None:
    """Print how the images in a picture were sampled.

    Raises:
        ValueError: if it does not say so.
    """
    from ..utils.picture_text import read_settings

    settings = read_settings(file)
    versions = settings.pop("versions", None)
    if isinstance(versions, dict):
        settings["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    if isinstance(classes := settings.get("classes"), dict):
        settings["classes"] = ", ".join(map(str, classes))
    shown = {name.replace("num_inference_", ""): str(value) for name, value in settings.items() if value is not None}
    print_facts({name.replace("_", " "): value for name, value in shown.items()})
