"""`sit-atconv convert`: checkpoints of other projects to folders, and back."""

import argparse
from pathlib import Path

from ..utils.files import check_new_file, check_new_folder
from ..utils.text import printable
from .facts import print_facts

# Options of `convert` for a checkpoint of AttNet, of an autoencoder, and for one of all others.
ATTNET_OPTIONS = ("weights", "act_layer", "glu_norm_rule", "license")
AUTOENCODER_OPTIONS = ("weights", "statistics")
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


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.usage = "%(prog)s CHECKPOINT OUTPUT [OPTIONS]\n       %(prog)s FOLDER OUTPUT.pt|.safetensors"
    command.add_argument("checkpoint", metavar="CHECKPOINT", help=".pt or .safetensors; no code in it runs")
    command.add_argument("output", metavar="OUTPUT", help="the new folder, or the new file")
    command.add_argument("--weights", choices=("ema", "model", "vae"), help="EMA, raw, or REPA-E's VAE (default: EMA)")
    command.add_argument(
        "--vae", help='VAE folder or Hub name; "none" for pixel models (default: SiT\'s VAE for 4 channels)'
    )
    command.add_argument("--layout", choices=("sit", "repa", "dit"), help="family of the model (default: inferred)")
    command.add_argument("--num_attention_heads", metavar="N", type=int, help="needed if no preset has this width")
    command.add_argument("--num_classes", metavar="N", type=int, help="shows whether there is a null class")
    command.add_argument("--sample_size", metavar="N", type=int, help="side of the latents (default: inferred, or 32)")
    command.add_argument("--path", metavar="PATH", help="linear, gvp or vp (default: as trained)")
    command.add_argument("--prediction", metavar="WHAT", help="velocity, noise, score or data")
    command.add_argument("--act_layer", choices=("GELU", "SiLU"), help="activation of AttNet (default: GELU)")
    rules = ("rms", "variance")
    command.add_argument("--glu_norm_rule", choices=rules, help="RMSNorm of AttNet (default: rms)")
    command.add_argument("--statistics", metavar="FILE", help="mean and std of a VAE's latents")
    command.add_argument("--license", metavar="ID", help="license of the weights, for the card, such as mit")


def run(args: argparse.Namespace) -> None:
    """Convert a checkpoint of the reference to a pipeline folder, or of AttNet to a timm folder, or a folder back.

    Raises:
        ValueError: naming what cannot be read, inferred or written.
    """
    if Path(args.output).is_dir():
        check_new_folder("output", args.output)
    else:
        check_new_file("output", args.output)
    if not Path(args.checkpoint).exists():
        raise ValueError(f"checkpoint={args.checkpoint!r} does not exist; correct the path")
    from ..convert import convert_checkpoint, export_checkpoint
    from ..convert.attnet import convert_attnet, export_attnet, is_attnet_folder
    from ..convert.autoencoder import convert_autoencoder, is_autoencoder
    from ..convert.untrusted import read_checkpoint
    from ..models.attnet_names import is_attnet
    from ..sharing.folder import is_pipeline_folder, reading_folder

    options = {
        name: value for name, value in vars(args).items() if name not in ("run", "parser", "checkpoint", "output")
    }
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
    names = read_checkpoint(args.checkpoint, args.weights)[0]
    attnet, autoencoder = is_attnet(names), is_autoencoder(names)
    kinds: dict[str, tuple[str, ...]] = {"an AttNet": ATTNET_OPTIONS, "an autoencoder": AUTOENCODER_OPTIONS}
    kind = "an AttNet" if attnet else "an autoencoder" if autoencoder else "a SiT, ATConv, REPA or DiT model"
    known = kinds.get(kind, SIT_OPTIONS)
    if others := [name for name in given if name not in known]:
        raise ValueError(f"{', '.join(others)}: no option for {kind}, which {args.checkpoint} holds; leave them out")
    if attnet:
        print_facts(convert_attnet(args.checkpoint, args.output, **given))
        call = f'timm.create_model("local-dir:{args.output}", pretrained=True)'
        print(printable(f"written to {args.output}; load it in Python: import sit_atconv, timm; {call}"))
        return
    if autoencoder:
        print_facts(convert_autoencoder(args.checkpoint, args.output, **given))
        print(printable(f"written to {args.output}; give it to training and encoding as --vae {args.output}"))
        return
    reference = convert_checkpoint(args.checkpoint, args.output, **given)
    print_facts(reference.describe())
    print(printable(f"written to {args.output}; sample it with: sit-atconv sample {args.output} --out samples.png"))
