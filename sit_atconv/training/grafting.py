"""A graft in a run: which blocks it replaces, as the user says or by how well they can be replaced, and its record."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..data import ImageDataset, TrainingOrder, TrainingView
from ..flow.interpolants import Interpolant
from ..flow.losses import InterpolantLoss
from ..models.grafting import replaced_blocks
from ..models.presets import mixer_per_block
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE
from ..utils.bounded_text import read_json_object
from ..utils.files import staged, write_json
from ..utils.hashing import tensors_sha256
from ..utils.imagenet import name_synsets
from .config import TrainConfig
from .fine_tuning import check_teacher_vae, load_teacher
from .initial_model import build_transformer
from .mixer_regression import CallableMixers, MixerRegression, mixer_of
from .optimizer import learning_rate
from .processes import on_main_process
from .teacher_options import automatic_blocks

RECORD, PICTURE = "graft.json", "graft.png"  # in the run folder
RANKING_STEPS = 60  # updates of the regression that ranks the blocks
MEASURED_STEPS = 15  # the last of them, over which the shares are averaged


@dataclass
class Graft:
    """What a graft replaces.

    Args:
        mixer: the mixers of the new model.
        blocks: the blocks whose self-attention is replaced, counted from 0.
        shares: for every block with self-attention, if the blocks were ranked, the share of its mixer's output that
            ATConv leaves unexplained after a short regression.
        key: what the ranking depends on.
        source: the trained model, frozen, if the run regresses on its mixers.
    """

    mixer: str | list[str]
    blocks: list[int]
    shares: dict[int, float] = field(default_factory=dict)
    key: dict[str, Any] = field(default_factory=dict)
    source: SiTTransformer2DModel | None = None

    def describe(self) -> list[str]:
        """The ranking in one line, if there was one."""
        shares = ", ".join(f"{i}: {share:.3f}" for i, share in sorted(self.shares.items()))
        return [f"            unexplained by ATConv after {RANKING_STEPS} steps, by block: {shares}"] if shares else []

    def record(self, run: Path) -> None:
        """Keep and draw the ranking in the run folder, if there was one."""
        if not self.shares:
            return
        shares = {str(i): share for i, share in sorted(self.shares.items())}
        write_json(run / RECORD, {**self.key, "mixer": self.mixer, "blocks": self.blocks, "unexplained": shares})
        draw_shares(self.shares, self.blocks, run / PICTURE)


def prepare_graft(
    config: TrainConfig, dataset: ImageDataset, vae: VAE | None, accelerator: Accelerator
) -> Graft | None:
    """Find out which blocks a run replaces; None if it replaces none.

    Raises:
        ValueError: if the trained model cannot be regressed on with this data or VAE.
    """
    if config.init_from is None or config.mixer is None:
        return None
    number = automatic_blocks(config.mixer)
    if number is None and not config.graft_steps:
        trained = read_json_object(Path(config.init_from) / "transformer" / "config.json")
        return Graft(config.mixer, replaced_blocks(trained, config.mixer))
    check_teacher_vae(config.init_from, config.vae, vae, "init_from")
    student = build_transformer(config, dataset, vae, "atconv" if number is not None else config.mixer)
    source = load_teacher(config.init_from, student, name_synsets(dataset.classes), field="init_from")
    source = source.to(accelerator.device)
    if number is None:
        return Graft(config.mixer, replaced_blocks(source.config, config.mixer), source=source)
    shares, key = on_main_process(accelerator, lambda: block_shares(config, dataset, vae, student, source, accelerator))
    blocks = sorted(sorted(shares, key=lambda i: shares[i])[:number])
    mixers = mixer_per_block(source.config.mixer, source.config.num_layers)
    mixer = ["atconv" if i in blocks else name for i, name in enumerate(mixers)]
    return Graft(mixer, blocks, shares, key, source)


def block_shares(
    config: TrainConfig,
    dataset: ImageDataset,
    vae: VAE | None,
    student: SiTTransformer2DModel,
    source: SiTTransformer2DModel,
    accelerator: Accelerator,
) -> tuple[dict[int, float], dict[str, Any]]:
    """The unexplained share of every block's mixer, and what it depends on; from the run folder if it is there."""
    key = {
        "init_from_sha256": tensors_sha256(source.state_dict()),
        "init": config.graft_init,
        "arguments": config.model,
        "seed": config.seed,
        "steps": RANKING_STEPS,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
    }
    record = config.run_folder / RECORD
    if record.is_file():
        kept = read_json_object(record)
        if all(kept.get(name) == json.loads(json.dumps(value)) for name, value in key.items()):
            return {int(i): float(share) for i, share in kept["unexplained"].items()}, key
    return rank_blocks(config, dataset, vae, student, source, accelerator), key


