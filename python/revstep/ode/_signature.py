"""What a function of the caller's reads beside its arguments, so that what was captured of it is used again
as long as that is the same: attributes, weights, closures, globals.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

#: Values that are told apart by what they are.
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
#: The same, of exactly these types, which are most of what a module has; and containers that are often empty.
_QUICK = frozenset((int, str, bool, type(None)))
_EMPTY = frozenset((dict, OrderedDict, list, tuple, set))
#: Values that stay what they are.
_FIXED = (types.ModuleType, types.BuiltinFunctionType, type, types.MethodDescriptorType)
#: More than this in one container is a table that nobody should read through before each run.
_MOST = 4096


class Opaque(Exception):
    """Something was met whose changes could not be seen; the message names its type."""


def signature(f: Callable) -> Hashable:
    """Equal for two calls between which nothing changed that ``f`` reads, as far as Python shows.

    Numbers and texts count by value; tensors by identity, shape, strides, dtype and whether they require a
    gradient, for a replay reads their values anew; functions and modules by what they read in turn, with the
    values that stand in their classes; Python modules by identity and by the values that are named where the
    module is read.

    Raises:
        Opaque: an object of another kind (an array, a generator, a slotted object) is read.
    """
    reader = _Reader()
    reader.read(f)
    return tuple(reader.found)


class _Reader:
    def __init__(self) -> None:
        self.found: list[Hashable] = []
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # nothing that was met may end, and its number pass on, meanwhile

    def read(self, x: Any) -> None:
        kind = type(x)
        if kind in _QUICK:
            self.found += (kind, x)
        elif isinstance(x, _PLAIN):
            self.found.append((kind, repr(x) if isinstance(x, (float, complex)) else x))
        elif kind in _EMPTY and not x:
            self.found.append(kind)
        elif isinstance(x, _FIXED):
            self.found.append(x)  # itself: the number of one that ended may pass on
        elif id(x) in self._seen:
            self.found.append(("again", self._seen[id(x)]))
        else:
            self._seen[id(x)] = len(self._seen)
            self._alive.append(x)
            self._object(x)

    def _all(self, what: str, items: Iterable[Any], count: int) -> None:
        if count > _MOST:
            raise Opaque(f"{what} of {count} entries")
        self.found.append((what, count))
        for item in items:
            self.read(item)

    def _object(self, x: Any) -> None:
        if isinstance(x, Tensor):
            kind = (x.shape, x.stride(), x.dtype, x.device, x.requires_grad)
            self.found.append(("tensor", id(x), kind))
        elif isinstance(x, (tuple, list)):
            self._all(type(x).__name__, x, len(x))
        elif isinstance(x, dict):
            self._all("dict", (part for item in x.items() for part in item), len(x))
        elif isinstance(x, types.FunctionType):
            self._function(x)
        elif isinstance(x, types.MethodType):
            self._all("method", (x.__self__, x.__func__), 2)
        elif isinstance(x, functools.partial):
            self._all("partial", (x.func, x.args, x.keywords), 3)
        elif isinstance(x, (set, frozenset)) and all(isinstance(item, _PLAIN) for item in x):
            self.found.append(("set", frozenset(x)))
        elif hasattr(x, "__dict__") and not hasattr(type(x), "__slots__"):
            self.found.append(("object", type(x)))
            self.read(vars(x))
            self._methods(type(x))
        else:
            raise Opaque(type(x).__name__)

    def _function(self, f: types.FunctionType) -> None:
        self.found.append(("function", f.__code__))
        cells = [cell.cell_contents for cell in f.__closure__ or () if _filled(cell)]
        self._all("reads", [f.__defaults__, f.__kwdefaults__, *cells], len(cells) + 2)
        if not _of_torch(f):
            for name in sorted(_names(f.__code__)):
                if name in f.__globals__:
                    self.read(f.__globals__[name])
                    if isinstance(f.__globals__[name], types.ModuleType):
                        self._values(vars(f.__globals__[name]), _names(f.__code__))

    def _methods(self, cls: type) -> None:
        """What the methods and properties of a class of the caller's read, and its own values."""
        for base in cls.__mro__:
            if base is object or _of_torch(base):
                continue
            for member in vars(base).values():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                if isinstance(function, types.FunctionType):
                    self.read(function)
            self._values(vars(base), [n for n in vars(base) if not n.startswith("__")])

    def _values(self, there: Mapping[str, Any], names: Iterable[str]) -> None:
        """Numbers, texts, tensors and containers among these of a class's or a Python module's."""
        for name in sorted(names):
            if name in there and isinstance(there[name], (*_PLAIN, Tensor, tuple, list, dict)):
                self.found.append(name)
                self.read(there[name])


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _of_torch(x: Any) -> bool:
    return (x.__module__ or "").partition(".")[0] in ("torch", "revstep")


def _names(code: types.CodeType) -> set[str]:
    found = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found |= _names(inner)
    return found
