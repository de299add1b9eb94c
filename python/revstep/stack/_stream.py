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
#: Other floating types, and factors of one element: what a layer may do to its stream beside adding to it.
_CAST = {Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as}
_SCALE_IN_PLACE = {Tensor.mul_, Tensor.__imul__}
_SCALE = {torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
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

    __slots__ = ("fresh", "lent", "replaced", "written")

    def __init__(self, fresh: bool = False) -> None:
        self.fresh = fresh  # a copy that a cast or a factor made: additions in place may write it
        self.lent = False  # an ordinary tensor is a view of it
        self.written = False  # by something else than an addition
        self.replaced = False  # by the stream that an addition in place gave


class Stream(torch.Tensor):
    """The value ``s x + d`` as a tensor like any other (``value``), with ``x``, ``s`` and ``d`` beside it.

    ``delta`` is d, None while nothing was added; ``factor`` is s, a tensor of one element, None while nothing
    was multiplied; ``origin`` is x. Whoever wants the increment asks :func:`remembered`, which knows whether
    it still holds. An addition in place gives a new stream and leaves the memory as it was, for it may be
    the caller's: the old name cannot be used any more.

    ``stop``: raise :class:`FirstBranch` at the first addition instead of going on.
    """

    value: Tensor
    delta: Tensor | None
    stop: bool
    origin: Tensor
    factor: Tensor | None

    @staticmethod
    def of(
        value: Tensor,
        delta: Tensor | None = None,
        stop: bool = False,
        memory: _Memory | None = None,
        origin: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> Stream:
        with torch._C.DisableTorchFunctionSubclass():
            stream = value.as_subclass(Stream)
            stream.differentiated = stream.requires_grad
            stream.version = _version(value)
            stream.added = 0 if delta is None else _version(delta)
        stream.value = value
        stream.delta = delta
        stream.stop = stop
        stream.memory = _Memory() if memory is None else memory
        stream.origin = value if origin is None else origin
        stream.factor = factor
        return stream

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            adds = func in _ADD or func in _IN_PLACE
            if adds and len(args) == 2 and (not kwargs or kwargs == {"alpha": 1}):
                stream, added = _sides(*args)
                if _tracked(stream) and _fits(added, stream.value):
                    return _added(stream, added, func in _IN_PLACE, stream is args[0])
            if (func in _SCALE or func in _SCALE_IN_PLACE) and len(args) == 2 and not kwargs:
                stream, factor = args if isinstance(args[0], Stream) else args[::-1]
                if _is_factor(factor, stream) and _tracked(stream):
                    return _scaled(stream, factor, func in _SCALE_IN_PLACE)
            if func in _CAST and _tracked(args[0]):
                cast = _cast(args[0], func(args[0].value, *ordinary(args[1:]), **ordinary(kwargs)))
                if cast is not None:
                    return cast
            if func in _SHAPE and _tracked(args[0]) and not any(isinstance(a, Stream) for a in args[1:]):
                value = func(args[0].value, *args[1:], **kwargs)
                if value.dtype == args[0].value.dtype:  # not the bits read as another type
                    s = args[0]
                    delta = None if s.delta is None else func(s.delta, *args[1:], **kwargs)
                    origin = func(s.origin, *args[1:], **kwargs) if func in _RESHAPE else s.origin
                    memory = None if func in _COPY else s.memory
                    return Stream.of(value, delta, s.stop, memory, origin, s.factor)
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
        if out.factor is None:
            return torch.zeros_like(out.value) if out.delta is None else out.delta
        scaled = (out.factor - 1) * out.origin  # what it takes from x, and no difference of large numbers
        return scaled if out.delta is None else scaled + out.delta


def ordinary(tree: Any) -> Any:
    """The same containers with the values of streams in their place."""
    with torch._C.DisableTorchFunctionSubclass():
        return tree_map_only(Stream, _plain, tree)


def _fits(added: Any, value: Tensor) -> bool:
    return isinstance(added, Tensor) and not isinstance(added, Stream) and added.shape == value.shape


def _sides(a: Any, b: Any) -> tuple[Any, Any]:
    """(the stream, what is added to it). Of two streams one that was scaled is a branch: ``x + s * x``."""
    if not isinstance(a, Stream):
        return b, a
    if isinstance(b, Stream) and hasattr(a, "factor") and hasattr(b, "factor"):
        if a.factor is not None and b.factor is None:
            return b, _plain(a)
        if b.factor is not None and a.factor is None:
            return a, _plain(b)
    return a, b


def _is_factor(factor: Any, stream: Any) -> bool:
    """A tensor of one element, a layer's own scale, that widens neither the stream nor its type."""
    if not hasattr(stream, "value") or not isinstance(factor, Tensor) or isinstance(factor, Stream):
        return False
    alone = factor.numel() == 1 and factor.ndim <= stream.value.ndim
    return alone and torch.result_type(stream.value, factor) == stream.value.dtype


def _scaled(stream: Stream, factor: Tensor, in_place: bool) -> Stream:
    """The stream times a tensor of one element."""
    delta = None if stream.delta is None else stream.delta * factor
    total = factor if stream.factor is None else stream.factor * factor
    if in_place and stream.memory.fresh:
        value, memory = stream.value.mul_(factor), stream.memory
    else:
        value, memory = stream.value * factor, _Memory(fresh=True)
        if in_place:
            _refuse_lent(stream, "multiplies its input", "x = x * ... instead of x *= ...")
            stream.memory.replaced = True
    return Stream.of(value, delta, stream.stop, memory, stream.origin, total)


def _cast(stream: Stream, value: Any) -> Stream | None:
    """The stream as another floating type. Its increment keeps the type that it was computed in."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.device != stream.value.device:
        return None
    memory = stream.memory if value is stream.value else _Memory(fresh=True)
    return Stream.of(value, stream.delta, stream.stop, memory, stream.origin, stream.factor)


def _refuse_lent(stream: Stream, does: str, instead: str) -> None:
    if stream.memory.lent:
        view = "a view of it (a slice, detach(), a transpose) is about, which would see the result"
        raise UnsupportedError(f"the block {does} in place while {view}: use {instead} there")


def _added(stream: Stream, branch: Tensor, in_place: bool, onto_stream: bool) -> Stream:
    if stream.stop:
        raise FirstBranch(branch)
    memory = None
    onto_branch = in_place and not onto_stream
    if onto_branch:  # its own memory takes the sum; cloned first, as the increment is what was added
        branch, value = branch.clone(), branch.add_(stream.value)
    elif in_place and stream.memory.fresh:
        value, memory = stream.value.add_(branch), stream.memory
    else:
        if in_place:
            _refuse_lent(stream, "adds to its input", "x = x + ... instead of x += ...")
            stream.memory.replaced = True
        value = stream.value + branch
    if stream.delta is not None:
        delta = stream.delta + branch
    else:  # the caller's tensor, looked at for writes; a copy where torch does not count them
        delta = branch if onto_branch or _counted(branch) else branch.clone()
    return Stream.of(value, delta, memory=memory, origin=stream.origin, factor=stream.factor)


def _tracked(t: Any) -> bool:
    if not isinstance(t, Stream) or not hasattr(t, "value"):
        return False
    _refuse_replaced(t)
    if t.delta is not None and t.added != _version(t.delta):
        raise UnsupportedError(
            "the block writes in place to a tensor that it has added to its stream (an activation with "
            "inplace=True, +=, a method with a trailing underscore), so what was added is not known any "
            "more: use the operator that returns a new tensor there"
        )
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
    except RuntimeError:  # a tensor of a transform, or of a layout without a storage
        return 0


def _counted(t: Tensor) -> bool:
    """Torch counts how often the tensor's memory is written."""
    return not torch.compiler.is_compiling() and not t.is_inference()


def _version(t: Tensor) -> int:
    """How often the memory was written; 0 where torch does not count (see :func:`_note`, which does)."""
    return t._version if _counted(t) else 0
