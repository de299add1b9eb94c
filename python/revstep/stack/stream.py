"""A residual stream that remembers its increment.

A pre-norm block only ever *adds* to its stream, ``x + a``, ``(x + a) + m``; everything else reads it.
Running the block's own forward on a :class:`Stream` gives its output as a Stream again, whose ``delta`` is
``a + m``, computed by the block's own branches and not by a subtraction, which would lose its low bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import UnsupportedError

_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
#: What only lays out the elements anew, in the same order.
_COPY = {Tensor.clone, torch.clone}
_RESHAPE = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.contiguous}
_SHAPE = _RESHAPE | _COPY
#: Names that look like those of operators in place.
_READS = ("__index__", "__int__", "__invert__", "__init__", "__init_subclass__")


def _is_write(name: str) -> bool:
    """By torch's own rule for names: ``mul_``, ``__imul__``, ``__setitem__``."""
    if name.startswith("__"):
        return name == "__setitem__" or (name[:3] == "__i" and name not in _READS)
    return name.endswith("_") and name != "requires_grad_"


_WRITES = {getattr(Tensor, name) for name in dir(Tensor) if _is_write(name)}


class FirstBranch(Exception):
    """The first branch of a layer has reached the stream; carries it."""

    def __init__(self, branch: Tensor):
        super().__init__("the first branch is known")
        self.branch = branch


class _Memory:
    """What is known of the memory that one stream, or several that are views of each other, lie in."""

    __slots__ = ("lent", "replaced", "written")

    def __init__(self) -> None:
        self.lent = False  # an ordinary tensor is a view of it
        self.written = False  # by something else than an addition
        self.replaced = False  # by the stream that an addition in place gave


class Stream(torch.Tensor):
    """The value ``x + d`` as a tensor like any other (``value``), with ``d`` beside it.

    ``delta`` is None while nothing was added; whoever reads it asks :func:`remembered`, which knows whether
    it still holds. An addition in place gives a new stream and leaves the memory as it was, for it may be
    the caller's: the old name cannot be used any more.

    ``stop``: raise :class:`FirstBranch` at the first addition instead of going on.
    """

    value: Tensor
    delta: Tensor | None
    stop: bool

    @staticmethod
    def of(
        value: Tensor,
        delta: Tensor | None = None,
        stop: bool = False,
        memory: _Memory | None = None,
    ) -> Stream:
        with torch._C.DisableTorchFunctionSubclass():
            stream = value.as_subclass(Stream)
            stream.differentiated, stream.version = stream.requires_grad, _version(value)
        stream.value, stream.delta, stream.stop = value, delta, stop
        stream.memory = _Memory() if memory is None else memory
        return stream

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            adds = func in _ADD or func in _IN_PLACE
            if adds and len(args) == 2 and (not kwargs or kwargs == {"alpha": 1}):
                stream, other = args if isinstance(args[0], Stream) else args[::-1]
                if _tracked(stream) and _fits(other, stream.value):
                    return _added(stream, other, func in _IN_PLACE, stream is args[0])
            if func in _SHAPE and _tracked(args[0]) and not any(isinstance(a, Stream) for a in args[1:]):
                value = func(args[0].value, *args[1:], **kwargs)
                if value.dtype == args[0].value.dtype:  # not the bits read as another type
                    delta = None if args[0].delta is None else func(args[0].delta, *args[1:], **kwargs)
                    return Stream.of(value, delta, args[0].stop, None if func in _COPY else args[0].memory)
            out = func(*tree_map_only(Stream, _plain, args), **tree_map_only(Stream, _plain, kwargs))
            if args and isinstance(args[0], Stream) and hasattr(args[0], "memory"):
                _note(args[0], func in _WRITES or kwargs.get("inplace") is True or "out" in kwargs, out)
            return out


def remembered(out: Any) -> Tensor | None:
    """What was added to the stream that ``out`` is: zeros where nothing was. None where it is not known.

    Raises:
        UnsupportedError: ``out`` is a name that the stream had before an addition in place.
    """
    with torch._C.DisableTorchFunctionSubclass():
        if not _tracked(out):
            return None
        return torch.zeros_like(out.value) if out.delta is None else out.delta


def ordinary(tree: Any) -> Any:
    """The same containers with the values of streams in their place."""
    with torch._C.DisableTorchFunctionSubclass():
        return tree_map_only(Stream, _plain, tree)


def _fits(other: Any, value: Tensor) -> bool:
    return isinstance(other, Tensor) and not isinstance(other, Stream) and other.shape == value.shape


def _added(stream: Stream, branch: Tensor, in_place: bool, onto_stream: bool) -> Stream:
    if stream.stop:
        raise FirstBranch(branch)
    if in_place and onto_stream:
        if stream.memory.lent:
            raise UnsupportedError(
                "the block adds to its input in place while a view of it (a slice, detach(), a "
                "transpose) is about, which would see the sum: use x = x + ... instead of x += ... there"
            )
        stream.memory.replaced = True
    elif in_place:  # the branch's own memory takes the sum
        branch, total = branch.clone(), branch.add_(stream.value)
        return Stream.of(total, branch if stream.delta is None else stream.delta + branch)
    return Stream.of(stream.value + branch, branch if stream.delta is None else stream.delta + branch)


def _tracked(t: Any) -> bool:
    if not isinstance(t, Stream) or not hasattr(t, "value"):
        return False
    _refuse_replaced(t)
    return not t.memory.written and t.version == _version(t.value) and _own(t)


def _own(t: Stream) -> bool:
    """Not handed out by an autograd.Function, whose output it is then: the value beside it has no graph."""
    return t.requires_grad == t.differentiated


def _plain(t: Stream) -> Tensor:
    if not hasattr(t, "value"):
        return t.as_subclass(Tensor)
    _refuse_replaced(t)
    return t.value if _own(t) else t.as_subclass(Tensor)


def _refuse_replaced(t: Stream) -> None:
    if t.memory.replaced:
        raise UnsupportedError(
            "the block adds to its stream in place and then uses a name, or a view, that the stream had "
            "before: write x = x + ... instead of x += ... or x.add_(...), and use the new x from there "
            "on"
        )


def _note(stream: Stream, writes: bool, out: Any) -> None:
    """Remember what an operator other than an addition did to the stream's memory."""
    if writes:
        stream.memory.written = True
    if not torch.compiler.is_compiling() and not stream.memory.lent:
        address = _address(stream.value)
        stream.memory.lent = any(isinstance(t, Tensor) and _address(t) == address for t in tree_leaves(out))


def _address(t: Tensor) -> int:
    try:
        return t.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a tensor of a transform, or of a layout without a storage
        return 0


def _version(t: Tensor) -> int:
    """How often the memory was written; 0 where torch does not count (see :func:`_note`, which does)."""
    return 0 if torch.compiler.is_compiling() or t.is_inference() else t._version
