"""The reversible pass behind a model's own loop over its decoder layers.

The model keeps its class and its parameters. Each decoder layer's ``forward``, on the instance alone, becomes
one step of the recurrence: the first call begins a pass, the last one ends it, and every layer gets the
arguments that the model gives it. The ``forward`` of the module that calls the layers is put in brackets that
see whether the layers are still those of the conversion, and that no pass outlives the call.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._imports import require
from ..errors import UnsupportedError
from ..schemes import Scheme
from ..stack import Report, ReversibleStack
from ..stack._run import Pass
from ..state import StateFormat
from ._forwards import PLACES, LayerStep, LoopStep, OwnForward, parameters_of, plain
from ._tokenwise import refuse_recorded_routers
from .adapters._base import Adapter


class Conversion:
    """What ``convert`` put into a model. ``revstep.hf.conversion(model)`` finds it.

    Attributes:
        stack: the ReversibleStack over the decoder layers (not a submodule of the model: state_dict keys stay
            as they are).
        layers: the decoder layers.
        adapter: how their increments are got.
        own: instance-level forwards that the layers had before (None: the class's).
        loop: the module that calls the layers.
        name: its attribute that lists them.
        loop_own: its ``own``.
        tokenwise: modules of the layers that were declared so because the model is taken by tiles.
        returns: for each layer the length of the tuple that its own forward returns, 0 for the state alone.
        names: for each layer what its own forward takes by position, the stream first.
        loop_names: what the forward of ``loop`` takes by position.
        seen: the largest state value of the last pass, by step.
    """

    def __init__(
        self, layers: Sequence[nn.Module], stack: ReversibleStack, adapter: Adapter,
        own: Sequence[Any], loop: nn.Module, name: str, returns: Sequence[int],
    ):  # fmt: skip
        self.layers = list(layers)
        self.stack = stack
        self.adapter = adapter
        self.own = list(own)
        self.loop = loop
        self.name = name
        self.loop_own = loop.__dict__.get("forward")
        self.returns = list(returns)
        self.tokenwise: list[nn.Module] = []
        self.names = [parameters_of(layer) for layer in self.layers]
        self.loop_names = parameters_of(loop)
        self.seen: list[float] = []
        self._local = threading.local()

    @property
    def scheme(self) -> Scheme:
        """Of the stack."""
        return self.stack.scheme

    @property
    def state(self) -> StateFormat:
        """The state format of the stack."""
        return self.stack.state

    @property
    def report(self) -> Report | None:
        """What the last backward pass measured about its reconstruction."""
        return self.stack.report

    def __str__(self) -> str:
        s = self.stack
        return (
            f"{len(self.layers)} layers as {s.scheme}, state {s.state}, start {s.start}, keep {s.keep},"
            f" increments by {self.adapter.name!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=threading.local())
        for i, layer in enumerate(self.layers):  # they were copied plain, as a layer alone is
            for place in PLACES:
                if isinstance(layer.__dict__.get(place), OwnForward):
                    layer.__dict__[place] = LayerStep(self, i)

    # ---- in the model and out of it ----

    def attach(self) -> None:
        """The steps into the layers' forward, at first and after :meth:`detach`."""
        for i, layer in enumerate(self.layers):
            layer.forward = LayerStep(self, i)
        self.loop.forward = LoopStep(self)

    def detach(self) -> None:
        """The layers' own forward again, and the loop's."""
        for module in (*self.layers, self.loop):
            plain(module)
        self._drop()

    def refuse_changes(self) -> None:
        """See that the model still has the layers that were converted.

        Raises:
            UnsupportedError: one was added, removed, replaced, copied or moved.
        """
        held = getattr(self.loop, self.name, None)
        now = list(held) if isinstance(held, (nn.ModuleList, list, tuple)) else None
        if now == self.layers:  # modules are equal where they are the same
            return
        if now is not None:
            now = [layer._modules.get("_orig_mod", layer) for layer in now]  # behind torch.compile(layer)
            if now == self.layers:
                return
        raise UnsupportedError(
            f"the decoder layers were changed after convert: {self._change(now)}. A converted model runs "
            "the layers that it was converted with: call revert(model), change them, and convert again"
        )

    def _change(self, now: list[nn.Module] | None) -> str:
        if now is None:
            return f"{type(self.loop).__name__}.{self.name} is no list of layers any more"
        then = {id(layer): i for i, layer in enumerate(self.layers)}
        first = next((i for i, (a, b) in enumerate(zip(self.layers, now)) if a is not b), None)
        parts = [f"{len(self.layers)} layers then, {len(now)} now"] if len(now) != len(self.layers) else []
        if first is not None:
            step = now[first].__dict__.get("forward")
            if id(now[first]) in then:
                what = f"was layer {then[id(now[first])]}"
            elif isinstance(step, LayerStep) and step.conversion is self:
                what = f"is a copy of layer {step.index}"
            else:
                what = "is another module"
            parts.append(f"layer {first} {what}")
        return ", ".join(parts)

    # ---- the loop ----

    def run_loop(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of the module that calls the layers. However it ends, nothing of a pass is left here."""
        self.refuse_changes()
        self._drop()
        self._checkpointing_off()
        forward = self.loop_own or functools.partial(type(self.loop).forward, self.loop)
        try:
            out = forward(*args, **self._without_its_cache(args, self._whole(kwargs)))
            run = getattr(self._local, "run", None)
            if run is not None:
                raise UnsupportedError(
                    f"{type(self.loop).__name__} stopped after {run.done // self.scheme.halves} of its "
                    f"{len(self.layers)} decoder layers: a converted model runs all its layers in order (no "
                    "layer drop, no early exit). To train or run a part of them, call revert(model), remove "
                    "the others, and convert again"
                )
            return out
        finally:
            self._drop()

    def _checkpointing_off(self) -> None:
        """No checkpointing of the layers, which rebuild their states themselves; a trainer may turn it on.

        It would evaluate every layer once more, and keep what the pass does without. That of other parts of
        the model, such as an encoder of images, stays as it is.
        """
        training = (layer for layer in self.layers if layer.training)
        if not any(getattr(layer, "gradient_checkpointing", False) for layer in training):
            return
        for module in self.loop.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = False
        warnings.warn(_CHECKPOINTING, stacklevel=2)

    def _whole(self, kwargs: dict) -> dict:
        """All positions through all layers: Gemma 4 would drop, halfway, those whose logits nobody wants."""
        head = getattr(self.loop, "get_output_embeddings", None)
        if "logits_to_keep" not in self.loop_names or kwargs.get("logits_to_keep") is None:
            return kwargs
        return kwargs if head is not None and head() is not None else {**kwargs, "logits_to_keep": 0}

    def _without_its_cache(self, args: tuple, kwargs: dict) -> dict:
        """A pass that trains fills no cache, as under gradient checkpointing, unless it is asked for one."""
        given = self.loop_names[: len(args)]
        if "use_cache" not in self.loop_names or "use_cache" in given or kwargs.get("use_cache") is not None:
            return kwargs
        trains = torch.is_grad_enabled() and self.loop.training
        trains = trains and any(p.requires_grad for p in self.loop.parameters())
        return {**kwargs, "use_cache": False} if trains else kwargs

    def _drop(self) -> None:
        """Forget this thread's pass: its states, its view, and the graphs behind them."""
        self._local.__dict__.clear()

    # ---- the steps ----

    def run_layer(self, index: int, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call of decoder layer ``index`` by the model's own loop: one step (two for Hamiltonian)."""
        try:
            return self._run_layer(index, x, args, kwargs)
        except BaseException:  # also when interrupted: a call that fails ends the pass
            self._drop()
            raise

    def _run_layer(self, index: int, x: Tensor, args: tuple, kwargs: dict) -> Any:
        layer = self.layers[index]
        if index == 0:
            self.refuse_changes()
            self.stack.training = layer.training  # the flag alone: the layers keep the modes they were given
            self._local.run = run = self.stack.begin(x, (args, kwargs))
            if not run.differentiated and self.stack.keep != len(self.layers):
                _refuse_trained_prefix(x, (args, kwargs), self.stack)
        else:
            run = self._expect(index, x)
        if run.differentiated and self.stack.tile:
            refuse_recorded_routers(index)
        if run.differentiated or run.audit.trains:
            args, kwargs = _without_cache(
                (args, kwargs), index, self.names[index][1:], refuse=run.differentiated
            )
        aux = run.step(args, kwargs, at=None if index == 0 else x)
        for _ in range(self.scheme.halves - 1):
            aux += run.step(args, kwargs)
        self._local.view = run.view
        if index == len(self.layers) - 1:
            self._drop()
            y = run.end(self.stack.readout)
            self.seen = [s.largest for s in run.audit.forward]
        else:
            y = run.view
        return self._as_it_returns(index, y, aux, args, kwargs)

    def _as_it_returns(self, index: int, y: Tensor, aux: tuple, args: tuple, kwargs: dict) -> Any:
        """The state as the layer's own forward returns it: alone, or in a tuple, be that of one element."""
        length = self.returns[index]
        if self.scheme.halves == 1:
            return (y, *aux) if aux or length else y
        if not length:  # what the second half's modules return beside the state stays within the layer
            return y
        missing = length - 1 - len(aux)
        if missing > 0 and {**dict(zip(self.names[index][1:], args)), **kwargs}.get("output_attentions"):
            raise UnsupportedError(
                f"output_attentions is on, and {self.scheme} evaluates the halves of "
                f"{type(self.layers[index]).__name__} without what the layer returns beside its state: leave "
                "it off, or use a scheme of one stream such as Blend"
            )
        return (y, *aux, *[None] * missing)

    def _expect(self, index: int, x: Tensor) -> Pass:
        run = getattr(self._local, "run", None)
        if run is None or run.done != index * self.scheme.halves:
            self.refuse_changes()
            last = "none" if run is None else run.done // self.scheme.halves - 1
            raise UnsupportedError(
                f"decoder layer {index} was called after layer {last}: a converted model runs all its layers"
                " in order (no layer drop, no early exit, no single layer)"
            )
        view = self._local.view
        # FSDP hands on an alias, behind a node of its own.
        if x is not view and not (x.is_set_to(view) and x.requires_grad == view.requires_grad):
            cast = f": it left as {view.dtype} and came as {x.dtype}" if x.dtype != view.dtype else ""
            raise UnsupportedError(
                f"the model changed the hidden state between decoder layers {index - 1} and {index}{cast};"
                " the step needs the state as it left it. Under FSDP, output_dtype is for the model, not for"
                " its layers"
            )
        return run


_CHECKPOINTING = (
    "gradient checkpointing was on in a converted model, which rebuilds its states itself and needs none: "
    "it has been turned off for the decoder layers. gradient_checkpointing=False in the trainer's arguments "
    "says so from the start; after revert(model), model.activation_checkpointing_enable() turns it on again"
)
_PREFIX = (
    "training on top of a filled key-value cache (prefix tuning) stores keys and values of every layer: use a"
    " method without a prefix"
)


def _refuse_trained_prefix(x: Tensor, arguments: tuple[tuple, dict], stack: ReversibleStack) -> None:
    """Where nothing but the keys of a cache needs a gradient, no tape is made, for it cannot see into a
    cache: everything would be stored.
    """
    if not torch.is_grad_enabled() or x.requires_grad or any(p.requires_grad for p in stack.parameters()):
        return
    Cache = require("transformers.cache_utils", "running a converted model", "hf").Cache
    caches = [value for value in (*arguments[0], *arguments[1].values()) if isinstance(value, Cache)]
    if any(
        getattr(getattr(layer, "keys", None), "requires_grad", False)
        for cache in caches
        for layer in getattr(cache, "layers", ())
    ):
        raise UnsupportedError(_PREFIX)


def _without_cache(
    arguments: tuple[tuple, dict], index: int, names: tuple[str, ...], refuse: bool
) -> tuple[tuple, dict]:
    """A pass that will be differentiated cannot fill a cache: its blocks are evaluated twice, and the keys of
    every layer would be stored. Where all layers are kept it could; but keys that come out of a cache lie
    otherwise in memory, and matrix products on them may round otherwise. ``refuse``: one that is filled.
    """
    Cache = require("transformers.cache_utils", "running a converted model", "hf").Cache

    def drop(value: Any) -> Any:
        if not isinstance(value, Cache):
            return value
        if value.get_seq_length():
            if not refuse:
                return value
            raise UnsupportedError(_PREFIX)
        if index == 0:
            warnings.warn(
                "a converted model keeps no key-value cache while it trains: the cache it returns is empty"
                " (use_cache=False says so)",
                stacklevel=1,
            )
        return None

    args, kwargs = arguments
    kwargs = {name: drop(value) for name, value in kwargs.items()}
    if kwargs.get("use_cache"):
        kwargs["use_cache"] = False
    given = [drop(value) for value in args]
    for i, name in enumerate(names[: len(given)]):
        given[i] = given[i] and False if name == "use_cache" else given[i]  # None stays None
    return tuple(given), kwargs
