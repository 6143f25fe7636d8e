"""The components of a pipeline, checked where they are handed over: their kinds, their names, and that they fit."""

from typing import Any

from sit_atconv.models.codecs import vae_image_channels, vae_latent_channels
from sit_atconv.models.latent_scaling import check_latent_statistics
from sit_atconv.schedulers.diffusers_flow import check_scheduler
from sit_atconv.utils.checks import check_known

from .inputs import PIL_MODES

COMPONENTS = ("transformer", "scheduler", "vae")
# Options of diffusers' `from_pretrained` that a misspelt option may have meant, besides the components.
LOADING_OPTIONS = (
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "quantization_config",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "variant",
    "verify_weights",
)


class ComponentsMixin:
    """A pipeline of diffusers that refuses components of a wrong kind, and options that do not exist."""

    def register_modules(self, **components: Any) -> None:
        """Take components, by name.

        Raises:
            ValueError: if one is not a model or a scheduler.
        """
        check_kinds(**components)
        super().register_modules(**components)  # type: ignore[misc]  # of diffusers' pipeline

    def __setattr__(self, name: str, value: Any) -> None:
        if name in COMPONENTS:
            check_kinds(**{name: value})
        super().__setattr__(name, value)

    @classmethod
    def extract_init_dict(cls, config_dict: dict, **options: Any) -> tuple:
        """Separate what `__init__` takes; diffusers hands over the options that `from_pretrained` has no use for.

        Raises:
            ValueError: if there is such an option, where diffusers only warns.
        """
        arguments, optional = cls._get_signature_keys(cls)  # type: ignore[attr-defined]
        given = [name for name in options if not name.startswith("_")]
        check_known(cls.__name__, given, [*arguments, *optional, *LOADING_OPTIONS])
        config_dict = {name: value for name, value in config_dict.items() if name != "auto_map"}  # for AutoModel alone
        return super().extract_init_dict(config_dict, **options)  # type: ignore[misc]


def check_kinds(transformer: Any = None, scheduler: Any = None, vae: Any = None, **_: Any) -> None:
    """Raise ValueError unless each component that is given is an object of its kind."""
    if transformer is not None and not hasattr(getattr(transformer, "config", None), "in_channels"):
        raise ValueError(f"transformer is a {type(transformer).__name__}; give a SiTTransformer2DModel")
    if scheduler is not None:
        check_scheduler(scheduler)
    if vae is not None and not (hasattr(vae, "config") and hasattr(vae, "decode")):
        raise ValueError(
            f"vae is a {type(vae).__name__}; give an autoencoder of diffusers, such as AutoencoderKL, or None "
            "for pixels"
        )


def check_channels(transformer: Any, vae: Any, output_type: str) -> None:
    """Raise ValueError unless the latents are those of the VAE, on a known scale, and the images can be of this type.

    This shows before the solve; the VAE itself would fail after it.
    """
    channels = transformer.config.in_channels
    latent_channels = channels if vae is None else vae_latent_channels(vae)
    if latent_channels != channels:
        raise ValueError(
            f"vae={type(vae).__name__} has latents of {latent_channels} channels, but the transformer of {channels}; "
            "give the VAE that the model was trained with"
        )
    if vae is not None:
        check_latent_statistics(vae)
    image_channels = channels if vae is None else vae_image_channels(vae)
    if output_type == "pil" and image_channels not in PIL_MODES:
        raise ValueError(f"output_type='pil': no picture has {image_channels} channels; use 'pt' or 'np'")
