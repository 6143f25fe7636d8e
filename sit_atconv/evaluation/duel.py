"""A duel: train, sample and score several models under one recipe, and compare them in one report."""

import dataclasses
import itertools
from pathlib import Path

import yaml

from ..models.transformer_sit import SiTTransformer2DModel
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..training.config import TrainConfig
from ..utils.bounded_text import read_yaml
from ..utils.environment import pick_device
from ..utils.files import write_atomically
from .comparison import write_comparison
from .duel_options import Duel
from .duel_run import STATISTICS, DuelRun, Scripts
from .evaluated_runs import load_run
from .features import build_extractor
from .open_sources import open_reference

SETTINGS = "duel.yaml"  # the options of the duel, in its folder
# Options that may change when a duel is started again; models may only be added.
EXTENDABLE = {"models", "seeds", "latency_repeats", "inference_steps"}


def run_duel(duel: Duel, scripts: Scripts, command: str = "") -> Path:
    """Do everything that is not done yet; returns the file report.html.

    Args:
        duel: the options.
        scripts: the scripts that train and sample.
        command: the command line that the reports quote.

    Raises:
        ValueError: if the folder holds another duel, or a part cannot be done.
    """
    check_output(duel)
    runs = {
        (model, seed): DuelRun(duel, scripts, model, seed) for seed, model in itertools.product(duel.seeds, duel.models)
    }
    if not all(run.is_trained for run in runs.values()):
        check_parts(duel)
    output = Path(duel.output)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / SETTINGS, yaml.safe_dump(describe(duel), sort_keys=False, allow_unicode=True))
    for run in runs.values():
        run.train()
        solver_steps = run.solver_steps()
        for step in duel.steps:
            for inference_steps in solver_steps if step == duel.max_steps else solver_steps[:1]:
                run.score(step, inference_steps, command)
    evaluated = []
    for name in itertools.product(duel.models, duel.seeds):
        evaluated.append(load_run(runs[name].folder))
        evaluated[-1].final_inference_steps = runs[name].solver_steps()[0]
    return write_comparison(
        evaluated, output / "report", device=duel.device, repeats=duel.latency_repeats, command=command
    )


def describe(duel: Duel) -> dict:
    """The options that define the duel; where and how it runs is not part of them."""
    return {key: value for key, value in dataclasses.asdict(duel).items() if key not in ("launch", "device")}


def check_output(duel: Duel) -> None:
    """Raise ValueError if the folder of the duel holds another duel, or other files."""
    output, described = Path(duel.output), describe(duel)
    if not (output / SETTINGS).is_file():
        if output.exists() and any(output.iterdir()):
            raise ValueError(f"output={duel.output!r} holds other files; name a new folder")
        return
    found = read_yaml(output / SETTINGS)
    differing = [key for key in described if key not in EXTENDABLE and found.get(key) != described[key]]
    differing += [
        f"models.{name}"
        for name in found["models"].keys() & duel.models.keys()
        if found["models"][name] != duel.models[name]
    ]
    if differing:
        raise ValueError(
            f"output={duel.output!r} holds another duel ({', '.join(differing)} differ); name a new folder"
        )


def check_parts(duel: Duel) -> None:
    """Try out the parts that come after training, so that a mistake in their options does not cost a training.

    Raises:
        ValueError: naming the option that cannot be used.
    """
    device = pick_device(duel.device)
    options = duel.metric_options
    statistics = Path(duel.output) / STATISTICS
    open_reference(str(statistics) if statistics.is_file() else duel.reference, options)
    build_extractor(options.extractor, options.weights, device, options.outputs)
    train = TrainConfig(**{name: duel.train[name] for name in ("path", "prediction") if name in duel.train})
    network = SiTTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4)
    pipeline = SiTPipeline(network, InterpolantODEScheduler(path=train.path, prediction=train.prediction))
    all_steps: list[int | None] = [*duel.inference_steps] or [None]
    for steps in all_steps:
        duel.sampling_options(steps).resolve(pipeline)
