"""Measure SiT with self-attention, with ATConv, and with both: time, memory, and the share of what the hardware allows.

    python eval/latency.py                                      # the plan for this machine: about half an hour on a CPU
    python eval/latency.py --presets '[SiT-XL/2, SiT-ATConv-XL/2]' --image_sizes '[256, 512]' --batch_sizes '[1, 8]' \
        --measurements '[operator, forward]' --dtypes '[bfloat16]' --compile whole

All models take turns within every round, so that slow and fast phases of the machine affect them alike, and the ratio
to the baseline is taken within each round before its median. Writes every single time (latency.json), a Markdown table
(latency.md) and a plot of forward latency against resolution (latency.png). Ctrl-C keeps every finished round. A
setting that fails is named in the table, and the others are measured.

Image sizes are in pixels; the network sees latents of an eighth of that side. Times are wall-clock milliseconds of one
call, from its launch until the device is done. Measurements:

    operator       the token mixer of one block: projections, kernel generation and convolution, or attention
    forward        one forward pass of the whole model
    training       forward and backward pass; below float32, under autocast with float32 weights
    checkpointing  the same with gradient checkpointing, compared with the model without it
    meanflow       a training step of MeanFlow in which a quarter of the samples, or all, need a derivative, compared
                   with one in which none does; attention's derivative has no fused kernel
    sampling       the pipeline from labels to images, VAE included (never compiled); midpoint steps of two calls
    sde            an SDE solve, compared with one that calls the network twice a step, once each for drift and score
"""

import shlex
import sys

from sit_atconv.benchmarks.settings import LatencyOptions
from sit_atconv.utils.commands import check_outputs_at_once, reporting_mistakes
from sit_atconv.utils.option_parser import OptionParser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status, as `run_latency` does."""
    argv = sys.argv[1:] if argv is None else argv
    with reporting_mistakes("latency.py"):
        check_outputs_at_once(argv, "output")
        parser = OptionParser(prog="latency.py", description=__doc__.partition("\n")[0])
        parser.add_class_arguments(LatencyOptions)
        options = LatencyOptions(**parser.parse_options(argv))
        # Only now, since these take seconds to import.
        from sit_atconv.benchmarks.calls import load_fitting_vae
        from sit_atconv.benchmarks.latency import run_latency

        vae = None if options.vae is None else load_fitting_vae(options.vae)
    return run_latency(options, shlex.join(["python", "eval/latency.py", *argv]), vae)


if __name__ == "__main__":
    sys.exit(main())
