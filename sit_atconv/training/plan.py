"""The plan of a run: what it is about to do and how much compute and memory it needs."""

import torch
from torch.func import functional_call

from ..data import ImageDataset
from ..models.costs import closed_form_macs, level_blocks
from ..models.transformer_sit import SiTTransformer2DModel
from ..utils.environment import emulates_bfloat16
from ..utils.source_names import TEACHER
from ..utils.text import counted
from .config import TrainConfig
from .grafting import Graft
from .optimizer import muon_matrices

MANY_EPOCHS = 1000  # from which on a plan warns of them


def activation_bytes(model: SiTTransformer2DModel) -> int:
    """Bytes that the forward pass of one image keeps for the backward pass in float32, computed from shapes alone."""
    size, pooled = model.config.sample_size, model.config.attention_pool**2
    levels = {
        (tokens, width // model.config.attention_head_dim)
        for _, tokens, width in level_blocks(model.config, size, size)
    }
    weights = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in model.named_parameters()}
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    x = torch.empty(1, model.config.in_channels, size, size, device="meta")
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # one matrix per head: attention scores, which fused attention does not keep
        seen = tensor.shape[-1]  # tokens that are attended to
        scores = any(
            tensor.shape[-2:] in ((tokens, tokens), (tokens, pooled)) and tensor.numel() == heads * tokens * seen
            for tokens, heads in levels
        )
        storage = tensor.untyped_storage()._cdata
        if storage not in own and (not scores or storage == x.untyped_storage()._cdata):
            kept[storage] = tensor
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        dropout = torch.zeros(1, dtype=torch.bool)
        arguments = (x, torch.empty(1), torch.empty(1, dtype=torch.long))
        output = functional_call(model, weights, arguments, dict(class_dropout=dropout)).sample
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def state_bytes(config: TrainConfig, trained: int, projected: int, matrices: int = 0) -> int:
    """Bytes of weights, gradients, the optimizer's moments and averages.

    Args:
        config: the configuration of the run.
        trained: number of parameters of the transformer, which are averaged.
        projected: number of parameters of the projector.
        matrices: number of parameters of which the optimizer keeps one moment, where AdamW keeps two.
    """
    averages = len(config.ema_decays) + len(config.ema_stds) + 1  # and the change of one of them while it is updated
    return 16 * (trained + projected) - 4 * matrices + 4 * trained * averages


