"""How well an autoencoder keeps your images, and what its latents look like, before a model is trained on them.

    python eval/reconstruct.py --vae stabilityai/sd-vae-ft-ema --data PHOTOS --image_size 256 --grid reconstructed.png

rFID, PSNR and SSIM compare reconstructions with the originals. A table shows the mean, the standard deviation and the
share of high frequencies of each channel of the latents.
"""

import shlex
import sys

from sit_atconv.utils.checks import check_device
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes, save_report
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.source_names import check_folder_or_name, check_source
from sit_atconv.utils.text import printable


def run(arguments: list[str]) -> None:
    """Reconstruct the images, print a table and write the report."""
    check_outputs_at_once(arguments, "output", "grid")
    usage = "%(prog)s --vae VAE --data DATA [--OPTION VALUE ...]"
    parser = OptionParser(prog="reconstruct.py", description=__doc__.splitlines()[0], usage=usage)
    parser.add_argument("--vae", type=str, required=True, help="an autoencoder: a folder, or a name on the Hub")
    parser.add_argument("--data", type=str, required=True, help="the images, as for train/train_sit.py")
    parser.add_argument("--image_size", type=int | None, help="side of the images in pixels")
    skipped = {"vae", "name", "dataset", "device"}
    parser.add_function_options("sit_atconv.evaluation.reconstruction", "reconstruct", skipped)
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda; auto is the accelerator if there is one"
    )
    parser.add_argument("--output", type=str | None, help="a new JSON file for the report")
    options = parser.parse_options(arguments, switches=["trust_torchscript"])
    check_folder_or_name("vae", options["vae"])
    check_source("data", options["data"])
    check_device("device", options["device"])
    # Only now, since these take seconds to import.
    from sit_atconv.data import open_dataset
    from sit_atconv.evaluation.reconstruction import reconstruct, reconstruction_summary
    from sit_atconv.models.vae import load_vae
    from sit_atconv.utils.environment import pick_device

    vae, data, image_size, device, output = (
        options.pop(name) for name in ("vae", "data", "image_size", "device", "output")
    )
    device = pick_device(device)
    report = reconstruct(load_vae(vae).to(device), vae, open_dataset(data, image_size), device, **options)
    report["command"] = shlex.join(["python", "eval/reconstruct.py", *arguments])
    print(printable(reconstruction_summary(report)))
    save_report(output, report)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    with reporting_mistakes("reconstruct.py", interrupted="there is no report"):
        run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
