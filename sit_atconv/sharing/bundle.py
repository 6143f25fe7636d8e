"""Make a self-contained copy of a module by inlining what it imports from this package.

The code in a pipeline folder can import neither this package, which may not be installed, nor its sibling files, which
do not load from the Hub. So the modules that it imports from are merged into one file, dependencies first. Only the
statements that are needed are included: definitions that are used, directly or by other definitions, and statements
that do more than define names, such as calls, or functions that a function of this package decorates.

The statements of a module keep their order and the comments above them. Imports of other packages move to the top.
"""

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterable, Iterator
from importlib.abc import InspectLoader

from .formats import PACKAGE


@dataclasses.dataclass
class Statement:
    """A statement at the top level of a module."""

    node: ast.stmt
    text: str  # with the blank lines and comments above it
    defined: set[str]  # the names that it binds
    used: set[str]  # the names that it reads


@dataclasses.dataclass(frozen=True)
class OuterImport:
    """One name that is imported from another package."""

    module: str | None  # None: the statement is `import name`
    name: str
    alias: str | None
    for_its_effect: bool  # the module that imports the name does not use it

    @property
    def bound(self) -> str:
        """The name that it has in the module."""
        return self.alias or (self.name if self.module else self.name.split(".")[0])

    @property
    def origin(self) -> str:
        """Where the name comes from, to tell it from a name of another origin."""
        return f"{self.module or 'import'}:{self.name if self.alias else ''}"


@dataclasses.dataclass
class Bundle:
    """The modules that are merged, dependencies first, and what they import from other packages."""

    modules: dict[str, list[Statement]] = dataclasses.field(default_factory=dict)
    imports: list[OuterImport] = dataclasses.field(default_factory=list)
    owners: dict[str, str] = dataclasses.field(default_factory=dict)  # where each name comes from

    def claim(self, names: Iterable[str], origin: str) -> None:
        """Record where names come from; raise ValueError if one of them already comes from elsewhere."""
        for name in names:
            if (owner := self.owners.setdefault(name, origin)) != origin:
                raise ValueError(f"{name} comes from {owner} and from {origin}; rename one of them")


def bundle_source(module_name: str) -> str:
    """Return the source of a module, with what it uses of this package in place of the imports.

    The merged modules share one namespace, so no two of them may define the same name.

    Raises:
        ValueError: if two modules define the same name, or a statement has a form that cannot be merged.
    """
    bundle = Bundle()
    _read_module(module_name, bundle)
    taken = _needed_statements(module_name, bundle)
    used = {name for statements in taken.values() for statement in statements for name in statement.used}
    imports = [each for each in bundle.imports if each.for_its_effect or each.bound in used]
    docstring = ast.get_docstring(ast.parse(_source(module_name)))
    header = f'"""{docstring}\n\nMade from {PACKAGE}: {module_name} and what it uses, in one file.\n"""'
    bodies = ["\n".join(statement.text for statement in statements).strip("\n") for statements in taken.values()]
    body = re.sub(r"\n{4,}", "\n\n\n", "\n\n\n".join(filter(None, bodies)))
    return "\n".join([header, "", *_import_lines(imports), "", "", body, ""])


def _source(module_name: str) -> str:
    spec = importlib.util.find_spec(module_name)
    source = spec.loader.get_source(module_name) if spec and isinstance(spec.loader, InspectLoader) else None
    if source is None:
        raise ValueError(f"{module_name} has no source that could be put into a file")
    return source


def _read_module(module_name: str, bundle: Bundle) -> None:
    """Add the statements of a module to the bundle, those of the modules that it imports from before them."""
    if module_name in bundle.modules:
        return
    bundle.modules[module_name] = []  # stops circular imports
    statements = _split(module_name)
    rest = [each for each in statements if not isinstance(each.node, (ast.Import, ast.ImportFrom))]
    used = {name for statement in rest for name in statement.used}
    for statement in statements:
        if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
            _read_import(module_name, statement.node, used, bundle)
    # Modules are listed in the order in which they are complete.
    del bundle.modules[module_name]
    rest = [statement for statement in rest if not _is_for_type_checkers(statement.node)]
    bundle.modules[module_name] = rest
    for statement in rest:
        bundle.claim(sorted(statement.defined), module_name)
    _check_order(module_name, statements, bundle)


def _split(module_name: str) -> list[Statement]:
    """Return the top-level statements of a module without its docstring."""
    source = _source(module_name)
    lines, statements, end = source.splitlines(), [], 0
    for node in ast.parse(source).body:
        start, last = end, node.end_lineno or node.lineno
        if node.lineno <= end:
            raise _refusal(module_name, node, "write each statement on a line of its own")
        end = last
        if start == 0 and _is_text(node):
            continue
        if not isinstance(node, (ast.Import, ast.ImportFrom)) and not _is_for_type_checkers(node):
            _check_inner_imports(module_name, node)
        used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        statements.append(Statement(node, "\n".join(lines[start:last]), set(_defined_names(node)), used))
    return statements


