"""What stands in the ``forward`` of a converted model's modules, on the instance; its copies and its removal.

A layer may be copied, or pickled, alone: then it is a plain layer, and nothing of the model comes along. So a
:class:`LayerStep` is copied as :class:`OwnForward`. The conversion is copied with the :class:`LoopStep` of
the module that calls the layers, and the copy puts steps in their place again.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from ._layer_steps import Conversion

#: Where a forward is found on an instance: accelerate's hook stands in the first and calls the second.
PLACES = ("forward", "_old_forward")


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of what the class's forward takes by position, without ``self``: of a layer, the stream first."""
    try:
        found = list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (TypeError, ValueError):  # a forward that is no Python function
        return ()
    return tuple(p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def stream_first(names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> tuple:
    """The layer's positional arguments, the stream first; it is taken out of ``kwargs`` if it was named."""
    if "hidden_states" in kwargs:
        return (kwargs.pop("hidden_states"), *args)
    return args if args or not names else (kwargs.pop(names[0]),)


class LayerStep:
    """What stands in a decoder layer's ``forward``: one step of the pass."""

    __slots__ = ("conversion", "index")  # no __dict__: accelerate's hooks would copy it

    def __init__(self, conversion: Conversion, index: int):
        self.conversion = conversion
        self.index = index

    @property
    def own(self) -> Any:
        """The forward that the instance had before, or None: the class's."""
        return self.conversion.own[self.index]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args = stream_first(self.conversion.names[self.index], args, kwargs)
        if torch.compiler.is_dynamo_compiling():
            from ._compiling import outside

            return outside(self.conversion, self.index, args[0], args[1:], kwargs)
        return self.conversion.run_layer(self.index, args[0], args[1:], kwargs)

    def __reduce__(self) -> Any:
        return OwnForward, (self.conversion.layers[self.index], self.own)

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnForward:
        layer = self.conversion.layers[self.index]
        # Not there: what is being copied is a shallow copy of the layer, which shares this object.
        made = OwnForward(memo.get(id(layer)), copy.deepcopy(self.own, memo))
        memo.setdefault(id(memo), []).append(_Tidy(made))  # this list lives until the whole copy is done
        return made


class LoopStep:
    """What stands in the ``forward`` of the module that calls the layers: the brackets of a pass."""

    __slots__ = ("conversion",)

    def __init__(self, conversion: Conversion):
        self.conversion = conversion

    @property
    def own(self) -> Any:
        """The forward that the instance had before, or None: the class's."""
        return self.conversion.loop_own

    @property
    def __signature__(self) -> inspect.Signature:
        """The Trainer and ``generate`` ask which arguments a model takes."""
        loop = self.conversion.loop
        return inspect.signature(self.own or functools.partial(type(loop).forward, loop))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            from ._compiling import loop_outside

            return loop_outside(self.conversion, args, kwargs)
        return self.conversion.run_loop(args, kwargs)


class OwnForward:
    """A copied layer's own forward, where the original has its :class:`LayerStep`. A call takes it away."""

    def __init__(self, layer: nn.Module | None, own: Any):
        self.layer = layer
        self.own = own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.layer is None or not plain(self.layer):
            raise UnsupportedError(
                "this layer is a shallow copy (copy.copy) of a layer of a converted model, or of a copy of "
                "one, and its forward would run the other's weights: copy layers after revert(model), or "
                "with copy.deepcopy"
            )
        return self.layer.forward(*args, **kwargs)


class _Tidy:
    """Takes an :class:`OwnForward` away once the copy is complete, unless it was of a whole model."""

    def __init__(self, forward: OwnForward):
        self.forward = forward

    def __del__(self) -> None:
        if self.forward.layer is not None:
            plain(self.forward.layer, OwnForward)


def ours(module: nn.Module, kind: Any = (LayerStep, LoopStep, OwnForward)) -> Iterator[tuple[str, Any]]:
    """(place, forward) of each forward of this package on the instance."""
    for place in PLACES:
        forward = module.__dict__.get(place)
        if isinstance(forward, kind):
            yield place, forward


def plain(module: nn.Module, kind: Any = (LayerStep, LoopStep, OwnForward)) -> bool:
    """The module's own forward in place of ours. False: there was none of ours."""
    found = list(ours(module, kind))
    for place, forward in found:
        if forward.own is not None:
            module.__dict__[place] = forward.own
        elif place == "forward":
            del module.__dict__[place]
        else:
            module.__dict__[place] = type(module).forward.__get__(module)
    return bool(found)