def rank_blocks(
    config: TrainConfig,
    dataset: ImageDataset,
    vae: VAE | None,
    student: SiTTransformer2DModel,
    source: SiTTransformer2DModel,
    accelerator: Accelerator,
) -> dict[int, float]:
    """Let ATConv learn the output of every self-attention for a few steps; return what it leaves unexplained.

    Args:
        config: the configuration of the run.
        dataset: the training data.
        vae: the VAE; None for pixels.
        student: a model with ATConv in all blocks, which is trained.
        source: the trained model, frozen.
        accelerator: the processes of the run; this one works alone.

    Returns:
        For each block, the share of the output's mean square.
    """
    blocks = replaced_blocks(source.config, student.config.mixer)
    model = CallableMixers(student).to(accelerator.device).train()
    loss_fn = InterpolantLoss(Interpolant(**config.path_options), "none", **config.time_options)
    parts = (student.config.class_dropout_prob, vae, source, blocks, accelerator.autocast)
    regression = MixerRegression(loss_fn, model, *parts)
    shape = (student.config.in_channels, student.config.sample_size, student.config.sample_size)
    view = TrainingView(
        dataset, config.seed, config.horizontal_flip, shape, vae is not None, noise_scale=config.noise_scale
    )
    size = config.batch_size // (accelerator.num_processes * config.gradient_accumulation_steps)
    order = TrainingOrder(len(dataset), size, config.seed, 0, RANKING_STEPS, 0, 1, dataset.epoch_order)
    mixers = [p for i in blocks for p in mixer_of(student, i).parameters()]
    optimizer = torch.optim.AdamW(mixers, weight_decay=0.0)
    measured = torch.zeros(len(blocks), device=accelerator.device)
    bar = tqdm(order, "ranking blocks", RANKING_STEPS, leave=False, disable=None)
    for step, keys in enumerate(bar):
        batch = view.collate([view[key] for key in keys])
        batch.pop("broken")
        with accelerator.autocast():
            shares, _ = regression.shares(batch)
        if step >= RANKING_STEPS - MEASURED_STEPS:
            measured += shares.detach().mean(0) / MEASURED_STEPS
        optimizer.zero_grad()
        shares.mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, RANKING_STEPS)
        optimizer.step()
    return dict(zip(blocks, measured.tolist(), strict=True))


def draw_shares(shares: dict[int, float], blocks: list[int], picture: Path) -> None:
    """Draw the unexplained share of each block as bars; those that are replaced stand out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.5, 0.35 * len(shares) + 2), 3.2), layout="constrained")
    axes, order = figure.subplots(), sorted(shares)
    for chosen, color, label in ((True, "tab:blue", "becomes ATConv"), (False, "tab:gray", "stays self-attention")):
        names = [i for i in order if (i in blocks) == chosen]
        if names:
            axes.bar([order.index(i) for i in names], [shares[i] for i in names], color=color, label=label)
    axes.set(xlabel="block", ylabel="unexplained share", title="What ATConv leaves of each output")
    axes.set_xticks(range(len(order)), list(map(str, order)))
    axes.legend(fontsize="small")
    with staged(picture, durable=False) as staging:
        FigureCanvasAgg(figure).print_png(staging)
