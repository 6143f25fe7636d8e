"""The signature and the docstring of a function that is not imported, since its module takes seconds to import."""

import ast
import importlib.util
from collections.abc import Callable, Collection
from pathlib import Path


def function_outline(module: str, name: str, skip: Collection[str] = ()) -> Callable[..., None]:
    """Return a function that does nothing, with the options of one that is defined at the top level of a module.

    It serves a parser of the command line: it has the same parameters, annotations, defaults and docstring. Nothing
    of the module runs, so annotations consist of built-in types, and defaults are literals, or names of the module's
    constants that are.

    Args:
        module: full name of the module.
        name: name of the function.
        skip: parameters that are left out, which may have any annotation.
    """
    spec = importlib.util.find_spec(module)  # imports the package around the module, not the module
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    [function] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    function.body = function.body[:1]  # the docstring
    function.returns = None
    arguments = function.args
    kept = [argument for argument in arguments.args if argument.arg not in skip]
    count = len(arguments.defaults)
    defaults = dict(zip([argument.arg for argument in arguments.args[-count:]], arguments.defaults, strict=True))
    arguments.args = kept
    arguments.defaults = [defaults[argument.arg] for argument in kept if argument.arg in defaults]
    named = {value.id for value in defaults.values() if isinstance(value, ast.Name)}
    constants = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and named & {each.id for each in node.targets if isinstance(each, ast.Name)}
    ]
    namespace: dict = {"__name__": __name__}
    outline = ast.fix_missing_locations(ast.Module([*constants, function], type_ignores=[]))
    exec(compile(outline, spec.origin, "exec"), namespace)
    return namespace[name]
