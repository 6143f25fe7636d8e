"""The plan of a run: what it is about to do and how much compute and memory it needs."""

import torch
from torch.func import functional_call

from ..data import ImageDataset
from ..models.macs import closed_form_macs
from ..models.transformer_sit import SiTTransformer2DModel
from .config import TrainConfig


def activation_bytes(model: SiTTransformer2DModel) -> int:
    """Float32 bytes that the forward pass of one image keeps for the backward pass, from shapes alone."""
    size = model.config.sample_size
    tokens, heads = (size // model.config.patch_size) ** 2, model.config.num_attention_heads
    weights = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in model.named_parameters()}
    own = {weight.untyped_storage()._cdata for weight in weights.values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # one matrix a head: scores, which fused attention does not keep
        scores = tensor.shape[-2:] == (tokens, tokens) and tensor.numel() == heads * tokens**2
        if tensor.untyped_storage()._cdata not in own and not scores:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = torch.empty(1, model.config.in_channels, size, size)
        dropout = torch.zeros(1, dtype=torch.bool)
        arguments = (x, torch.empty(1), torch.empty(1, dtype=torch.long))
        output = functional_call(model, weights, arguments, dict(class_dropout=dropout)).sample
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output
    return total


def describe_plan(
    config: TrainConfig,
    dataset: ImageDataset,
    transformer: SiTTransformer2DModel,
    projector: torch.nn.Module | None,
    processes: int,
    sharded: bool,
    mixed_precision: str,
) -> str:
    """What a run is about to do and need, for people: data, model, batch, compute, memory.

    Call it before gradient checkpointing is switched on and before the model is sharded.
    """
    size = transformer.config.sample_size
    trained = sum(p.numel() for p in transformer.parameters())
    extra = 0 if projector is None else sum(p.numel() for p in projector.parameters())
    macs = closed_form_macs(transformer.config, size, size)
    per_device = config.batch_size // (processes * config.gradient_accumulation_steps)

    # weights, gradients and AdamW's two moments; each average, and the change of one while it is updated
    state = 16 * (trained + extra) + 4 * trained * (len(config.ema_decays) + len(config.ema_stds) + 1)
    activations = activation_bytes(transformer) / (1 if mixed_precision == "no" else 1.5)  # norms stay in float32
    if config.gradient_checkpointing:
        blocks = transformer.config.num_layers
        tokens = (size // transformer.config.patch_size) ** 2
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        activations = activations / blocks + blocks * tokens * width * 4
    activations *= per_device
    state /= processes if sharded else 1
    gmacs = f"{macs / 1e9:.2f}" if macs > 1e9 else f"{macs / 1e9:.2g}"
    precision = "float32" if mixed_precision == "no" else mixed_precision
    epochs = config.max_steps * config.batch_size / len(dataset)
    exaflop = 6 * macs * config.batch_size * config.max_steps / 1e18
    classes = f"of {len(dataset.classes)} classes" if dataset.classes else "without classes"
    lines = [
        f"data        {len(dataset):,} images {classes}, {dataset.image_size}² pixels",
        f"model       {config.preset or config.init_from}, {transformer.config.mixer}, {trained / 1e6:.2f} M parameters"
        + (f" + {extra / 1e6:.2f} M of the projector" if extra else "")
        + f", {gmacs} GMACs an image on {size}² {'pixels' if config.vae is None else 'latents'}",
        f"batch       {config.batch_size} = {processes} processes × {config.gradient_accumulation_steps} "
        f"accumulation steps × {per_device} images, {precision}",
        f"length      {config.max_steps:,} steps, {epochs:.1f} epochs, {exaflop:.2g} EFLOP forward and backward",
        f"memory      about {(state + activations) / 1e9:.2f} GB a process: {state / 1e9:.2f} for weights, optimizer "
        f"and averages, {activations / 1e9:.2f} for activations; VAE and encoder on top",
    ]
    return "\n".join(lines)
