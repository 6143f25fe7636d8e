"""What a model costs, by formula: parameters, multiply-accumulates (MACs), memory. Nothing is built or imported for it.

macs.py counts the MACs of the operations that run, and says which operations count.

Shapes: C latent channels, p patch size, N tokens, D model width, k kernel size, m side of the grid of pooled tokens.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .codecs import DECODING_BYTES, decoding_bytes, vae_scale_factor
from .presets import FREQUENCIES, PRESETS, block_heads, coarse_grid, middle_blocks, mixer_per_block

FLOAT = 4  # bytes of float32
# Bytes of training for each parameter: weight, gradient, AdamW's two moments, one average and its change.
TRAINING_BYTES = 6 * FLOAT
STABLE_DIFFUSION_VAE = {"block_out_channels": (128, 256, 512, 512)}
VAE_PARAMETERS = 83_653_863  # of Stable Diffusion's


def model_width(config: Mapping) -> int:
    """D."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def block_widths(config: Mapping) -> list[int]:
    """The width of each block: D, or another one in the middle of an hourglass."""
    return [heads * config["attention_head_dim"] for heads in block_heads(config)]


def preset_config(name: str, in_channels: int = 4, num_classes: int = 1000) -> dict[str, Any]:
    """Every argument of a preset's model on which its costs depend."""
    return {
        **PRESETS[name],
        "in_channels": in_channels,
        "out_channels": None,
        "num_classes": num_classes,
        "class_dropout_prob": 0.1,
        "mlp_ratio": 4.0,
        "kernel_size": 3,
        "step_conditioning": "none",
        "attention_pool": 16,
    }


def level_blocks(config: Mapping, height: int, width: int) -> Iterator[tuple[str, int, int]]:
    """For each block, its mixer, its number of tokens for latents of this size, and its width."""
    p, middle = config["patch_size"], middle_blocks(config)
    grid = height // p, width // p
    coarse = coarse_grid(grid)
    mixers = mixer_per_block(config["mixer"], config["num_layers"])
    for i, (mixer, dim) in enumerate(zip(mixers, block_widths(config), strict=True)):
        yield mixer, math.prod(coarse if i in middle else grid), dim


def count_parameters(config: Mapping) -> int:
    """The number of parameters of a model with these arguments, without qk_norm and step_conditioning."""
    D, k, p2 = model_width(config), config["kernel_size"], config["patch_size"] ** 2
    C, middle = config["in_channels"], middle_blocks(config)

    def block(mixer: str, M: int) -> int:
        hidden = int(M * config["mlp_ratio"])
        gate = M**2 + M if config.get("channel_gate") else 0
        maps = config.get("kernel_groups", 1) * (k**4 + k**2)
        atconv = 3 * (M**2 + M) + maps + M + gate + (M if config.get("average_branch") else 0)
        depthwise = 9 * hidden if config.get("mlp_depthwise") else 0
        rest = 6 * M * (D + 1) + 2 * M * hidden + hidden + M + depthwise  # modulation, MLP
        return rest + (atconv if mixer == "atconv" else 4 * (M**2 + M))

    blocks = sum(block(mixer, M) for mixer, _, M in level_blocks(config, 0, 0))
    if middle:
        M = block_widths(config)[middle.start]
        blocks += 4 * D * M + M + 4 * D * (M + 1) + middle.start * (D**2 + D)  # merging, splitting, long skips
    embeddings = C * p2 * D + D + FREQUENCIES * D + D + D**2 + D
    classes = (config["num_classes"] + (config["class_dropout_prob"] > 0)) * D
    out = (config["out_channels"] or C) * p2
    return embeddings + classes + blocks + 2 * (D**2 + D) + D * out + out


