"""The tape: what a forward pass leaves behind for backward, and how backward rebuilds the rest.

Per step it keeps a checksum, the carries of the step, where the block draws random numbers the generator
state, and outputs of chosen operators. The tensors autograd would save inside a block are replaced by
placeholders; when backward asks for the first of them, the block is evaluated once more on the rebuilt state.
That one evaluation yields the saved tensors *and* the increment that takes the next state down: cur, next ->
prev.

Step k maps the states ``s[k], s[k+1] -> s[k+2]`` and evaluates block k at ``s[k+1]``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._recurrence.ambient import same_states
from .._recurrence.walk import Pair
from ..errors import RevstepError, UnsupportedError
from ..schemes._base import Coefficients, RowCoefficients
from ..state import StateFormat
from . import _arguments, _selection
from ._arguments import Detached, fresh, increment, refuse_iterators
from ._audit import Audit
from ._carries import carry_of
from ._members import Members
from ._nodes import STORE, Again, Slot, StepRecord, compare_outputs, refuse, saving, unpack, unpack_recomputed
from ._report import layer_name
from ._saved import Looker, addresses, operators
from ._selection import KeepOutputs, ReuseOutputs, storages
from ._surroundings import Around
from ._tiles import Call, Evaluation, evaluating

_seeds = itertools.count()
#: How many dispatch modes are in force. Within a block's evaluation a compiler may add its own.
dispatch_modes = torch._C._len_torch_dispatch_stack


class Tape:
    """The records of one forward pass: filled by :meth:`recording`, wound back by the gate node."""

    def __init__(
        self,
        blocks: Sequence[Members],
        fmt: StateFormat,
        block_dtype: torch.dtype,
        devices: Sequence[torch.device],
        audit: Audit,
    ):
        self.blocks = blocks
        self.format = fmt
        self.block_dtype = block_dtype
        self.records: list[StepRecord] = []
        self.audit = audit
        self.gate: Callable[[], Any] | None = None  # weak reference to the gate node of this pass
        self._detached = Detached()
        self._around = Around(devices)
        self.generators = self._around.generators
        self._looker = Looker(audit.checks, fmt.exact, 1_000_003 * next(_seeds))
        # (k, s[k], its view): what the pair's block has been evaluated at
        self._evaluated: tuple[int, Tensor, Tensor] | None = None
        self._complete = False
        # The states below step ``_at`` are not rebuilt yet: the pair holds s[_at] and s[_at + 1]. None: no
        # backward pass is under way.
        self._at: int | None = None
        self._pair: Pair | None = None
        self._pinned: tuple[Tensor, ...] | None = None
        self._forget_held()
        # By step: the gradients of tokenwise halves that are known before the block is evaluated again.
        self._wanted: dict[int, dict[int, Tensor]] = {}
        self._measured: list[Slot] = []
        # Addresses of what the measured blocks did not make: weights, buffers, arguments.
        self._foreign: set[int] = set()
        self._releases = False

    # ---- forward ----

    @contextmanager
    def recording(
        self,
        step: int,
        coefficients: Coefficients | RowCoefficients,
        x: Tensor,
        args: tuple,
        kwargs: dict,
        hooks: bool,
        measure: bool = False,
    ) -> Iterator[StepRecord]:
        """Around one evaluation of block ``step`` on the view ``x``; ``hooks`` replaces its saved tensors by
        placeholders.

        ``measure``: the placeholders keep the tensors until :meth:`measured` has said what they are.
        """
        block = self.blocks[step]
        rng = self.generators.get()
        refuse_iterators(self.name(step), args, kwargs)
        record = StepRecord(coefficients, self._detached(args), self._detached(kwargs))
        record.input_needs_grad = x.requires_grad
        record.before = block.iterated()
        x_version = x._version
        versions, registered = block.versions(), block.registered()
        leaves = addresses(block.tensors()) if hooks and self._looker.checks else set()

        def pack(t: Tensor) -> Slot:
            if measure and not record.slots:
                tensors = (a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor))
                self._foreign.update(storages([*block.tensors(), *tensors]))
            record.slots.append(self._looker.look(t, len(record.slots), leaves))
            slot = Slot(self, step, len(record.slots) - 1)
            if measure:
                slot.held = t.detach()
                self._measured.append(slot)
            return slot

        policy = block.policy if hooks else None
        chosen = KeepOutputs(policy, self.generators, self._looker, leaves) if policy else nullcontext()
        record.tile = 0 if measure else block.tile
        tiled = Evaluation(self, step, block.tokenwise, block.tile) if record.tile else None
        with (
            saving(pack, unpack, self.name(step), block.opaque) if hooks else nullcontext(),
            chosen,
            evaluating(tiled) if tiled else nullcontext(),
        ):
            yield record
        if policy is not None:
            record.outputs = chosen.outputs
            record.leaves = leaves
        if x._version != x_version:
            raise UnsupportedError(
                f"{self.name(step)} changed its input in place; the step still needs it: let the block work"
                " on a copy"
            )
        record.buffers = block.changed(versions)
        record.registered = registered
        record.modules = block.modules()
        record.flags = block.flags()
        if not same_states(rng, self.generators.get()):
            record.rng = rng
        record.copies = record.fingerprints(self._looker)
        self.records.append(record)

    def returned(self, record: StepRecord, aux: Any) -> None:
        """What the block returned beside its increment, which the re-evaluation must return again."""
        returned = tree_leaves(aux) if record.slots else []
        record.aux = [self._looker.whole(t) for t in returned if isinstance(t, Tensor)]

    def measured(self) -> int:
        """Bytes of the graphs of the blocks measured so far: storages that only their saved tensors keep
        alive.
        """
        found = storages(slot.held for slot in self._measured)
        return sum(nbytes for address, nbytes in found.items() if address not in self._foreign)

    def settle(self, stored: bool) -> None:
        """The measured blocks keep their graphs after all, and this tape is not needed (``stored``); or they
        are to be rebuilt as the others.
        """
        for slot in self._measured:
            if stored:
                slot.tape = None
            else:
                slot.held = None
        self._measured = []

    def finish(self) -> None:
        """The forward pass is over: from here on placeholders may be asked for."""
        self._complete = True
        self._detached.clear()

    def nbytes(self) -> int:
        """Bytes kept per step beside the checksums: carries, generator records, buffers, outputs of chosen
        operators.
        """
        return sum(record.nbytes() for record in self.records)

    # ---- backward ----

    def wind(self, last: Sequence[Tensor], pin: bool = False, release: bool = False) -> None:
        """Start a backward pass from the last two states. ``pin`` keeps them for graphs of higher order,
        which bypass the gate.

        ``release``: this is the last one, so what a step keeps is let go as soon as the pass has gone by.
        """
        self._releases = release
        if pin:
            self._pinned = tuple(last)
        self.rewind(*last, own=release, reuse=self.format.exact)
        torch.autograd.Variable._execution_engine.queue_callback(self._backward_done)

    def rewind(
        self, prev: Tensor, cur: Tensor, origin: Tensor | None = None, own: bool = False, reuse: bool = False
    ) -> None:
        """Put the pair behind the last step; ``origin``: the start, to measure a float reconstruction by."""
        n = self._at = len(self.records)
        states = (cur, prev) if n % 2 else (prev, cur)
        self._pair = Pair(states, self.format.frac_bits, own=own and reuse, reuse=reuse)
        self._evaluated = None
        self._forget_held()
        self.audit.begin(origin)
        self._around.compare(self.records, self.blocks, self._refuse_replaced)
        for k, state in enumerate((prev, cur), start=len(self.records)):
            self.audit.unchanged(k, state)

    def _refuse_replaced(self, step: int) -> None:
        modules = self.records[step].modules
        _arguments.replaced_module(self.name(step), step // self.audit.halves, self.blocks[step], modules)

    def _leave(self) -> None:
        """The block at the pair is done with: its view and kept outputs must still be what they were."""
        if self._evaluated is not None and self._looker.checks and self.format.exact:
            self.audit.read_view(*self._evaluated)
            step = self._evaluated[0] - 1
            if self.records[step].outputs:
                outputs = _selection.fingerprints(self.records[step].outputs, self._looker)
                self.audit.same_copies(self.name(step), step, *outputs)
        self._evaluated = None

    def _backward_done(self) -> None:
        self._leave()
        self._at = None
        self._pair = None
        self._forget_held()
        self.audit.end()

    def _forget_held(self) -> None:
        """The saved tensors of the last evaluation are let go: the next placeholder evaluates again."""
        self._held_step, self._held = -1, []
        self._calls: list[Call] = []

    def rebuild(self) -> tuple[Tensor, Tensor]:
        """One step down: returns the pair's states ``s[k], s[k+1]``."""
        k = self._at - 1
        pair = self._pair
        record = self.records[k]
        # s[k] lies in slot k % 2, so s[k + 1], at which block k was evaluated, in the other one.
        i = k % 2
        cur = pair.states[1 - i]
        view = pair.views[1 - i]
        self._leave()  # before the pair moves: it still holds what the last block was evaluated at
        if view is None:
            view = self.format.decode(cur, self.block_dtype)
        f = self._evaluate(k, view)
        self._evaluated = (k + 1, cur, view)
        pair.views[1 - i] = None
        view_dtype = self.format.view_dtype(self.block_dtype)
        if isinstance(record.coefficients, RowCoefficients):  # the block has run since they were compared
            self._compare_copies(k)
        stats = pair.undo(i, record.coefficients, f, carry_of(self.records, k), view_dtype)
        prev = pair.states[i]
        self._at = k
        if view_dtype is None:
            pair.views[i] = prev
        if self._releases:
            record.carry = None
            if k + 1 < len(self.records):
                self.records[k + 1].outputs = {}  # only the step at the pair can be asked for once more
        self.audit.rebuilt(k, prev, stats)
        if self._releases and not k:  # nothing reads the first state again
            pair.states[i] = pair.views[i] = None
        return prev, cur

    def saved(self, step: int, index: int) -> Tensor:
        """The tensor behind a placeholder, re-evaluating block ``step`` if that has not been done yet."""
        if not self._complete:
            what = "differentiates inside its own forward pass and must be stored"
            raise UnsupportedError(f"{self.name(step)} {what}: {STORE}")
        if self._held_step != step or self._held[index] is None:
            self._seek(step)
        tensor, version = self._held[index]
        if not tensor.is_inference() and tensor._version != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(tensor.shape)} of {self.name(step)} was changed in place after"
                " autograd had saved it: by the block (use the out-of-place operation there), or by a hook"
                " that steps weights before all gradients of the layer are known"
            )
        # Let go of it as autograd does after use. For a node that asks twice the block is evaluated again.
        self._held[index] = None
        return tensor

    def _seek(self, step: int) -> None:
        if self._at is None or self._at < step:
            self._wind_late()
        if self._at == step:  # rebuilt already, its tensors let go: evaluate again on s[step + 1]
            self._leave()
            self.audit.still(step + 1, state := self._pair.states[(step + 1) % 2])
            view = self.format.decode(state, self.block_dtype)
            self._evaluate(step, view)
            self._evaluated = step + 1, state, view
        while self._at > step:
            self._held = []
            self.rebuild()

    def _wind_late(self) -> None:
        """A gradient came in beside the gate: through a graph of higher order, or a tensor that a hook
        recorded inside a block.
        """
        gate = self.gate() if self.gate is not None else None
        if self._pinned is None and gate is None:
            raise RuntimeError(
                "the states of this forward pass have been released; to run backward through it again pass"
                " retain_graph=True to the first backward and hold on to the output. Pipeline schedules that"
                " split backward into inputs and weights (zero bubble) let it go: use 1F1B or GPipe"
            )
        self.wind(gate.saved_tensors if self._pinned is None else self._pinned, pin=torch.is_grad_enabled())

    def _evaluate(self, step: int, view: Tensor) -> Tensor:
        """Block ``step`` at ``view`` in the forward pass's ambient state; fills the held tensors. Returns
        the increment.
        """
        record = self.records[step]
        block = self.blocks[step]
        name = self.name(step)
        self._compare_copies(step)
        again = Again(record, step, block, self._looker, self.audit)
        layer = step // self.audit.halves
        # Entered is only what differs from what is in force now: entering costs as much as a small operator.
        calls: list[Call] = []
        with ExitStack() as ambient:
            self._around.enter(ambient, step, record, block)
            if record.slots:
                ambient.enter_context(saving(again.pack, unpack_recomputed, name, block.opaque))
            if record.tile:
                calls = ambient.enter_context(self._by_tiles(step, record, again)).calls
            # without outputs it is a mode and nothing else
            if record.outputs or (record.mode and not dispatch_modes()):
                ambient.enter_context(ReuseOutputs(record.outputs, name, self._looker, record.leaves, layer))
            x = view.detach().requires_grad_(record.input_needs_grad)
            args, kwargs = fresh(record.args), fresh(record.kwargs)
            try:
                out = block.call(x, args, kwargs)
            except Exception as error:
                if isinstance(error, RevstepError) or _arguments.out_of_memory(error):
                    raise
                raise _arguments.raised(name, layer, error, again.differences) from error
        f, aux = increment(out)
        if again.differences or len(again.held) != len(record.slots):
            used = operators(out, again.asked) if record.slots else {}
            refuse(record, block, step, self.audit, again.differences, len(again.held), used)
        if record.slots and self._looker.checks and not self.audit.poisoned:
            compare_outputs(record, aux, step, self.audit, self._looker)
        self._held_step = step
        self._held = again.held
        self._calls = calls
        return f.detach()

    # ---- tokenwise halves, taken by tiles ----

    def _by_tiles(self, step: int, record: StepRecord, again: Again) -> AbstractContextManager[Evaluation]:
        """Around the re-evaluation of a block that was taken by tiles in the forward pass."""
        hooks = again.looking if record.slots else nullcontext
        wanted = self._wanted.get(step, {})
        return evaluating(
            Evaluation(
                self, step, self.blocks[step].tokenwise, record.tile, wanted, hooks, self.generators.get
            )
        )

    def differentiate(self, call: Call, g: Tensor, read: Callable[[], Tensor]) -> list[Tensor | None]:
        """Gradients of a tokenwise half's input and weights. ``read`` asks for its input, and so for the
        re-evaluation of the block, which finds ``g`` known if nothing has asked before.
        """
        self._wanted[call.step] = {call.number: g}
        try:
            x = read()
        finally:
            del self._wanted[call.step]
        made = self._calls[call.number]
        if made.gradients is None:
            record = self.records[call.step]
            with ExitStack() as ambient:
                self._around.enter(ambient, call.step, record, self.blocks[call.step])
                if record.rng is not None:
                    ambient.enter_context(self.generators.at(made.start))
                made.again(x, g)
        found, made.gradients = made.gradients, None
        return found

    def _compare_copies(self, step: int) -> None:
        record = self.records[step]
        self.audit.same_copies(self.name(step), step, record.copies, record.fingerprints(self._looker))

    def name(self, step: int) -> str:
        return layer_name(step, self.audit.halves)
