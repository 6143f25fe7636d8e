"""A duel: train, sample and score several models under one recipe, and compare them in one report."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..data import open_dataset
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE, load_vae
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..training.build import build_transformer
from ..training.config import TrainConfig
from ..training.stored_config import resolve_config
from ..utils.environment import pick_device
from ..utils.files import folder_lock
from .comparison import write_comparison
from .duel_folder import check_output, write_settings
from .duel_options import Duel
from .duel_run import STATISTICS, DuelRun, Scripts
from .evaluated_runs import load_run
from .features import build_extractor
from .open_sources import open_reference
from .output_files import check_report_folder


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
        check_trainings(runs.values())
    output = Path(duel.output)
    check_report_folder(output / "report")
    output.mkdir(parents=True, exist_ok=True)
    with folder_lock(output, "output"):
        write_settings(duel)
        return finish(duel, runs, command)


def finish(duel: Duel, runs: Mapping[tuple[str, int], DuelRun], command: str) -> Path:
    """Train, sample and score whatever is missing, and write the report; returns the file report.html."""
    for run in runs.values():
        run.train()
        solver_steps = run.solver_steps()
        for step in duel.steps:
            run.validate(step)
            for inference_steps in solver_steps if step == duel.max_steps else solver_steps[:1]:
                run.score(step, inference_steps, command)
    evaluated = []
    for name in itertools.product(duel.models, duel.seeds):
        evaluated.append(load_run(runs[name].folder))
        evaluated[-1].final_inference_steps = runs[name].solver_steps()[0]
    return write_comparison(
        evaluated, Path(duel.output) / "report", device=duel.device, repeats=duel.latency_repeats, command=command
    )


def check_trainings(runs: Iterable[DuelRun]) -> None:
    """Check the options of all trainings, so that a mistake in those of the last model does not cost the others.

    Raises:
        ValueError: naming the model, and what cannot be used.
    """
    vaes: dict[str, VAE] = {}
    for run in {run.model: run for run in runs if not run.is_trained}.values():
        try:
            config = resolve_config(run.training_config())
            if config.lora_rank is not None:
                raise ValueError(f"lora_rank={config.lora_rank} leaves an adapter, and a duel compares pipelines")
            dataset = open_dataset(config.data, config.image_size)
            if len(dataset) < config.batch_size:
                raise ValueError(f"batch_size={config.batch_size} exceeds the {len(dataset)} images of {config.data!r}")
            if config.vae is not None and config.vae not in vaes:
                vaes[config.vae] = load_vae(config.vae)
            if config.init_from is None:
                with torch.device("meta"):  # without weights, which would take memory and time
                    build_transformer(config, dataset, vaes.get(config.vae or ""))
        except (ValueError, OSError) as error:
            raise ValueError(f"models.{run.model}, with train: {error}") from error


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
