"""The transformer that a run starts from: freshly initialized, fine-tuned or grafted."""

from typing import Any

import torch

from ..data import ImageDataset
from ..models.codecs import check_vae_image_size, vae_image_channels, vae_latent_channels, vae_scale_factor
from ..models.grafting import graft
from ..models.presets import PRESETS
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import VAE
from ..utils.imagenet import name_synsets
from .config import TrainConfig
from .fine_tuning import load_pretrained, pretrained_classes, take_over_weights
from .teacher_options import MIXER_ARGUMENTS


def build_transformer(
    config: TrainConfig, dataset: ImageDataset, vae: VAE | None, mixer: str | list[str] | None = None
) -> SiTTransformer2DModel:
    """Build the transformer for this data, freshly initialized from `seed`, or fine-tuned or grafted from `init_from`.

    Args:
        config: the configuration of the run.
        dataset: the training data.
        vae: the VAE; None for pixels.
        mixer: its mixers; those of `config` if None.

    Raises:
        ValueError: if image size, VAE factor and patch size do not fit, channels differ, or an argument is unknown.
    """
    trained = None if config.init_from is None else load_pretrained(config.init_from)
    mixer = config.mixer if mixer is None else mixer
    if trained is not None and mixer is not None:
        trained = _grafted(config, trained, mixer)
    if trained is not None:
        base = {key: value for key, value in trained.config.items() if not key.startswith("_")}
    else:
        assert config.preset is not None  # TrainConfig fills it in
        base = PRESETS[config.preset]
    arguments = _data_arguments(config, dataset, vae, base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            transformer = SiTTransformer2DModel(**{**base, **arguments, **config.model})
        except TypeError as error:
            reason = str(error).replace("SiTTransformer2DModel.__init__() ", "")
            raise ValueError(f"model={config.model}: {reason}") from error
    if trained is not None and config.init_from is not None:
        same_classes = pretrained_classes(config.init_from) == name_synsets(dataset.classes)
        take_over_weights(transformer, trained, same_classes)
    return transformer


def _grafted(config: TrainConfig, trained: SiTTransformer2DModel, mixer: str | list[str]) -> SiTTransformer2DModel:
    """Replace mixers of a trained model; the new weights follow from the seed of the run."""
    arguments = {name: value for name, value in config.model.items() if name in MIXER_ARGUMENTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return graft(trained, mixer, config.graft_init, **arguments)


def _data_arguments(
    config: TrainConfig, dataset: ImageDataset, vae: VAE | None, base: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of the transformer that follow from data, VAE and mixer, checked against the others."""
    factor = vae_scale_factor(vae)
    patch_size = config.model.get("patch_size", base["patch_size"])
    if dataset.image_size % (factor * patch_size):
        raise ValueError(
            f"image_size={dataset.image_size} must be divisible by {factor * patch_size} "
            f"(VAE factor {factor} × patch size {patch_size})"
        )
    check_vae_image_size(vae, dataset.image_size)
    if vae is not None and vae_image_channels(vae) != dataset.channels:
        raise ValueError(
            f"vae={config.vae!r} takes {vae_image_channels(vae)} channels, but the images of data={config.data!r} have "
            f"{dataset.channels}"
        )
    is_meanflow = config.objective == "meanflow"
    arguments: dict[str, Any] = {
        "trained_guidance_scale": config.meanflow_guidance_scale if is_meanflow else config.teacher_guidance_scale,
        "sample_size": dataset.image_size // factor,
        "in_channels": dataset.channels if vae is None else vae_latent_channels(vae),
        "num_classes": dataset.num_classes,
    }
    if config.init_from is None:
        arguments["mixer"] = config.mixer
    elif arguments["in_channels"] != base["in_channels"]:
        raise ValueError(
            f"init_from={config.init_from!r} works on {base['in_channels']} channels, but data={config.data!r} and "
            f"vae={config.vae!r} give {arguments['in_channels']}"
        )
    if is_meanflow and config.model.get("step_conditioning") == "none":
        raise ValueError("model.step_conditioning='none' does not know the ends of steps; choose 'span' or 'decoupled'")
    if is_meanflow and base.get("step_conditioning", "none") == "none":
        arguments["step_conditioning"] = "span"
    if not dataset.classes:
        arguments["class_dropout_prob"] = 0.0  # there are no labels to drop
    return arguments
