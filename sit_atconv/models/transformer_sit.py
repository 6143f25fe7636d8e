"""SiT: the Scalable Interpolant Transformer (arXiv 2401.08740), with ATConv or self-attention in each block.

Shapes: B batch, C latent channels, p patch size, (H, W) token grid, N = H·W tokens in row-major order, D model width.
Time: t=0 noise, t=1 data; the network gets t itself, and the end s ≥ t of a step if it predicts mean velocities.
"""

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..ops.linear import Linear
from ..utils.checks import plain_numbers
from .arguments import check_arguments, choose_end_time_blocks, choose_position_embedding, token_grid
from .atconv import ATConv
from .caching import BlockCacheMixin
from .embeddings import add_position_embedding, check_labels, embed_times
from .hourglass import Hourglass
from .loading import StrictModelMixin
from .presets import FREQUENCIES, PRESETS, block_heads, check_preset, middle_blocks, mixer_per_block
from .sit_block import SiTBlock, make_mixer, modulate


class SiTTransformer2DModel(
    StrictModelMixin, ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, BlockCacheMixin
):
    """SiT with ATConv, self-attention, or both as its mixers, the layers that mix tokens.

    Args:
        sample_size: height and width of the training latents; other sizes, square or not, also work.
        patch_size: side of a patch, in latent pixels.
        in_channels: channels of the latents (or of the image, without a VAE).
        out_channels: channels of the output. If None, defaults to `in_channels`.
        num_layers: number of blocks.
        num_attention_heads, attention_head_dim: their product is the model width D, for every mixer.
        mlp_ratio: hidden width of the MLP, divided by D.
        num_classes: number of classes; the null class of classifier-free guidance has the id `num_classes`.
        class_dropout_prob: probability that a label is replaced by the null class in training. 0 trains a model without
            a null class, which cannot be guided.
        mixer: "atconv", "attention", "pooled_attention" (`PooledAttention`), one of `MIXER_CYCLES`, which alternate
            them: "hybrid" (attention in blocks 0, 2, 4…) and "pooled_hybrid" (pooled attention in 1, 4, 7…); or a list,
            one per block.
        kernel_size, kernel_activation, kernel_pool, kernel_dilation, channel_gate, average_branch, kernel_groups: see
            `ATConv`.
        position_embedding: "sincos" or "none". If None, "sincos" if at least one block is attention, else "none".
        qk_norm: normalise the queries and keys of attention per head, as REPA can (arXiv 2410.06940).
        timestep_at_noise, timestep_at_data: timestep values that the network receives at t=0 and at t=1, interpolated
            linearly in between. By default, it receives t itself. Weights trained elsewhere may count from data to
            noise: 1 and 0 for REPA, 999 and −1 for the thousand steps of DiT.
        step_conditioning: how the network gets the end s of the step whose mean velocity it predicts (MeanFlow, arXiv
            2505.13447). "none": not at all, it predicts the velocity at t. "span": by a second embedding, of s − t,
            which has no effect in a fresh model. "decoupled": the last blocks and the output get s in place of t,
            without new weights (arXiv 2510.24474).
        end_time_blocks: number of blocks that get s; only for "decoupled". If None, two of seven.
        trained_guidance_scale: scale of the guidance that training has built into the prediction; 1 for none. Such a
            model is not guided once more in sampling.
        attention_pool: side of the grid of pooled tokens that pooled attention attends to.
        mlp_depthwise: whether the MLPs convolve their hidden channels, see `MLP`.
        middle_layers: number of blocks in the middle of an `Hourglass`, whose tokens stand for 2×2 of the others; as
            many of the `num_layers` blocks come before as after them. 0 for a model of one resolution.
        middle_attention_heads: heads of these blocks, whose number times `attention_head_dim` is their width. If None,
            that of the others.

    Raises:
        ValueError: for sizes below 1, an unknown choice, or sin-cos embeddings in a width that is not divisible by 4.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SiTBlock"]  # noqa: RUF012
    _repeated_blocks = ["SiTBlock"]  # noqa: RUF012
    # Few weights whose rounding to 8 bits costs most (docs/weights.md); layers of adaLN are many, and cost least.
    _skip_layerwise_casting_patterns = ("patch_embed", "time_embed", "span_embed", "norm", "kernel_gen", "^proj_out$")

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        mixer: str | list[str] = "atconv",
        kernel_size: int = 3,
        kernel_activation: str = "gelu_tanh",
        kernel_pool: str = "strips",
        position_embedding: str | None = None,
        qk_norm: bool = False,
        timestep_at_noise: float = 0.0,
        timestep_at_data: float = 1.0,
        step_conditioning: str = "none",
        end_time_blocks: int | None = None,
        trained_guidance_scale: float = 1.0,
        attention_pool: int = 16,
        kernel_dilation: int | list[int] = 1,
        channel_gate: bool = False,
        average_branch: bool = False,
        kernel_groups: int = 1,
        mlp_depthwise: bool = False,
        middle_layers: int = 0,
        middle_attention_heads: int | None = None,
    ):
        super().__init__()
        if numbers := plain_numbers(self.config):
            self.register_to_config(**numbers)
        check_arguments(self.config)
        mixers = mixer_per_block(mixer, num_layers)
        dim = num_attention_heads * attention_head_dim
        self.position_embedding = choose_position_embedding(self.config, mixers)
        self.out_channels = out_channels or in_channels
        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.time_embed = TimestepEmbedding(FREQUENCIES, dim)
        self.span_embed = TimestepEmbedding(FREQUENCIES, dim) if step_conditioning == "span" else None
        self.end_time_blocks = choose_end_time_blocks(self.config)
        self.class_embed = nn.Embedding(num_classes + (class_dropout_prob > 0), dim)
        heads = block_heads(self.config)
        self.blocks = nn.ModuleList(
            SiTBlock(
                n * attention_head_dim,
                make_mixer(name, n, self.config),
                int(n * attention_head_dim * mlp_ratio),
                mlp_depthwise,
                condition_dim=dim,
            )
            for name, n in zip(mixers, heads, strict=True)
        )
        middle = middle_blocks(self.config)
        self.hourglass = Hourglass(dim, heads[middle.start] * attention_head_dim, middle) if middle else None
        self.norm_out = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation_out = Linear(dim, 2 * dim)
        self.proj_out = Linear(dim, patch_size**2 * self.out_channels)
        self.gradient_checkpointing = False
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """DiT's initialisation: Xavier for every projection, small embeddings, zero modulation and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))  # a patch is projected as one vector
        nn.init.zeros_(self.patch_embed.get_parameter("bias"))
        for embedding in (self.class_embed, self.time_embed.linear_1, self.time_embed.linear_2):
            nn.init.normal_(embedding.weight, std=0.02)
        gates = [module.channel_gate for module in self.modules() if isinstance(module, ATConv)]
        without_effect = [*self._modulation_layers, self.proj_out, *(gate for gate in gates if gate is not None)]
        if self.hourglass is not None:
            without_effect += self.hourglass.without_effect
        if self.span_embed is not None:
            nn.init.normal_(self.span_embed.linear_1.weight, std=0.02)
            without_effect.append(self.span_embed.linear_2)
        for layer in without_effect:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "SiTTransformer2DModel":
        """Build a freshly initialised model by its published name, such as "SiT-ATConv-XL/2".

        Args:
            name: `SiT-{S,B,L,XL}/{2,4,8}` (attention), `SiT-ATConv-…`, `SiT-ATConv-…-Hybrid`, `SiT-ATConv-…-Pooled`
                (attention to pooled tokens in every third block), the hourglasses `SiT-ATConv-U-…` and
                `SiT-ATConv-U-…-Hybrid` (attention in the middle), or our own small size `Nano`, with patch sizes 1, 2
                and 4.
            **overrides: any argument of the constructor; they take precedence over the preset.

        Raises:
            ValueError: for an unknown preset.
        """
        check_preset(name)
        return cls(**{**PRESETS[name], **overrides})

    @property
    def null_class(self) -> int:
        """The class id that stands for "no class".

        Raises:
            ValueError: if the model was built without class dropout and so has no such class.
        """
        if self.config.class_dropout_prob == 0:
            raise ValueError("class_dropout_prob=0: this model has no null class, so it cannot be guided")
        return self.config.num_classes

    def draw_class_dropout(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw which labels to drop: (B,) bool on the CPU, for `forward(class_dropout=…)`."""
        return torch.rand(batch_size, generator=generator) < self.config.class_dropout_prob

    def _embed_labels(
        self, labels: torch.Tensor | None, batch_size: int, dropout: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor:
        """Look up labels (B,), or mix by weights (B, C) -> (B, D); in training, dropped ones become the null class."""
        has_null_class = self.config.class_dropout_prob > 0 and not self.training
        num_ids = self.config.num_classes + has_null_class
        labels = check_labels(labels, batch_size, num_ids)
        if labels.is_floating_point():
            table = self.class_embed(torch.arange(labels.shape[1], device=device))  # (C, D)
            return labels.to(device, table.dtype) @ table
        labels = labels.to(device, torch.long)  # the null class may not fit into the labels' own type
        if self.training and self.config.class_dropout_prob > 0:
            if dropout is None:
                dropout = self.draw_class_dropout(batch_size)
            labels = labels.masked_fill(dropout.to(device), self.null_class)
        return self.class_embed(labels)

    def _conditions(
        self, times: torch.Tensor, ends: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """The inputs (…, D) of `_modulation_layers`, one each: the activated sum of the embeddings of time and class.

        Args:
            times: t (…,) float32.
            ends: s, like t; equal to t where the velocity at t is asked for. Ignored if step_conditioning is "none".
            labels: embedded labels, which broadcast with (…, D).
            dtype: the type in which times are embedded.
        """
        start, end = self.config.timestep_at_noise, self.config.timestep_at_data
        num_layers = len(self.blocks) + 1
        embedding = embed_times(self.time_embed, start + (end - start) * times, dtype)
        if self.span_embed is not None:
            embedding = embedding + embed_times(self.span_embed, ends - times, dtype)
        condition = F.silu(embedding + labels)
        if not self.end_time_blocks:
            return [condition] * num_layers
        end_condition = F.silu(embed_times(self.time_embed, start + (end - start) * ends, dtype) + labels)
        num_ends = self.end_time_blocks + 1  # and the output's
        return [condition] * (num_layers - num_ends) + [end_condition] * num_ends

    @property
    def _modulation_layers(self) -> list[nn.Linear]:
        """The layers that turn the condition into adaLN's parameters: one per block, then the output's."""
        return cast("list[nn.Linear]", [*(block.modulation for block in self.blocks), self.modulation_out])

    @property
    def modulation_sizes(self) -> list[int]:
        """The widths of adaLN's parameters: 6·D for each block of width D, then 2·D for the output."""
        return [layer.out_features for layer in self._modulation_layers]

    def modulations(
        self, timesteps: torch.Tensor, class_labels: torch.Tensor, end_timesteps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute adaLN's parameters of every block for all time steps of a solve together.

        Each weight is read once for all T times. When images are sampled one at a time, reading these weights takes a
        good part of a step.

        Args:
            timesteps: (T,), in [0, 1].
            class_labels: (B,), as in `forward`.
            end_timesteps: (T,), as in `forward`; None for `timesteps`.

        Returns:
            (T, B, sum of `modulation_sizes`); entry [i] is `forward`'s `modulation` at timesteps[i].

        Raises:
            ValueError: for end_timesteps of a model with step_conditioning "none".
        """
        device = next(self.modulation_out.parameters()).device
        times = timesteps.to(device, torch.float32)[:, None]  # (T, 1)
        ends = times if end_timesteps is None else self._checked_ends(end_timesteps.to(device, torch.float32)[:, None])
        labels = self._embed_labels(class_labels, len(class_labels), None, device)  # (B, D)
        conditions = self._conditions(times, ends, labels, self.dtype)  # each (T, B, D)
        return torch.cat([layer(x) for layer, x in zip(self._modulation_layers, conditions, strict=True)], dim=-1)

    def _checked_ends(self, ends: torch.Tensor) -> torch.Tensor:
        """Return end times; raise ValueError if this model does not know the end of a step."""
        if self.config.step_conditioning == "none":
            raise ValueError(
                "end_timestep: this model has step_conditioning='none' and predicts the velocity at one time; leave "
                "end_timestep out, and sample it with InterpolantODEScheduler"
            )
        return ends

    def _split_modulation(self, modulation: torch.Tensor | None, batch_size: int) -> list[torch.Tensor | None]:
        """Split `modulations` into those of each block and of the output; None into as many None."""
        sizes = self.modulation_sizes
        if modulation is None:
            return [None] * len(sizes)
        if modulation.shape != (batch_size, sum(sizes)):
            raise ValueError(
                f"modulation has shape {tuple(modulation.shape)}, but must be ({batch_size}, {sum(sizes)})"
            )
        return list(modulation.split(sizes, dim=-1))

    def _unpatchify(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Put patches back in their places: (B, N, p·p·out) -> (B, out, H·p, W·p)."""
        B, (H, W), p = x.shape[0], grid, self.config.patch_size
        x = x.view(B, H, W, p, p, self.out_channels).permute(0, 5, 1, 3, 2, 4)  # (B, out, H, p, W, p)
        return x.reshape(B, self.out_channels, H * p, W * p)

    def _run_blocks(
        self,
        x: torch.Tensor,
        grid: tuple[int, int],
        conditions: list[torch.Tensor | None],
        modulations: list[torch.Tensor | None],
    ) -> torch.Tensor:
        """Pass tokens (B, N, D) through all blocks."""
        kept: list[torch.Tensor] = []
        block_grid = grid
        for i, (block, condition, modulation) in enumerate(zip(self.blocks, conditions, modulations, strict=True)):
            if self.hourglass is not None:
                x, block_grid = self.hourglass.before_block(i, x, grid, kept)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, condition, block_grid, modulation)
            else:
                x = block(x, condition, block_grid, modulation)
        return x

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float | None,
        class_labels: torch.Tensor | None,
        return_dict: bool = True,
        class_dropout: torch.Tensor | None = None,
        modulation: torch.Tensor | None = None,
        end_timestep: torch.Tensor | float | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the interpolant's target (the velocity, for most models), or its mean over a step.

        Args:
            hidden_states: x_t, (B, C, height, width); height and width are multiples of the patch size.
            timestep: t in [0, 1], t=1 is data; one number or (B,).
            class_labels: (B,) whole numbers in 0…num_classes − 1; in eval mode also `num_classes`, the null class.
                Or mixtures of classes, (B, num_classes) of floating point: the weight of each class's embedding, which
                no dropout reaches.
            return_dict: return a `Transformer2DModelOutput` or a tuple.
            class_dropout: (B,) bool, the labels to drop in training. If None, drawn from PyTorch's global generator;
                ignored in eval mode.
            modulation: (B, sum of `modulation_sizes`) from `modulations`, in place of timestep and class_labels, which
                are then ignored.
            end_timestep: s in [t, 1], the end of the step whose mean velocity is predicted; one number or (B,). If
                None, s = t, where the mean is the velocity itself.

        Returns:
            `.sample`, (B, out_channels, height, width).

        Raises:
            ValueError: for a size that the patch size does not divide, labels of the wrong type, number or range,
                modulation of another shape, or an end_timestep of a model with step_conditioning "none".
        """
        B, grid = hidden_states.shape[0], token_grid(hidden_states, self.config)
        # Contiguous, because the residual sums would inherit the transposed strides and each norm would copy its input.
        x = self.patch_embed(hidden_states).flatten(2).transpose(1, 2).contiguous()  # (B, N, D)
        if self.position_embedding == "sincos":
            x = add_position_embedding(x, grid)

        conditions: list[torch.Tensor | None] = [None] * len(self._modulation_layers)
        if modulation is None:
            t = torch.as_tensor(timestep, dtype=torch.float32, device=x.device).expand(B)
            s = t
            if end_timestep is not None:
                s = self._checked_ends(torch.as_tensor(end_timestep, dtype=torch.float32, device=x.device).expand(B))
            labels = self._embed_labels(class_labels, B, class_dropout, x.device)
            conditions = [*self._conditions(t, s, labels, x.dtype)]  # each (B, D)
        *block_conditions, condition_out = conditions
        *block_modulations, output_modulation = self._split_modulation(modulation, B)

        x = self._run_blocks(x, grid, block_conditions, block_modulations)
        if output_modulation is None:
            output_modulation = self.modulation_out(condition_out)
        shift, scale = output_modulation[:, None].chunk(2, dim=-1)
        x = self.proj_out(modulate(self.norm_out(x), shift, scale))  # (B, N, p·p·out)
        sample = self._unpatchify(x, grid)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
