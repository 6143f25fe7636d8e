"""Representation alignment (REPA, arXiv 2410.06940): early blocks learn to predict an encoder's features.

repa_targets.py holds the features that are stored beside latents.

B images of C channels and size S × S as the transformer takes them, N = H·W tokens of its grid, D its width, Z features
of the encoder.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..models.presets import middle_blocks
from ..models.transformer_sit import SiTTransformer2DModel
from .repa_options import check_encoder_weights

HIDDEN = 2048  # width of the projector, as in the paper


class AlignedOutput(NamedTuple):
    """What an `AlignedTransformer` returns.

    Args:
        sample: (B, C, S, S) output of the transformer.
        projected: (B, N, Z) projection of the aligned block's tokens to the encoder's features.
    """

    sample: torch.Tensor
    projected: torch.Tensor


class AlignedTransformer(nn.Module):
    """A transformer and the projector from one of its blocks to the encoder's features, which are trained together.

    Args:
        transformer: the transformer, which is all that is kept after training.
        depth: number of the block whose output is projected, counted from 1.
        features: Z.
        seed: seed of the projector's initial weights.
        projector: "mlp", or "conv", one 3×3 convolution, which sees neighbouring tokens (iREPA, arXiv 2512.10794).

    Raises:
        ValueError: if the transformer has fewer blocks, or that block is in the middle of an hourglass.
    """

    _no_split_modules = SiTTransformer2DModel._no_split_modules

    def __init__(
        self, transformer: SiTTransformer2DModel, depth: int, features: int, seed: int = 0, projector: str = "mlp"
    ):
        super().__init__()
        if depth > transformer.config.num_layers:
            raise ValueError(
                f"repa_depth={depth}: the model has {transformer.config.num_layers} blocks; choose one of them"
            )
        if depth - 1 in (middle := middle_blocks(transformer.config)):
            raise ValueError(
                f"repa_depth={depth} is in the middle of an hourglass, whose tokens stand for 2×2 of the others; "
                f"choose 1 to {middle.start}, or {middle.stop + 1} to {transformer.config.num_layers}"
            )
        self.transformer = transformer
        dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projector: nn.Module
            if projector == "conv":
                self.projector = nn.Conv2d(dim, features, 3, padding=1)
            else:
                self.projector = nn.Sequential(
                    nn.Linear(dim, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, features)
                )
        # A hook, because the transformer's own forward stays the paper's. It is registered once, since compiled blocks
        # do not notice hooks that come later.
        self._hidden: torch.Tensor | None = None
        transformer.blocks[depth - 1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        self._hidden = output

    def forward(self, *arguments: Any, **options: Any) -> AlignedOutput:
        """Call the transformer with these arguments and project the tokens (B, N, D) after block `depth`."""
        sample = self.transformer(*arguments, **options)[0]
        hidden, self._hidden = self._hidden, None
        assert hidden is not None  # the hook has kept it
        if isinstance(self.projector, nn.Conv2d):
            grid = [side // self.transformer.config.patch_size for side in sample.shape[-2:]]
            maps = hidden.mT.unflatten(2, grid)  # (B, D, H, W)
            return AlignedOutput(sample, self.projector(maps).flatten(2).mT)
        return AlignedOutput(sample, self.projector(hidden))


class TargetEncoder:
    """A frozen timm model whose patch features are the target of the alignment.

    Args:
        name: name of the timm model, such as vit_base_patch14_dinov2.lvd142m, which the paper uses.
        weights: "pretrained" for timm's own weights (from the Hub or its cache), "random", or a file.
        grid: number of the transformer's tokens along (H, W). A vision transformer receives the image at the size that
            gives exactly these tokens (224 pixels for 16 × 16 at patch size 14, as in the paper); the features of other
            models are resized to them.
        device: device of the model.
        fields: the options that give `name` and `weights`, for messages.

    Attributes:
        features: Z.
        input_size: (height, width) in pixels that images are resized to.

    Raises:
        ValueError: if timm does not know the name, or if the weights cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        weights: str,
        grid: tuple[int, int],
        device: torch.device | str,
        fields: tuple[str, str] = ("repa", "repa_weights"),
    ):
        import timm  # only where there is an encoder: it takes as long as the rest of this package

        from ..models.timm_encoders import check_timm_model, normalization, read_timm_weights

        check_timm_model(fields[0], name, name)
        options: dict[str, Any] = {}
        if weights == "pretrained":
            options["pretrained"] = True
        elif weights != "random":
            check_encoder_weights(fields[1], weights)
            options |= dict(pretrained=True, pretrained_cfg_overlay=dict(file=weights))
        try:
            if "pretrained_cfg_overlay" in options:
                read_timm_weights(weights)  # refuses crafted files, which timm would read
            with torch.device("meta"):
                probe = timm.create_model(name, num_classes=0)
            patch = getattr(getattr(probe, "patch_embed", None), "patch_size", None)
            self.input_size = timm.data.resolve_model_data_config(probe)["input_size"][1:]
            if patch is not None:
                self.input_size = options["img_size"] = (grid[0] * patch[0], grid[1] * patch[1])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = timm.create_model(name, num_classes=0, **options)
        except Exception as error:  # whatever the Hub, the file or the model's code raises
            raise ValueError(f"{fields[0]}={name!r}, {fields[1]}={weights!r} cannot be loaded: {error}") from error
        self.model = model.eval().requires_grad_(False).to(device)
        self.grid = grid
        self.mean, self.std = normalization(model, device)
        self.features = model.num_features

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """The features (B, N, Z) float32 of images (B, 1 or 3, height, width) in [−1, 1]."""
        x = pixels.expand(-1, 3, -1, -1) * 0.5 + 0.5
        x = F.interpolate(x, self.input_size, mode="bicubic", antialias=True, align_corners=False)
        z = self.model.forward_features((x - self.mean) / self.std)
        if z.ndim == 3:
            z = z[:, getattr(self.model, "num_prefix_tokens", 0) :].mT  # (B, Z, tokens)
            side = math.isqrt(z.shape[-1])
            z = z.unflatten(2, self.grid if z.shape[-1] == math.prod(self.grid) else (side, side))
        elif z.shape[1] != self.features:
            z = z.permute(0, 3, 1, 2)  # channels last, as in Swin
        if z.shape[2:] != self.grid:
            z = F.interpolate(z.float(), self.grid, mode="bilinear", antialias=True, align_corners=False)
        return z.flatten(2).mT.float()


class Targets:
    """What the projected tokens of a batch are compared with: an encoder's features of its images, or stored ones.

    Args:
        encoder: looks at the images. If None, the batch holds their features, as `TrainingView` reads them.
        spatial_norm: share of the mean over the image that is taken from each feature, before all are divided by their
            standard deviation over the image (iREPA, arXiv 2512.10794). If None, features are left as they are.
    """

    def __init__(self, encoder: TargetEncoder | None, spatial_norm: float | None = None):
        self.encoder = encoder
        self.spatial_norm = spatial_norm

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The targets (B, N, Z) float32 of a batch."""
        z = batch["targets"].float() if self.encoder is None else self.encoder(batch["x"])
        if self.spatial_norm is not None:
            z = z - self.spatial_norm * z.mean(1, keepdim=True)
            z = z / (z.std(1, keepdim=True) + 1e-6)
        return z


def alignment_loss(projected: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Negative cosine similarity of tokens (B, N, Z), averaged over the tokens: (B,) in [−1, 1] (Equation 8)."""
    return -F.cosine_similarity(projected.float(), target.float(), dim=-1).mean(1)
