"""Families of reference implementations, which share their names and differ in what the weights mean.

- "sit": SiT and the ATConv authors' SiT models. The network is told t, t=1 is data; kernels pass a tanh-GELU.
- "repa": REPA (arXiv 2410.06940) and the ATConv authors' REPA models. t=1 is noise, the velocity points to noise;
  ATConv projects by 1×1 convolutions, and kernels pass a SiLU.
- "dit": DiT (arXiv 2212.09748). The network is told one of 1000 steps, 999 for noise, and predicts the noise.
"""

from typing import Any

import torch

from .names import PATCH_EMBEDDING, PROJECTORS

LAYOUTS: dict[str, dict[str, Any]] = {  # arguments of the model that the tensors do not show
    "sit": dict(timestep_at_noise=0.0, timestep_at_data=1.0, kernel_activation="gelu_tanh"),
    "repa": dict(timestep_at_noise=1.0, timestep_at_data=0.0, kernel_activation="silu"),
    # Step n of DiT is the time (999 − n) / 1000 of the VP path.
    "dit": dict(timestep_at_noise=999.0, timestep_at_data=-1.0, kernel_activation="gelu_tanh"),
}
# DiT's betas, 0.0001…0.02 over 1000 steps, are those of the VP path.
PATH_AND_PREDICTION = {"sit": ("linear", "velocity"), "repa": ("linear", "velocity"), "dit": ("vp", "noise")}
REFERENCE_PATHS = {"linear": "linear", "gvp": "gvp", "vp": "vp", "cosine": "gvp"}  # SiT's and REPA's words
REFERENCE_PREDICTIONS = {"velocity": "velocity", "v": "velocity", "noise": "noise", "score": "score"}


def is_pointwise(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is the weight of a 1×1 convolution that stands for a linear layer."""
    return tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and name != PATCH_EMBEDDING


def detect_layout(state_dict: dict[str, torch.Tensor], args: dict, name: str = "") -> str | None:
    """Return the layout that a checkpoint shows, None if nothing shows it.

    Projectors, 1×1 convolutions and REPA's options show "repa"; names show "dit" and "sit". ATConv's layers show one of
    the ATConv authors' models, of which those without convolutions are SiT's.

    Args:
        state_dict: tensors under the reference's names.
        args: options of the training that were saved with them.
        name: name of the file.
    """
    if args.get("layout") is not None:  # in files that `export_checkpoint` wrote
        return args["layout"]
    if (
        {"proj_coeff", "enc_type", "encoder_depth"} & args.keys()
        or any(name.startswith(PROJECTORS) for name in state_dict)
        or any(is_pointwise(name, tensor) for name, tensor in state_dict.items())
    ):
        return "repa"
    names = [str(args.get("model") or ""), name]
    if any(each.startswith("DiT") for each in names):
        return "dit"
    if any(each.startswith("SiT") for each in names) or "path_type" in args:
        return "sit"
    return "sit" if any(".attn.kernel_gen." in name for name in state_dict) else None
