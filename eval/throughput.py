"""Measure what surrounds the network, in images per second: loading, features, FID, sampling, encoding.

    python eval/throughput.py                                   # some minutes on a CPU
    python eval/throughput.py --data PHOTOS --measurements '[loaders]' --num_images 4000 --num_workers 4
    python eval/throughput.py --measurements '[fid]' --extractors '[efficientnet-lite0]' --num_images 4000

Each measurement compares this toolkit with what its users would take otherwise, on the same images in the same run:

    loaders    batches for training from a folder, a tar shard, a parquet file, a Hugging Face data set and latents,
               compared with torchvision's ImageFolder and with webdataset
    features   features of a folder of PNG files by each of --extractors, compared with clean-fid and torch-fidelity
    fid        the Fréchet distance of two folders, from files to the score, compared with the same
    distance   the distance alone, from 2048 features of each image
    sampling   eval/sample.py, compared with the pipeline alone: what files and records cost
    encoding   train/encode_latents.py, compared with the VAE alone

All take turns within every round, and ratios are taken within a round before their median. torch-fidelity, webdataset
and datasets are left out and named if they are not installed: pip install 'sit-atconv[benchmarks]'. Writes every single
time (throughput.json) and a Markdown table (throughput.md). Ctrl-C keeps every finished round.
"""

import shlex
import sys

from sit_atconv.evaluation.throughput_options import ThroughputOptions
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes
from sit_atconv.utils.option_parser import OptionParser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, or 130 after an interrupt, which keeps every finished round."""
    argv = sys.argv[1:] if argv is None else argv
    with reporting_mistakes("throughput.py"):
        check_outputs_at_once(argv, "output")
        parser = OptionParser(prog="throughput.py", description=__doc__.partition("\n")[0])
        parser.add_class_arguments(ThroughputOptions)
        options = ThroughputOptions(**parser.parse_options(argv))
        from sit_atconv.evaluation.throughput import run_throughput  # only now, since this takes seconds to import

        return run_throughput(options, shlex.join(["python", "eval/throughput.py", *argv]))


if __name__ == "__main__":
    sys.exit(main())
