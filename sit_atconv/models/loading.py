"""Strict loading and saving of a model's folder: safetensors only, and every weight and argument accounted for."""

import inspect
from collections.abc import Iterable
from pathlib import Path

from diffusers.models.modeling_utils import ModelMixin

from .weight_files import replacing_weights

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


class StrictModelMixin(ModelMixin):
    """diffusers' `ModelMixin`, but what it only warns of is an error, and pickles are neither read nor written."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a model as diffusers' `from_pretrained` does, from safetensors only.

        Raises:
            ValueError: naming the weights that are missing or unexpected, or the config's fields that are not arguments
                of the model.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        location = {name: kwargs[name] for name in LOCATION if name in kwargs}
        config = cls.load_config(pretrained_model_name_or_path, **location)
        check_config_fields(cls, config, pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        check_loaded_weights(info, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs,
    ) -> None:
        """Save a model as diffusers' `save_pretrained` does, as safetensors only.

        Raises:
            ValueError: for `safe_serialization=False`, or while a LoRA adapter is active.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles, which can run code; leave it out")
        if getattr(self, "peft_config", None):
            raise ValueError(
                "this model has a LoRA adapter and would not load again with it: call fuse_lora() and unload_lora() "
                "first, or save the adapter alone with save_lora_adapter(folder)"
            )
        with replacing_weights(save_directory, variant):
            super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)