def _read_import(module_name: str, node: ast.Import | ast.ImportFrom, used: set[str], bundle: Bundle) -> None:
    """Read the module of this package that is imported from, or record what comes from another package."""
    if isinstance(node, ast.ImportFrom) and _is_own(node):
        target = importlib.util.resolve_name("." * node.level + (node.module or ""), module_name.rpartition(".")[0])
        _read_module(target, bundle)
        # An alias would be lost in the one namespace of the result, and so would a module.
        if any(alias.asname or alias.name not in bundle.owners for alias in node.names):
            raise _refusal(module_name, node, "import plain names of functions, classes or constants")
    elif _is_own(node) or any(alias.name == "*" for alias in node.names):
        raise _refusal(module_name, node, "import plain names of functions, classes or constants")
    elif isinstance(node, ast.ImportFrom) and node.module == "__future__":
        raise _refusal(module_name, node, "it would change the meaning of the other modules")
    else:
        for alias in node.names:
            outer = OuterImport(getattr(node, "module", None), alias.name, alias.asname, False)
            outer = dataclasses.replace(outer, for_its_effect=outer.bound not in used)
            bundle.claim([outer.bound], outer.origin)
            bundle.imports.append(outer)


def _check_inner_imports(module_name: str, node: ast.stmt) -> None:
    """Raise ValueError if a block or a function imports from this package: that could not be replaced."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Import, ast.ImportFrom)) and _is_own(inner):
            raise _refusal(module_name, inner, "import from this package at the top level of the module")


def _check_order(module_name: str, statements: list[Statement], bundle: Bundle) -> None:
    """Raise ValueError if an import follows a statement with side effects: moving it up would change the order."""
    effect = None
    for statement in statements:
        if effect is not None and isinstance(statement.node, (ast.Import, ast.ImportFrom)):
            raise _refusal(module_name, effect, "move it below the imports")
        if _has_effect(statement.node, bundle):
            effect = statement.node


def _needed_statements(module_name: str, bundle: Bundle) -> dict[str, list[Statement]]:
    """Return, by module, all statements of the module itself, those with an effect, and what these depend on."""
    definitions: dict[str, list[Statement]] = {}
    needed: list[Statement] = []
    for name, statements in bundle.modules.items():
        for statement in statements:
            if name == module_name or _has_effect(statement.node, bundle):
                needed.append(statement)
            for defined in statement.defined:
                definitions.setdefault(defined, []).append(statement)
    found = {id(statement) for statement in needed}
    for statement in needed:  # grows
        for used in sorted(statement.used):
            new = [each for each in definitions.get(used, ()) if id(each) not in found]
            found |= {id(each) for each in new}
            needed += new
    return {name: [each for each in statements if id(each) in found] for name, statements in bundle.modules.items()}


def _import_lines(imports: list[OuterImport]) -> list[str]:
    """Return the import statements, those of one module in one line."""
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    for each in imports:
        text = f"{each.name} as {each.alias}" if each.alias else each.name
        if each.module is None:
            plain.add(f"import {text}")
        else:
            names.setdefault(each.module, set()).add(text)
    return sorted(plain) + [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]


def _executed(nodes: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements and those in their blocks, but not those in functions and classes."""
    for node in nodes:
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from _executed(getattr(node, part, ()))


def _defined_names(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds; imports of other packages in a block are among them."""
    for inner in _executed([node]):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield inner.name
        elif isinstance(inner, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in inner.names)
        else:
            targets = [*getattr(inner, "targets", ()), getattr(inner, "target", None)]
            targets += [item.optional_vars for item in getattr(inner, "items", ())]
            names = (part for each in targets if each for part in ast.walk(each) if isinstance(part, ast.Name))
            yield from (name.id for name in names if isinstance(name.ctx, ast.Store))


def _has_effect(node: ast.stmt, bundle: Bundle) -> bool:
    """Whether a statement does more than define names, so that it is needed even if nothing refers to it."""
    for inner in _executed([node]):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            # A decorator from this package may register the function.
            decorators = {part for decorator in inner.decorator_list for part in ast.walk(decorator)}
            if any(isinstance(part, ast.Name) and bundle.owners.get(part.id) in bundle.modules for part in decorators):
                return True
        elif isinstance(inner, (ast.Assign, ast.AnnAssign)):
            targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
            if any(isinstance(part, (ast.Attribute, ast.Subscript)) for target in targets for part in ast.walk(target)):
                return True
        elif not isinstance(inner, (ast.Import, ast.ImportFrom, ast.If, ast.Try, ast.ExceptHandler, ast.Pass)) and (
            not _is_text(inner)
        ):
            return True
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_type_checkers(node: ast.stmt) -> bool:
    """Whether this is `if TYPE_CHECKING:`, whose body never runs."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_own(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether a statement imports something of this package."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or (node.module or "").split(".")[0] == PACKAGE
    return any(alias.name.split(".")[0] == PACKAGE for alias in node.names)


def _refusal(module_name: str, node: ast.stmt, remedy: str) -> ValueError:
    return ValueError(f"{module_name}, line {node.lineno}: cannot inline {ast.unparse(node)!r}; {remedy}")
