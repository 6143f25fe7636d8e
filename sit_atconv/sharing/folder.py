"""What a pipeline folder is, and what it says of itself: read from its JSON files and the headers of its weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from ..models.codecs import vae_scale_factor
from ..models.costs import block_widths
from ..models.presets import middle_blocks
from ..models.weight_files import stored_variants, verify_weights
from ..utils.bounded_text import read_json_object
from ..utils.files import OutputError, check_regular
from ..utils.source_names import check_folder_or_name
from ..utils.text import counted

RECORD_FILE = "conversion.json"  # of a converted checkpoint: where it came from, and what the way back needs


@contextmanager
def reading_folder(folder: str | Path) -> Iterator[None]:
    """Name the folder in errors of what is read from it: somebody else wrote it, and it may hold anything.

    Raises:
        ValueError: in place of any error in this context, except one of writing.
    """
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        text = str(error).strip() or "no reason given"
        if isinstance(error, ValueError) and text.startswith("folder="):
            raise
        reason = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text.splitlines()[0]}"
        if not isinstance(error, ValueError) and not Path(folder).exists():  # it was taken for a name on the Hub
            reason = f"there is no such folder here, and none was received from the Hub ({reason}); check the path"
        raise not_a_pipeline_folder(folder, reason) from error


def read_json(file: Path) -> dict:
    """Return the content of a JSON file that holds names and values, {} if there is none.

    Raises:
        ValueError: if it holds something else.
    """
    return read_json_object(file) if file.is_file() else {}


def is_pipeline_folder(folder: str | Path) -> bool:
    """Whether the folder is one that `save_pretrained` of a pipeline wrote."""
    return (Path(folder) / "model_index.json").is_file()


def not_a_pipeline_folder(folder: str | Path, reason: str) -> ValueError:
    """Return the error for a folder, or a name on the Hub, that holds no pipeline; the reason ends the message."""
    return ValueError(f"folder={str(folder)!r} is not a pipeline folder: {reason}")


def check_pipeline_folder(folder: str | Path) -> None:
    """Raise ValueError unless this is the folder of a SiTPipeline."""
    if not is_pipeline_folder(folder):
        raise not_a_pipeline_folder(folder, "it has no model_index.json")
    name = read_json(Path(folder) / "model_index.json").get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    if name != "SiTPipeline":
        raise ValueError(f"folder={str(folder)!r} is not a folder of a SiTPipeline, but of {name}")
    if not (Path(folder) / "transformer" / "config.json").is_file():
        raise not_a_pipeline_folder(folder, "it has no transformer/config.json; get or save the whole folder again")


def check_pipeline_name(folder: str) -> None:
    """Raise ValueError for what is neither the folder of a SiTPipeline, nor can be the name of one on the Hub."""
    if Path(folder).is_dir():
        check_pipeline_folder(folder)
    else:
        check_folder_or_name("folder", folder)


def stored_parameters(folder: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the transformer's weights by name, from the headers of its files alone.

    Raises:
        ValueError: if one of them is not a regular file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted((Path(folder) / "transformer").glob("*.safetensors")):
        check_regular(file)
        with safe_open(file, "np") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def weights_variant(folder: str | Path) -> str | None:
    """Return the variant that must be named to load the transformer, None if there are plain weights."""
    variants = stored_variants(Path(folder) / "transformer")
    return None if None in variants else min((name for name in variants if name is not None), default=None)


def describe_folder(folder: str | Path) -> dict[str, str]:
    """Describe what a pipeline folder holds: a text for each property, by the property's name."""
    folder = Path(folder)
    index = read_json(folder / "model_index.json")
    model, vae = read_json(folder / "transformer" / "config.json"), read_json(folder / "vae" / "config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    mixer, depth = model["mixer"], model["num_layers"]
    blocks = f"{depth} × {mixer}" if isinstance(mixer, str) else ", ".join(mixer)
    width = model["num_attention_heads"] * model["attention_head_dim"]
    if middle := middle_blocks(model):
        inner = block_widths(model)[middle.start]
        blocks += f" (blocks {middle.start} to {middle.stop - 1} on a grid of half the sides, width {inner})"
    size, channels = model["sample_size"], model["in_channels"]
    side = size * vae_scale_factor(vae or None)
    guided = "and a null class" if model["class_dropout_prob"] else "no null class, so no guidance"
    if (scale := model.get("trained_guidance_scale", 1)) != 1:
        guided = f"guidance of scale {scale:g} is built in, and no other is applied"
    options = ", ".join(f"{key} {scheduler[key]}" for key in ("path", "prediction", "solver") if key in scheduler)
    if (scale := scheduler.get("noise_scale", 1)) != 1:
        options += f", noise_scale {scale:g}"
    names = len(index.get("id2label") or {})
    return {
        "parameters": f"{sum(map(math.prod, stored_parameters(folder).values())) / 1e6:.2f} M",
        "blocks": f"{blocks}, width {width}, {model['num_attention_heads']} heads, patch {model['patch_size']}",
        "images": f"{side} × {side} pixels; the network sees {channels} × {size} × {size}",
        "VAE": vae.get("_class_name", "none: the network makes pixels"),
        "classes": f"{model['num_classes']}, {guided}; {names or 'no'} names",
        "scheduler": f"{scheduler['_class_name']}{options and f': {options}'}",
    }


def describe_verification(folder: str | Path) -> str:
    """Compare all weights of a pipeline folder with their hashes, and say how many are as they were saved.

    Raises:
        ValueError: naming the files that are damaged or missing.
    """
    files = sorted(Path(folder).glob("*/*.safetensors"))
    compared = sum(
        verify_weights(each, every_variant=True) for each in sorted(Path(folder).glob("*/")) if each.is_dir()
    )
    without = len(files) - compared
    return f"{counted(compared, 'file')} as saved" + (f"; {without} without a stored SHA-256" if without else "")
