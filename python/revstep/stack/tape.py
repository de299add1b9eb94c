"""The tape: what a forward pass leaves behind for backward, and how backward rebuilds the rest.

Per layer it keeps a checksum, the carries of the step, where the block draws random numbers the generator state, and outputs of chosen operators.
The tensors autograd would save inside a block are replaced by placeholders; when backward asks for the first of them, the
block is evaluated once more on the rebuilt state. That one evaluation yields the saved tensors *and* the increment that
takes the next state down: cur, next -> prev.

Step k maps the states ``s[k], s[k+1] -> s[k+2]`` and evaluates block k at ``s[k+1]``.
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import NonDeterministicBlockError, UnsupportedError
from ..schemes.base import Coefficients, RowCoefficients
from ..state import StateFormat
from . import selection
from .arithmetic import undo
from .audit import Audit
from .budget import storages
from .members import Members
from .replay import Autocast, Generators, ParametrizationCache, rebuilds, same_states
from .report import layer_name
from .selection import Keep, Reuse


@dataclass(slots=True)
class LayerRecord:
    """What re-evaluating one block needs beside its input."""

    coefficients: Coefficients | RowCoefficients
    args: tuple
    kwargs: dict
    carry: Tensor | None = None  # known once the step has been taken
    rng: list[Tensor] | None = None
    kept: dict = field(default_factory=dict)  # outputs of operators, see :mod:`.selection`
    buffers: list[int] = field(default_factory=list)
    before: dict[int, Tensor] = field(default_factory=dict)  # buffers as the evaluation found them, where its result depends on them
    slots: list[tuple] = field(default_factory=list)
    input_needs_grad: bool = False


class Slot:
    """Placeholder for one tensor that autograd saved inside a block; while a block is measured, with the tensor."""

    __slots__ = ("held", "index", "layer", "tape")

    def __init__(self, tape: Tape, layer: int, index: int):
        self.tape, self.layer, self.index = tape, layer, index
        self.held: Tensor | None = None


def _signature(t: Tensor) -> tuple:
    return (t.shape, t.dtype, t.device)


class Tape:
    """One forward pass's record. Created by the stack, filled by :meth:`record`, wound back by the gate node."""

    def __init__(self, blocks: Sequence[Members], fmt: StateFormat, block_dtype: torch.dtype, devices: Sequence[torch.device], audit: Audit):
        self.blocks, self.format, self.block_dtype = blocks, fmt, block_dtype
        self.layers: list[LayerRecord] = []
        self.audit = audit
        self.gate: Callable[[], Any] | None = None  # weak reference to the gate node of this pass
        self._arguments: dict[int, tuple[Tensor, Tensor]] = {}  # tensor -> its detached copy, so that layers share one
        self._autocast = Autocast(sorted({"cpu", *(d.type for d in devices)}))
        self._cache = ParametrizationCache()
        self._generators = Generators(devices)
        self._last_rng = self._generators.get()
        self._complete = False
        self._cursor: tuple[int, Tensor, Tensor] | None = None  # (k, s[k], s[k+1]): the states below step k are not rebuilt yet
        self._view: Tensor | None = None  # float view of s[k] in the cursor, once an inverse step has written it
        self._pinned: tuple[Tensor, ...] | None = None
        self._held_layer, self._held, self._seen = -1, [], []
        self._measured: list[Slot] = []
        self._foreign: set[int] = set()  # addresses of what the measured blocks did not make: weights, buffers, arguments
        self._releases = False

    # ---- forward ----

    @contextlib.contextmanager
    def record(
        self, layer: int, coefficients: Coefficients | RowCoefficients, x: Tensor, args: tuple, kwargs: dict, hooks: bool, measure: bool = False
    ) -> Iterator[LayerRecord]:
        """Around one evaluation of block ``layer`` on the view ``x``; ``hooks`` replaces its saved tensors by placeholders.

        ``measure``: the placeholders keep the tensors until :meth:`measured` has said what they are.
        """
        record = LayerRecord(coefficients, self._detached(args), self._detached(kwargs), input_needs_grad=x.requires_grad, before=self.blocks[layer].iterated())
        versions, x_version = self.blocks[layer].versions(), x._version

        def pack(t: Tensor) -> Slot:
            if measure and not record.slots:
                self._foreign.update(storages([*self.blocks[layer].tensors(), *(a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor))]))
            record.slots.append(_signature(t))
            slot = Slot(self, layer, len(record.slots) - 1)
            if measure:
                slot.held = t.detach()
                self._measured.append(slot)
            return slot

        policy = self.blocks[layer].policy if hooks else None
        keep = Keep(policy, self._generators) if policy is not None else contextlib.nullcontext()
        with _saving(pack, _unpack, self.name(layer)) if hooks else contextlib.nullcontext(), keep:
            yield record
        if policy is not None:
            record.kept = keep.kept
        if x._version != x_version:
            raise UnsupportedError(f"{self.name(layer)} changed its input in place; the step still needs it: let the block work on a copy")
        record.buffers = self.blocks[layer].changed(versions)
        now = self._generators.get()
        if not same_states(self._last_rng, now):
            record.rng = self._last_rng
        self._last_rng = now
        self.layers.append(record)

    def measured(self) -> int:
        """Bytes of the graphs of the blocks measured so far: storages that only their saved tensors keep alive."""
        found = storages(slot.held for slot in self._measured)
        return sum(nbytes for address, nbytes in found.items() if address not in self._foreign)

    def settle(self, stored: bool) -> None:
        """The measured blocks keep their graphs after all, and this tape is not needed (``stored``); or they are to be rebuilt as the others."""
        for slot in self._measured:
            if stored:
                slot.tape = None
            else:
                slot.held = None
        self._measured = []

    def finish(self) -> None:
        """The forward pass is over: from here on placeholders may be asked for."""
        self._complete = True
        self._last_rng = []
        self._arguments.clear()

    def _detached(self, tree: Any) -> Any:
        if not tree:
            return type(tree)()  # not the caller's, who may fill it

        def detach(t: Tensor) -> Tensor:
            if id(t) not in self._arguments:
                self._arguments[id(t)] = t, t.detach().requires_grad_(t.requires_grad)
            return self._arguments[id(t)][1]

        return tree_map_only(Tensor, detach, tree)

    def nbytes(self) -> int:
        """Bytes kept per layer beside the checksums: carries, generator records, buffers, outputs of chosen operators."""
        kept = [t for r in self.layers for t in (*(r.rng or ()), *r.before.values(), r.carry) if t is not None]
        return sum(t.numel() * t.element_size() for t in kept) + sum(selection.nbytes(r.kept) for r in self.layers)

    # ---- backward ----

    def wind(self, last: Sequence[Tensor], pin: bool = False, release: bool = False) -> None:
        """Start a backward pass from the last two states. ``pin`` keeps them for graphs of higher order, which bypass the gate.

        ``release``: this is the last one, so what a layer keeps is let go as soon as the pass has gone by.
        """
        self._releases = release
        if pin:
            self._pinned = tuple(last)
        self.rewind(*last)
        torch.autograd.Variable._execution_engine.queue_callback(self._backward_done)

    def rewind(self, prev: Tensor, cur: Tensor, origin: Tensor | None = None) -> None:
        """Put the cursor behind the last step; ``origin``: the start state, to measure a float reconstruction against."""
        self._cursor = (len(self.layers), prev, cur)
        self._view, self._held_layer, self._held = None, -1, []
        self.audit.begin(origin)
        for k, state in enumerate((prev, cur), start=len(self.layers)):
            self.audit.kept(k, state)

    def _backward_done(self) -> None:
        self._cursor = self._view = None
        self._held_layer, self._held, self._seen = -1, [], []
        self.audit.end()

    def rebuild(self) -> tuple[Tensor, Tensor]:
        """One step down: returns the new cursor's states ``s[k], s[k+1]``."""
        k, cur, nxt = self._cursor[0] - 1, *self._cursor[1:]
        record = self.layers[k]
        view = self._view if self._view is not None else self.format.decode(cur, self.block_dtype)
        f = self._evaluate(k, view)
        view_dtype = self.format.view_dtype(self.block_dtype)
        view, prev, stats = undo(record.coefficients, nxt, cur, f, record.carry, self.format.frac_bits, view_dtype)
        self._cursor, self._view = (k, prev, cur), prev if view_dtype is None else view
        if self._releases:
            record.carry = None
            if k + 1 < len(self.layers):
                self.layers[k + 1].kept = {}  # only the layer at the cursor can be asked for once more
        self.audit.rebuilt(k, prev, stats)
        return prev, cur

    def saved(self, layer: int, index: int) -> Tensor:
        """The tensor behind a placeholder, re-evaluating block ``layer`` if that has not been done yet."""
        if not self._complete:
            what = "differentiates inside its own forward pass and must be stored"
            raise UnsupportedError(f"{self.name(layer)} {what}: {_STORE}")
        if self._held_layer != layer or not self._available(index):
            self._seek(layer)
        tensor, version = self._held[index]
        if not tensor.is_inference() and tensor._version != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(tensor.shape)} of {self.name(layer)} was changed in place after autograd had saved it: by the block (use the "
                "out-of-place operation there), or by a hook that steps weights before all gradients of the layer are known"
            )
        # Let go of it as autograd does after use; the weak reference serves a node that asks twice.
        self._seen[index], self._held[index] = weakref.ref(tensor), None
        return tensor

    def _available(self, index: int) -> bool:
        if self._held[index] is None:
            tensor = self._seen[index]()
            if tensor is None:
                return False
            self._held[index] = (tensor, tensor._version)
        return True

    def _seek(self, layer: int) -> None:
        if self._cursor is None or self._cursor[0] < layer:
            self._wind_late()
        if self._cursor[0] == layer:  # rebuilt already, its tensors let go: evaluate again on s[layer + 1]
            self._evaluate(layer, self.format.decode(self._cursor[2], self.block_dtype))
        while self._cursor[0] > layer:
            self._held = []
            self.rebuild()

    def _wind_late(self) -> None:
        """A gradient came in beside the gate: through a graph of higher order, or a tensor that a hook recorded inside a block."""
        gate = self.gate() if self.gate is not None else None
        if self._pinned is None and gate is None:
            raise RuntimeError(
                "the states of this forward pass have been released; to run backward through it again pass retain_graph=True to the first backward and "
                "hold on to the output. Pipeline schedules that split backward into inputs and weights (zero bubble) let it go: use 1F1B or GPipe"
            )
        self.wind(gate.saved_tensors if self._pinned is None else self._pinned, pin=torch.is_grad_enabled())

    def _evaluate(self, layer: int, view: Tensor) -> Tensor:
        """Block ``layer`` at ``view`` in the forward pass's ambient state; fills the held tensors. Returns the increment."""
        record, block = self.layers[layer], self.blocks[layer]
        held: list[tuple[Tensor, int]] = []

        def pack(t: Tensor) -> None:
            if len(held) >= len(record.slots) or _signature(t) != record.slots[len(held)]:
                self._refuse(layer, len(held), t)
            held.append((t.detach(), 0 if t.is_inference() else t._version))

        with contextlib.ExitStack() as ambient:  # of what is the same as now nothing: each costs as much as a small operator
            ambient.enter_context(rebuilds)
            if record.buffers:
                ambient.enter_context(block.restored(record.buffers, record.before))
            if record.rng is not None:
                ambient.enter_context(self._generators.at(record.rng))
            self._autocast.enter(ambient)
            self._cache.enter(ambient)
            ambient.enter_context(torch.enable_grad())
            if record.slots:
                ambient.enter_context(_saving(pack, _unpack_recomputed, self.name(layer)))
            if record.kept:
                ambient.enter_context(Reuse(record.kept, self.name(layer)))
            x = view.detach().requires_grad_(record.input_needs_grad)
            f = increment(block.call(x, record.args, record.kwargs))[0]
        if len(held) != len(record.slots):
            raise NonDeterministicBlockError(
                f"{self.name(layer)} saved {len(record.slots)} tensors for backward in the forward pass and {len(held)} when evaluated again; {_CAUSES}",
                layer // self.audit.halves,
            )
        self._held_layer, self._held, self._seen = layer, held, [None] * len(held)
        return f.detach()

    def _refuse(self, layer: int, index: int, t: Tensor) -> None:
        slots = self.layers[layer].slots
        expected = "{} {} on {}".format(tuple(slots[index][0]), *slots[index][1:]) if index < len(slots) else f"only {len(slots)} tensors"
        raise NonDeterministicBlockError(
            f"{self.name(layer)}, evaluated again, saved tensor {index} as {tuple(t.shape)} {t.dtype} on {t.device}, the forward pass saved {expected}; {_CAUSES}",
            layer // self.audit.halves,
        )

    def name(self, layer: int) -> str:
        return layer_name(layer, self.audit.halves)


