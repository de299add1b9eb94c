"""What a stack puts into the autograd graph: the three nodes around its blocks, the placeholders for what
autograd saves inside them, and the record of each step for its re-evaluation.
"""

from __future__ import annotations

import contextlib
import functools
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._recurrence.walk import AnyCoefficients, Pair, below_autograd, gradients
from ..errors import UnsupportedError
from ..schemes._base import Coefficients, RowCoefficients
from ..state import StateFormat
from . import _arguments, _selection
from ._audit import Audit
from ._carries import Offloaded
from ._members import Members
from ._report import layer_name
from ._saved import Difference, Look, Looker, Token, address, compare, naming
from ._surroundings import ModuleRecord

# ------------------------------------------------------------------------------------------------------------
# What a forward pass keeps of a step, and what its re-evaluation is compared with.


@dataclass(slots=True)
class StepRecord:
    """What re-evaluating one block needs beside its input."""

    coefficients: Coefficients | RowCoefficients
    args: tuple
    kwargs: dict
    carry: Tensor | Offloaded | None = None  # known once the step has been taken
    rng: list[Tensor] | None = None
    outputs: dict = field(default_factory=dict)  # of operators, see :mod:`._selection`
    leaves: set[int] = field(default_factory=set)  # where some are: storages of parameters and buffers
    buffers: list[int] = field(default_factory=list)
    registered: Sequence[Tensor | None] = ()  # all buffers, as the evaluation found them
    # Buffers as the evaluation found them, where its result depends on them.
    before: dict[int, Tensor] = field(default_factory=dict)
    slots: list[Look] = field(default_factory=list)
    aux: list = field(default_factory=list)  # fingerprints of what the block returned beside its increment
    copies: list = field(default_factory=list)  # fingerprints of the generator record and the choice of rows
    mode: bool = False  # a dispatch mode was in force, under which some functions of torch take another way
    modules: Sequence[ModuleRecord] = ()
    flags: tuple[bool, ...] = ()  # requires_grad of the parameters
    input_needs_grad: bool = False
    tile: int = 0  # tokens of a tile of its tokenwise halves; 0: evaluated whole

    def fingerprints(self, looker: Looker) -> list:
        """Of what is kept of the step and no checksum of a state answers for."""
        choice = () if isinstance(self.coefficients, Coefficients) else (self.coefficients.choice,)
        return [looker.whole(t) for t in (*(self.rng or ()), *self.before.values(), *choice)]

    def nbytes(self) -> int:
        """Bytes kept beside the checksum: carry, generator record, buffers, outputs of chosen operators; not
        carries in host memory.
        """
        kept = (*(self.rng or ()), *self.before.values(), self.carry)
        tensors = (t for t in kept if isinstance(t, Tensor))
        return _selection.nbytes(self.outputs) + sum(t.numel() * t.element_size() for t in tensors)


def compare_outputs(record: StepRecord, aux: Any, step: int, audit: Audit, looker: Looker) -> None:
    """What block ``step`` returned beside its increment, against what it returned in the forward pass.

    Raises:
        NonDeterministicBlockError: other tensors than then, at once or when the audit reads them.
    """
    name = layer_name(step, audit.halves)
    layer = step // audit.halves
    now = [looker.whole(t) for t in tree_leaves(aux) if isinstance(t, Tensor)]
    if len(now) != len(record.aux):
        raise _arguments.changed_count(name, layer, len(record.aux), len(now))
    for i, (before, after) in enumerate(zip(record.aux, now)):
        if isinstance(after, Tensor):  # on a device: compared when the pass waits for it anyway
            audit.compare_later(step, -1 - i, before, after)
        elif before != after:
            raise _arguments.changed_aux(name, layer, i)


def refuse(
    record: StepRecord,
    block: Members,
    step: int,
    audit: Audit,
    differences: Sequence[Difference],
    count: int,
    found: dict,
) -> None:
    """Raise for the first saved tensor that differs, unless all that do are free to.

    Args:
        differences: of the saved tensors, in the order in which autograd saved them.
        count: how many it saved.
        found: saved tensor -> operator that reads it; an operator may be free to read other bits.
    """
    name = layer_name(step, audit.halves)
    layer = step // audit.halves
    free = {index for index, operator in found.items() if operator.free}
    real = [d for d in differences if d.kind == "signature" or d.index not in free]
    if audit.poisoned:  # the values are those of nothing; the work must still be the same
        real = [d for d in real if d.kind == "signature"]
    if real:
        audit.settle()  # where checksums are deferred, a state that differs is the earlier cause
        raise _arguments.differs(name, layer, real[0], len(real), found, block, record)
    if count != len(record.slots):
        raise _arguments.fewer(name, layer, len(record.slots), count)


