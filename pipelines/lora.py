"""LoRA adapters of a pipeline's transformer, loaded and saved as those of diffusers' pipelines; needs peft."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

from sit_atconv.models.safetensors_only import require_safetensors

PREFIX = "transformer"  # of the names of weights, as in diffusers


class LoraMixin(LoraBaseMixin):
    """Loading and saving of adapters; `set_adapters`, `unload_lora_weights` and the rest are those of diffusers."""

    _lora_loadable_modules = [PREFIX]  # noqa: RUF012

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        **options: Any,
    ) -> None:
        """Load an adapter into the transformer and switch it on.

        Args:
            pretrained_model_name_or_path_or_dict: a folder or a name on the Hub, with a file of safetensors that
                `save_lora_weights` has written; or its weights.
            adapter_name: a new name. If None, default_0, default_1 …
            **options: such as weight_name, the name of the file.

        Raises:
            ValueError: if it holds no adapter for this model, or the name is taken.
        """
        require_safetensors(options)
        before = set(getattr(self.transformer, "peft_config", {}))
        source = pretrained_model_name_or_path_or_dict
        source = source.copy() if isinstance(source, dict) else source
        self.transformer.load_lora_adapter(source, prefix=PREFIX, adapter_name=adapter_name, **options)
        if set(getattr(self.transformer, "peft_config", {})) == before:
            shown = source if isinstance(source, (str, Path)) else "them"
            raise ValueError(
                f"no weights of an adapter are named {PREFIX}.… in {shown}; what transformer.save_lora_adapter has "
                "written is loaded by pipe.transformer.load_lora_adapter(folder, prefix=None)"
            )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        transformer_lora_layers: dict[str, torch.Tensor],
        weight_name: str | None = None,
        transformer_lora_adapter_metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Save an adapter, which `load_lora_weights` reads.

        Args:
            save_directory: the folder, in which a file of the same name is replaced.
            transformer_lora_layers: the adapter's weights, as `peft.get_peft_model_state_dict(pipe.transformer)` gives.
            weight_name: name of the file. If None, pytorch_lora_weights.safetensors.
            transformer_lora_adapter_metadata: the adapter's settings, of which scale is lost without them if its alpha
                is not its rank: `pipe.transformer.peft_config["default"].to_dict()`.
            **options: is_main_process and save_function, as in diffusers.

        Raises:
            ValueError: if `safe_serialization=False`, since no pickles are written, there are no weights, or the folder
                is a file.
        """
        if not options.pop("safe_serialization", True):
            raise ValueError("safe_serialization=False would write pickles, which can run code; leave it out")
        if not transformer_lora_layers:
            raise ValueError("transformer_lora_layers is empty; give peft.get_peft_model_state_dict(pipe.transformer)")
        if Path(save_directory).is_file():
            raise ValueError(f"save_directory={str(save_directory)!r} is a file; give a folder")
        cls._save_lora_weights(
            save_directory,
            {PREFIX: transformer_lora_layers},
            {PREFIX: transformer_lora_adapter_metadata},
            weight_name=weight_name,
            **options,
        )

    def fuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Add the adapters to the weights of the transformer; options as in diffusers, such as lora_scale."""
        super().fuse_lora(components or [PREFIX], **options)

    def unfuse_lora(self, components: list[str] | None = None, **options: Any) -> None:
        """Subtract what `fuse_lora` has added."""
        super().unfuse_lora(components or [PREFIX], **options)
