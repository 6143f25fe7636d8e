"""The plan of a training of a classifier: what it is about to do and how much it needs."""

from accelerate import Accelerator
from torch import nn

from ..data import ImageDataset
from ..training.plan import precision_warnings
from ..utils.text import counted
from .config import ClassifierConfig
from .models import count_macs, number_of_parameters


def describe_classifier_plan(
    config: ClassifierConfig,
    dataset: ImageDataset,
    validation: ImageDataset,
    model: nn.Module,
    accelerator: Accelerator,
) -> str:
    """Describe data, model, batch, length and memory of a run.

    Args:
        config: the configuration of the run.
        dataset: the training images.
        validation: the images for evaluation.
        model: the model, before it is distributed.
        accelerator: the processes of the run.
    """
    assert config.image_size is not None  # ClassifierConfig checks it
    size, parameters = config.image_size, number_of_parameters(model)
    macs = count_macs(model, (dataset.channels, size, size))
    processes, parts = accelerator.num_processes, config.gradient_accumulation_steps
    averages = len(config.ema_decays) + len(config.ema_stds) + 1
    state = (16 + 4 * averages) * parameters
    epochs = config.max_steps * config.batch_size / len(dataset)
    precision = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    lines = [
        f"data        {counted(len(dataset), 'image')} of {counted(len(dataset.classes), 'class')}, seen at {size}² "
        f"pixels; {len(validation):,} for evaluation",
        *(f"            {note}" for note in dataset.notes),
        f"model       {config.model}, {parameters / 1e6:.2f} M parameters, {macs / 1e9:.3g} GMACs an image",
        f"batch       {config.batch_size} = {counted(processes, 'process')} × {counted(parts, 'accumulation step')} × "
        f"{counted(config.batch_size // (processes * parts), 'image')}, {precision}",
        *precision_warnings(accelerator.mixed_precision, accelerator.device),
        f"length      {counted(config.max_steps, 'step')}, {epochs:.1f} epochs",
        f"memory      {state / 1e9:.2f} GB a process for weights, optimizer and averages; activations on top",
    ]
    return "\n".join(lines)
