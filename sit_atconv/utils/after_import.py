"""Import one module as soon as another one has been imported, without importing either now."""

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


def import_after(name: str, follower: str) -> None:
    """Import the module `follower` once the top-level module `name` has been imported: now, if it has been.

    Python offers no event for this. A finder at the head of `sys.meta_path` notices the import, and leaves the finding
    and the loading to the finders after it. A second call with the same names does nothing.
    """
    if name in sys.modules:
        importlib.import_module(follower)
    elif not any(isinstance(finder, _Follow) and finder.names == (name, follower) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Follow(name, follower))


class _Follow:
    """A finder that finds nothing itself: it adds the import of `follower` to the loading of the module `name`."""

    def __init__(self, name: str, follower: str):
        self.names = name, follower

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        name, follower = self.names
        if fullname != name:
            return None
        others = (finder for finder in sys.meta_path if not isinstance(finder, _Follow) or finder.names != self.names)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def execute_both(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                importlib.import_module(follower)

            # The loader's own attribute, so that everything else that asks the loader still meets the original.
            loader.exec_module = execute_both  # type: ignore[method-assign]
        return spec
