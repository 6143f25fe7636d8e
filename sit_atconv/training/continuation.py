"""Whether a run continues the one in its folder, by their options. Nothing imported here takes long."""

import dataclasses
from pathlib import Path

from .checkpoints import checkpoint_steps
from .config import CommonConfig
from .stored_config import CONFIG, load_options

# Options that may differ when a run is continued; a change of any other one would make it another run. Data and VAE may
# have moved: their content is compared with that of the checkpoint (`describe_data`).
CHANGEABLE_ON_RESUME = {
    "data",
    "validation",
    "vae",
    "resume",
    "dry_run",
    "output_dir",
    "max_steps",
    "num_workers",
    "max_broken_images",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "compile",
    "max_skipped_steps",
    "log_with",
    "log_every",
    "sample_every",
    "early_samples",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "sample_guidance_scale",
    "sample_steps",
    "push_to_hub",
}


def continues_run(config: CommonConfig) -> bool:
    """Whether there is a run to continue in the output folder, rather than nothing.

    Raises:
        ValueError: if the folder holds something else, if there is nothing to resume, or if the configurations differ.
    """
    folder, resume = config.run_folder, config.resume
    is_used = folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())
    if not is_used:
        if resume == "latest":
            raise ValueError(f"resume=latest: {folder} holds no checkpoint; leave --resume out to start a run")
        return False
    changed = _changes(config, folder)
    differences = f" ({'; '.join(changed)})" if changed else ""
    if not checkpoint_steps(folder / "checkpoints"):
        if resume == "auto" and not changed:
            return False
        remedy = "" if changed else "start that run over with --resume auto, or "
        raise ValueError(
            f"output_dir={str(folder)!r} holds another run{differences}, which has no checkpoint; {remedy}choose "
            "another --output_dir"
        )
    if resume is None:
        remedy = "" if changed else ", or continue that run with --resume latest"
        raise ValueError(
            f"output_dir={str(folder)!r} holds another run{differences}; choose another --output_dir{remedy}"
        )
    if changed:
        raise ValueError(
            f"resume={resume}: this is another run than the one in {folder}{differences}; continue with the options of "
            "that run, or choose another --output_dir"
        )
    return True


def _changes(config: CommonConfig, folder: Path) -> list[str]:
    """The options in which this run differs from the one in `folder`, for messages.

    A precision of None, that of accelerate's configuration, is not known before accelerate has been started.
    """
    try:
        # options that did not exist yet when the run was started had their defaults in it
        saved = dataclasses.asdict(type(config)()) | load_options(folder, type(config))
    except FileNotFoundError:
        return [f"{folder} holds no {CONFIG}"]
    except ValueError as error:
        return [str(error)]
    unknown = {"mixed_precision"} if config.mixed_precision is None else set()
    return [
        f"{name}: {saved[name]!r} -> {value!r}"
        for name, value in dataclasses.asdict(config).items()
        if name not in CHANGEABLE_ON_RESUME | unknown and saved[name] != value
    ]
