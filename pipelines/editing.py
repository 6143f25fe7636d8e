"""Pipelines that begin with an image: variations of it, and new content for a part of it.

B images, C latent channels, (h, w) latent size; t in [0, 1] with t=0 noise, t=1 data.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from PIL.Image import Image
from torch.nn.functional import adaptive_max_pool2d

from sit_atconv.flow.guidance import Guidance
from sit_atconv.utils.checks import is_number

from .calls import check_callback
from .inputs import images_from, latents_from
from .pipeline_sit import SiTPipeline

Images = torch.Tensor | np.ndarray | Image | list[Image]
Labels = int | str | list[int | str] | torch.Tensor | None
Generators = torch.Generator | list[torch.Generator] | None


class SiTImg2ImgPipeline(SiTPipeline):
    """Generate variations of images: the solve begins at the image with a share of noise (SDEdit, arXiv 2108.01073).

    The components are those of `SiTPipeline`: `SiTImg2ImgPipeline.from_pipe(pipe)`, or `from_pretrained` of the same
    folder. `save_pretrained` writes the folder of a `SiTPipeline`.
    """

    def save_pretrained(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Save the pipeline as the `SiTPipeline` of these components; see there."""
        plain = SiTPipeline(**self.components, id2label=self.config.id2label)
        plain.save_pretrained(save_directory, *arguments, **options)

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # of diffusers' pipelines, each has arguments of its own
        self,
        image: Images,
        class_labels: Labels = None,
        strength: float = 0.8,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        guidance_model: ModelMixin | None = None,
        guider: Any = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate one variation per image, or one of a single image per label.

        Args:
            image: as `SiTPipeline.invert` takes them; their size, of whole patches, is that of the result.
            class_labels: classes of the results, which may differ from those of the images.
            strength: share of noise that the images are mixed with: the solve begins at t = 1 − strength. 1 forgets the
                image.
            num_inference_steps: the number of steps that a solve from noise would have; `strength` of them are made.
            latents: the noise that is mixed in, (B, C, h, w). If None, it is drawn with `generator`.
            guidance_scale, guidance_interval, guidance_channels, generator, output_type, return_dict,
                callback_on_step_end, guidance_model, guider: as in `SiTPipeline.__call__`.

        Raises:
            ValueError: as `SiTPipeline.__call__`, or if `strength` leaves no step, or the scheduler is not one of this
                package.
        """
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels, guidance_model, guider)
        options = (strength, guidance, num_inference_steps, generator, latents, output_type, callback_on_step_end)
        images = self._edit(image, None, class_labels, *options)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _edit(
        self,
        image: Images,
        mask_image: torch.Tensor | None,
        class_labels: Labels,
        strength: float,
        guidance: Guidance,
        num_inference_steps: int | None,
        generator: Generators,
        latents: Any,
        output_type: str,
        callback_on_step_end: Callable | None,
    ) -> torch.Tensor | np.ndarray | list:
        """Check the arguments, solve from the noisy images, and return images of the output type.

        Where `mask_image` is 0, if it is given, the images keep what they show.
        """
        images, labels = self._read_images(image, class_labels, "image")  # (B, channels, H, W)
        mask = None if mask_image is None else mask_from(mask_image, images)  # (1 or B, 1, H, W)
        planned = self.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        height, width = images.shape[-2:]
        self.check_inputs(len(labels), guidance, planned, height, width, generator, latents, output_type)
        check_callback(callback_on_step_end, [*self._callback_tensor_inputs, "prompt_embeds"])
        steps, start_time = self.part_of_solve(int(planned), strength)
        data = self._encode(images)  # (B, C, h, w)
        if latents is None:
            latents = self.draw_noise(tuple(data.shape), generator)
        noise = latents_from(latents, tuple(data.shape)).to(data)

        def noisy(t: float) -> torch.Tensor:
            return self.scheduler.interpolant.interpolate(noise, data, torch.tensor(t, dtype=data.dtype))

        new = None if mask is None else adaptive_max_pool2d(mask.float(), data.shape[-2:]).to(data.device) > 0
        keep = None if new is None else lambda t, x: torch.where(new, x, noisy(t))
        arguments = (labels, noisy(start_time), guidance, steps, generator, callback_on_step_end, keep)
        result = self._sample(self.scheduler, *arguments, start_time=start_time)
        if new is not None:
            result = torch.where(new, result, data)
        if mask is None or output_type == "latent":
            edited = self._decode(result, output_type)
        else:
            decoded = torch.as_tensor(self._decode(result, "pt"), device="cpu")
            pixels = torch.where(mask, decoded, images.cpu().float())
            edited = self.image_processor.postprocess(pixels * 2 - 1, output_type=output_type)
        self.maybe_free_model_hooks()
        return edited

    def part_of_solve(self, num_inference_steps: int, strength: float) -> tuple[int, float]:
        """Return the number of steps, and the time at which they begin, of the last part of a solve.

        Args:
            num_inference_steps: steps of a solve from noise to data.
            strength: share of it.

        Raises:
            ValueError: if strength is not above 0 and at most 1, it leaves too few steps, or the scheduler begins with
                noise alone.
        """
        name = type(self.scheduler).__name__
        if not self.scheduler_takes("start_time"):
            raise ValueError(
                f"scheduler {name} begins with noise alone; use InterpolantODEScheduler.from_config(config), with "
                "config = pipe.scheduler.config"
            )
        if not is_number(strength) or not 0 < strength <= 1:
            raise ValueError(f"strength={strength!r} must be above 0 and at most 1")
        steps, least = round(strength * num_inference_steps), getattr(self.scheduler, "least_steps", 1)
        if steps < least:
            raise ValueError(
                f"strength={strength} of num_inference_steps={num_inference_steps} leaves {steps}, but {name} needs "
                f"{least}; raise one of the two"
            )
        try:
            grid = self.scheduler.time_grid(steps, 1 - strength)
        except ValueError as error:
            raise ValueError(f"strength={strength} is too small: {error}") from error
        return steps, grid[0].item()


class SiTInpaintPipeline(SiTImg2ImgPipeline):
    """Draw a part of images anew, and keep the rest.

    After each step of the solve, what is to be kept is replaced by the image with the noise of that time, so that the
    network continues it into the new part.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # of diffusers' pipelines, each has arguments of its own
        self,
        image: Images,
        mask_image: Images,
        class_labels: Labels = None,
        strength: float = 1.0,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        guidance_model: ModelMixin | None = None,
        guider: Any = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw the part of each image where its mask is white (1), or the same part of a single image for each label.

        Args:
            image: as `SiTPipeline.invert` takes them; their size, of whole patches, is that of the result.
            mask_image: like `image`, with one channel and the same height and width; from 0.5 on is drawn, the rest is
                kept, pixel by pixel. One mask serves many images.
            class_labels: classes of the results.
            strength: share of noise that the part begins with; below 1, it resembles what was there.
            num_inference_steps, latents, guidance_scale, guidance_interval, guidance_channels, generator, output_type,
                return_dict, callback_on_step_end, guidance_model, guider: as in `SiTImg2ImgPipeline.__call__`.

        Raises:
            ValueError: as `SiTImg2ImgPipeline.__call__`, if the mask does not fit the images or is empty, or for an
                adaptive solver, which has no common time after a step.
        """
        if getattr(self.scheduler, "is_adaptive", False):
            raise ValueError(
                f"solver={self.scheduler.config.solver!r} chooses its own steps for each image, which cannot be kept "
                "in part; use a solver of fixed steps, such as 'midpoint'"
            )
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels, guidance_model, guider)
        options = (strength, guidance, num_inference_steps, generator, latents, output_type, callback_on_step_end)
        images = self._edit(image, images_from(mask_image, 1, "mask_image"), class_labels, *options)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def mask_from(mask_image: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return a mask (1 or B, 1, H, W) in [0, 1] as one of bool: True where it is at least 0.5.

    Raises:
        ValueError: unless it fits the images (B, channels, H, W), and holds something to draw.
    """
    mask = mask_image.cpu() >= 0.5
    if len(mask) not in (1, len(images)) or mask.shape[-2:] != images.shape[-2:]:
        raise ValueError(
            f"mask_image has shape {tuple(mask.shape)}, but images of shape {tuple(images.shape)} need one of height "
            f"{images.shape[-2]} and width {images.shape[-1]}, for all or for each of them"
        )
    if not mask.any():
        raise ValueError("mask_image is 0 everywhere, so nothing would be drawn; it must be 1 where the image is new")
    return mask
