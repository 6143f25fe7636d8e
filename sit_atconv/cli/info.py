"""`sit-atconv info`: what a pipeline folder holds."""

import argparse
from pathlib import Path

from .facts import print_facts


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("folder", help="a pipeline folder")
    command.add_argument("--verify", action="store_true", help="compare all weights with their stored SHA-256")


def run(args: argparse.Namespace) -> None:
    """Describe what a pipeline folder holds, without loading its weights; with --verify, compare their hashes.

    Raises:
        ValueError: if the folder is not a pipeline folder, one of a newer format, or damaged.
    """
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