# ------------------------------------------------------------------------------------------------------------
# Placeholders for the tensors that autograd saves inside a block, put there and asked for through saved-
# tensor hooks.

STORE = "keep= counts layers from the last one, so give a number that includes this layer"


class Slot:
    """Placeholder for one tensor that autograd saved inside a block; while a
    block is measured, with the tensor.
    """

    __slots__ = ("held", "index", "step", "tape")

    def __init__(self, tape: Any, step: int, index: int):
        self.tape = tape
        self.step = step
        self.index = index
        self.held: Tensor | None = None


@contextlib.contextmanager
def saving(pack: Callable, unpack: Callable, name: str, compiled: bool = False) -> Iterator[None]:
    """Inside, ``pack`` and ``unpack`` stand for what autograd saves.

    Args:
        pack: tensor -> placeholder.
        unpack: placeholder -> tensor.
        name: of the layer, for errors.
        compiled: the block is, so that dynamo watches every frame beneath its call and would trace these two.
    """
    if compiled:
        from ..ops._untraced import call

        pack, unpack = functools.partial(call, pack), functools.partial(call, unpack)
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():
        raise UnsupportedError(
            "torch.autograd.graph.disable_saved_tensors_hooks is in force, and a reversible stack puts "
            "placeholders in place of saved tensors through such hooks: run forward and backward of the "
            "stack outside it, or store all layers with keep=len(blocks)"
        )
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        try:
            yield
        except RuntimeError as e:
            *_, (frame, _) = traceback.walk_tb(e.__traceback__)
            if frame.f_code is not _DISABLE.__wrapped__.__code__:
                raise
            raise UnsupportedError(
                f"{name} disables saved-tensor hooks (torch.func.grad, vjp, jacrev and hessian do), through "
                "which its activations are replaced by placeholders: use torch.func.jvp there, or store this "
                f"layer: {STORE}"
            ) from e


_DISABLE = torch.autograd.graph.disable_saved_tensors_hooks


class Again:
    """What a re-evaluation saves, held and compared with what the forward pass saved.

    Attributes:
        held: (saved tensor, its version) in order; None for those of a tile, whose graph holds them.
        asked: which of them a graph asks for, see :class:`Token`.
        differences: those that are not what they were.
    """

    def __init__(self, record: StepRecord, step: int, block: Members, looker: Looker, audit: Audit):
        self.record = record
        self.step = step
        self.looker = looker
        self.audit = audit
        self.held: list[tuple[Tensor, int] | None] = []
        self.asked: list[int] = []
        self.differences: list[Difference] = []
        self._moved = {address(block.buffers[i]) for i in record.buffers} if looker.checks else set()
        self._unread = self._moved & block.silent() if self._moved else set()

    def pack(self, t: Tensor) -> Token:
        """In place of a saved tensor."""
        self._compare(t)
        self.held.append((t.detach(), 0 if t.is_inference() else t._version))
        return Token(len(self.held) - 1, self.held[-1][0], self.asked)

    def looking(self) -> contextlib.AbstractContextManager:
        """Around the tiles of a tokenwise half, which are differentiated at once."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack_of_tile, _itself)

    def _pack_of_tile(self, t: Tensor) -> Tensor:
        self._compare(t)
        self.held.append(None)
        return t.detach()

    def _compare(self, t: Tensor) -> None:
        k = len(self.held)
        before = self.record.slots[k] if k < len(self.record.slots) else None
        now = self.looker.look_again(t, k, before)
        different = compare(k, before, now, self._moved, self._unread)
        if different is not None:
            self.differences.append(different)
        elif isinstance(now.bits, Tensor):
            self.audit.compare_later(self.step, k, before.bits, now.bits)


def _itself(t: Tensor) -> Tensor:
    return t


def unpack(slot: Slot) -> Tensor:
    if naming.active:
        raise RuntimeError("a placeholder of another graph")
    if slot.tape is None:
        return slot.held
    return slot.tape.saved(slot.step, slot.index)


def unpack_recomputed(token: Token) -> Tensor:
    if naming.active:
        token.asked.append(token.index)
        return token.held
    raise UnsupportedError(f"a block differentiates inside its own forward pass and must be stored: {STORE}")


# ------------------------------------------------------------------------------------------------------------
# The three autograd nodes around the blocks: start, step, gate. None of them saves an activation per layer.
#
# The blocks' own graphs are the ordinary autograd graphs (their saved tensors are placeholders, see
# :mod:`._tape`), so gradients are those of autograd through the recurrence, in autograd's own order, and
# parameter gradients appear layer by layer. Rounding to the state grid is the identity in backward
# (straight-through).


class StartCell:
    """Carries the state out of :class:`Start` beside the autograd graph."""

    __slots__ = ("format", "state", "stats")

    def __init__(self, fmt: StateFormat):
        self.format = fmt


class StepCell:
    """One step's inputs and outputs that are not differentiable: the pair and the slot that it moves, carry,
    statistics.

    ``guard``: called before backward uses the coefficients; raises where they are no longer what they were.
    """

    __slots__ = ("carry", "coefficients", "format", "guard", "pair", "slot", "stats")

    def __init__(self, fmt: StateFormat, coefficients: AnyCoefficients, pair: Pair, slot: int):
        self.format = fmt
        self.coefficients = coefficients
        self.pair = pair
        self.slot = slot
        self.guard: Callable[[], None] | None = None


class Start(torch.autograd.Function):
    """x -> its float view on the state grid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cell: StartCell) -> Tensor:
        with below_autograd():
            view, state, cell.stats = cell.format.encode(x)
        cell.state = state.detach()
        return view

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return g, None


