"""Checkpoints of the reference implementations to pipeline folders, and back.

    python -m sit_atconv.convert CHECKPOINT OUTPUT          # or: sit-atconv convert
    python -m sit_atconv.convert PIPELINE_FOLDER OUTPUT.pt

Three families share SiT's names (`x_embedder, t_embedder, y_embedder, blocks.N.attn, final_layer`, and inside an ATConv
block `kernel_proj, kernel_gen, x_proj, proj, difference_control`) and differ in what the weights mean:

- "sit": SiT and the ATConv authors' SiT models. The network is told t, t=1 is data; kernels pass a tanh-GELU.
- "repa": REPA (arXiv 2410.06940) and the ATConv authors' REPA models. t=1 is noise, the velocity points to noise;
  ATConv projects by 1×1 convolutions, and kernels pass a SiLU.
- "dit": DiT (arXiv 2212.09748). The network is told one of 1000 steps, 999 for noise, and predicts the noise.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..flow.interpolants import PATHS, PREDICTIONS
from ..models.embeddings import sincos_position_embedding
from ..models.latent_scaling import vae_scale_factor
from ..models.presets import PRESET_SIZES, mixer_per_block, preset_name
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import load_vae
from ..models.weight_files import weight_patterns
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..sharing.card import write_training_config
from ..sharing.folder import RECORD_FILE, check_pipeline_folder, read_json, weights_variant
from ..utils.checks import check_choice, check_count
from ..utils.files import check_new_file
from ..utils.imagenet import imagenet_labels
from .untrusted import read_checkpoint

# The first pattern that matches renames the parameter; `{}` stands for the number of a block.
_RENAMES = (
    ("x_embedder.proj", "patch_embed"),
    ("t_embedder.mlp.0", "time_embed.linear_1"),
    ("t_embedder.mlp.2", "time_embed.linear_2"),
    ("y_embedder.embedding_table", "class_embed"),
    ("blocks.{}.attn.qkv", "blocks.{}.mixer.qkv"),
    ("blocks.{}.attn.q_norm", "blocks.{}.mixer.q_norm"),
    ("blocks.{}.attn.k_norm", "blocks.{}.mixer.k_norm"),
    ("blocks.{}.attn.kernel_proj", "blocks.{}.mixer.kernel_proj"),
    ("blocks.{}.attn.kernel_gen", "blocks.{}.mixer.kernel_gen"),
    ("blocks.{}.attn.x_proj", "blocks.{}.mixer.value_proj"),
    ("blocks.{}.attn.proj", "blocks.{}.mixer.out_proj"),
    ("blocks.{}.attn.difference_control", "blocks.{}.mixer.inhibition"),
    ("blocks.{}.mlp.fc1", "blocks.{}.mlp.fc1"),
    ("blocks.{}.mlp.fc2", "blocks.{}.mlp.fc2"),
    ("blocks.{}.adaLN_modulation.1", "blocks.{}.modulation"),
    ("final_layer.adaLN_modulation.1", "modulation_out"),
    ("final_layer.linear", "proj_out"),
)
_TO_OURS = dict(_RENAMES)
_TO_REFERENCE = {ours: reference for reference, ours in _RENAMES}
_LAST_LAYER = ("final_layer.linear.weight", "final_layer.linear.bias")
_WITHOUT_COUNTERPART = ("pos_embed", "projectors.")  # computed for any grid here; used in REPA's training alone

LAYOUTS = {  # arguments of the model that the tensors do not show
    "sit": dict(timestep_at_noise=0.0, timestep_at_data=1.0, kernel_activation="gelu_tanh"),
    "repa": dict(timestep_at_noise=1.0, timestep_at_data=0.0, kernel_activation="silu"),
    # Step n of DiT is the time (999 − n) / 1000 of the VP path.
    "dit": dict(timestep_at_noise=999.0, timestep_at_data=-1.0, kernel_activation="gelu_tanh"),
}
# DiT's betas, 0.0001…0.02 over 1000 steps, are those of the VP path.
PATH_AND_PREDICTION = {"sit": ("linear", "velocity"), "repa": ("linear", "velocity"), "dit": ("vp", "noise")}
REFERENCE_PATHS = {"linear": "linear", "gvp": "gvp", "vp": "vp", "cosine": "gvp"}  # SiT's and REPA's words
REFERENCE_PREDICTIONS = {"velocity": "velocity", "v": "velocity", "noise": "noise", "score": "score"}
DEFAULT_CLASS_DROPOUT = 0.1  # of SiT, DiT and REPA
DEFAULT_SAMPLE_SIZE = 32  # latent pixels, of 256×256 images
REFERENCE_VAE = "stabilityai/sd-vae-ft-{}"  # ema or mse; 4 latent channels at an eighth of the size
REFERENCE_VAE_CHANNELS, REFERENCE_VAE_FACTOR = 4, 8
UNUSED_FILE = "unused_weights.safetensors"
# What decides on the shape of the model, with its number of axes; all else is compared with the model then.
_AXES = {
    "x_embedder.proj.weight": 4,
    "y_embedder.embedding_table.weight": 2,
    "final_layer.linear.weight": 2,
    "final_layer.linear.bias": 1,
    "mlp.fc1.bias": 1,
    "kernel_gen.bias": 1,
    "q_norm.weight": 1,
}
# How far the fixed embedding may be from what is computed: averages of weights include it, and round at every step.
_EMBEDDING_TOLERANCE = 1e-3


def _rename(name: str, renames: dict[str, str]) -> str | None:
    """The other name of a parameter, None where there is none."""
    block = re.match(r"blocks\.(\d+)\.", name)
    generic = f"blocks.{{}}.{name[block.end() :]}" if block else name
    stem, _, slot = generic.rpartition(".")
    if generic in renames:  # the parameter itself, not a layer's
        other = renames[generic]
    elif stem in renames and slot in ("weight", "bias"):
        other = f"{renames[stem]}.{slot}"
    else:
        return None
    return other.replace("{}", block[1]) if block else other


def _has_counterpart(name: str) -> bool:
    return not name.startswith(_WITHOUT_COUNTERPART)


def _is_pointwise(name: str, tensor: torch.Tensor) -> bool:
    """Whether this is a 1×1 convolution that stands for a linear layer."""
    return tensor.ndim == 4 and tensor.shape[2:] == (1, 1) and name != "x_embedder.proj.weight"


def _last_layer_halves(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """The rows of the last layer that make the output, and those of the learn_sigma half, None where there is none."""
    _, in_channels, patch_size, _ = state_dict["x_embedder.proj.weight"].shape
    halves = {}
    for name in _LAST_LAYER:
        tensor, used = state_dict[name], in_channels * patch_size**2
        if len(tensor) != 2 * used:
            halves[name] = tensor, None
            continue
        # The rows are ordered (p, p, channel), the discarded half being the last channels of each pixel.
        rows = tensor.unflatten(0, (patch_size**2, 2, in_channels))
        halves[name] = tuple(rows[:, i].flatten(0, 1).contiguous() for i in range(2))
    return halves


def convert_state_dict(state_dict: dict[str, torch.Tensor], layout: str = "sit") -> dict[str, torch.Tensor]:
    """Rename a reference state dict for `SiTTransformer2DModel` and slice off the unused learn_sigma half.

    The fixed `pos_embed` and REPA's projectors are dropped. 1×1 convolutions become linear layers. Where the last
    layer has twice the input's channels, only its first half is ever returned by the reference, so only that half is
    kept. REPA's velocity, which points from data to noise, is turned round.

    Raises:
        ValueError: listing the parameters whose names are not known.
    """
    check_choice("layout", layout, LAYOUTS)
    names = {name: _rename(name, _TO_OURS) for name in state_dict if _has_counterpart(name)}
    if unknown := sorted(name for name, ours in names.items() if ours is None):
        raise ValueError(f"not parameters of a SiT or ATConv model: {', '.join(unknown)}")
    if missing := sorted({"x_embedder.proj.weight", *_LAST_LAYER} - names.keys()):
        raise ValueError(f"missing parameters: {', '.join(missing)}")
    last_layer = _last_layer_halves(state_dict)
    converted = {}
    for name, ours in names.items():
        tensor = state_dict[name]
        if name in last_layer:
            tensor = last_layer[name][0]
            tensor = -tensor if layout == "repa" else tensor
        converted[ours] = tensor.flatten(1) if _is_pointwise(name, tensor) else tensor
    return converted


def restore_state_dict(
    transformer: SiTTransformer2DModel,
    layout: str = "sit",
    pointwise: tuple[str, ...] = (),
    unused: dict[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The way back: the weights of a model under the reference's names, bitwise those that it was converted from.

    Args:
        transformer: whose weights are taken.
        layout: see `LAYOUTS`.
        pointwise: reference names of the weights that were 1×1 convolutions.
        unused: by reference name, the learn_sigma half, without which the result is a model without learn_sigma; and
            the position embedding, where it is not bitwise the one computed here.

    Raises:
        ValueError: for a model with something that the reference does not know.
    """
    config, unused = transformer.config, unused or {}
    check_choice("layout", layout, LAYOUTS)
    expected = LAYOUTS[layout] | {"kernel_pool": "strips"}
    if "atconv" not in mixer_per_block(config.mixer, config.num_layers):
        expected = {name: value for name, value in expected.items() if not name.startswith("kernel_")}
    if wrong := [f"{name}={config[name]!r}" for name, value in expected.items() if config[name] != value]:
        raise ValueError(f"{', '.join(wrong)}: the reference's models of the layout {layout!r} have no such thing")
    restored = {}
    if transformer.position_embedding == "sincos":
        side = config.sample_size // config.patch_size
        dim = config.num_attention_heads * config.attention_head_dim
        embedding = sincos_position_embedding(dim, (side, side), torch.device("cpu")).to(transformer.dtype)
        restored["pos_embed"] = unused.get("pos_embed", embedding)
    for ours, tensor in transformer.state_dict().items():
        name = _rename(ours, _TO_REFERENCE)
        assert name is not None, f"{ours} has no name in the reference"
        if name in _LAST_LAYER:
            tensor = -tensor if layout == "repa" else tensor
            if name in unused:
                halves = (half.unflatten(0, (config.patch_size**2, -1)) for half in (tensor, unused[name]))
                tensor = torch.cat(list(halves), dim=1).flatten(0, 1)
        restored[name] = tensor[:, :, None, None] if name in pointwise else tensor
    return restored


