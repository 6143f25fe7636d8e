"""SiTPipeline: class-conditional image generation with SiT, in a VAE's latent space or directly in pixels.

B images, C latent channels, t in [0, 1] with t=0 noise, t=1 data.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL.Image import Image

from sit_atconv.flow.conditioning import evaluating
from sit_atconv.flow.guidance import Guidance, GuidedModel
from sit_atconv.models.codecs import check_vae_image_size, vae_image_channels, vae_scale_factor
from sit_atconv.models.finite import check_finite
from sit_atconv.models.vae import decode, encode
from sit_atconv.schedulers.diffusers_flow import checked_solver
from sit_atconv.utils.checks import MAX_SOLVER_STEPS, check_choice, check_count
from sit_atconv.utils.class_labels import class_mixtures, ids_by_name, parse_labels
from sit_atconv.utils.randomness import check_generator

from .calls import CallStateMixin, StepCallback, check_callback, solve_finite
from .components import ComponentsMixin, check_channels
from .folder import FolderPipeline
from .inputs import check_sizes, images_from, latents_from
from .lora import LoraMixin

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DEFAULT_NETWORK_CALLS = 50  # at which the midpoint method's error is about a fifth of a grey level


class SiTPipeline(CallStateMixin, ComponentsMixin, LoraMixin, FolderPipeline):
    """Generate images of given classes.

    Args:
        transformer: a `SiTTransformer2DModel`.
        scheduler: `InterpolantODEScheduler`, `InterpolantSDEScheduler`, `MeanFlowScheduler`, or a flow's of diffusers.
        vae: an autoencoder of diffusers, such as `AutoencoderKL`; docs/data.md lists them. None for a model of pixels.
        id2label: class names by id. Keys are whole numbers, or their text, since JSON has no other keys.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        vae: ModelMixin | None = None,
        id2label: dict[str, str] | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        id2label = {str(i): name for i, name in (id2label or {}).items()}
        self.register_to_config(id2label=id2label or None)
        self.labels = ids_by_name(id2label)
        self.vae_scale_factor = vae_scale_factor(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    def get_label_ids(self, labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """Turn class ids or names, one or many, into ids.

        Raises:
            ValueError: if a name is unknown, an id is outside 0…num_classes − 1, or a label is neither.
        """
        return parse_labels(labels, self.labels, self.transformer.config.num_classes)

    def get_labels_or_count(
        self, class_labels: int | str | list[int | str] | torch.Tensor | None, batch_size: int | None
    ) -> list[int] | torch.Tensor:
        """Return the ids of `class_labels`, or their weights (B, num_classes).

        If they are None, which is for models without classes, return one id per image.

        Raises:
            ValueError: if a label is unknown, both arguments are given, or the model has classes and labels are None.
        """
        if class_labels is not None:
            if batch_size is not None:
                raise ValueError(f"batch_size={batch_size}: class_labels says how many images there are; leave one out")
            mixtures = class_mixtures(class_labels, self.transformer.config.num_classes)
            return self.get_label_ids(class_labels) if mixtures is None else mixtures
        if (num_classes := self.transformer.config.num_classes) > 1:
            raise ValueError(f"class_labels: None, but this model has {num_classes} classes; give an id or a name")
        check_count("batch_size", 1 if batch_size is None else batch_size)
        return [0] * (batch_size or 1)

    def check_inputs(
        self,
        batch_size: int,
        guidance: Guidance,
        num_inference_steps: int,
        height: int,
        width: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
    ) -> None:
        """Raise ValueError if an argument cannot be used, naming the argument, its value and the remedy."""
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_channels(self.transformer, self.vae, output_type)
        check_count("num_inference_steps", num_inference_steps, most=MAX_SOLVER_STEPS)
        guidance.check(self.transformer)
        has_times = getattr(self.scheduler, "network_times", None)  # not adaptive and multistep solvers
        if guidance.guider is not None and has_times is not None and not has_times(int(num_inference_steps)):
            raise ValueError(
                f"guider={type(guidance.guider).__name__} follows the network calls of a solve, which solver="
                f"{self.scheduler.config.solver!r} does not know ahead; use one such as 'midpoint'"
            )
        check_sizes(height, width, self.vae_scale_factor, self.transformer.config.patch_size)
        check_vae_image_size(self.vae, height, width, field="height, width")
        check_generator(generator, batch_size)
        if latents is not None:
            latents_from(latents, self.latents_shape(batch_size, height, width))

    @property
    def default_num_inference_steps(self) -> int:
        """The scheduler's own, or that with about 50 network calls: 25 for the midpoint method, 50 for Euler's."""
        return getattr(self.scheduler, "default_num_inference_steps", DEFAULT_NETWORK_CALLS // self.scheduler.order)

    def latents_shape(self, batch_size: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape (B, C, h, w) of the latents of images of height × width pixels."""
        factor = self.vae_scale_factor
        return batch_size, self.transformer.config.in_channels, height // factor, width // factor

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        num_inference_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        guidance_model: ModelMixin | None = None,
        batch_size: int | None = None,
        guider: Any = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate one image per label.

        Args:
            class_labels: class ids or names, or mixtures of classes as a floating-point tensor (B, num_classes), the
                weight of each. May be None for a model that was trained without classes.
            guidance_scale: strength of classifier-free guidance; 1 applies none and costs nothing.
            guidance_interval: guidance is applied for start ≤ t ≤ end only; t=0 is noise, t=1 data.
            guidance_channels: number of leading channels to guide. If None, all channels are guided; 3 of 4 reproduces
                published figures.
            num_inference_steps: number of solver steps, which adaptive solvers ignore. If None, defaults to
                `default_num_inference_steps`.
            height, width: size of the image in pixels. If None, the size of the training images.
            generator: random generator of the noise. With a list of one per image, each image depends on its own
                generator and label alone, not on the rest of the batch.
            latents: the initial noise, (B, C, h, w), a tensor or an array, of the scheduler's `noise_scale`. If None,
                `draw_noise` draws it with `generator`.
            output_type: "pil", "np" (B, height, width, channels) in [0, 1], "pt" (B, channels, height, width) in
                [0, 1], or "latent" (the solver's result, float32).
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: called as (pipeline, step, t, {"latents": latents}) after each step. It may return a
                dictionary with new "latents" of the same shape. `pipeline._interrupt = True` in it ends this call.
            guidance_model: a weaker model that guides in place of the null class (autoguidance).
            batch_size: number of images of a model without classes. If None, 1.
            guider: a guider of diffusers in place of `guidance_scale`, such as `AdaptiveProjectedGuidance`; to it, each
                network call is a step.

        Returns:
            The images, as `.images`.

        Raises:
            ValueError: if an argument cannot be used, or what the networks compute is not finite.
        """
        labels = self.get_labels_or_count(class_labels, batch_size)
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels, guidance_model, guider)
        steps = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        default_size = self.transformer.config.sample_size * self.vae_scale_factor
        height, width = (default_size if size is None else size for size in (height, width))
        self.check_inputs(len(labels), guidance, steps, height, width, generator, latents, output_type)
        steps, height, width = int(steps), int(height), int(width)
        check_callback(callback_on_step_end, [*self._callback_tensor_inputs, "prompt_embeds"])
        shape = self.latents_shape(len(labels), height, width)
        num_tokens = shape[2] * shape[3] // self.transformer.config.patch_size**2
        scheduler = checked_solver(self.scheduler, steps, num_tokens)
        if latents is None:
            latents = self.draw_noise(shape, generator)
        latents = latents_from(latents, shape)
        latents = self._sample(scheduler, labels, latents, guidance, steps, generator, callback_on_step_end)
        images = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def invert(
        self,
        images: torch.Tensor | np.ndarray | Image | list[Image],
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        guidance_model: ModelMixin | None = None,
    ) -> torch.Tensor:
        """Find the noise from which the ODE makes these images, by solving it from data to noise.

        A VAE encodes the images as the mean of its posterior.

        Args:
            images: (B, channels, height, width) in [0, 1], as returned for output_type="pt"; or what is returned for
                "np" or "pil".
            class_labels: classes of the images. May be None for a model that was trained without classes.
            num_inference_steps: as in sampling. More steps bring the round trip closer to the identity; an adaptive
                solver meets its tolerance.
            guidance_scale, guidance_interval, guidance_channels, guidance_model: as the images were sampled.

        Returns:
            latents (B, C, h, w) float32, for `__call__`.

        Raises:
            ValueError: if an argument cannot be used, or the scheduler is not an `InterpolantODEScheduler`.
        """
        if not self.scheduler_takes("reverse"):
            raise ValueError(
                f"scheduler {type(self.scheduler).__name__} cannot be inverted; use InterpolantODEScheduler"
            )
        images, labels = self._read_images(images, class_labels)
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels, guidance_model)
        steps = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        self.check_inputs(len(labels), guidance, steps, *images.shape[-2:])
        steps = int(steps)
        latents = self._encode(images)
        model_fn = self._guided_model(labels, guidance)
        with evaluating(*model_fn.models):
            model_fn.prepare(self.scheduler.network_times(steps, reverse=True))
            latents = solve_finite(self.scheduler, model_fn, latents, steps, reverse=True)
        self.maybe_free_model_hooks()
        return latents

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """Draw the noise from which sampling begins: `shape` float32, of the scheduler's `noise_scale`."""
        noise = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        return self.scheduler.config.get("noise_scale", 1.0) * noise

    def _guided_model(self, labels: list[int] | torch.Tensor, guidance: Guidance) -> GuidedModel:
        return GuidedModel(self.transformer, torch.as_tensor(labels, device=self._execution_device), guidance)

    def _sample(
        self,
        scheduler: Any,
        labels: list[int] | torch.Tensor,
        noise: torch.Tensor,
        guidance: Guidance,
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        callback_on_step_end: Callable | None,
        keep: Callable[[float, torch.Tensor], torch.Tensor] | None = None,
        **start: float,
    ) -> torch.Tensor:
        """Solve from noise (B, C, h, w) to latents, float32 for any dtype of the weights, under a progress bar.

        With `start_time`, which editing gives, the solve begins at that time. `keep` is that of `StepCallback`.
        """
        is_adaptive = getattr(scheduler, "is_adaptive", False)  # then the progress bar shows time, not steps
        model_fn = self._guided_model(labels, guidance)
        with (
            self._calls.running(num_inference_steps, guidance.scale) as call,
            evaluating(*model_fn.models),
            self.progress_bar(total=1 if is_adaptive else num_inference_steps) as progress,
        ):
            callback = StepCallback(self, call, model_fn, progress, is_adaptive, callback_on_step_end, keep)
            model_fn.prepare(scheduler.network_times(num_inference_steps, **start))
            noise = noise.to(self._execution_device, torch.float32)
            options = {"generator": generator, "callback": callback, **start}
            return solve_finite(scheduler, model_fn, noise, num_inference_steps, **options)

    def scheduler_takes(self, option: str) -> bool:
        """Whether the scheduler's `solve` has this option, as all or some of this package do."""
        return option in inspect.signature(getattr(self.scheduler, "solve", len)).parameters

    def _read_images(
        self, images: Any, class_labels: Any, field: str = "images"
    ) -> tuple[torch.Tensor, list[int] | torch.Tensor]:
        """Return images (B, channels, H, W) in [0, 1] and their labels; a single image is repeated for all labels."""
        channels = self.transformer.config.in_channels if self.vae is None else vae_image_channels(self.vae)
        images = images_from(images, channels, field)
        labels = self.get_labels_or_count(class_labels, len(images) if class_labels is None else None)
        if len(images) == 1:
            images = images.expand(len(labels), -1, -1, -1)
        if len(labels) != len(images):
            raise ValueError(f"class_labels names {len(labels)} classes for {len(images)} images")
        return images, labels

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Turn images (B, channels, H, W) in [0, 1] into latents (B, C, h, w), float32: the VAE's means."""
        latents = images.to(self._execution_device, torch.float32) * 2 - 1
        if self.vae is not None:
            latents = encode(self.vae, latents)
            check_finite("the latents from the VAE", latents, self.vae)
        return latents

    def _decode(self, latents: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list:
        """Turn latents (B, C, h, w) into images of the output type."""
        if output_type == "latent":
            return latents
        images = latents if self.vae is None else decode(self.vae, latents)
        return self.image_processor.postprocess(images, output_type=output_type)
