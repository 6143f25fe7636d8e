"""The folder of a duel: which duel it holds, and whether it may be continued with these options."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..utils.bounded_text import read_yaml
from ..utils.files import check_new_folder, write_atomically
from ..utils.home import expand_home
from ..utils.text import joined_lines
from .duel_options import Duel
from .metric_options import MetricOptions
from .sampling_options import SamplingOptions

SETTINGS = "duel.yaml"  # the options of the duel, in its folder
# Where and how a duel runs is not part of what it is: its folder may be moved, or named in another way.
NOT_DESCRIBED = ("output", "launch", "device")
# Options that may change when a duel is started again; models may only be added.
EXTENDABLE = {"models", "seeds", "latency_repeats", "inference_steps", "validation"}
SCORING = {"sampling": SamplingOptions, "metrics": MetricOptions}
# Options of scores that do not change them.
WITHOUT_EFFECT = {"trust_torchscript", "num_workers", "max_broken_images"}


def describe(duel: Duel) -> dict:
    """The options that define the duel, for its file."""
    return {key: value for key, value in dataclasses.asdict(duel).items() if key not in NOT_DESCRIBED}


def write_settings(duel: Duel) -> None:
    """Create the folder of the duel, and write the options to it."""
    output = Path(duel.output)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / SETTINGS, yaml.safe_dump(describe(duel), sort_keys=False, allow_unicode=True))


def check_output(duel: Duel) -> None:
    """Check that the folder is new, holds this duel, or one of which nothing was trained yet.

    Raises:
        ValueError: if the folder of the duel holds another duel, or other files.
    """
    file = Path(duel.output) / SETTINGS
    if not file.is_file():
        check_new_folder("output", duel.output)
        return
    trained = trained_models(duel.output)
    if not trained:
        return  # an earlier start ended at a mistake in its options, which was mended
    try:
        found = read_yaml(file)
        differing = sorted(set(differences(found, describe(duel), trained)))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"output={duel.output!r}: {file} is damaged ({joined_lines(error)}); restore it, or name a new folder"
        ) from None
    if differing:
        raise ValueError(
            f"output={duel.output!r} holds another duel ({', '.join(differing)} differ); name a new folder"
        )


def trained_models(output: str | Path) -> set[str]:
    """The models of which a run was started in a duel's folder, with any seed."""
    configs = Path(output).glob("*-seed*/config.yaml")
    return {file.parent.name.rpartition("-seed")[0] for file in configs}


def differences(found: dict, described: dict, trained: set[str]) -> Iterator[str]:
    """The names of the options in which two descriptions of duels differ, however they are spelled.

    Options of training count for models that were started only.
    """
    for key in described.keys() - EXTENDABLE - SCORING.keys() - {"train"}:
        if canonical(found.get(key)) != canonical(described[key]):
            yield key
    for key, options in SCORING.items():
        if effective(found.get(key), options) != effective(described[key], options):
            yield key
    for name in trained & found["models"].keys() & described["models"].keys():
        old, new = ({**each["train"], **each["models"][name]} for each in (found, described))
        if canonical(old) != canonical(new):
            yield "train" if found["models"][name] == described["models"][name] else f"models.{name}"


def scored_alike(found: Any, requested: dict) -> bool:
    """Whether two records of how scores were made, as reports of a duel hold them, mean the same."""
    try:
        same_options = all(
            effective(found[key], options) == effective(requested[key], options) for key, options in SCORING.items()
        )
        return same_options and canonical(found["reference"]) == canonical(requested["reference"])
    except (TypeError, KeyError):  # a record of another form
        return False


def effective(options: Any, kind: type) -> dict:
    """Options with their defaults filled in: an option that is left out is the one that names its default."""
    values = dataclasses.asdict(kind(**(options or {})))
    if kind is SamplingOptions and values["dtype"] == "auto":
        values["dtype"] = "float32"  # as Duel.sampling_dtype has it
    return canonical({name: value for name, value in values.items() if name not in WITHOUT_EFFECT})


def canonical(value: Any) -> Any:
    """A value of an option in one spelling: numbers and lists as JSON has them, paths that exist as real paths."""
    value = json.loads(json.dumps(expand_home(value)))
    if isinstance(value, str):
        return os.path.realpath(value) if os.path.exists(value) else value
    if isinstance(value, dict):
        return {name: canonical(inner) for name, inner in value.items()}
    return [canonical(inner) for inner in value] if isinstance(value, list) else value