@dataclass
class Reference:
    """What the tensors of a checkpoint, and the options saved with them, say of the model."""

    layout: str
    config: dict  # arguments of SiTTransformer2DModel
    path: str
    prediction: str
    learn_sigma: bool
    sample_size_known: bool
    weights: str = "only"
    vae: str = "none"
    assumed: tuple[str, ...] = ()  # of layout, path and prediction: what nothing in the file showed

    def describe(self) -> dict[str, str]:
        """What was found out, in words."""
        config = self.config
        mixers = config["mixer"] if isinstance(config["mixer"], str) else ", ".join(config["mixer"])
        null = "and a null class" if config["class_dropout_prob"] else "no null class"
        size = f"{config['in_channels']} × {config['sample_size']} × {config['sample_size']}"
        assumed = {name: "; assumed" if name in self.assumed else "" for name in ("layout", "path", "prediction")}
        noise = {"sit": "t=0", "repa": "t=1", "dit": "step 999"}[self.layout]
        return {
            "weights": {"ema": "EMA", "model": "raw", "only": "those in the file"}[self.weights],
            "layout": f"{self.layout}: noise is at {noise}{assumed['layout']}",
            "preset": preset_name(config) or "none",
            "mixers": f"{config['num_layers']} × {mixers}" if isinstance(config["mixer"], str) else mixers,
            "heads": f"{config['num_attention_heads']} of {config['attention_head_dim']}",
            "classes": f"{config['num_classes']}, {null}",
            "input": f"{size}, patch {config['patch_size']}"
            + ("" if self.sample_size_known else "; the size is assumed"),
            "learn_sigma": "yes; the unused half is sliced off" if self.learn_sigma else "no",
            "path": f"{self.path}{assumed['path']}",
            "prediction": f"{self.prediction}{assumed['prediction']}",
            "VAE": self.vae,
        }


