"""SiT: the Scalable Interpolant Transformer (arXiv 2401.08740), its token mixers ATConv or self-attention, per block.

Shapes: B batch, C latent channels, p patch size, (H, W) token grid, N = H·W tokens in row-major order, D model width.
Time: t=0 noise, t=1 data; the network gets t itself.
"""

import functools
import inspect
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..ops.linear import PLAIN, Linear, gelu_of_linear
from ..utils.checks import check_choice, check_count, check_positive
from .atconv import ATConv
from .weight_files import replacing_weights

MIXERS = ("atconv", "attention")
POSITION_EMBEDDINGS = ("sincos", "none")
LOCATION = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")  # of from_pretrained
FREQUENCIES = 256  # of the sinusoidal time embedding, as in DiT and SiT

# Widths and depths of DiT and SiT (Table 1 of arXiv 2212.09748), and a small one of ours for CPUs.
PRESET_SIZES = {
    "Nano": dict(num_layers=6, num_attention_heads=4, attention_head_dim=24),
    "S": dict(num_layers=12, num_attention_heads=6, attention_head_dim=64),
    "B": dict(num_layers=12, num_attention_heads=12, attention_head_dim=64),
    "L": dict(num_layers=24, num_attention_heads=16, attention_head_dim=64),
    "XL": dict(num_layers=28, num_attention_heads=16, attention_head_dim=72),
}
PRESET_FAMILIES = {"SiT-{}": "attention", "SiT-ATConv-{}": "atconv", "SiT-ATConv-{}-Hybrid": "hybrid"}
PRESETS = {
    family.format(f"{size}/{patch_size}"): {**config, "patch_size": patch_size, "mixer": mixer}
    for family, mixer in PRESET_FAMILIES.items()
    for size, config in PRESET_SIZES.items()
    for patch_size in ((1, 2, 4) if size == "Nano" else (2, 4, 8))
}


def check_preset(name: str) -> None:
    """Raise ValueError unless `name` is a preset."""
    if name not in PRESETS:
        raise ValueError(
            f"preset={name!r} is unknown; presets are SiT-SIZE, SiT-ATConv-SIZE and SiT-ATConv-SIZE-Hybrid with SIZE "
            "one of S, B, L, XL with /2, /4, /8, or Nano with /1, /2, /4, such as SiT-ATConv-S/2"
        )


def preset_name(config: Mapping) -> str | None:
    """The preset that this is but for its input, classes and times; None where there is none."""
    rest = {"mlp_ratio": 4, "kernel_size": 3, "qk_norm": False}
    for name, preset in PRESETS.items():
        position = "none" if preset["mixer"] == "atconv" else "sincos"
        if (
            all(config[key] == value for key, value in preset.items())
            and all(config.get(key, value) == value for key, value in rest.items())
            and (config.get("position_embedding") or position) == position
        ):
            return name
    return None


def mixer_per_block(mixer: str | list[str], num_layers: int) -> list[str]:
    """Spell out `mixer` block by block; "hybrid" is attention in blocks 0, 2, 4… and ATConv in 1, 3, 5…

    Raises:
        ValueError: for an unknown mixer or a list whose length is not `num_layers`.
    """
    if isinstance(mixer, str):
        check_choice("mixer", mixer, (*MIXERS, "hybrid"))
        pair = ("attention", "atconv") if mixer == "hybrid" else (mixer, mixer)
        return [pair[i % 2] for i in range(num_layers)]
    if len(mixer) != num_layers:
        raise ValueError(f"mixer lists {len(mixer)} blocks, but num_layers={num_layers}; name one mixer per block")
    for i, name in enumerate(mixer):
        check_choice(f"mixer[{i}]", name, MIXERS)
    return list(mixer)


