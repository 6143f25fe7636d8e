"""The options of a function that is not imported, since its module takes seconds to import, and its first checks."""

import ast
import builtins
import importlib.util
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

# What an outline takes from other modules of this package: checks, constants, and classes of options.
LIGHT_NAME = re.compile(r"check_\w+|[A-Z][A-Z0-9_]*|\w+Options")
EFFECTS = {"eval", "exec", "input", "open", "print", "super"}  # built-in functions that are no part of a check


def function_outline(module: str, name: str, skip: Collection[str] = ()) -> Callable[..., None]:
    """Return a function with the options of one that is defined at the top level of a module, and its first checks.

    It serves a parser of the command line: it has the same parameters, annotations, defaults and docstring. A call
    checks values: it runs the beginning of the function's body, up to the first statement that returns, or needs more
    than parameters, built-in functions, literal constants of the module, and names that the module imports from this
    package and that `LIGHT_NAME` matches. Their modules must be quick to import. Nothing else of the module runs, so
    annotations consist of built-in types, and defaults are literals, or names of the module's constants that are.

    Args:
        module: full name of the module.
        name: name of the function; CLASS.METHOD for a method.
        skip: parameters that are left out, which may have any annotation.
    """
    spec = importlib.util.find_spec(module)  # imports the package around the module, not the module
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    function = _definition(tree, name)
    function.returns, function.decorator_list = None, []
    arguments = function.args
    kept = [argument for argument in arguments.args if argument.arg not in skip]
    count = len(arguments.defaults)
    names = [argument.arg for argument in arguments.args]
    defaults = dict(zip(names[len(names) - count :], arguments.defaults, strict=True))
    arguments.args = kept
    arguments.defaults = [defaults[argument.arg] for argument in kept if argument.arg in defaults]
    constants = _literal_constants(tree)
    function.body = [*_first_checks(function, tree, constants)] or [ast.Pass()]
    outline = ast.fix_missing_locations(ast.Module([*constants.values(), function], type_ignores=[]))
    namespace: dict = {"__name__": __name__, "__package__": spec.parent}
    exec(compile(outline, spec.origin, "exec"), namespace)
    return namespace[function.name]


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The definition of a function, or of CLASS.METHOD."""
    owner, _, method = name.rpartition(".")
    body = tree.body
    if owner:
        [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    [function] = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == method]
    return function


def _literal_constants(tree: ast.Module) -> dict[str, ast.Assign]:
    """The assignments of a module to one name each whose values are literals, or made of such constants."""
    constants: dict[str, ast.Assign] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            calls = any(isinstance(each, ast.Call) for each in ast.walk(node.value))
            if not calls and {each.id for each in _names(node.value, ast.Load)} <= constants.keys():
                constants[node.targets[0].id] = node
    return constants


def _first_checks(function: ast.FunctionDef, tree: ast.Module, constants: Collection[str]) -> Iterator[ast.stmt]:
    """The docstring, and the statements after it that need nothing slow, with the imports that they need."""
    imports = {
        alias.name: ast.ImportFrom(node.module, [alias], node.level)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
        if LIGHT_NAME.fullmatch(alias.name)
    }
    known = {*(set(dir(builtins)) - EFFECTS), *constants, *imports, *(argument.arg for argument in function.args.args)}
    for statement in function.body:
        known |= {each.id for each in _names(statement, ast.Store)}
        used = {each.id for each in _names(statement, ast.Load)}
        if not used <= known or any(isinstance(each, ast.Return) for each in ast.walk(statement)):
            return
        yield from (imports[each] for each in sorted(used & imports.keys()))
        yield statement


def _names(node: ast.AST, context: type[ast.expr_context]) -> Iterator[ast.Name]:
    """The names in a part of the source that are read (`ast.Load`) or set (`ast.Store`)."""
    return (each for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, context))
