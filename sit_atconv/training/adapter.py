"""A LoRA adapter that is trained in place of a model's weights: its layers, and the folder that a run leaves."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.transformer_sit import SiTTransformer2DModel
from ..pipelines.pipeline_sit import SiTPipeline
from ..sharing.card import CARD_FILE, SAMPLES_FILE, add_samples, write_lineage, write_training_config
from ..utils.files import write_atomically
from ..utils.text import code_block, counted, markdown_text, one_line
from .config import TrainConfig
from .fine_tuning import load_pretrained, pretrained_classes
from .finish import replace_folder

TARGETS = ("qkv", "q_proj", "kv_proj", "kernel_proj", "value_proj", "out_proj", "fc1", "fc2")  # of mixers and MLPs
ADAPTER = "default"  # its name in the model
MAY_DIFFER = {"sample_size"}  # arguments of the model that data may change
LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)  # what LoRA can adapt


class Adapter(nn.Module):
    """The parameters that an adapter adds to a model, under their names in it; the model keeps them too."""

    def __init__(self, model: nn.Module):
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                *path, leaf = name.split(".")
                owner: nn.Module = self
                for part in path:
                    if part not in owner._modules:
                        owner.add_module(part, nn.Module())
                    owner = owner.get_submodule(part)
                owner.register_parameter(leaf, parameter)


def check_same_model(config: TrainConfig, model: SiTTransformer2DModel, classes: list[str]) -> None:
    """Check that data and options have left the model as it is in `init_from`, which the adapter will be loaded into.

    Args:
        config: the configuration of the run.
        model: the model that was built for the data.
        classes: the class names of the data.

    Raises:
        ValueError: naming what differs.
    """
    assert config.init_from is not None  # AdapterConfig is checked
    if pretrained_classes(config.init_from) != classes:
        raise ValueError(
            f"data={config.data!r} has other classes than init_from={config.init_from!r}, whose embeddings an adapter "
            "does not hold; leave out --lora_rank to train the whole model"
        )
    trained = load_pretrained(config.init_from).config
    if (conditioning := trained["step_conditioning"]) != "none":
        raise ValueError(
            f"init_from={config.init_from!r} predicts mean velocities (step_conditioning={conditioning!r}), and "
            "an adapter is trained as a flow; give the flow that it was tuned from, or leave out --lora_rank"
        )
    for name, value in model.config.items():
        if not name.startswith("_") and name not in MAY_DIFFER and trained[name] != value:
            raise ValueError(
                f"data={config.data!r} needs a model with {name}={value!r}, but init_from={config.init_from!r} has "
                f"{trained[name]!r}; leave out --lora_rank to train the whole model"
            )


def add_adapter(config: TrainConfig, model: SiTTransformer2DModel) -> Adapter:
    """Freeze a model, and add an adapter to it that has no effect yet; it is a function of the seed of the run.

    Raises:
        ValueError: if no layer has the name of a target.
    """
    import peft  # only here, since it takes as long as PyTorch

    layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    targets = [each for each in TARGETS if any(_is_named(name, each) for name in layers)]
    for target in config.lora_targets or ():
        if not any(_is_named(name, target) for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise ValueError(f"lora_targets={config.lora_targets!r}: no layer is named {target!r}; there are: {known}")
    rank = config.lora_rank
    assert rank is not None  # the task of the run
    options: dict[str, Any] = {"lora_alpha": config.lora_alpha or rank}  # peft's type is int, but it takes any number
    settings = peft.LoraConfig(r=rank, target_modules=config.lora_targets or targets, **options)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model.add_adapter(settings, ADAPTER)
    return Adapter(model)


def _is_named(layer: str, target: str) -> bool:
    return layer == target or layer.endswith(f".{target}")


def describe_adapter(config: TrainConfig, model: SiTTransformer2DModel, adapter: Adapter) -> str:
    """The line of a plan: what is trained."""
    layers = {name.partition(".lora_")[0] for name, _ in adapter.named_parameters()}
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    share = trained / sum(parameter.numel() for parameter in model.parameters())
    return (
        f"adapter     LoRA of rank {config.lora_rank} on {counted(len(layers), 'layer')}: {trained / 1e6:.2g} M "
        f"parameters, {share:.1%}, are trained"
    )


def save_adapter(
    folder: Path,
    model: SiTTransformer2DModel,
    training_config: dict[str, Any],
    samples: Path,
    lineage: dict[str, Any],
    title: str,
) -> None:
    """Write the adapter of a model as a folder that `SiTPipeline.load_lora_weights` reads, with a card.

    Args:
        folder: the folder to write or to replace.
        model: the model with the adapter.
        training_config: every option of the training.
        samples: a grid of samples; left out if there is no such file.
        lineage: what the adapter was trained from.
        title: of the card.

    Raises:
        OSError: if it cannot be written. What was there is left untouched.
    """
    from peft import get_peft_model_state_dict

    settings = model.peft_config[ADAPTER].to_dict()
    layers = get_peft_model_state_dict(model, adapter_name=ADAPTER)

    def write(staged: Path) -> None:
        write_training_config(staged, training_config)
        write_lineage(staged, lineage)
        if samples.is_file():
            add_samples(staged, samples)
        SiTPipeline.save_lora_weights(staged, layers, transformer_lora_adapter_metadata=settings)
        write_atomically(staged / CARD_FILE, adapter_card(staged, title, training_config["lora_rank"], lineage))

    replace_folder(folder, write)


def adapter_card(folder: Path, title: str, rank: int, lineage: dict[str, Any]) -> str:
    """The model card of an adapter's folder."""
    origin = lineage["init_from"]
    name = one_line(origin["name"])
    hashes = ", ".join(f"`{sha256}`" for sha256 in origin["sha256"].values())
    usage = f"""from sit_atconv import SiTPipeline

pipe = SiTPipeline.from_pretrained("PIPELINE")  # that of {name}: a folder, or a name on the Hub
pipe.load_lora_weights("ADAPTER")  # this folder"""
    parts = [
        "---\nlibrary_name: diffusers\ntags:\n- lora\n- sit-atconv\n---",
        f"# {markdown_text(title)}",
        f"A LoRA adapter of rank {rank} for {markdown_text(name)}, a SiT pipeline of diffusers. SHA-256 of that "
        f"pipeline's transformer: {hashes}.",
    ]
    if (folder / SAMPLES_FILE).is_file():
        parts.append(f"![Samples]({SAMPLES_FILE})")
    return "\n\n".join([*parts, code_block(usage, "python")]) + "\n"