_CAUSES = "likely causes: control flow that depends on random numbers or hidden state, a changed requires_grad flag, another autocast or kernel choice, a weight that parametrize.cached() shares between layers"


_STORE = "keep= counts layers from the last one, so give a number that includes this layer"


@contextlib.contextmanager
def _saving(pack: Callable, unpack: Callable, name: str) -> Iterator[None]:
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():
        raise UnsupportedError(
            "torch.autograd.graph.disable_saved_tensors_hooks is in force, and a reversible stack puts placeholders in place of saved tensors through such hooks: "
            "run forward and backward of the stack outside it, or store all layers with keep=len(blocks)"
        )
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        try:
            yield
        except RuntimeError as e:
            *_, (frame, _) = traceback.walk_tb(e.__traceback__)
            if frame.f_code is not _DISABLE.__wrapped__.__code__:
                raise
            raise UnsupportedError(
                f"{name} disables saved-tensor hooks (torch.func.grad, vjp, jacrev and hessian do), through which its activations are replaced by placeholders: "
                f"use torch.func.jvp there, or store this layer: {_STORE}"
            ) from e


_DISABLE = torch.autograd.graph.disable_saved_tensors_hooks


def _unpack(slot: Slot) -> Tensor:
    if slot.tape is None:
        return slot.held
    return slot.tape.saved(slot.layer, slot.index)


def _unpack_recomputed(_: None) -> Tensor:
    raise UnsupportedError(f"a block differentiates inside its own forward pass and must be stored: {_STORE}")


def increment(out: Any) -> tuple[Any, tuple]:
    """What a block returned: the increment, and the rest."""
    return (out[0], tuple(out[1:])) if isinstance(out, (tuple, list)) and out else (out, ())
