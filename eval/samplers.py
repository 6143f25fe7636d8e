"""How many network calls does a sampler need? Each solver against a fine solution of the same ODE.

    python eval/samplers.py runs/digits-atconv/pipeline

Every sampler starts from the same noise; its error is the root mean square difference of the result to the fine
solution, in the units of the latents (pixels in [−1, 1] without a VAE).
"""

import sys

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from jsonargparse import ArgumentParser
from tqdm.auto import tqdm

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.evaluation.sampling import balanced_labels, load_pipeline
from sit_atconv.flow.multistep import MULTISTEP
from sit_atconv.flow.tableaus import ADAPTIVE, FIXED_STEP
from sit_atconv.utils.checks import check_count
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.files import check_new_file, write_report
from sit_atconv.utils.tables import markdown_table

BUDGETS = (10, 20, 30, 50, 100, 200)  # network calls
TOLERANCES = (1e-2, 1e-3, 1e-4)
FINE = {"solver": "dopri8", "rtol": 1e-6, "atol": 1e-7}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DIFFUSERS = {
    "FlowMatchEuler": (FlowMatchEulerDiscreteScheduler, {}),
    "FlowMatchHeun": (FlowMatchHeunDiscreteScheduler, {}),
    "DPMSolverMultistep": (DPMSolverMultistepScheduler, FLOW),
    "UniPCMultistep": (UniPCMultistepScheduler, FLOW),
}


def compare_samplers(
    pipeline: SiTPipeline,
    num_images: int = 16,
    budgets: list[int] | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> list[dict]:
    """Sample the same noise with each sampler.

    Args:
        pipeline: of a model of the linear path, which diffusers' schedulers know alone.
        num_images: in the batch, labels balanced over the classes.
        budgets: network calls that the fixed-step samplers spend at most, each as one row; `BUDGETS` where None.
        guidance_scale: of every sampler.
        seed: of the noise.

    Returns:
        One dictionary a sampler: "sampler", "setting", "network_calls" and "rms_error".
    """
    labels = balanced_labels(num_images, pipeline.transformer.config.num_classes)
    config = dict(pipeline.scheduler.config)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    def sample(scheduler, num_inference_steps: int = 1) -> torch.Tensor:
        nonlocal calls
        calls = 0
        pipeline.scheduler = scheduler
        return pipeline(
            labels,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(num_images)],
            output_type="latent",
        ).images

    runs = []
    for solver in (*FIXED_STEP, *MULTISTEP):
        scheduler = InterpolantODEScheduler.from_config(config, solver=solver)
        for n in budgets or BUDGETS:
            runs.append((solver, scheduler, n // scheduler.order))
    for solver in ADAPTIVE:
        for rtol in TOLERANCES:
            scheduler = InterpolantODEScheduler.from_config(config, solver=solver, rtol=rtol, atol=rtol / 10)
            runs.append((solver, scheduler, None))
    for name, (scheduler_class, options) in DIFFUSERS.items():
        scheduler = scheduler_class(**options)
        scheduler.register_to_config(path=config["path"], prediction=config["prediction"])
        for n in budgets or BUDGETS:
            runs.append((f"diffusers {name}", scheduler, n // scheduler.order))

    original = pipeline.scheduler
    handle = pipeline.transformer.register_forward_hook(count)
    try:
        fine = sample(InterpolantODEScheduler.from_config(config, **FINE))
        rows = []
        for name, scheduler, n in tqdm(runs, desc="samplers", unit="run"):
            if n == 0:
                continue  # a step costs more than the budget
            setting = f"rtol {scheduler.config.rtol:g}" if n is None else f"{n} steps"
            error = (sample(scheduler, n or 1) - fine).square().mean().sqrt().item()
            rows.append({"sampler": name, "setting": setting, "network_calls": calls, "rms_error": error})
    finally:
        handle.remove()
        pipeline.scheduler = original
    return rows


def error_table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    cells = [[row["sampler"], row["setting"], row["network_calls"], f"{row['rms_error']:.2e}"] for row in rows]
    return markdown_table(["sampler", "setting", "network calls", "RMS error"], cells, text_columns=2)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake ends with one line and exit code 2."""
    parser = ArgumentParser(prog="samplers.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folder", type=str, help="pipeline folder of a model of the linear path")
    parser.add_argument("--num_images", type=int, default=16, help="images in the batch")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="1 is no guidance")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda or auto")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write, a new one")
    options = parser.parse_args(arguments)
    try:
        check_count("num_images", options.num_images)
        check_new_file("output", options.output)
        pipeline = load_pipeline(options.folder, pick_device(options.device))
        rows = compare_samplers(pipeline, options.num_images, guidance_scale=options.guidance_scale, seed=options.seed)
    except ValueError as error:
        parser.error(str(error))
    print(error_table(rows))
    if options.output is not None:
        write_report(options.output, {"folder": options.folder, "rows": rows, "command": sys.argv})


if __name__ == "__main__":
    main()