class Step(torch.autograd.Function):
    """(prev, cur, f) -> next, as float views: g_prev = alpha g, g_cur = beta g, g_f = gamma g."""

    @staticmethod
    def forward(ctx: Any, prev: Tensor, cur: Tensor, f: Tensor, cell: StepCell) -> Tensor:
        fmt, pair, i = cell.format, cell.pair, cell.slot
        ctx.coefficients = cell.coefficients
        ctx.value_dtype = f.dtype
        ctx.guard = cell.guard
        # A step that no loss depends on leaves its block without a gradient, not with zeros.
        ctx.set_materialize_grads(False)
        view_dtype = fmt.view_dtype(cur.dtype)
        cell.carry, cell.stats = pair.take(i, cell.coefficients, f, view_dtype)
        if view_dtype is not None:
            return pair.views[i]
        # A float state is its own view, and what is returned gets a graph.
        state, pair.states[i] = (pair.states[i], pair.states[i].detach())
        return state

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple:
        if g is None:
            return None, None, None, None
        if ctx.guard is not None:
            ctx.guard()
        return (*gradients(g, ctx.coefficients, ctx.needs_input_grad, ctx.value_dtype), None)


class Gate(torch.autograd.Function):
    """Identity on the float views of the last two taped states, and on what blocks returned beside their
    increments; saves those states, and in backward hands them to the tape.

    Gradients into the taped blocks pass through here first, so the tape is wound before a block asks it;
    tensors that left a block by another way (a hook that recorded them) find the node through the tape
    instead. Saving them the ordinary way makes retain_graph, saved-tensor hooks and version checks mean what
    they always mean.
    """

    @staticmethod
    def forward(
        ctx: Any, prev: Tensor, cur: Tensor, tape: Any, saved: tuple[Tensor, ...], alias: bool, *aux: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.tape = tape
        tape.gate = weakref.ref(ctx)
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        # A float state is its own view: hand out a copy, so that an in-place operation on the output is
        # harmless.
        return (
            *((prev.clone(), cur.clone()) if alias else (prev.detach(), cur.detach())),
            *(t.detach() for t in aux),
        )

    @staticmethod
    def backward(ctx: Any, g_prev: Tensor | None, g_cur: Tensor | None, *g_aux: Tensor | None) -> tuple:
        pin = torch.is_grad_enabled()
        # The engine frees this node's states after a backward without retain_graph: nothing can wind the tape
        # again then.
        ctx.tape.wind(
            ctx.saved_tensors,
            pin,
            release=not pin and not torch._C._autograd._get_current_graph_task_keep_graph(),
        )
        return g_prev, g_cur, None, None, None, *g_aux
