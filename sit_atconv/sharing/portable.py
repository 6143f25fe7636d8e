"""Pipeline folders that load anywhere: each class's source travels beside its weights, as one self-contained file.

`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` then needs nothing of this package, and with the
package installed `SiTPipeline.from_pretrained(folder)` uses the installed classes. diffusers finds the code by
`"_class_name": [module, class]` in model_index.json with `module.py` at the root, and `name: [module, class]` with
`name/module.py` for a component; a file that imports its siblings would not load from the Hub.

diffusers keeps the modules of all local folders in one namespace and runs a file of the same name over the one before.
So the name of each file ends with a hash of its content: code of two versions stays apart in one process.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import warnings
from pathlib import Path

from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

PACKAGE = "sit_atconv"
# Of the folder: raised when older code could not read what is written. 0: no version, and file names without a hash.
FORMAT_VERSION = 1
FILE_HASH = re.compile(r"_([0-9a-f]{8})$")
# Modules whose classes are found in portable folders, by the name of the file there.
PORTABLE_MODULES = {
    "pipeline_sit": "sit_atconv.pipelines.pipeline_sit",
    "transformer_sit": "sit_atconv.models.transformer_sit",
    "scheduling_interpolant_ode": "sit_atconv.schedulers.scheduling_interpolant_ode",
    "scheduling_interpolant_sde": "sit_atconv.schedulers.scheduling_interpolant_sde",
}


def bundle_source(module_name: str) -> str:
    """The source of a module with everything that it imports from this package put in its place, once.

    The modules share one namespace in the result, so no two may define the same name.

    Raises:
        ValueError: where two modules define one name, or a package import is of a form that cannot be inlined.
    """
    bodies: list[str] = []
    imports: list[str] = []
    owners: dict[str, str] = {}
    _bundle(module_name, bodies, imports, owners, set())
    docstring = ast.get_docstring(ast.parse(_source(module_name)))
    header = f'"""{docstring}\n\nMade from {PACKAGE}: {module_name} and what it imports, in one file.\n"""'
    return "\n".join([header, "", *sorted(set(imports)), "", "", "\n\n\n".join(bodies), ""])


def _source(module_name: str) -> str:
    return Path(inspect.getfile(importlib.import_module(module_name))).read_text(encoding="utf-8")


def _bundle(module_name: str, bodies: list[str], imports: list[str], owners: dict[str, str], seen: set[str]) -> None:
    """Append the module's imports and body, those of the modules that it needs first."""
    if module_name in seen:
        return
    seen.add(module_name)
    source = _source(module_name)
    lines = source.splitlines()
    package = module_name.rpartition(".")[0]
    body_start = 0
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            body_start = node.end_lineno
            own = isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == PACKAGE)
            if not own:
                imports.append(ast.unparse(node))
                for alias in node.names:
                    origin = f"{getattr(node, 'module', None) or 'import'}:{alias.name if alias.asname else ''}"
                    _claim((alias.asname or alias.name).split(".")[0], origin, owners)
                continue
            target = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if any(alias.asname or alias.name == "*" for alias in node.names) or target == PACKAGE:
                raise ValueError(f"{module_name}: cannot inline {ast.unparse(node)!r}; import plain names")
            _bundle(target, bodies, imports, owners, seen)
        else:
            for name in _defined_names(node):
                _claim(name, module_name, owners)
    bodies.append("\n".join(lines[body_start:]).strip())


def _claim(name: str, origin: str, owners: dict[str, str]) -> None:
    if owners.setdefault(name, origin) != origin:
        raise ValueError(f"{name} comes from {owners[name]} and from {origin}; rename one")


def _defined_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.If):  # definitions that hang on an optional package
        return [name for inner in (*node.body, *node.orelse) for name in _defined_names(inner)]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name)]


def _is_ours(module_name: str) -> bool:
    return module_name.split(".")[0] == PACKAGE


def portable_source(cls: type) -> tuple[str, str]:
    """(file stem, source) of the self-contained module that defines `cls`; the stem ends with the source's hash.

    A class that itself came from a portable folder is passed on as it is.
    """
    module = cls.__module__
    source = bundle_source(module) if _is_ours(module) else inspect.getsource(sys.modules[module])
    stem = FILE_HASH.sub("", module.rpartition(".")[2])
    return f"{stem}_{source_hash(source)}", source


def source_hash(source: str) -> str:
    """The hash that a file of this source bears in its name."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def make_portable(pipeline, folder: str | Path) -> None:
    """Turn a folder that diffusers' `save_pretrained` wrote into a portable one: add sources, rewrite the index."""
    folder = Path(folder)
    index_file = folder / pipeline.config_name
    index = json.loads(index_file.read_text(encoding="utf-8"))
    index["_class_name"] = _write_source(folder, type(pipeline))
    index["_format_version"] = FORMAT_VERSION
    index.pop("_name_or_path", None)  # where it was loaded from: this machine's business
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            continue
        component = getattr(pipeline, name)
        component = getattr(component, "_orig_mod", component)  # inside of torch.compile's wrapper
        if component is None or type(component).__module__.split(".")[0] in LOADABLE_CLASSES:
            continue
        index[name] = _write_source(folder / name, type(component))
    for config_file in folder.glob("*/config.json"):
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_source(folder: Path, cls: type) -> list[str]:
    """Write the source of `cls` into a folder, in place of older ones; return the entry for the index."""
    stem, source = portable_source(cls)
    folder.mkdir(exist_ok=True)
    for older in folder.glob("*.py"):
        if FILE_HASH.sub("", older.stem) == FILE_HASH.sub("", stem):
            older.unlink()
    (folder / f"{stem}.py").write_text(source, encoding="utf-8")
    return [stem, cls.__name__]


def check_format(index: dict) -> None:
    """Raise ValueError for the index of a folder that newer code wrote."""
    version = index.get("_format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"this folder has the format {version}, and only formats up to {FORMAT_VERSION} are known here; update "
            "sit-atconv, or load it with DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)"
        )


def edited_sources(folder: str | Path) -> list[str]:
    """The code files of a portable folder that are no longer what was saved."""
    edited = []
    for file in sorted(Path(folder).glob("**/*.py")):
        if (saved := FILE_HASH.search(file.stem)) and saved[1] != source_hash(file.read_text(encoding="utf-8")):
            edited.append(str(file.relative_to(folder)))
    return edited


def use_installed_classes(index: dict, folder: str | Path) -> None:
    """Point the entries of a portable model_index at the installed classes, in place.

    Warns where code in the folder was edited, since the edit then has no effect.
    """
    if edited := edited_sources(folder):
        warnings.warn(
            f"{', '.join(edited)} in {folder} was edited after saving; the installed classes are used, not this code. "
            "To run it: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)",
            stacklevel=2,
        )
    index["_class_name"] = "SiTPipeline"
    for name, entry in index.items():
        if not isinstance(entry, (list, tuple)) or len(entry) != 2 or not isinstance(entry[0], str):
            continue
        if (stem := FILE_HASH.sub("", entry[0])) in PORTABLE_MODULES:
            importlib.import_module(PORTABLE_MODULES[stem])  # diffusers looks only among imported modules
            index[name] = [PORTABLE_MODULES[stem], entry[1]]
