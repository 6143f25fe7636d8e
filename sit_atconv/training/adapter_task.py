"""The task of training a LoRA adapter of SiT: the model itself stays as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType

from ..utils.imagenet import name_synsets
from ..utils.text import shell_word
from .adapter import Adapter, add_adapter, check_same_model, describe_adapter, save_adapter
from .lineage import describe_origin
from .optimizer import build_optimizer
from .sit_task import SiTTask


class AdapterTask(SiTTask):
    """Train an adapter on images or latents, draw grids of samples, and leave a folder with the adapter alone.

    Attributes:
        model: the parameters of the adapter, which are averaged and stored in checkpoints.
        trained: the transformer that holds them.
    """

    exported = "adapter"
    model: Adapter

    def build(self) -> None:
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError(
                f"lora_rank={self.config.lora_rank}: FSDP would shard an adapter that needs none; launch without it"
            )
        super().build()
        transformer = self.components.transformer
        check_same_model(self.config, transformer, name_synsets(self.dataset.classes))
        self.model = add_adapter(self.config, transformer)
        self.modules = {"model": self.model}

    def describe_data(self) -> dict[str, Any]:
        """Describe the data, and the model that the adapter belongs to."""
        assert self.config.init_from is not None  # AdapterConfig is checked
        return super().describe_data() | {"init_from": describe_origin(self.config.init_from)["sha256"]}

    def plan(self) -> str:
        return f"{super().plan()}\n{describe_adapter(self.config, self.components.transformer, self.model)}"

    def build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.config, self.model)

    def describe_model(self) -> dict[str, Any]:
        return super().describe_model() | {"adapter": self.exported}

    def export(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        config, transformer = self.config, self.components.transformer
        self.model.load_state_dict(weights)
        samples = self.sample_file(config.max_steps)
        save_adapter(folder, transformer, dataclasses.asdict(config), samples, self.lineage, config.run_folder.name)
        print(f"\nThe trained adapter (EMA weights) is in {shell_word(str(folder))}. Use it with:")
        print("  from sit_atconv import SiTPipeline")
        print(f"  pipe = SiTPipeline.from_pretrained({config.init_from!r})")
        print(f"  pipe.load_lora_weights({str(folder)!r})")
