"""Pipeline folders that load anywhere: the source of each class travels beside its weights, in a self-contained file.

`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` then works without this package, and with the
package installed `SiTPipeline.from_pretrained(folder)` uses the installed classes. diffusers finds the code by
`"_class_name": [module, class]` in model_index.json with `module.py` at the root, and `name: [module, class]` with
`name/module.py` for a component; a file that imports its siblings would not load from the Hub.

diffusers keeps modules of all local folders in one namespace, where a file replaces an earlier one of the same name.
So the name of each file ends with a hash of its content: code of two versions stays apart in one process.

This module is copied into the folder as well, so that a loaded pipeline can be saved again; functions that need the
package are not.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .formats import FILE_HASH, FORMAT_VERSION, PACKAGE, source_hash


def is_installed_class(cls: type) -> bool:
    """Whether a class comes from the installed package, and not from the code in a folder."""
    return cls.__module__.split(".")[0] == PACKAGE


def installed_function(module: str, name: str, purpose: str) -> Callable:
    """Return a function of the installed package, for code that may run without it.

    Args:
        module: the module within the package, such as "sharing.hub".
        name: the function.
        purpose: what it is needed for, to complete the sentence "install it to …".

    Raises:
        ImportError: if the package is not installed, or its version has no such function.
    """
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"sit-atconv is not installed, or its version lacks this function; install or update it to {purpose}"
        ) from error


def portable_source(cls: type) -> tuple[str, str]:
    """Return the file stem and the source of a self-contained module that defines `cls`.

    The stem ends with the hash of the source. The source of a class that itself came from a portable folder is passed
    on as it is.
    """
    module = cls.__module__
    if is_installed_class(cls):
        source = installed_function("sharing.bundle", "bundle_source", f"save a {cls.__name__}")(module)
    else:
        source = inspect.getsource(sys.modules[module])
    return f"{FILE_HASH.sub('', module.rpartition('.')[2])}_{source_hash(source)}", source


def make_portable(pipeline, folder: str | Path) -> None:
    """Make a folder that diffusers' `save_pretrained` wrote portable: add the sources and rewrite the index."""
    folder = Path(folder)
    index_file = folder / pipeline.config_name
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = _write_source(folder, type(pipeline))
    index["_format_version"] = FORMAT_VERSION
    index.pop("_name_or_path", None)  # a path on this machine
    for name, entry in list(index.items()):
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            continue
        component = getattr(pipeline, name)
        component = getattr(component, "_orig_mod", component)  # the model inside of torch.compile's wrapper
        if component is None or type(component).__module__.split(".")[0] in LOADABLE_CLASSES:
            continue
        index[name] = _write_source(folder / name, type(component))
        if name == "transformer":  # for diffusers' AutoModel, which looks here whatever the subfolder is
            index["auto_map"] = {"AutoModel": ".".join(index[name])}
    for config_file in folder.glob("*/config.json"):
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_source(folder: Path, cls: type) -> list[str]:
    """Write the source of `cls` into a folder in place of older ones; return the entry for the index."""
    stem, source = portable_source(cls)
    folder.mkdir(exist_ok=True)
    for older in folder.glob("*.py"):
        if FILE_HASH.sub("", older.stem) == FILE_HASH.sub("", stem):
            older.unlink()
    (folder / f"{stem}.py").write_text(source, encoding="utf-8")
    return [stem, cls.__name__]


def superseded_sources(staging: Path, folder: Path) -> list[Path]:
    """Return the code files in `folder` of which `staging` holds other versions."""
    return [
        older
        for file in staging.rglob("*.py")
        for older in (folder / file.relative_to(staging)).parent.glob("*.py")
        if FILE_HASH.sub("", older.stem) == FILE_HASH.sub("", file.stem) and older.name != file.name
    ]