def detect_layout(state_dict: dict[str, torch.Tensor], args: dict, name: str = "") -> str | None:
    """Whose model this is, by its tensors, the options saved with it and the file's name; None where nothing shows it.

    "repa" shows by its projectors, convolutions or options, "dit" and "sit" by their names. ATConv's layers say that
    it is one of the ATConv authors', of which those without convolutions are SiT's.
    """
    if args.get("layout") is not None:  # in files that `export_checkpoint` wrote
        return args["layout"]
    if (
        {"proj_coeff", "enc_type", "encoder_depth"} & args.keys()
        or any(name.startswith("projectors.") for name in state_dict)
        or any(_is_pointwise(name, tensor) for name, tensor in state_dict.items())
    ):
        return "repa"
    names = [str(args.get("model") or ""), name]
    if any(each.startswith("DiT") for each in names):
        return "dit"
    if any(each.startswith("SiT") for each in names) or "path_type" in args:
        return "sit"
    return "sit" if any(".attn.kernel_gen." in name for name in state_dict) else None


def _option(args: dict, name: str, kind: type):
    """A number from the options of a training, where text may stand for it; None where there is none."""
    value = args.get(name)
    try:
        return None if value is None else kind(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={value!r} in the options saved with the weights is no number") from error


def inspect_reference(
    state_dict: dict[str, torch.Tensor],
    args: dict | None = None,
    layout: str | None = None,
    num_attention_heads: int | None = None,
    num_classes: int | None = None,
    sample_size: int | None = None,
    path: str | None = None,
    prediction: str | None = None,
    name: str = "",
    scale_factor: int | None = None,
) -> Reference:
    """Infer the model from its tensors; the options of its training fill in what they do not show.

    Args:
        state_dict: under the reference's names.
        args: options of its training, as far as they are known.
        layout: see `LAYOUTS`; recognised where None.
        num_attention_heads: needed for attention of a width that no preset has.
        num_classes: tells a model without a null class from one with it. Where None, and `args` do not tell, the last
            row of the label table is the null class.
        sample_size: height and width of the latents; only needed where no position embedding shows it.
        path, prediction: interpolant and prediction; those of `args` or else of the layout where None.
        name: of the file, which may tell the layout.
        scale_factor: pixels per latent pixel; where None, 8 for 4 channels and 1 for others.

    Raises:
        ValueError: listing unknown and missing tensors, or naming what does not fit together.
    """
    args = args or {}
    check_names(state_dict)
    assumed = []
    if layout is None and (layout := detect_layout(state_dict, args, name)) is None:
        layout = "sit"
        assumed.append("layout")
    check_choice("layout", layout, LAYOUTS)
    dim, in_channels, patch_size, _ = state_dict["x_embedder.proj.weight"].shape
    depth = len(_block_numbers(state_dict))
    mixers = ["attention" if f"blocks.{i}.attn.qkv.weight" in state_dict else "atconv" for i in range(depth)]
    mixer = next((m for m in ("atconv", "attention", "hybrid") if mixer_per_block(m, len(mixers)) == mixers), mixers)
    config = dict(
        sample_size=None,
        patch_size=patch_size,
        in_channels=in_channels,
        num_layers=len(mixers),
        mlp_ratio=len(state_dict["blocks.0.mlp.fc1.bias"]) / dim,
        mixer=mixer,
        **LAYOUTS[layout],
    )
    if "atconv" in mixers:
        config["kernel_size"] = math.isqrt(len(state_dict[f"blocks.{mixers.index('atconv')}.attn.kernel_gen.bias"]))

    rows = len(state_dict["y_embedder.embedding_table.weight"])
    dropout = _option(args, "class_dropout_prob", float) or _option(args, "cfg_prob", float)
    if num_classes is None:
        num_classes = _option(args, "num_classes", int)
    classes = rows - 1 if num_classes is None else num_classes
    if classes not in (rows, rows - 1):
        raise ValueError(
            f"num_classes={classes} does not fit a label table of {rows} rows, which is {rows - 1} classes and a null "
            f"class, or {rows} classes"
        )
    config |= dict(num_classes=classes, class_dropout_prob=(dropout or DEFAULT_CLASS_DROPOUT) * (rows > classes))

    has_qk_norm = any(name.endswith("q_norm.weight") for name in state_dict)
    head_dim = None
    if has_qk_norm:
        config["qk_norm"] = True
        head_dim = next(len(tensor) for name, tensor in state_dict.items() if name.endswith("q_norm.weight"))
    widths = {
        size["num_attention_heads"] * size["attention_head_dim"]: size["num_attention_heads"]
        for size in PRESET_SIZES.values()
    }
    heads = num_attention_heads or _option(args, "num_heads", int) or (dim // head_dim if head_dim else widths.get(dim))
    if heads is None:
        if "attention" in mixers:
            raise ValueError(
                f"no preset has the width {dim}, and its tensors do not show the number of heads; give "
                "--num_attention_heads"
            )
        heads = 1  # ATConv has no heads
    check_count("num_attention_heads", heads)
    if dim % heads or (head_dim and heads * head_dim != dim):
        raise ValueError(f"num_attention_heads={heads} does not fit the width {dim}, or the query norm ({head_dim})")
    config |= dict(num_attention_heads=heads, attention_head_dim=dim // heads)

    config["position_embedding"] = "sincos" if "pos_embed" in state_dict else "none"
    side = _check_position_embedding(state_dict["pos_embed"]) if "pos_embed" in state_dict else None
    image_size = _option(args, "image_size", int) or _option(args, "resolution", int)
    if side is not None:
        if sample_size not in (None, side * patch_size):
            raise ValueError(f"sample_size={sample_size}, but the position embedding is one of {side * patch_size}")
        sample_size = side * patch_size
    elif sample_size is None and image_size:
        usual_factor = REFERENCE_VAE_FACTOR if in_channels == REFERENCE_VAE_CHANNELS else 1
        sample_size = image_size // (scale_factor or usual_factor)
    config["sample_size"] = DEFAULT_SAMPLE_SIZE if sample_size is None else sample_size

    usual_path, usual_prediction = PATH_AND_PREDICTION[layout]
    if path is None and args.get("path_type") is not None:
        word = str(args["path_type"]).lower()
        check_choice("path_type in the options saved with the weights", word, REFERENCE_PATHS)
        path = REFERENCE_PATHS[word]
    if prediction is None and args.get("prediction") is not None:
        word = str(args["prediction"])
        check_choice("prediction in the options saved with the weights", word, REFERENCE_PREDICTIONS)
        prediction = REFERENCE_PREDICTIONS[word]
    known = layout == "dit"  # its path and prediction are always the same
    assumed += [name for name, value in (("path", path), ("prediction", prediction)) if value is None and not known]
    path, prediction = path or usual_path, prediction or usual_prediction
    check_choice("path", path, PATHS)
    check_choice("prediction", prediction, PREDICTIONS)
    if layout == "repa" and prediction != "velocity":
        raise ValueError(f"prediction={prediction!r}: REPA models predict the velocity")
    learn_sigma = _last_layer_halves(state_dict)[_LAST_LAYER[0]][1] is not None
    known = sample_size is not None
    return Reference(layout, config, path, prediction, learn_sigma, known, assumed=tuple(assumed))


def _block_numbers(state_dict: dict[str, torch.Tensor]) -> set[int]:
    return {int(found[1]) for name in state_dict if (found := re.match(r"blocks\.(\d+)\.", name))}


def check_names(state_dict: dict[str, torch.Tensor]) -> None:
    """Raise ValueError, listing them, for tensors that no SiT has, those that this one lacks, and misshapen ones."""
    numbers = _block_numbers(state_dict) or {0}
    depth = len(numbers)
    if odd := sorted(numbers - set(range(depth))):
        raise ValueError(f"blocks {', '.join(map(str, odd[:10]))}: {depth} blocks must be numbered 0…{depth - 1}")
    layers = [layer for layer in _TO_OURS if ".attn." not in layer and layer != "y_embedder.embedding_table"]
    expected = {"y_embedder.embedding_table.weight"}
    for layer in layers:
        for i in range(depth if "{}" in layer else 1):
            expected |= {f"{layer.replace('{}', str(i))}.{slot}" for slot in ("weight", "bias")}
    qk_norm = any(".attn.q_norm." in name for name in state_dict)
    for i in range(depth):
        mixer = f"blocks.{i}.attn"
        attention = f"{mixer}.kernel_gen.weight" not in state_dict
        layers = ("qkv", "proj", *(("q_norm", "k_norm") if qk_norm else ()))
        layers = layers if attention else ("kernel_proj", "kernel_gen", "x_proj", "proj")
        expected |= {f"{mixer}.{layer}.{slot}" for layer in layers for slot in ("weight", "bias")}
        expected |= {"pos_embed"} if attention else {f"{mixer}.difference_control"}
    present = {name for name in state_dict if not name.startswith("projectors.")}
    missing, unknown = sorted(expected - present), sorted(present - expected - {"pos_embed"})
    faults = [
        f"{what} {', '.join(names)}"
        for what, names in (("missing parameters:", missing), ("not parameters of a SiT or ATConv model:", unknown))
        if names
    ]
    if faults:
        raise ValueError("; ".join(faults))
    for name, tensor in state_dict.items():
        axes = next((axes for end, axes in _AXES.items() if name.endswith(end)), tensor.ndim)
        if tensor.ndim != axes or not tensor.numel():
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {axes} axes are needed, none of them empty")


def _check_position_embedding(pos_embed: torch.Tensor) -> int:
    """The side of its grid; ValueError where it is not the fixed sin-cos embedding, which alone is known here."""
    side = math.isqrt(pos_embed.shape[1]) if pos_embed.ndim == 3 else 0
    if side**2 == pos_embed.shape[1] and pos_embed.shape[2] % 4 == 0:
        expected = sincos_position_embedding(pos_embed.shape[2], (side, side), torch.device("cpu")).to(pos_embed.dtype)
        if torch.allclose(pos_embed.double(), expected.double(), rtol=0, atol=_EMBEDDING_TOLERANCE):
            return side
    raise ValueError(f"pos_embed {tuple(pos_embed.shape)} is not the sin-cos embedding of a square grid")


def build_from_reference(state_dict: dict[str, torch.Tensor], reference: Reference) -> SiTTransformer2DModel:
    """The model with these weights, in eval mode; nothing is initialised in vain.

    Raises:
        ValueError: listing the tensors whose shapes do not fit the model.
    """
    converted = convert_state_dict(state_dict, reference.layout)
    with torch.device("meta"):
        model = SiTTransformer2DModel(**reference.config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if wrong := [
        f"{name} {tuple(converted[name].shape) if name in converted else 'missing'}, not {shape}"
        for name, shape in expected.items()
        if name not in converted or tuple(converted[name].shape) != shape
    ]:
        raise ValueError(f"shapes that do not fit: {'; '.join(wrong)}")
    model.load_state_dict(converted, assign=True)
    return model.eval().requires_grad_(False)


@contextmanager
def new_folder(field: str, folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which appears under its name when all of it is there, and not at all after an error.

    Raises:
        ValueError: where there is something already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{field}={str(folder)!r} exists; name a new folder")
    check_new_file(field, folder / "model_index.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        staged = Path(staging) / folder.name  # of that name, since the model card bears it
        staged.mkdir()
        yield staged
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    weights: str | None = None,
    vae: str | None = None,
    license: str | None = None,
    **options,
) -> Reference:
    """Turn a reference checkpoint into a portable pipeline folder.

    Args:
        checkpoint: see `read_checkpoint`.
        output: the folder to make; it must not exist, or be empty.
        weights: "ema" or "model"; None takes the EMA where there is one.
        vae: the VAE, a folder or a name on the Hub; "none" for a model of pixels. None is SiT's own for a model of
            4 channels, else "none".
        license: of the weights, an identifier of the Hub such as "mit", for the model card.
        **options: see `inspect_reference`.

    Returns:
        What was found out about the model.

    Raises:
        ValueError: naming what cannot be read, inferred or written; `output` is untouched then.
    """
    with new_folder("output", output) as folder:
        state_dict, args, which = read_checkpoint(checkpoint, weights)
        options["name"] = Path(checkpoint).name
        reference = inspect_reference(state_dict, args, **options)
        if vae is None:
            flavour = args.get("vae") if args.get("vae") in ("ema", "mse") else "ema"
            latent = reference.config["in_channels"] == REFERENCE_VAE_CHANNELS
            vae = REFERENCE_VAE.format(flavour) if latent else "none"
        autoencoder = None if vae == "none" else load_vae(vae)
        # Once more: what image size makes which size of latents is now known.
        reference = inspect_reference(state_dict, args, **options, scale_factor=vae_scale_factor(autoencoder))
        reference.weights, reference.vae = which, vae
        transformer = build_from_reference(state_dict, reference)
        if autoencoder is not None and autoencoder.config.latent_channels != transformer.config.in_channels:
            raise ValueError(
                f"vae={vae!r} has {autoencoder.config.latent_channels} latent channels, the model "
                f"{transformer.config.in_channels}; name its own VAE, or none"
            )
        if not reference.sample_size_known and autoencoder is None and transformer.config.in_channels != 4:
            raise ValueError("the tensors do not show the size of the images; give --sample_size, in pixels")
        labels = imagenet_labels() if transformer.config.num_classes == 1000 else None
        scheduler = InterpolantODEScheduler(path=reference.path, prediction=reference.prediction)
        record = {
            "checkpoint": Path(checkpoint).name,
            "weights": which,
            "layout": reference.layout,
            "pointwise": sorted(name for name, tensor in state_dict.items() if _is_pointwise(name, tensor)),
            "learn_sigma": reference.learn_sigma,
        }
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        unused = {}
        if reference.learn_sigma:
            unused = {name: half for name, (_, half) in _last_layer_halves(state_dict).items()}
        if "pos_embed" in state_dict:
            computed = restore_state_dict(transformer, reference.layout)["pos_embed"]
            if not torch.equal(computed, state_dict["pos_embed"]):
                unused["pos_embed"] = state_dict["pos_embed"].contiguous()
        if unused:
            save_file(unused, folder / UNUSED_FILE)
        if args:
            write_training_config(folder, args)
        SiTPipeline(transformer, scheduler, autoencoder, id2label=labels).save_pretrained(folder, license=license)
    return reference


def stored_transformer(folder: str | Path) -> SiTTransformer2DModel:
    """The transformer of a pipeline folder on the CPU, its weights of the type in which they are stored.

    Raises:
        ValueError: for a folder of something else, or weights that are not this model's.
    """
    check_pipeline_folder(folder)
    folder, variant = Path(folder) / "transformer", weights_variant(folder)
    with torch.device("meta"):
        model = SiTTransformer2DModel.from_config(SiTTransformer2DModel.load_config(folder))
    files = sorted(file for pattern in weight_patterns(variant)[:2] for file in folder.glob(pattern))
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{str(folder)!r} does not hold this model: {error}") from error
    return model


def _reference_options(folder: Path, transformer: SiTTransformer2DModel, layout: str) -> dict:
    """What tensors do not show of a model, in the words of the reference's options."""
    scheduler, vae = (
        read_json(folder / "scheduler" / "scheduler_config.json"),
        read_json(folder / "vae" / "config.json"),
    )
    config = transformer.config
    # Schedulers of diffusers, which have no such options, follow the linear path by its velocity.
    path, prediction = scheduler.get("path", "linear"), scheduler.get("prediction", "velocity")
    check_choice("prediction", prediction, REFERENCE_PREDICTIONS)
    return {
        "layout": layout,
        "path_type": {"linear": "Linear", "gvp": "GVP", "vp": "VP"}[path],
        "prediction": prediction,
        "num_classes": config.num_classes,
        "class_dropout_prob": config.class_dropout_prob,
        "num_heads": config.num_attention_heads,
        "image_size": config.sample_size * vae_scale_factor(vae or None),
    }


def export_checkpoint(folder: str | Path, output: str | Path) -> dict[str, torch.Tensor]:
    """Turn a pipeline folder into a state dict of the reference, in a .pt or .safetensors file.

    A folder that was converted gives bitwise the tensors that it came from, without REPA's projectors. Once it was
    loaded and saved elsewhere, all that its config does not tell is lost: the learn_sigma half, and 1×1 convolutions
    become linear layers.

    A .pt file holds {"ema": state dict, "args": options}, of which the reference's scripts read "ema"; a .safetensors
    file the tensors, with the options in its metadata. Both convert again without further options.

    Args:
        folder: a pipeline folder.
        output: a new file; its ending says which kind.

    Returns:
        The state dict.

    Raises:
        ValueError: for an ending that is unknown, a file that exists, or a model that the reference does not know.
    """
    check_choice("the ending of output", Path(output).suffix, (".pt", ".safetensors"))
    check_new_file("output", output)
    transformer = stored_transformer(folder)
    record, unused = read_json(Path(folder) / RECORD_FILE), Path(folder) / UNUSED_FILE
    times = {name: transformer.config[name] for name in ("timestep_at_noise", "timestep_at_data")}
    layout = next((name for name, settings in LAYOUTS.items() if times.items() <= settings.items()), "sit")
    restored = restore_state_dict(
        transformer, layout, tuple(record.get("pointwise", ())), load_file(unused) if unused.is_file() else None
    )
    options = _reference_options(Path(folder), transformer, layout)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    restored = {name: tensor.contiguous() for name, tensor in restored.items()}
    if Path(output).suffix == ".pt":
        torch.save({"ema": restored, "args": options}, output)
    else:
        save_file(restored, output, metadata={"args": json.dumps(options)})
    return restored
