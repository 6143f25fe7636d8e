"""A pipeline that is saved as a portable folder, and loaded from one without running its code."""

import tempfile
from pathlib import Path

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sit_atconv.models.safetensors_only import require_safetensors
from sit_atconv.models.vae import check_stored_models, check_vae_weights
from sit_atconv.sharing.formats import check_format
from sit_atconv.sharing.portable import installed_function, is_installed_class, make_portable
from sit_atconv.sharing.saving import locate_folder, updating_pipeline_folder, verifying_components


class FolderPipeline(DiffusionPipeline):
    """How a pipeline is saved, loaded, uploaded and turned into another one; its `vae` may be None."""

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

        The card and uploads need the package sit-atconv. If it is not installed (pipelines loaded with
        `trust_remote_code=True` do not need it), everything but the card is saved.

        Args:
            save_directory: the folder. After an error it is as it was; an edited model card in it is kept.
            safe_serialization: must be True, since no pickles are written.
            variant: such as "fp16", part of the file names and the `variant` of `from_pretrained`; the weights are
                saved in the type that they have.
            max_shard_size: maximum size of one file of weights, such as "5GB".
            push_to_hub: also upload the folder.
            license: license of the weights, for the card, such as "mit".
            **hub_options: repo_id, private, token, commit_message, create_pr; see `sit_atconv.sharing.hub.publish`.

        Raises:
            ValueError: if `safe_serialization=False`, the pipeline could not be loaded again, or the upload fails.
            ImportError: if `push_to_hub` or `license` is given and sit-atconv is not installed.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles, which can run code; leave it out")
        if hub_options and not push_to_hub:
            raise TypeError(f"save_pretrained: {', '.join(hub_options)} need push_to_hub=True")
        try:
            write_model_card = installed_function("sharing.card", "write_model_card", "write a model card or upload it")
        except ImportError:
            if push_to_hub or license is not None:
                raise
            write_model_card = None
        with updating_pipeline_folder(self, save_directory, variant) as staging:
            super().save_pretrained(staging, variant=variant, max_shard_size=max_shard_size)
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
        """Write model_index.json and the code that loads the weights; called by `save_pretrained`."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        make_portable(self, save_directory)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Read model_index.json. The installed package uses its own classes, not the copies in the folder.

        Raises:
            ValueError: if the folder has a newer format than this package knows.
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
        download_pipeline = installed_function("sharing.installed", "download_pipeline", "download a pipeline")
        return download_pipeline(pretrained_model_name, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, verify_weights: bool = True, **kwargs
    ) -> "FolderPipeline":
        """Load a pipeline as diffusers does, but with the installed classes, executing no code of the folder.

        Only safetensors are read. `verify_weights` compares them with the SHA-256 that was stored with them, if any.

        Raises:
            ValueError: if weights are missing, unexpected or damaged, or there is no such folder.
        """
        require_safetensors(kwargs)
        folder = locate_folder(pretrained_model_name_or_path, cls.download, kwargs)
        check_stored_models(folder, kwargs)
        with verifying_components(folder, verify_weights, kwargs):
            pipeline = super().from_pretrained(folder, **kwargs)
        if pipeline.vae is not None and "vae" not in kwargs and "quantization_config" not in kwargs:
            check_vae_weights(pipeline.vae, folder / "vae")
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "FolderPipeline":
        """Make a pipeline that shares the components of another one, except for those given in `kwargs`.

        As in diffusers, the components are cast to float32 unless `torch_dtype` is given.
        """
        # Passed by name, because diffusers itself takes over only models of exactly the annotated class.
        expected, _ = cls._get_signature_keys(cls)
        shared = {name: part for name, part in pipeline.components.items() if name in expected}
        return super().from_pipe(pipeline, **{**shared, **kwargs})
