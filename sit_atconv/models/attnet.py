"""AttNet: the image classifier and backbone built on ATConv (arXiv 2510.20092), as a model of timm.

attnet_variants.py registers its sizes with timm. Images of any size are taken; there is no position embedding.

Shapes: B batch, (H, W) size of an image, C_i channels of stage i. Stage i returns a map (B, C_i, ⌈H/s⌉, ⌈W/s⌉) with s =
4, 8, 16, 32.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm2d, NormMlpClassifierHead, trunc_normal_
from timm.models._features import feature_take_indices
from torch import nn

from ..utils.checks import check_choice, check_count
from .attnet_blocks import ACTIVATIONS, GLU_NORM_RULES, Block, Stage, Stem, hidden_channels
from .attnet_names import check_fits, to_ours
from .attnet_variants import STAGES

HEAD_NORM_EPS = 1e-5


class AttNet(nn.Module):
    """A hierarchical network of four stages, whose blocks mix tokens by ATConv and channels by a gated linear unit.

    The arguments that have one value per stage may also be given as one value for all.

    Args:
        num_classes: number of classes; 0 for no classifier.
        depths: blocks of each stage.
        dims: channels of each stage.
        kernel_sizes: ATConv's k of each stage, odd.
        exp_rates: expansion e of the channel mixer of each stage, which has int(2·int(C·e)/3) hidden channels.
        conv_bias: whether ATConv's layers have biases.
        use_layer_scale: whether each branch of a block is scaled per channel, starting from 10⁻⁶.
        glu_dconv: per stage, whether the gate of the channel mixer passes a 3×3 depthwise convolution.
        glu_norm: per stage, whether the channel mixer has RMSNorm.
        act_layer: "GELU" (exact) or "SiLU".
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.
        in_chans: channels of the images.
        global_pool: pooling before the classifier, one of timm's words that keep the width: "avg", "max", "avgmax", or
            "" for none.
        output_stride: 32; with 16 or 8, later stages keep their size and their convolutions are dilated.
        drop_rate: dropout before the classifier.
        glu_norm_rule: how RMSNorm divides: "rms", or "variance" for weights trained with timm 1.0.10 to 1.0.12; see
            `GluNorm`.
        device, dtype: where the parameters are put once they have been drawn, and their type.

    Raises:
        ValueError: naming the argument that cannot be used.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 16, 3),
        dims: Sequence[int] = (64, 128, 288, 512),
        kernel_sizes: int | Sequence[int] = 3,
        exp_rates: float | Sequence[float] = (8, 8, 4, 4),
        conv_bias: bool = True,
        use_layer_scale: bool = True,
        glu_dconv: bool | Sequence[bool] = True,
        glu_norm: bool | Sequence[bool] = True,
        act_layer: str = "GELU",
        drop_path_rate: float = 0.0,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        glu_norm_rule: str = "rms",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_choice("act_layer", act_layer, ACTIVATIONS)
        check_choice("output_stride", output_stride, (8, 16, 32))
        check_choice("glu_norm_rule", glu_norm_rule, GLU_NORM_RULES)
        check_count("in_chans", in_chans)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={drop_path_rate} must be in [0, 1)")
        depths, dims = (_counts(name, value) for name, value in (("depths", depths), ("dims", dims)))
        exp_rates = _per_stage("exp_rates", exp_rates)
        hidden = [hidden_channels(dim, rate) for dim, rate in zip(dims, exp_rates, strict=True)]
        if min(hidden) < 1 or dims[0] < 2:
            raise ValueError(f"dims={tuple(dims)} with exp_rates={tuple(exp_rates)} leave a layer without channels")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate

        self.stem = Stem(in_chans, dims[0], act_layer)
        self.stages, self.feature_info = _build_stages(
            depths,
            dims,
            output_stride,
            drop_path_rate,
            per_stage=dict(
                hidden=hidden,
                kernel_size=_counts("kernel_sizes", kernel_sizes),
                glu_dconv=_per_stage("glu_dconv", glu_dconv),
                glu_norm=_per_stage("glu_norm", glu_norm),
            ),
            conv_bias=conv_bias,
            use_layer_scale=use_layer_scale,
            act_layer=act_layer,
            glu_norm_rule=glu_norm_rule,
        )
        self.num_features = dims[-1]
        norm_layer = partial(LayerNorm2d, eps=HEAD_NORM_EPS)
        self.head = NormMlpClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, norm_layer=norm_layer
        )
        self.head_hidden_size = self.head.num_features
        self.apply(_init_weights)
        self.to(device=device, dtype=dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm sorts parameters into layers, for layer-wise learning rates."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return dict(
            stem=r"^stem",
            blocks=r"^stages\.(\d+)" if coarse else [*blocks, (r"^head\.norm", (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the activations of blocks again in the backward pass, or keep them."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer for `num_classes` in place, or none for 0; and another pooling, unless it is None."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the features of the last stage and the maps of chosen ones.

        Args:
            x: images (B, in_chans, H, W).
            indices: which stages; a number n is the last n, None is all.
            norm: without effect: no norm applies to a map.
            stop_early: leave out the stages after the last chosen one.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.
        """
        check_choice("output_fmt", output_fmt, ("NCHW",))
        chosen, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        intermediates = []
        for i, stage in enumerate(self.stages):
            if stop_early and i > last:
                break
            x = stage(x)
            if i in chosen:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of chosen stages do not need: later stages, the head's norm and the classifier."""
        chosen, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if pruned or prune_norm:
            self.head.norm = nn.Identity()
        if pruned or prune_head:
            self.reset_classifier(0, "avg")
        return chosen

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> the map of the last stage."""
        return self.stages(self.stem(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The map of the last stage -> logits (B, num_classes), or the pooled, normalized features (B, C_3)."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _per_stage(field: str, value: Any) -> list:
    """Return one value per stage; a single one stands for all."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * STAGES
    if len(values) != STAGES:
        raise ValueError(f"{field}={value!r} has {len(values)} values; AttNet has {STAGES} stages")
    return values


def _counts(field: str, value: Any) -> list[int]:
    counts = _per_stage(field, value)
    for count in counts:
        check_count(field, count)
    return counts


def _build_stages(
    depths: Sequence[int],
    dims: Sequence[int],
    output_stride: int,
    drop_path_rate: float,
    per_stage: dict[str, list],
    **options,
) -> tuple[nn.Sequential, list[dict[str, Any]]]:
    """Return the stages, and for each its channels, stride and name, as timm's feature extractors need them.

    Args:
        depths, dims, output_stride, drop_path_rate: see `AttNet`.
        per_stage: arguments of `Block` that differ between stages.
        **options: those that do not.
    """
    rates = torch.linspace(0, drop_path_rate, sum(depths), dtype=torch.float32, device="cpu").tolist()
    stages, feature_info = [], []
    stride, dilation = 4, 1
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        step, conv_dilation = (0 if i == 0 else 2), dilation
        if i > 0 and stride >= output_stride:
            step, dilation = 1, dilation * 2
        stride *= max(step, 1)
        arguments = {name: values[i] for name, values in per_stage.items()}
        drawn, rates = rates[:depth], rates[depth:]
        blocks = [Block(dim, drop_path=rate, dilation=dilation, **arguments, **options) for rate in drawn]
        stages.append(Stage(dims[max(i - 1, 0)], dim, step, conv_dilation, blocks))
        feature_info.append(dict(num_chs=dim, reduction=stride, module=f"stages.{i}"))
    return nn.Sequential(*stages), feature_info


def _init_weights(module: nn.Module) -> None:
    """Draw the weights of a layer from a normal distribution of standard deviation 0.02; biases are zero."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights under our names that fit `model`; timm calls this when it loads weights.

    Args:
        state_dict: under the reference's names or ours.
        model: the model to be loaded; its channels of the images and its classes may differ from the weights', because
            timm adapts or drops those layers itself.

    Raises:
        ValueError: if the tensors are not AttNet's, or of another variant; the message says which.
    """
    converted = to_ours(state_dict)
    check_fits(converted, model.state_dict())
    return converted
