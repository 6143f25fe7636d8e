"""Multiply-accumulates (MACs) of one forward pass: counted from the operations that run, and by formula.

Only multiplications of matrices and convolutions count, as in the "Gflops" of DiT and SiT (which are giga-MACs): sums,
pooling, norms, activations, softmax and the elementwise products of adaLN, gating and lateral inhibition do not. Taps
that fall on zero padding do.

Shapes: B batch, C latent channels, p patch size, (H, W) token grid, N = H·W tokens, D model width, k kernel size.
"""

from collections.abc import Mapping

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .models.transformer_sit import FREQUENCIES, SiTTransformer2DModel, mixer_per_block
from .validation import check_count


def count_macs(model: SiTTransformer2DModel, height: int, width: int, batch_size: int = 1) -> int:
    """Count the MACs of one forward pass from the operations that PyTorch dispatches.

    Runs on PyTorch's meta device, wherever the weights are: shapes only, at no cost and with nothing changed.

    Args:
        model: of any device and dtype.
        height, width: of the latents, in latent pixels.
        batch_size: B; the count is for the whole batch.

    Raises:
        ValueError: for a batch below 1, or a size that the patch does not divide.
    """
    check_count("batch_size", batch_size)
    weights = {name: weight.to("meta") for name, weight in model.state_dict().items()}
    with torch.device("meta"):
        x = torch.empty(batch_size, model.config.in_channels, height, width, dtype=model.dtype)  # (B, C, H·p, W·p)
        t = torch.empty(batch_size)
        labels = torch.empty(batch_size, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    # On the meta device attention is two matmuls; the counter knows no flash attention of CPUs and would count it as 0.
    with torch.no_grad(), counter:
        functional_call(model, weights, (x, t, labels))
    flops = counter.get_total_flops()
    assert flops % 2 == 0, "a multiply-accumulate is two operations"
    return flops // 2


def closed_form_macs(config: Mapping, height: int, width: int) -> int:
    """The MACs of one forward pass of one image, by hand.

    Args:
        config: every argument of `SiTTransformer2DModel`, as in `model.config`.
        height, width: of the latents, in latent pixels.

    Raises:
        ValueError: for a size that the patch does not divide.
    """
    p = config["patch_size"]
    if height % p or width % p:
        raise ValueError(f"height={height} and width={width} must be divisible by patch_size={p}")
    N = (height // p) * (width // p)
    D = config["num_attention_heads"] * config["attention_head_dim"]
    k = config["kernel_size"]
    C = config["in_channels"]

    mixers = {
        # q, k, v and output projections; then q·kᵀ and the weighted sum of v
        "attention": 4 * N * D**2 + 2 * N**2 * D,
        # value and output projections; kernel_proj on the k² pooled tokens; kernel_gen; the convolution
        "atconv": 2 * N * D**2 + k**2 * D**2 + D * k**4 + N * D * k**2,
    }
    modulation = 6 * D**2
    mlp = 2 * N * D * int(D * config["mlp_ratio"])
    blocks = sum(modulation + mixers[name] + mlp for name in mixer_per_block(config["mixer"], config["num_layers"]))
    patch_embed = N * D * C * p**2
    time_embed = FREQUENCIES * D + D**2
    output = 2 * D**2 + N * D * p**2 * (config["out_channels"] or C)
    return patch_embed + time_embed + blocks + output