def image_activation_bytes(config: TrainConfig, transformer: SiTTransformer2DModel, mixed_precision: str) -> float:
    """Bytes of activations per image in this precision, with or without gradient checkpointing."""
    activations = activation_bytes(transformer) / (1 if mixed_precision == "no" else 1.5)  # norms stay in float32
    if not config.gradient_checkpointing:
        return activations
    blocks = transformer.config.num_layers
    tokens = (transformer.config.sample_size // transformer.config.patch_size) ** 2
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    return activations / blocks + blocks * tokens * width * 4


def forward_passes(config: TrainConfig) -> float:
    """What one image of a training step costs, in forward passes: a backward pass counts as two.

    A teacher costs one, taken to be as large as the model, and its guidance another one. For MeanFlow, the derivative
    of a span costs two, and its tangent one unless the data give it, and guidance that is built in two without a
    teacher.
    """
    if config.objective == "flow":
        return 3 + (config.teacher is not None) * (1 + (config.teacher_guidance_scale != 1))
    guided = config.meanflow_guidance_scale != 1
    if config.teacher is not None:
        return 3 + 2 * config.meanflow_share + 1 + guided
    own_tangent = config.meanflow_tangent == "model" and not guided  # guidance has computed it
    return 3 + (2 + own_tangent) * config.meanflow_share + 2 * guided


def describe_objective(config: TrainConfig, transformer: SiTTransformer2DModel) -> list[str]:
    """Describe the objective of a run in one line, if it is not the plain flow's."""
    if config.objective == "flow":
        return describe_distillation(config)
    source = "the data" if config.teacher is None else config.teacher
    scale = config.meanflow_guidance_scale
    guidance = "" if scale == 1 else f", guidance of scale {scale:g} built in"
    return [
        f"objective   MeanFlow, {config.meanflow_share:.0%} spans, velocities of {source}{guidance}; a step costs "
        f"{forward_passes(config) / 3:.2f} of a flow's; step_conditioning {transformer.config.step_conditioning}",
    ]


def describe_graft(config: TrainConfig, graft: Graft | None, num_layers: int) -> list[str]:
    """Describe which blocks get another mixer, and how it begins, if the run replaces mixers."""
    if graft is None:
        return []
    blocks = ", ".join(map(str, graft.blocks))
    start = "from the weights" if config.graft_init == "values" else "anew in place"
    steps = f", and learns its output for {counted(config.graft_steps, 'step')}" if config.graft_steps else ""
    head = f"graft       blocks {blocks} of 0…{num_layers - 1}: the new mixer starts {start} of self-attention{steps}"
    return [head, *graft.describe()]


def precision_warnings(mixed_precision: str, device: torch.device | None) -> list[str]:
    """A warning, in a list, if the precision makes training slower on this device."""
    if mixed_precision != "bf16" or device is None or not emulates_bfloat16(device):
        return []
    return [
        "warning     this CPU has no instructions for bf16, and emulating them takes twice to ten times as long as "
        "float32: give --mixed_precision no"
    ]


def describe_distillation(config: TrainConfig) -> list[str]:
    """Describe what a flow learns from its teacher, if it has one."""
    if config.teacher is None:
        return []
    scale, share = config.teacher_guidance_scale, config.flow_weight
    guidance = "" if scale == 1 else f" with guidance of scale {scale:g}, built in"
    data = f", and {share:g} × that against the data" if share else ""
    lines = [
        f"objective   {config.teacher_weight:g} × error against {config.teacher}{guidance}{data}; a step costs "
        f"{forward_passes(config) / 3:.2f} of a flow's"
    ]
    if share and config.data.startswith(TEACHER):
        lines.append(
            "warning     these data are a teacher's samples, whose errors are learnt with them; --flow_weight 0 learns "
            "the teacher alone, which is better (docs/grafting.md)"
        )
    return lines


def describe_plan(
    config: TrainConfig,
    dataset: ImageDataset,
    transformer: SiTTransformer2DModel,
    projector: torch.nn.Module | None,
    processes: int,
    sharded: bool,
    mixed_precision: str,
    graft: Graft | None = None,
    device: torch.device | None = None,
) -> str:
    """Describe what a run is about to do and what it needs: data, model, batch, length, memory.

    Call this before gradient checkpointing is enabled and before the model is sharded.

    Args:
        config: the configuration of the run.
        dataset: the training data.
        transformer: the model.
        projector: REPA's projector; None without REPA.
        processes: number of processes.
        sharded: whether weights, gradients, moments and averages are sharded over the processes.
        mixed_precision: "no", "bf16" or "fp16".
        graft: what a graft replaces; None without one.
        device: where the run computes. If None, nothing is said of it.
    """
    size = transformer.config.sample_size
    whole = sum(p.numel() for p in transformer.parameters())
    trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)  # fewer with an adapter
    projected = 0 if projector is None else sum(p.numel() for p in projector.parameters())
    macs = closed_form_macs(transformer.config, size, size)
    parts = config.gradient_accumulation_steps
    per_device = config.batch_size // (processes * parts)
    matrices = sum(p.numel() for p in muon_matrices(transformer.blocks)) if config.optimizer == "muon" else 0
    state = state_bytes(config, trained, projected, matrices) + 4 * (whole - trained)
    state /= processes if sharded else 1
    activations = image_activation_bytes(config, transformer, mixed_precision) * per_device
    gmacs = f"{macs / 1e9:.2f}" if macs > 1e9 else f"{macs / 1e9:.2g}"
    precision = "float32" if mixed_precision == "no" else mixed_precision
    epochs = config.max_steps * config.batch_size / len(dataset)
    exaflop = 2 * forward_passes(config) * macs * config.batch_size * config.max_steps / 1e18
    classes = f"of {counted(len(dataset.classes), 'class')}" if dataset.classes else "without classes"
    beside = "" if dataset.is_encoded else "; VAE and encoder on top"
    mixer = transformer.config.mixer if isinstance(transformer.config.mixer, str) else "a mixer for each block"
    if middle := transformer.config.middle_layers:
        mixer += f", an hourglass with {middle} of {counted(transformer.config.num_layers, 'block')} in the middle"
    lines = [
        f"data        {counted(len(dataset), 'image')} {classes}, {dataset.image_size}² pixels",
        *(f"            {note}" for note in dataset.notes),
        f"model       {config.preset or config.init_from}, {mixer}, {whole / 1e6:.2f} M parameters"
        + (f" + {projected / 1e6:.2f} M of the projector" if projected else "")
        + f", {gmacs} GMACs an image on {size}² {'pixels' if config.vae is None else 'latents'}",
        f"batch       {config.batch_size} = {counted(processes, 'process')} × {counted(parts, 'accumulation step')} × "
        f"{counted(per_device, 'image')}, {precision}",
        *precision_warnings(mixed_precision, device),
        *describe_graft(config, graft, transformer.config.num_layers),
        *describe_objective(config, transformer),
        f"length      {counted(config.max_steps, 'step')}, {epochs:.1f} epochs, {exaflop:.2g} EFLOP forward and "
        "backward",
        f"memory      about {(state + activations) / 1e9:.2f} GB a process: {state / 1e9:.2f} for weights, optimizer "
        f"and averages, {activations / 1e9:.2f} for activations" + beside,
    ]
    if epochs >= MANY_EPOCHS and config.init_from is None:
        lines.append(
            f"warning     each image is seen {epochs:,.0f} times: the model will learn them by heart, and its samples "
            "be copies of them; use more images, fewer --max_steps, or fine-tune a trained model (--init_from)"
        )
    return "\n".join(lines)
