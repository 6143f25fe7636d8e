"""Portable folders under the installed package: its own classes are used, and nothing in the folder runs."""

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from huggingface_hub import snapshot_download

from ..models.weight_files import weight_patterns
from .formats import FILE_HASH, PACKAGE, edited_sources

# The modules of the classes in portable folders, by the name of the file there.
PORTABLE_MODULES = {
    "pipeline_sit": "sit_atconv.pipelines.pipeline_sit",
    "transformer_sit": "sit_atconv.models.transformer_sit",
    "scheduling_interpolant_ode": "sit_atconv.schedulers.scheduling_interpolant_ode",
    "scheduling_interpolant_sde": "sit_atconv.schedulers.scheduling_interpolant_sde",
    "scheduling_mean_flow": "sit_atconv.schedulers.scheduling_mean_flow",
}

PORTABLE_CLASSES = {
    "pipeline_sit": "SiTPipeline",
    "transformer_sit": "SiTTransformer2DModel",
    "scheduling_interpolant_ode": "InterpolantODEScheduler",
    "scheduling_interpolant_sde": "InterpolantSDEScheduler",
    "scheduling_mean_flow": "MeanFlowScheduler",
}


def download_pipeline(repo_id: str, **options) -> str:
    """Download a pipeline from the Hub and return the folder that it is in; nothing of it runs.

    Args:
        repo_id: the model repository.
        **options: of `SiTPipeline.from_pretrained`. The weights of the `variant` are downloaded, and not those of a
            component that is handed over.
    """
    variant = options.get("variant")
    names = ("cache_dir", "revision", "token", "force_download", "local_files_only")
    passed_on = {name: options[name] for name in names if options.get(name) is not None}
    passed_on["ignore_patterns"] = [f"{name}/*.safetensors" for name in ("transformer", "vae") if name in options]
    weights = [f"*/{pattern}" for pattern in weight_patterns(variant)]
    folder = snapshot_download(repo_id, allow_patterns=["*.json", "*.py", *weights], **passed_on)
    models = {file.parent for file in Path(folder).glob("*/config.json")}
    if without := models - {file.parent for file in Path(folder).glob("*/*.safetensors")}:
        # As in diffusers, plain weights will do for a model that has none of this variant.
        weights = [f"{model.name}/{pattern}" for model in without for pattern in weight_patterns(None)]
        snapshot_download(repo_id, allow_patterns=weights, **passed_on)
    return folder


def check_component(folder: str | Path, name: str, entry: Sequence) -> None:
    """Raise ValueError unless an entry of a model_index names a class of this package, diffusers or transformers.

    diffusers would run the file `name/MODULE.py` of the folder for other entries, and load whole pipelines inside of
    this one, with rules of their own.
    """
    library, class_name = entry if len(entry) == 2 else (None, None)
    if len(entry) == 2 and library is None and class_name is None:
        return  # an optional component that is not there
    if isinstance(library, str) and isinstance(class_name, str):
        if PORTABLE_CLASSES.get(FILE_HASH.sub("", library)) == class_name:
            return
        if library == PACKAGE and class_name in PORTABLE_CLASSES.values():
            return
        if library in ("diffusers", "transformers"):
            found = getattr(importlib.import_module(library), class_name, None)
            bases = (ModelMixin, SchedulerMixin) if library == "diffusers" else (transformers_model(),)
            if isinstance(found, type) and issubclass(found, bases):
                return
    raise ValueError(
        f"{folder}: {name} is {'.'.join(map(str, entry))}, which is no model or scheduler of sit-atconv, diffusers or "
        "transformers; code of a folder is not run. Make the pipeline in Python, SiTPipeline(transformer, scheduler, "
        "vae), or, if you trust the code, use DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)"
    )


def transformers_model() -> type:
    """The base class of transformers' models; imported here, because no pipeline of this package needs it."""
    return importlib.import_module("transformers").PreTrainedModel


def use_installed_classes(index: dict, folder: str | Path) -> None:
    """Point the entries of a portable model_index at the installed classes, in place.

    Warns if code in the folder was edited, since the edit then has no effect.
    """
    if edited := edited_sources(folder):
        warnings.warn(
            f"{', '.join(edited)} in {folder} was edited after saving; the installed classes are used, not this code. "
            "To run it: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)",
            stacklevel=2,
        )
    index["_class_name"] = "SiTPipeline"
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, (list, tuple)):
            continue
        check_component(folder, name, entry)
        if entry[0] is not None and (stem := FILE_HASH.sub("", entry[0])) in PORTABLE_MODULES:
            importlib.import_module(PORTABLE_MODULES[stem])  # diffusers looks only among imported modules
            index[name] = [PORTABLE_MODULES[stem], entry[1]]
