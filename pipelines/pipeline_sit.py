"""SiTPipeline: class-conditional image generation with SiT, in a VAE's latent space or directly in pixels.

B images, C latent channels, t in [0, 1] with t=0 noise, t=1 data.
"""

import inspect
import tempfile
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from sit_atconv.flow.guidance import Guidance, GuidedModel, evaluating
from sit_atconv.flow.interpolants import Interpolant
from sit_atconv.flow.solvers import after_step
from sit_atconv.models.vae import check_vae_weights, decode, encode, vae_scale_factor
from sit_atconv.models.weight_files import replacing_weights
from sit_atconv.sharing.portable import check_format, installed_function, is_installed_class, make_portable
from sit_atconv.utils.checks import check_choice, check_count

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DEFAULT_NETWORK_CALLS = 50  # docs/samplers.md: the midpoint method is within a fifth of a grey level by then


class SiTPipeline(DiffusionPipeline):
    """Generate images of given classes.

    Args:
        transformer: a `SiTTransformer2DModel`.
        scheduler: `InterpolantODEScheduler`, `InterpolantSDEScheduler`, or a flow-matching scheduler of diffusers.
        vae: `AutoencoderKL` or `AutoencoderTiny`; None for a model of pixels.
        id2label: class names by id; as keys, whole numbers or their text (JSON knows no others).
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
        # A class may have several names, as ImageNet's do: "goldfish, Carassius auratus". All of them are accepted.
        # A whole name goes before a part of another; a name of several classes names none.
        self.labels = {}
        for split in (lambda names: names.split(","), lambda names: [names]):
            owners = {}
            for i, names in id2label.items():
                for name in split(names):
                    owners.setdefault(name.strip(), set()).add(int(i))
            self.labels |= {name: min(ids) for name, ids in owners.items() if name and len(ids) == 1}
        self.vae_scale_factor = vae_scale_factor(vae)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self._interrupt = False

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        license: str | None = None,
        **hub_options,
    ) -> None:
        """Save weights, configs, the code that loads them, and a model card (README.md).

        The card and uploads need the package sit-atconv. Without it, which a pipeline that was loaded with
        `trust_remote_code=True` does not need otherwise, everything but the card is saved.

        Args:
            save_directory: the folder. A model card in it that somebody has edited is kept.
            safe_serialization: must be True, since no pickles are written.
            variant: such as "fp16", part of the file names and the `variant` of `from_pretrained`; the weights are
                saved in the type that they have.
            max_shard_size: maximum size of one file of weights, such as "5GB".
            push_to_hub: also upload the folder.
            license: license of the weights, for the card, such as "mit".
            **hub_options: repo_id, private, token, commit_message, create_pr; see `sit_atconv.sharing.hub.publish`.

        Raises:
            ValueError: if `safe_serialization=False`, or the upload fails.
            ImportError: if `push_to_hub` or `license` is given and sit-atconv is not installed.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles, which can run code; leave it out")
        if hub_options and not push_to_hub:
            raise TypeError(f"save_pretrained: {', '.join(hub_options)} go with push_to_hub=True")
        try:
            write_model_card = installed_function("sharing.card", "write_model_card", "write a model card or upload it")
        except ImportError:
            if push_to_hub or license is not None:
                raise
            write_model_card = None
        with replacing_weights(Path(save_directory) / "vae", variant):
            super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size)
        if write_model_card is not None:
            write_model_card(save_directory, license=license)
        if push_to_hub:
            installed_function("sharing.hub", "publish", "upload a pipeline")(save_directory, **hub_options)

    def push_to_hub(self, repo_id: str, **options) -> str:
        """Upload the pipeline and return the address of the upload. The options are those of `save_pretrained`."""
        publish = installed_function("sharing.hub", "publish", "upload a pipeline")
        names = ("safe_serialization", "variant", "max_shard_size", "license")
        saving = {name: options.pop(name) for name in names if name in options}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            return publish(folder, repo_id, **options)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json and, beside the weights, the code that loads them. `save_pretrained` calls this."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        make_portable(self, save_directory)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Read model_index.json; the installed package uses its own classes, not the folder's copies.

        Raises:
            ValueError: for a folder of a newer format.
        """
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        check_format(index)
        if is_installed_class(cls):
            use_classes = installed_function("sharing.installed", "use_installed_classes", "use its classes")
            use_classes(index, pretrained_model_name_or_path)
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str:
        """Download a pipeline from the Hub and return the folder that it is in.

        The installed class runs nothing of it; diffusers would run the repository's code to find out what to download.
        """
        if not is_installed_class(cls) or kwargs.get("custom_pipeline") is not None:
            return super().download(pretrained_model_name, **kwargs)
        download_pipeline = installed_function(
            "sharing.installed", "download_pipeline", "download without running code"
        )
        return download_pipeline(pretrained_model_name, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "SiTPipeline":
        """As diffusers' `from_pretrained`, but weights that are missing or left over are an error, not a warning, and
        pickles are not read. The installed classes are used: nothing in a folder, or a repository of the Hub, runs.

        Raises:
            ValueError: naming the weights.
        """
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir() and len(folder.parts) <= 2:
            folder = Path(cls.download(str(pretrained_model_name_or_path), **kwargs))
        pipeline = super().from_pretrained(folder, **kwargs)
        if pipeline.vae is not None and "vae" not in kwargs and "quantization_config" not in kwargs:
            check_vae_weights(pipeline.vae, folder / "vae")
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "SiTPipeline":
        """As diffusers' `from_pipe`: a pipeline of the same components, or others in their place.

        Without `torch_dtype` it casts them to float32, as diffusers does.
        """
        # Named one by one: of its own accord diffusers takes models of exactly the annotated class alone.
        expected, _ = cls._get_signature_keys(cls)
        shared = {name: part for name, part in pipeline.components.items() if name in expected}
        return super().from_pipe(pipeline, **{**shared, **kwargs})

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop after the current step."""
        return self._interrupt

    def get_label_ids(self, labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """Turn class ids or names, one or many, into ids.

        Raises:
            ValueError: for an unknown name, an id outside 0…num_classes − 1, or anything else.
        """
        if isinstance(labels, (torch.Tensor, np.ndarray)):
            labels = labels.tolist()
        if not isinstance(labels, (list, tuple, range)):
            labels = [labels]
        num_classes = self.transformer.config.num_classes
        ids = []
        for label in labels:
            if isinstance(label, str):
                if label not in self.labels:
                    known = ", ".join(list(self.labels)[:20]) or "none: this model has ids only"
                    raise ValueError(f"class_labels: unknown name {label!r}; known names: {known}")
                label = self.labels[label]
            if isinstance(label, bool) or not isinstance(label, Integral):
                raise ValueError(f"class_labels: {label!r} is neither a whole number nor a name")
            if not 0 <= label < num_classes:
                raise ValueError(f"class_labels: {label} must lie in 0…{num_classes - 1}")
            ids.append(int(label))
        if not ids:
            raise ValueError("class_labels is empty; name at least one class")
        return ids

    def get_labels_or_count(
        self, class_labels: int | str | list[int | str] | torch.Tensor | None, batch_size: int | None
    ) -> list[int]:
        """The ids of `class_labels`; for a model without classes, `batch_size` times its only one.

        Raises:
            ValueError: as `get_label_ids`; where both or, for a model with several classes, no labels are given.
        """
        if class_labels is not None:
            if batch_size is not None:
                raise ValueError(f"batch_size={batch_size}: class_labels says how many images there are; leave one out")
            return self.get_label_ids(class_labels)
        if (num_classes := self.transformer.config.num_classes) > 1:
            raise ValueError(f"class_labels: None, but this model knows {num_classes} classes; give an id or a name")
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
        """Raise one ValueError that names the argument, its value and the remedy."""
        config = self.transformer.config
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_count("num_inference_steps", num_inference_steps)
        guidance.check(self.transformer)
        multiple = self.vae_scale_factor * config.patch_size
        for field, size in (("height", height), ("width", width)):
            check_count(field, size)
            if size % multiple:
                raise ValueError(
                    f"{field}={size} must be divisible by {multiple} "
                    f"(VAE factor {self.vae_scale_factor} × patch size {config.patch_size})"
                )
        generators = generator if isinstance(generator, list) else [generator]
        if not all(g is None or isinstance(g, torch.Generator) for g in generators):
            raise ValueError(f"generator={generator!r} must be a torch.Generator, or a list of one per image")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"generator lists {len(generator)} generators for {batch_size} images; give one per image")
        expected = self.latents_shape(batch_size, height, width)
        if latents is not None and tuple(latents.shape) != expected:
            raise ValueError(f"latents has shape {tuple(latents.shape)}, but {expected} is needed")

    @property
    def default_num_inference_steps(self) -> int:
        """As many solver steps as make about 50 network calls: 25 of the midpoint method, 50 of Euler's."""
        return DEFAULT_NETWORK_CALLS // self.scheduler.order

    def latents_shape(self, batch_size: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(B, C, h, w) of the latents of images of `height` × `width` pixels."""
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
    ) -> ImagePipelineOutput | tuple:
        """Generate one image per label.

        Args:
            class_labels: class ids or names. A model that was trained without classes needs none.
            guidance_scale: strength of classifier-free guidance; 1 is none and costs nothing.
            guidance_interval: guide while start ≤ t ≤ end only, t=0 noise, t=1 data.
            guidance_channels: guide the first so many channels; None means all. 3 of 4 reproduces published figures.
            num_inference_steps: solver steps; adaptive solvers ignore it. `default_num_inference_steps` where None.
            height, width: of the image in pixels; the training size where None.
            generator: of the noise. A list of one per image makes each image depend on its own generator and label
                alone, whatever else is in the batch.
            latents: the noise itself, (B, C, h, w), in place of drawing it.
            output_type: "pil", "np" (B, height, width, channels) in [0, 1], "pt" (B, channels, height, width) in
                [0, 1], or "latent": the solver's result, float32.
            return_dict: return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: called as (pipeline, step, t, {"latents": latents}) after each step; may return a
                dictionary with new "latents".
            guidance_model: a weaker model to lead away from (autoguidance), in place of the null class.
            batch_size: images to make with a model without classes; 1 where None.

        Returns:
            `.images`.

        Raises:
            ValueError: naming the argument that cannot be used.
        """
        labels = self.get_labels_or_count(class_labels, batch_size)
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels, guidance_model)
        if num_inference_steps is None:
            num_inference_steps = self.default_num_inference_steps
        default_size = self.transformer.config.sample_size * self.vae_scale_factor
        height = default_size if height is None else height
        width = default_size if width is None else width
        self.check_inputs(len(labels), guidance, num_inference_steps, height, width, generator, latents, output_type)
        device = self._execution_device
        self._interrupt = False
        if latents is None:
            # float32 whatever the weights are: it is the solver's state
            shape = self.latents_shape(len(labels), height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)

        model_fn = GuidedModel(self.transformer, torch.tensor(labels, device=device), guidance)
        solve = self.scheduler.solve if hasattr(self.scheduler, "solve") else self._solve_with_flow_scheduler
        adaptive = getattr(self.scheduler, "is_adaptive", False)  # then the bar counts time, not steps
        total = 1 if adaptive else num_inference_steps
        with evaluating(self.transformer, guidance_model), self.progress_bar(total=total) as progress:

            def callback(step, t, x):
                progress.set_postfix_str(f"t={t:.3f}", refresh=False)
                progress.update(t - progress.n if adaptive else 1)
                changed = {}
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, step, t, {"latents": x}) or {}
                if self._interrupt:
                    raise StopIteration
                replaced = changed.get("latents")
                return None if replaced is None else replaced.to(x)

            if hasattr(self.scheduler, "network_times"):
                model_fn.prepare(self.scheduler.network_times(num_inference_steps))
            latents = solve(model_fn, latents, num_inference_steps, generator=generator, callback=callback)

        images = self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def invert(
        self,
        images: torch.Tensor,
        class_labels: int | str | list[int | str] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        guidance_model: ModelMixin | None = None,
    ) -> torch.Tensor:
        """Find the noise from which the ODE makes these images, by solving it from data to noise.

        A VAE encodes them as the mean of its posterior.

        Args:
            images: (B, channels, height, width) in [0, 1], as output_type="pt" gives them.
            class_labels: the classes of the images; none for a model without classes.
            num_inference_steps: as in sampling. The finer the steps, the closer the round trip: take an adaptive
                solver for an exact one.
            guidance_scale, guidance_interval, guidance_channels, guidance_model: as the images were made.

        Returns:
            latents (B, C, h, w) float32, to hand to `__call__`.

        Raises:
            ValueError: for a scheduler that is no ODE of ours, or an argument that cannot be used.
        """
        if "reverse" not in inspect.signature(getattr(self.scheduler, "solve", len)).parameters:
            raise ValueError(
                f"scheduler {type(self.scheduler).__name__} cannot be inverted; use InterpolantODEScheduler"
            )
        labels = self.get_labels_or_count(class_labels, len(images) if class_labels is None else None)
        if num_inference_steps is None:
            num_inference_steps = self.default_num_inference_steps
        if len(labels) != len(images):
            raise ValueError(f"class_labels names {len(labels)} classes for {len(images)} images")
        guidance = Guidance(guidance_scale, guidance_interval, guidance_channels, guidance_model)
        height, width = images.shape[-2:]
        self.check_inputs(len(labels), guidance, num_inference_steps, height, width)
        device = self._execution_device
        latents = images.to(device, torch.float32) * 2 - 1
        if self.vae is not None:
            latents = encode(self.vae, latents)
        model_fn = GuidedModel(self.transformer, torch.tensor(labels, device=device), guidance)
        with evaluating(self.transformer, guidance_model):
            model_fn.prepare(self.scheduler.network_times(num_inference_steps))
            latents = self.scheduler.solve(model_fn, latents, num_inference_steps, reverse=True)
        self.maybe_free_model_hooks()
        return latents

    def _decode(self, latents: torch.Tensor, output_type: str):
        if output_type == "latent":
            return latents
        images = latents if self.vae is None else decode(self.vae, latents)
        return self.image_processor.postprocess(images, output_type=output_type)

    def _solve_with_flow_scheduler(self, model_fn, latents, num_inference_steps, generator=None, callback=None):
        """Sample with a flow-matching scheduler of diffusers: its sigma is 1 − t, its velocity is noise − data."""
        scheduler = self.scheduler
        # `from_config` of our scheduler's config hands these on
        config = scheduler.config
        interpolant = Interpolant(config.get("path", "linear"), config.get("prediction", "velocity"))
        name = type(scheduler).__name__
        flow = name.startswith("FlowMatch") or (
            config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
        )
        if not flow:
            raise ValueError(
                f"scheduler {name} is not set up for flow matching; use "
                f"{name}.from_config(config, use_flow_sigmas=True, prediction_type='flow_prediction')"
            )
        if config.get("stochastic_sampling"):
            raise ValueError(f"{name}: stochastic_sampling draws without a generator; use InterpolantSDEScheduler")
        if interpolant.path != "linear":
            raise ValueError(f"path={interpolant.path!r}: diffusers' flow schedulers know the linear path alone")
        interval = interpolant.time_interval(interpolant.default_eps(training=False))
        options = {}
        if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            options["sigmas"] = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(num_inference_steps, device=latents.device, **options)
        step_options = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            step_options["generator"] = generator
        times = 1 - scheduler.sigmas.to("cpu", torch.float32)  # their timesteps may be rounded to whole numbers
        network_times = times[: len(scheduler.timesteps)].clamp(*interval)
        model_fn.prepare(network_times.tolist())
        for i, (t, timestep) in enumerate(zip(network_times, scheduler.timesteps, strict=True)):
            velocity = interpolant.to_velocity(model_fn(latents, t), latents, t)
            latents = scheduler.step(-velocity, timestep, latents, return_dict=False, **step_options)[0]
            t_next = times[min(i + 1, len(times) - 1)].item()
            latents, stopped = after_step(callback, i, t_next, latents)
            if stopped:
                return latents
        return latents