def closed_form_macs(config: Mapping, height: int, width: int) -> int:
    """Compute the MACs of one forward pass of one image by formula.

    Args:
        config: every argument of `SiTTransformer2DModel`, as in `model.config`.
        height, width: size of the latents, in latent pixels.

    Raises:
        ValueError: for a size that the patch size does not divide.
    """
    p = config["patch_size"]
    if height % p or width % p:
        raise ValueError(f"height={height} and width={width} must be divisible by patch_size={p}")
    N, D, middle = (height // p) * (width // p), model_width(config), middle_blocks(config)
    levels = list(level_blocks(config, height, width))
    blocks = sum(_block_macs(config, *block) for block in levels)
    if middle:
        _, tokens, M = levels[middle.start]
        blocks += 2 * tokens * 4 * D * M + middle.start * N * D**2  # merging and splitting; long skips
    patch_embed = N * D * config["in_channels"] * p**2
    time_embed = (FREQUENCIES * D + D**2) * (1 if config["step_conditioning"] == "none" else 2)  # of the end, too
    output = 2 * D**2 + N * D * p**2 * (config["out_channels"] or config["in_channels"])
    return patch_embed + time_embed + blocks + output


def _block_macs(config: Mapping, mixer: str, N: int, D: int) -> int:
    """The MACs of a block of N tokens of width D."""
    k, m = config["kernel_size"], config.get("attention_pool", 16)
    mixers = {
        # q, k, v and output projections; then q·kᵀ and the weighted sum of v
        "attention": 4 * N * D**2 + 2 * N**2 * D,
        # query and output projections; keys and values of the m² pooled tokens; both products
        "pooled_attention": 2 * N * D**2 + 2 * m**2 * D**2 + 2 * N * m**2 * D,
        # value and output projections; kernel_proj on the k² pooled tokens; kernel_gen; the convolution; the gate
        "atconv": 2 * N * D**2 + k**2 * D**2 + D * k**4 + N * D * k**2 + (D**2 if config.get("channel_gate") else 0),
    }
    hidden = int(D * config["mlp_ratio"])
    mlp = 2 * N * D * hidden + (9 * N * hidden if config.get("mlp_depthwise") else 0)
    return 6 * D * model_width(config) + mixers[mixer] + mlp


def closed_form_activation_bytes(config: Mapping, sample_size: int) -> int:
    """Bytes in float32 that the forward pass of one image keeps for the backward pass, for the model of a preset.

    `training.plan.activation_bytes` finds the same by running any model on shapes.
    """
    N, D, p2 = (sample_size // config["patch_size"]) ** 2, model_width(config), config["patch_size"] ** 2
    levels = list(level_blocks(config, sample_size, sample_size))
    blocks = sum(_block_activations(config, *block) for block in levels)
    if middle := middle_blocks(config):
        _, tokens, M = levels[middle.start]
        blocks += tokens * (M + 4 * D) + N * D  # what splitting, merging and one more long skip take
    return FLOAT * (blocks + (3 * N + 5) * D + (config["in_channels"] * p2 + 2) * N + FREQUENCIES + 2)


def _block_activations(config: Mapping, mixer: str, N: int, D: int) -> int:
    """How many numbers a block of N tokens of width D keeps for the backward pass."""
    m = config.get("attention_pool", 16)
    mixers = {
        "attention": 22 * N * D + 4 * N + 8 * D,
        "pooled_attention": 18 * N * D + 4 * N + (8 + (3 if N == m**2 else 4) * m**2) * D,  # m² tokens are not pooled
        "atconv": 18 * N * D + 4 * N + 46 * D,
    }
    return mixers[mixer]


def training_bytes(config: Mapping, sample_size: int, batch_size: int) -> int:
    """Bytes that training takes in float32 with AdamW and one average, without VAE and encoder."""
    return TRAINING_BYTES * count_parameters(config) + batch_size * closed_form_activation_bytes(config, sample_size)


def token_bytes(config: Mapping, height: int, width: int, itemsize: int = FLOAT) -> int:
    """Bytes of one image's tokens at the peak of a forward pass, in an MLP, where its activation is not fused.

    An hourglass holds the tokens for its long skips, too.

    Args:
        config: every argument of `SiTTransformer2DModel`, as in `model.config`.
        height, width: size of the latents, in latent pixels.
        itemsize: bytes of a number, 4 in float32.
    """
    N, D = (height // config["patch_size"]) * (width // config["patch_size"]), model_width(config)
    largest = max(tokens * dim for _, tokens, dim in level_blocks(config, height, width))
    kept = middle_blocks(config).start * N * D if config.get("middle_layers") else 0
    return itemsize * (largest * (2 + 2 * int(config["mlp_ratio"])) + kept)


def sampling_bytes(config: Mapping, sample_size: int, batch_size: int) -> int:
    """Bytes that drawing a batch takes in float32 at its peak, with Stable Diffusion's VAE.

    These are the weights of both, and the larger one of the transformer's tokens and what decoding takes, which is done
    in parts of the batch, see `vae.decode`.
    """
    side = sample_size * vae_scale_factor(STABLE_DIFFUSION_VAE)
    image = decoding_bytes(STABLE_DIFFUSION_VAE, side, side)
    decoded = min(batch_size, max(1, DECODING_BYTES // image))
    tokens = batch_size * token_bytes(config, sample_size, sample_size)
    return FLOAT * (count_parameters(config) + VAE_PARAMETERS) + max(tokens, decoded * image)