def sincos_position_embedding(dim: int, grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """The fixed 2-D sine-cosine embedding of MAE and DiT for any grid: (1, N, dim), float32.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines.
    """
    H, W = grid
    # Made on the device, since compiled code does not cache and would copy it there anew each time.
    options = dict(device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    omega = 10000.0 ** -(torch.arange(dim // 4, **options) / (dim // 4))  # (D/4,)
    column = (torch.arange(W, **options)[:, None] * omega).expand(H, W, -1).flatten(0, 1)  # (N, D/4)
    row = (torch.arange(H, **options)[:, None, None] * omega).expand(H, W, -1).flatten(0, 1)  # (N, D/4)
    embedding = torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)  # (N, D)
    return embedding[None].float()


_cached_position_embedding = functools.lru_cache(maxsize=16)(sincos_position_embedding)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """adaLN: x·(1 + scale) + shift, with x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class SelfAttention(nn.Module):
    """Multi-head self-attention, the baseline mixer: tokens (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.out_proj = Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head_dim)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The channel mixer: Linear, GELU (tanh form), Linear."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(gelu_of_linear(self.fc1, x))


class SiTBlock(nn.Module):
    """One transformer block with adaLN-zero conditioning (Figure 3 of arXiv 2212.09748)."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_hidden_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(dim, mlp_hidden_dim)
        self.modulation = Linear(dim, 6 * dim)

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor | None,
        grid: tuple[int, int],
        modulation: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, N, D), condition (B, D): the activated sum of time and class embeddings, or what `self.modulation`
        makes of it, (B, 6·D)."""
        if modulation is None:
            modulation = self.modulation(condition)
        six = modulation[:, None].chunk(6, dim=-1)  # six of (B, 1, D)
        shift_mixer, scale_mixer, gate_mixer, shift_mlp, scale_mlp, gate_mlp = six
        x = torch.addcmul(x, gate_mixer, self.mixer(modulate(self.norm1(x), shift_mixer, scale_mixer), grid))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class SiTTransformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """SiT with ATConv, self-attention, or both as its token mixers.

    Args:
        sample_size: height and width of the training latents; other sizes, square or not, work too.
        patch_size: side of a patch, in latent pixels.
        in_channels: channels of the latents (or of the image, without a VAE).
        out_channels: channels of the output; as `in_channels` where None.
        num_layers: number of blocks.
        num_attention_heads, attention_head_dim: their product is the model width D, for every mixer.
        mlp_ratio: hidden width of the MLP over D.
        num_classes: number of classes; the null class of classifier-free guidance has the id `num_classes`.
        class_dropout_prob: how often a label is replaced by the null class in training. 0 trains a model without
            a null class, which cannot be guided.
        mixer: "atconv", "attention", "hybrid" (attention in blocks 0, 2, 4…), or a list, one per block.
        kernel_size, kernel_activation, kernel_pool: see `ATConv`.
        position_embedding: "sincos" or "none"; None means "sincos" exactly when some block is attention.
        qk_norm: normalise the queries and keys of attention, head by head, as REPA can (arXiv 2410.06940).
        timestep_at_noise, timestep_at_data: what the network is told at t=0 and at t=1; in between, linearly. By
            default t itself. Weights made elsewhere may count from data to noise: 1 and 0 for REPA, 999 and −1 for
            the thousand steps of DiT.

    Raises:
        ValueError: for sizes below 1, an unknown choice, or a width that sin-cos embeddings cannot fill.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["SiTBlock"]  # noqa: RUF012
    _repeated_blocks = ["SiTBlock"]  # noqa: RUF012

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
    ):
        super().__init__()
        for field in ("sample_size", "patch_size", "in_channels", "num_layers", "num_classes"):
            check_count(field, self.config[field])
        check_count("out_channels", in_channels if out_channels is None else out_channels)
        check_count("num_attention_heads", num_attention_heads)
        check_count("attention_head_dim", attention_head_dim)
        check_positive("mlp_ratio", mlp_ratio)
        if sample_size % patch_size:
            raise ValueError(f"sample_size={sample_size} is not divisible by patch_size={patch_size}")
        if not 0 <= class_dropout_prob < 1:
            raise ValueError(f"class_dropout_prob={class_dropout_prob} must be in [0, 1)")
        if timestep_at_noise == timestep_at_data:
            raise ValueError(f"timestep_at_data={timestep_at_data} must differ from timestep_at_noise, as t does")
        mixers = mixer_per_block(mixer, num_layers)
        if position_embedding is None:
            position_embedding = "sincos" if "attention" in mixers else "none"
        check_choice("position_embedding", position_embedding, POSITION_EMBEDDINGS)
        dim = num_attention_heads * attention_head_dim
        if position_embedding == "sincos" and dim % 4:
            raise ValueError(
                f"num_attention_heads={num_attention_heads} × attention_head_dim={attention_head_dim} = {dim} "
                "must be divisible by 4 for the sin-cos position embedding"
            )

        self.position_embedding = position_embedding
        self.out_channels = out_channels or in_channels
        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        self.time_embed = TimestepEmbedding(FREQUENCIES, dim)
        self.class_embed = nn.Embedding(num_classes + (class_dropout_prob > 0), dim)
        self.blocks = nn.ModuleList(
            SiTBlock(
                dim,
                SelfAttention(dim, num_attention_heads, qk_norm)
                if name == "attention"
                else ATConv(dim, kernel_size, kernel_activation, kernel_pool),
                int(dim * mlp_ratio),
            )
            for name in mixers
        )
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
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.patch_embed.weight.shape[0], -1))
        nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.class_embed.weight, std=0.02)
        nn.init.normal_(self.time_embed.linear_1.weight, std=0.02)
        nn.init.normal_(self.time_embed.linear_2.weight, std=0.02)
        for gate in (*(block.modulation for block in self.blocks), self.modulation_out, self.proj_out):
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "SiTTransformer2DModel":
        """Build a freshly initialised model by its published name, such as "SiT-ATConv-XL/2".

        Args:
            name: `SiT-{S,B,L,XL}/{2,4,8}` (attention), `SiT-ATConv-…`, `SiT-ATConv-…-Hybrid`, and `Nano` ones of ours.
            **overrides: any argument of the constructor.

        Raises:
            ValueError: for an unknown preset.
        """
        check_preset(name)
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As diffusers' `from_pretrained`, but weights that are missing or left over are an error, not a warning, and
        pickles are not read.

        Raises:
            ValueError: naming the weights that the folder lacks, or holds without use, or arguments in its config
                that the model has not.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        config = cls.load_config(pretrained_model_name_or_path, **{n: kwargs[n] for n in LOCATION if n in kwargs})
        known = {*inspect.signature(cls.__init__).parameters, "quantization_config"}
        if unknown := [name for name in config if name not in known and not name.startswith("_")]:
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json has {', '.join(unknown)}, unknown here; update "
                "sit-atconv where a newer version wrote it"
            )
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        faults = [
            f"{what}: {', '.join(sorted(map(str, info[key])))}"
            for key, what in (("missing_keys", "missing weights"), ("unexpected_keys", "unexpected weights"))
            if info[key]
        ]
        if faults:
            raise ValueError(f"{pretrained_model_name_or_path} does not hold this model; {'; '.join(faults)}")
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs,
    ) -> None:
        """As diffusers' `save_pretrained`, with safetensors alone.

        Raises:
            ValueError: for `safe_serialization=False`, or while a LoRA adapter is active.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles, which can run code; leave it out")
        if getattr(self, "peft_config", None):
            raise ValueError(
                "this model has a LoRA adapter, with which it would not load again: call fuse_lora() and unload_lora() "
                "first, or save the adapter alone with save_lora_adapter(folder)"
            )
        with replacing_weights(save_directory, variant):
            super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)

    @property
    def null_class(self) -> int:
        """The class id that stands for "no class".

        Raises:
            ValueError: where the model was built without class dropout and so has no such class.
        """
        if self.config.class_dropout_prob == 0:
            raise ValueError("class_dropout_prob=0: this model has no null class, so it cannot be guided")
        return self.config.num_classes

    def draw_class_dropout(self, batch_size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw which labels to drop: (B,) bool on the CPU, for `forward(class_dropout=…)`."""
        return torch.rand(batch_size, generator=generator) < self.config.class_dropout_prob

    def _embed_labels(
        self, labels: torch.Tensor, batch_size: int, dropout: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor:
        """Look up labels (B,) -> (B, D); in training, dropped ones become the null class."""
        if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
            kind = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
            raise ValueError(f"class_labels must be a tensor of whole numbers, not {kind}")
        if labels.shape != (batch_size,):
            raise ValueError(f"class_labels has shape {tuple(labels.shape)}, but the batch has {batch_size} samples")
        # Reading values off a GPU would stall it, tracing cannot branch on them, and those of FakeTensorMode have none:
        # there the pipeline and the data sets, which check their labels, stand guard.
        if labels.device.type == "cpu" and type(labels) in PLAIN and not torch.compiler.is_compiling():
            classes = self.config.num_classes if self.training else self.class_embed.num_embeddings
            if labels.numel() and not (0 <= labels.min() and labels.max() < classes):
                raise ValueError(f"class_labels={labels.tolist()} must lie in 0…{classes - 1}")
        labels = labels.to(device, torch.long)  # the null class may not fit into the labels' own type
        if self.training and self.config.class_dropout_prob > 0:
            if dropout is None:
                dropout = self.draw_class_dropout(batch_size)
            labels = labels.masked_fill(dropout.to(device), self.null_class)
        return self.class_embed(labels)

    def _embed_times(self, times: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Times t (B,) float32 -> (B, D)."""
        start, end = self.config.timestep_at_noise, self.config.timestep_at_data
        times = start + (end - start) * times
        frequencies = get_timestep_embedding(times, FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.time_embed(frequencies.to(dtype))

    @property
    def modulation_sizes(self) -> list[int]:
        """The widths of adaLN's parameters: 6·D for each block, then 2·D for the output."""
        dim = self.modulation_out.in_features
        return [6 * dim] * len(self.blocks) + [2 * dim]

    def modulations(self, timesteps: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """What adaLN needs from time and class in every block, for all steps of a solve at once.

        Each weight is read once for all T times. With one image at a time, reading these weights is a good part of
        a step.

        Args:
            timesteps: (T,), in [0, 1].
            class_labels: (B,), as in `forward`.

        Returns:
            (T, B, (6·num_layers + 2)·D), whose entries [i] are `forward`'s `modulation` at timesteps[i].
        """
        device = self.modulation_out.weight.device
        times = self._embed_times(timesteps.to(device, torch.float32), self.dtype)  # (T, D)
        labels = self._embed_labels(class_labels, len(class_labels), None, device)  # (B, D)
        condition = F.silu(times[:, None] + labels)  # (T, B, D)
        layers = [*(block.modulation for block in self.blocks), self.modulation_out]
        return torch.cat([layer(condition) for layer in layers], dim=-1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float | None,
        class_labels: torch.Tensor | None,
        return_dict: bool = True,
        class_dropout: torch.Tensor | None = None,
        modulation: torch.Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the interpolant's target (the velocity, for most models).

        Args:
            hidden_states: x_t, (B, C, height, width); height and width are multiples of the patch size.
            timestep: t in [0, 1], t=1 is data; one number or (B,).
            class_labels: (B,) whole numbers in 0…num_classes − 1; in eval mode also `num_classes`, the null class.
            return_dict: return a `Transformer2DModelOutput` or a tuple.
            class_dropout: (B,) bool, the labels to drop in training. Drawn from PyTorch's global generator where
                None; ignored in eval mode.
            modulation: (B, (6·num_layers + 2)·D) from `modulations`, in place of timestep and class_labels, which are
                then ignored.

        Returns:
            `.sample`, (B, out_channels, height, width).

        Raises:
            ValueError: for a size that the patch does not divide, labels of the wrong type, number or range, or
                modulation of another shape.
        """
        B, C, height, width = hidden_states.shape
        p = self.config.patch_size
        if C != self.config.in_channels:
            raise ValueError(f"hidden_states has {C} channels, but in_channels={self.config.in_channels}")
        if height % p or width % p:
            raise ValueError(f"height={height} and width={width} must be divisible by patch_size={p}")
        grid = (height // p, width // p)

        # Contiguous, since sums take the strides of their first term: every norm of every block would copy x otherwise.
        x = self.patch_embed(hidden_states).flatten(2).transpose(1, 2).contiguous()  # (B, N, D)
        if self.position_embedding == "sincos":
            # torch.compile sees through a cache, and warns; what it makes of this is one small kernel. The tensors of
            # FakeTensorMode would stay in it.
            cached = type(x) in PLAIN and not torch.compiler.is_compiling()
            embed = _cached_position_embedding if cached else sincos_position_embedding
            x = x + embed(x.shape[-1], grid, x.device).to(x.dtype)

        if modulation is None:
            t = torch.as_tensor(timestep, dtype=torch.float32, device=x.device).expand(B)
            labels = self._embed_labels(class_labels, B, class_dropout, x.device)
            condition = F.silu(self._embed_times(t, x.dtype) + labels)  # (B, D)
            of_blocks = [None] * len(self.blocks)
        else:
            if modulation.shape != (B, sum(self.modulation_sizes)):
                raise ValueError(
                    f"modulation has shape {tuple(modulation.shape)}, but must be ({B}, {sum(self.modulation_sizes)})"
                )
            condition = None
            *of_blocks, of_output = modulation.split(self.modulation_sizes, dim=-1)

        for block, of_block in zip(self.blocks, of_blocks, strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, condition, grid, of_block)
            else:
                x = block(x, condition, grid, of_block)

        if condition is not None:
            of_output = self.modulation_out(condition)
        shift, scale = of_output[:, None].chunk(2, dim=-1)
        x = self.proj_out(modulate(self.norm_out(x), shift, scale))  # (B, N, p·p·out)
        x = x.view(B, *grid, p, p, self.out_channels).permute(0, 5, 1, 3, 2, 4)  # (B, out, H, p, W, p)
        sample = x.reshape(B, self.out_channels, height, width)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
