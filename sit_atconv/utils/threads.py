"""Values that several threads use at the same time."""

import threading
from typing import Any


class PerThread:
    """A value that each thread sets for itself. A thread that never set it sees what any thread set last.

    Unlike `threading.local`, it can be copied and pickled; the copy starts with the value that this thread sees.
    """

    def __init__(self, value: Any):
        self._own = threading.local()
        self._latest = value

    def get(self) -> Any:
        return getattr(self._own, "value", self._latest)

    def set(self, value: Any) -> None:
        self._own.value = self._latest = value

    def __reduce__(self):
        return PerThread, (self.get(),)
