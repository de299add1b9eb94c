"""A residual stream that remembers its increment: ``x + d`` with ``d`` known, so that a layer's own forward yields d without a subtraction.

A pre-norm layer only ever *adds* to its stream, ``x + a``, ``(x + a) + m``; everything else reads it. Running the layer's forward on a
:class:`Stream` gives its output as a Stream again, whose ``delta`` is ``a + m``, computed by the layer's own branches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_ADD = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
#: What only lays out the elements anew, in the same order.
_SHAPE = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten, Tensor.contiguous, Tensor.clone, torch.clone}


class FirstBranch(Exception):
    """The first branch of a layer has reached the stream; carries it."""

    def __init__(self, branch: Tensor):
        super().__init__("the first branch is known")
        self.branch = branch


class Stream(torch.Tensor):
    """The value ``x + d`` as a tensor like any other (``value``), with ``d`` beside it (``delta``, None while nothing was added).

    ``stop``: raise :class:`FirstBranch` at the first addition instead of going on.
    """

    value: Tensor
    delta: Tensor | None
    stop: bool

    @staticmethod
    def of(value: Tensor, delta: Tensor | None = None, stop: bool = False) -> Stream:
        with torch._C.DisableTorchFunctionSubclass():
            stream = value.as_subclass(Stream)
        stream.value, stream.delta, stream.stop = value, delta, stop
        return stream

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if (func in _ADD or func in _IN_PLACE) and len(args) == 2 and kwargs.get("alpha", 1) == 1:
                stream, other = args if isinstance(args[0], Stream) else args[::-1]
                if _tracked(stream) and isinstance(other, Tensor) and not isinstance(other, Stream) and other.shape == stream.value.shape:
                    if stream.stop:
                        raise FirstBranch(other)
                    return Stream.of(stream.value + other, other if stream.delta is None else stream.delta + other)
            if func in _SHAPE and _tracked(args[0]) and not any(isinstance(a, Stream) for a in args[1:]):
                delta = None if args[0].delta is None else func(args[0].delta, *args[1:], **kwargs)
                return Stream.of(func(args[0].value, *args[1:], **kwargs), delta, args[0].stop)
            return func(*tree_map_only(Stream, _plain, args), **tree_map_only(Stream, _plain, kwargs))


def _tracked(t: Any) -> bool:
    return isinstance(t, Stream) and hasattr(t, "value")


def _plain(t: Stream) -> Tensor:
    return t.value if hasattr(t, "value") else t.as_subclass(Tensor)
