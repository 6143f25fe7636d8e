"""Build what a run trains and samples: the transformer and the pipeline around it."""

import torch

from ..data import ImageDataset
from ..models.transformer_sit import PRESETS, SiTTransformer2DModel
from ..models.vae import vae_scale_factor
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..utils.imagenet import name_synsets
from .config import TrainConfig
from .fine_tuning import load_pretrained, pretrained_classes, take_over_weights


def build_transformer(config: TrainConfig, dataset: ImageDataset, vae: torch.nn.Module | None) -> SiTTransformer2DModel:
    """The model for this data, freshly initialised or that of `init_from`: a function of the config alone.

    Raises:
        ValueError: where image size, VAE factor and patch size do not fit, channels differ, or an argument is unknown.
    """
    if config.init_from is None:
        trained, base = None, PRESETS[config.preset]
    else:
        trained = load_pretrained(config.init_from)
        base = {key: value for key, value in trained.config.items() if not key.startswith("_")}
    factor = vae_scale_factor(vae)
    patch_size = config.model.get("patch_size", base["patch_size"])
    if dataset.image_size % (factor * patch_size):
        raise ValueError(
            f"image_size={dataset.image_size} must be divisible by {factor * patch_size} "
            f"(VAE factor {factor} × patch size {patch_size})"
        )
    if vae is not None and vae.config.in_channels != dataset.channels:
        raise ValueError(
            f"vae={config.vae!r} takes {vae.config.in_channels} channels, the images of data={config.data!r} have "
            f"{dataset.channels}"
        )
    arguments = {
        "sample_size": dataset.image_size // factor,
        "in_channels": dataset.channels if vae is None else vae.config.latent_channels,
        "num_classes": dataset.num_classes,
    }
    if trained is None:
        arguments["mixer"] = config.mixer
    elif arguments["in_channels"] != base["in_channels"]:
        raise ValueError(
            f"init_from={config.init_from!r} works on {base['in_channels']} channels, data={config.data!r} and "
            f"vae={config.vae!r} give {arguments['in_channels']}"
        )
    if fixed := sorted({*arguments, "out_channels"} & config.model.keys()):
        raise ValueError(f"model: {', '.join(fixed)} follow from --data, --vae and --mixer; leave them out")
    if not dataset.classes:
        arguments["class_dropout_prob"] = 0.0  # there is nothing to drop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            transformer = SiTTransformer2DModel(**{**base, **arguments, **config.model})
        except TypeError as error:
            reason = str(error).replace("SiTTransformer2DModel.__init__() ", "")
            raise ValueError(f"model={config.model}: {reason}") from error
    if trained is not None:
        take_over_weights(
            transformer, trained, same_classes=pretrained_classes(config.init_from) == name_synsets(dataset.classes)
        )
    return transformer


def build_pipeline(config: TrainConfig, transformer, vae: torch.nn.Module | None, classes: list[str]) -> SiTPipeline:
    """The pipeline that samples what is being trained."""
    scheduler = InterpolantODEScheduler(path=config.path, prediction=config.prediction)
    return SiTPipeline(transformer, scheduler, vae, id2label=dict(enumerate(name_synsets(classes))))
