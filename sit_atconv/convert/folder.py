"""Checkpoints of the reference implementations to pipeline folders, and back.

    python -m sit_atconv.convert CHECKPOINT OUTPUT          # or: sit-atconv convert
    python -m sit_atconv.convert PIPELINE_FOLDER OUTPUT.pt

`layouts.py` lists the families of checkpoints that are known.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..models.codecs import vae_latent_channels, vae_scale_factor
from ..models.finite import weights_not_finite
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import load_vae
from ..models.weight_files import verify_weights, weight_patterns
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..sharing.card import write_training_config
from ..sharing.folder import RECORD_FILE, check_pipeline_folder, read_json, weights_variant
from ..utils.checks import check_choice
from ..utils.files import check_new_file, check_regular, staged
from ..utils.imagenet import imagenet_labels
from ..utils.torch_files import writing
from .inspect import REFERENCE_VAE_CHANNELS, Reference, inspect_reference
from .layouts import LAYOUTS, REFERENCE_PREDICTIONS, is_pointwise
from .names import POSITION_EMBEDDING
from .untrusted import read_checkpoint
from .weights import computed_embedding, convert_state_dict, last_layer_halves, restore_state_dict

REFERENCE_VAE = "stabilityai/sd-vae-ft-{}"  # ema or mse
UNUSED_FILE = "unused_weights.safetensors"  # tensors that the model does not need, kept for the way back


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    weights: str | None = None,
    vae: str | None = None,
    license: str | None = None,
    **options,
) -> Reference:
    """Convert a reference checkpoint to a portable pipeline folder.

    Args:
        checkpoint: the file; see `read_checkpoint`.
        output: the folder to create; it must not exist, or be empty.
        weights: "ema" or "model"; if None, the EMA takes precedence.
        vae: the VAE, a folder or a name on the Hub; "none" for a model of pixels. If None, it is SiT's own for a model
            of 4 channels, else "none".
        license: license of the weights for the model card, an identifier of the Hub such as "mit".
        **options: see `inspect_reference`.

    Returns:
        What was found out about the model.

    Raises:
        ValueError: naming what cannot be read, inferred or written; `output` is left untouched.
    """
    with new_folder("output", output) as folder:
        state_dict, args, which = read_checkpoint(checkpoint, weights)
        names = args.pop("class_names", None)  # of our own files
        name = Path(checkpoint).name
        reference = inspect_reference(state_dict, args, name=name, **options)
        reference.weights = which
        vae = _usual_vae(reference, args) if vae is None else vae
        autoencoder = None if vae == "none" else load_vae(vae)
        reference.set_vae(vae, vae_scale_factor(autoencoder))
        transformer = build_from_reference(state_dict, reference)
        _check_vae(reference, autoencoder)
        _write_record(folder, name, state_dict, reference, transformer)
        if args:
            write_training_config(folder, args)
        labels = _class_names(names, reference.config["num_classes"])
        scheduler = InterpolantODEScheduler(path=reference.path, prediction=reference.prediction)
        with writing(output):
            SiTPipeline(transformer, scheduler, autoencoder, id2label=labels).save_pretrained(folder, license=license)
    return reference


@contextmanager
def new_folder(field: str, folder: str | Path) -> Iterator[Path]:
    """Yield a folder to fill; it gets its name once it is complete, and is removed after an error.

    Raises:
        ValueError: if there is something under that name already.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{field}={str(folder)!r} exists; name a new folder")
    check_new_file(field, folder / "model_index.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        staged = Path(staging) / folder.name  # the model card bears this name
        staged.mkdir()
        yield staged
        if folder.exists():
            folder.rmdir()
        staged.rename(folder)


def _usual_vae(reference: Reference, args: dict) -> str:
    """Return the VAE that models of this kind were trained with."""
    if reference.config["in_channels"] != REFERENCE_VAE_CHANNELS:
        return "none"
    return REFERENCE_VAE.format(args["vae"] if args.get("vae") in ("ema", "mse") else "ema")


def _class_names(names: Any, num_classes: int) -> dict[int, str] | None:
    """Return the names of the classes: those that the file holds; ImageNet's for 1000 classes; else None."""
    if isinstance(names, list) and len(names) == num_classes and all(isinstance(name, str) for name in names):
        return dict(enumerate(names))
    return imagenet_labels() if num_classes == 1000 else None


def _check_vae(reference: Reference, autoencoder: Any) -> None:
    """Raise ValueError if a model and its VAE do not fit together, or the size of a model of pixels is unknown."""
    channels = reference.config["in_channels"]
    if autoencoder is not None and vae_latent_channels(autoencoder) != channels:
        raise ValueError(
            f"vae={reference.vae!r} has {vae_latent_channels(autoencoder)} latent channels, the model {channels}; "
            "name its own VAE, or none"
        )
    if not reference.sample_size_known and autoencoder is None and channels != REFERENCE_VAE_CHANNELS:
        raise ValueError("the tensors do not show the size of the images; give --sample_size, in pixels")


def build_from_reference(state_dict: dict[str, torch.Tensor], reference: Reference) -> SiTTransformer2DModel:
    """Return the model with these weights, in eval mode.

    Raises:
        ValueError: if shapes of tensors do not fit the model; the error lists them.
    """
    converted = convert_state_dict(state_dict, reference.layout)
    with torch.device("meta"):  # so that no weights are initialised only to be replaced
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


def _write_record(
    folder: Path,
    checkpoint: str,
    state_dict: dict[str, torch.Tensor],
    reference: Reference,
    transformer: SiTTransformer2DModel,
) -> None:
    """Write what the way back needs to give bit-identical tensors."""
    record = {
        "checkpoint": checkpoint,
        "weights": reference.weights,
        "layout": reference.layout,
        "pointwise": sorted(name for name, tensor in state_dict.items() if is_pointwise(name, tensor)),
        "learn_sigma": reference.learn_sigma,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    halves = {name: half for name, (_, half) in last_layer_halves(state_dict).items()}
    unused = {name: half for name, half in halves.items() if half is not None}
    embedding = state_dict.get(POSITION_EMBEDDING)
    if embedding is not None and not torch.equal(computed_embedding(transformer), embedding):
        unused[POSITION_EMBEDDING] = embedding.contiguous()
    if unused:
        save_file(unused, folder / UNUSED_FILE)


def export_checkpoint(folder: str | Path, output: str | Path) -> dict[str, torch.Tensor]:
    """Convert a pipeline folder to a state dict of the reference, in a .pt or .safetensors file.

    A folder that was converted gives tensors that are bit-identical to those it came from, without REPA's projectors.
    If it was loaded and saved elsewhere, what its config does not tell is lost: the learn_sigma half is left out, and
    1×1 convolutions become linear layers.

    A .pt file holds {"ema": state dict, "args": options}, of which the reference's scripts read "ema"; a .safetensors
    file holds the tensors, with the options in its metadata. Both convert again without further options.

    Args:
        folder: a pipeline folder.
        output: a new file, whose ending says which kind it is.

    Returns:
        The state dict.

    Raises:
        ValueError: if the ending is unknown, the file exists, or the reference does not know such a model.
    """
    folder, output = Path(folder), Path(output)
    check_choice("the ending of output", output.suffix, (".pt", ".safetensors"))
    check_new_file("output", output)
    transformer = stored_transformer(folder)
    record, unused = read_json(folder / RECORD_FILE), folder / UNUSED_FILE
    times = {name: transformer.config[name] for name in ("timestep_at_noise", "timestep_at_data")}
    layout = next((name for name, settings in LAYOUTS.items() if times.items() <= settings.items()), "sit")
    restored = restore_state_dict(
        transformer, layout, tuple(record.get("pointwise", ())), load_file(unused) if unused.is_file() else None
    )
    options = _reference_options(folder, transformer, layout)
    output.parent.mkdir(parents=True, exist_ok=True)
    restored = {name: tensor.contiguous() for name, tensor in restored.items()}
    with writing(output), staged(output, replace=False) as staging:  # a full disk leaves no half-written file
        if output.suffix == ".pt":
            torch.save({"ema": restored, "args": options}, staging)
        else:
            save_file(restored, staging, metadata={"args": json.dumps(options)})
    return restored


def stored_transformer(folder: str | Path) -> SiTTransformer2DModel:
    """Return the transformer of a pipeline folder, on the CPU, with weights of the type in which they are stored.

    Raises:
        ValueError: if the folder holds something else, or weights of another model.
    """
    check_pipeline_folder(folder)
    folder, variant = Path(folder) / "transformer", weights_variant(folder)
    with torch.device("meta"):
        model = SiTTransformer2DModel.from_config(SiTTransformer2DModel.load_config(folder))
    verify_weights(folder, variant)
    files = sorted(file for pattern in weight_patterns(variant)[:2] for file in folder.glob(pattern))
    for file in files:
        check_regular(file)
    try:
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{str(folder)!r} does not hold this model: {error}") from error
    if broken := weights_not_finite(model):
        raise ValueError(f"{str(folder)!r} holds weights that are not finite, such as {broken[0]}; take an earlier one")
    return model


def _reference_options(folder: Path, transformer: SiTTransformer2DModel, layout: str) -> dict:
    """Return what tensors do not show of a model, in the words of the reference's options."""
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    config = transformer.config
    # diffusers' schedulers have no such options: they follow the linear path, and the model predicts the velocity.
    path, prediction = scheduler.get("path", "linear"), scheduler.get("prediction", "velocity")
    check_choice("prediction", prediction, REFERENCE_PREDICTIONS)
    if (scale := scheduler.get("noise_scale", 1)) != 1:
        raise ValueError(f"noise_scale={scale}: models of the reference know noise of scale 1 only; keep the folder")
    labels = read_json(folder / "model_index.json").get("id2label") or {}
    names = [labels.get(str(i)) for i in range(config.num_classes)]
    return {
        **({"class_names": names} if None not in names else {}),
        "layout": layout,
        "path_type": {"linear": "Linear", "gvp": "GVP", "vp": "VP"}[path],
        "prediction": prediction,
        "num_classes": config.num_classes,
        "class_dropout_prob": config.class_dropout_prob,
        "num_heads": config.num_attention_heads,
        "image_size": config.sample_size * vae_scale_factor(read_json(folder / "vae" / "config.json") or None),
    }
