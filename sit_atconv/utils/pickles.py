"""Pickles from elsewhere: what a pickle would build is measured without building anything.

An unpickler that refuses code still builds whatever containers it is told to. A megabyte of tuples within tuples, used
as a key, ends the process with a segmentation fault, because CPython computes its hash recursively, without a limit.
"""

import io
import itertools
import pickletools
from pathlib import Path

MAX_DEPTH = 64  # of containers
MAX_OPERATIONS = 2**20  # of the pickle machine; a checkpoint has about 40 per tensor
CHANGING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}  # change the object below what they take
MARK = -1  # stands for a mark on the stack; other entries are numbers of objects


def check_pickle(stream: io.BytesIO | bytes, source: str | Path, max_operations: int = MAX_OPERATIONS) -> list[str]:
    """Check that a pickle is of moderate length and depth, without running it.

    Args:
        stream: the pickle, in memory; a stream is left behind its end, where another one may follow.
        source: where it comes from, for the message.
        max_operations: the largest number of operations of the pickle machine.

    Returns:
        The functions and classes that it would import, such as "collections.OrderedDict".

    Raises:
        ValueError: if it is not a pickle, too long, or nests containers too deeply.
    """
    objects = _Objects()
    # One more than allowed, to tell a pickle that is too long from one that just fits.
    operations = itertools.islice(pickletools.genops(stream), max_operations + 1)
    try:
        for count, (operation, argument, _) in enumerate(operations, 1):
            if count > max_operations:
                raise ValueError(f"it has more than {max_operations} operations")
            objects.apply(operation, argument)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{source} holds a damaged or crafted pickle: {error}") from error
    if objects.is_deeper_than(MAX_DEPTH):
        raise ValueError(f"{source} holds a damaged or crafted pickle: it nests containers more than {MAX_DEPTH} deep")
    return list(dict.fromkeys(objects.imported))


class _Objects:
    """The objects that a pickle would make, as a graph: only which of them contains which is kept."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []  # by number of an object: the numbers of those within it
        self.stack: list[int] = []
        self.memo: dict[int, int] = {}
        self.imported: list[str] = []
        self.texts: list[str] = []  # the two before STACK_GLOBAL are its module and its name

    def apply(self, operation: pickletools.OpcodeInfo, argument: object) -> None:
        """Follow one operation."""
        name = operation.name
        self._note_imports(name, argument)
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            place = len(self.memo) if name == "MEMOIZE" else int(str(argument))
            if not 0 <= place < MAX_OPERATIONS:  # the unpickler's memory is as large as the largest number here
                raise ValueError(f"it remembers an object under the number {place}")
            self.memo[place] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(str(argument))])
        elif name == "DUP":
            self.stack.append(self._top())
        elif name == "POP":
            self.stack.pop()
        elif name == "MARK":
            self.stack.append(MARK)
        else:
            self._combine(operation)

    def _top(self) -> int:
        if self.stack[-1] == MARK:
            raise ValueError("a mark stands in place of an object")
        return self.stack[-1]

    def _combine(self, operation: pickletools.OpcodeInfo) -> None:
        """Take the operation's objects off the stack and put what it makes of them there."""
        before = operation.stack_before
        taken = []
        if pickletools.markobject in before:
            while (number := self.stack.pop()) != MARK:
                taken.append(number)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            number = self.stack.pop()
            if number == MARK:
                raise ValueError("a mark stands in place of an object")
            taken.append(number)
        if operation.name in CHANGING:  # the object that was deepest on the stack grows
            self.parts[taken[-1]] += taken[:-1]
            self.stack.append(taken[-1])
            return
        for _ in operation.stack_after:
            self.parts.append(taken)
            self.stack.append(len(self.parts) - 1)

    def _note_imports(self, name: str, argument: object) -> None:
        if name in ("GLOBAL", "INST"):
            self.imported.append(str(argument).replace(" ", "."))
        elif name == "STACK_GLOBAL":
            self.imported.append(".".join(self.texts[-2:]))
        elif isinstance(argument, str):
            self.texts.append(argument)

    def is_deeper_than(self, limit: int) -> bool:
        """Whether some object contains another one through more than `limit` others.

        An object that contains itself counts once: only what was made later is followed from there.
        """
        depth: list[int] = [-1] * len(self.parts)  # -1: not reached yet
        for start in range(len(self.parts)):
            path = [(start, iter(self.parts[start]))] if depth[start] < 0 else []
            if path:
                depth[start] = 0
            while path:
                if len(path) > limit + 1:
                    return True
                number, parts = path[-1]
                following = next(parts, None)
                if following is None:
                    path.pop()
                    if path:
                        above = path[-1][0]
                        depth[above] = max(depth[above], depth[number] + 1)
                elif depth[following] < 0:
                    depth[following] = 0
                    path.append((following, iter(self.parts[following])))
                else:
                    depth[number] = max(depth[number], depth[following] + 1)
                if path and depth[path[-1][0]] > limit:
                    return True
        return False
