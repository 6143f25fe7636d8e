"""Weights are read from safetensors alone: what diffusers would read besides is refused before it loads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from .weight_files import STEM, weight_patterns

MAX_INDEX_BYTES = 2**26  # 64 MiB; the index of a model lists some hundred bytes for each weight


def require_safetensors(options: dict[str, Any]) -> None:
    """Set diffusers' option `use_safetensors` among the options of `from_pretrained`.

    Raises:
        ValueError: if it is set to False, which would read pickles.
    """
    if options.get("use_safetensors") not in (None, True):
        raise ValueError(
            f"use_safetensors={options['use_safetensors']!r} would read pickles, which can run code; leave it out. If "
            "you trust a .bin file, load it with the class of diffusers and save_pretrained it once"
        )
    options["use_safetensors"] = True


def check_weight_indices(name_or_path: str | Path, **location: Any) -> None:
    """Raise ValueError if the index of a model's shards names anything but safetensors files beside it.

    diffusers reads each file that the index names by its ending, be it the pickle of a .bin file.

    Args:
        name_or_path: the model's folder, or its name on the Hub.
        **location: subfolder, variant, and the options of `hf_hub_download`.
    """
    subfolder, variant = location.pop("subfolder", None) or "", location.pop("variant", None)
    folder = Path(name_or_path) / subfolder
    if Path(name_or_path).is_dir():
        # Files alone: opening a pipe would wait for its writer.
        indices = sorted(file for file in folder.glob("*.index*.json") if file.is_file())
    else:
        indices = list(_downloaded_indices(str(name_or_path), subfolder, variant, location))
    for index in indices:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"{index} has more than {MAX_INDEX_BYTES} bytes, which no index of weights has")
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            files = {*content["weight_map"].values()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{index} is damaged: it is no index of weights ({error!r})") from error
        for file in sorted(files, key=str):
            if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
                raise ValueError(
                    f"{index} names the file {file!r}; weights are read from safetensors files beside the index only. "
                    "If you trust it, load it with the class of diffusers and save it anew"
                )


def _downloaded_indices(name: str, subfolder: str, variant: str | None, options: dict[str, Any]) -> Iterator[Path]:
    """The indices of a model on the Hub, those that there are."""
    names = [weight_patterns(variant)[2], f"{STEM}.{variant}.safetensors.index.json", f"{STEM}.safetensors.index.json"]
    for file in dict.fromkeys(names):
        try:
            yield Path(hf_hub_download(name, file, subfolder=subfolder or None, **options))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            continue
