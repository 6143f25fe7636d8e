"""Strict loading and saving of a model's folder: safetensors only, and every weight and argument accounted for."""

import functools
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..utils.checks import check_known, near_misses
from ..utils.folder_update import updating_folder
from .safetensors_only import check_weight_indices, require_safetensors
from .weight_files import (
    is_verifying,
    publication_rank,
    record_hashes,
    superseded_weights,
    verify_weights,
)

# The arguments of `from_pretrained` that tell where a config is.
LOCATION = ("subfolder", "revision", "cache_dir", "token", "force_download", "local_files_only")


def check_config_fields(model_class: type, fields: Iterable[str], source: str | Path) -> None:
    """Raise ValueError if a config has fields that are not arguments of the model's constructor."""
    known = {*inspect.signature(model_class).parameters, "quantization_config"}
    if unknown := [name for name in fields if name not in known and not name.startswith("_")]:
        raise ValueError(
            f"{source}: config.json has {', '.join(unknown)}, unknown here; update sit-atconv if a newer version wrote "
            "the file"
        )


def check_loaded_weights(loading_info: dict, source: str | Path) -> None:
    """Raise ValueError if a folder lacked weights of the model, or held weights that the model has no use for."""
    faults = [
        f"{what}: {', '.join(sorted(map(str, loading_info[key])))}"
        for key, what in (("missing_keys", "missing weights"), ("unexpected_keys", "unexpected weights"))
        if loading_info[key]
    ]
    if faults:
        raise ValueError(f"{source} does not hold this model; {'; '.join(faults)}")


def check_model_can_be_loaded_again(model: ModelMixin) -> None:
    """Raise ValueError unless the weights of a model have the names and shapes of a fresh model with its config.

    Adapters, parametrisations, wrapped or replaced layers change them, and the folder of such a model could not be
    loaded again. Weights of a quantized model are stored in forms of their own, which its quantizer checks.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    # As it is saved: without diffusers' list of the fields that had their defaults when the model was built.
    config = {field: value for field, value in model.config.items() if not field.startswith("_")}
    with torch.device("meta"):  # no weights are initialised in vain
        fresh = type(model).from_config(config)
    weights = model.state_dict()
    _check_weights_are_here(model, weights)
    expected = {name: tuple(tensor.shape) for name, tensor in fresh.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = [
        *(f"{name} is not in a model with its config" for name in found if name not in expected),
        *(f"{name} is missing" for name in expected if name not in found),
        *(
            f"{name} has the shape {found[name]}, not {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ),
    ]
    if not faults:
        return
    if any(".base_layer." in name or ".lora_" in name for name in found):
        remedy = (
            "call unload_lora(), after fuse_lora() if its effect is to be kept, or save an adapter alone with "
            "save_lora_adapter(folder)"
        )
    elif any("_orig_mod." in name for name in found):
        remedy = "compile the whole model, or a layer in place with layer.compile(), and not with torch.compile(layer)"
    else:
        remedy = "undo what changed its layers, or copy their weights into a new model with a config that fits"
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    raise ValueError(f"this {type(model).__name__} could not be loaded again: {'; '.join(faults[:3])}{more}; {remedy}")


def _check_weights_are_here(model: ModelMixin, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless all weights are dense tensors with values, which a file can hold."""
    name = type(model).__name__
    if away := [key for key, tensor in weights.items() if tensor.is_meta]:
        raise ValueError(
            f"weights of this {name} are not in memory, such as {away[0]}: they are offloaded, or were never loaded. "
            "Call accelerate.hooks.remove_hook_from_module(model, recurse=True) first, or load the model again"
        )
    if sparse := [key for key, tensor in weights.items() if tensor.layout != torch.strided]:
        raise ValueError(f"weights of this {name} are sparse, such as {sparse[0]}; make them dense by to_dense()")


class StrictModelMixin(ModelMixin):
    """diffusers' `ModelMixin`, but what it only warns of is an error, and pickles are neither read nor written."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a model as diffusers' `from_pretrained` does, from safetensors only.

        The weights in a local folder are compared with the SHA-256 that was stored when they were saved, if there is
        one, unless `verify_weights=False` is given.

        Raises:
            ValueError: naming the weights that are missing or unexpected, the config's fields that are not arguments of
                the model, or the files that are not safetensors or not as they were saved.
        """
        verified = kwargs.pop("verify_weights", is_verifying())
        require_safetensors(kwargs)
        location = {name: kwargs[name] for name in LOCATION if name in kwargs}
        config = cls.load_config(pretrained_model_name_or_path, **location)
        check_config_fields(cls, config, pretrained_model_name_or_path)
        check_weight_indices(pretrained_model_name_or_path, variant=kwargs.get("variant"), **location)
        if verified:
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            verify_weights(folder, kwargs.get("variant"))
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        check_loaded_weights(info, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """Build a freshly initialised model from a config, and options that take precedence.

        Raises:
            ValueError: for an option that looks like a misspelt argument of the model; diffusers would drop it.
        """
        arguments = inspect.signature(cls).parameters
        check_known(cls.__name__, near_misses(kwargs, arguments), arguments)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs,
    ) -> None:
        """Save a model as diffusers' `save_pretrained` does, as safetensors only, with their SHA-256.

        An error, such as a full disk, leaves what was in the folder as it was.

        Raises:
            ValueError: for `safe_serialization=False`, or if the model could not be loaded again, such as one with a
                LoRA adapter.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles, which can run code; leave it out")
        if getattr(self, "peft_config", None):
            raise ValueError(
                "this model has a LoRA adapter and would not load again with it: call fuse_lora() and unload_lora() "
                "first, or save the adapter alone with save_lora_adapter(folder)"
            )
        check_model_can_be_loaded_again(self)
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", folder.absolute().name)
        superseded = functools.partial(superseded_weights, folder=folder, variant=variant)
        with updating_folder(folder, superseded, publication_rank) as staging:
            super().save_pretrained(str(staging), variant=variant, max_shard_size=max_shard_size, **kwargs)
            record_hashes(staging, folder, superseded(staging))
