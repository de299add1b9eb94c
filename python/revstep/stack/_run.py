"""One forward pass as an object, so that a stack's own loop and a model's loop over its layers drive the same
code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .._recurrence.ambient import transformed
from .._recurrence.walk import Pair
from ..errors import ConfigError, UnsupportedError
from ..schemes import Coefficients, RowCoefficients
from ..state import StateFormat
from ._arguments import increment
from ._audit import Audit
from ._carries import Offload
from ._fitting import chosen, weigh
from ._members import Members, spread
from ._nodes import Gate, Start, StartCell, Step, StepCell
from ._outside import Outside
from ._report import Report, layer_name
from ._residual import Lookalike
from ._tape import Tape, dispatch_modes


class Pass:
    """A forward pass through the functions of a recurrence: :meth:`step` once for each of them in order, then
    :meth:`end`.

    Args:
        functions: the blocks (for two streams F_0, G_0, F_1, ...).
        fmt: state format; coefficients: one entry a step; halves: steps a layer.
        x: the pair (prev, cur); arguments: those of the first step, looked at for devices and for tensors
            that need a gradient.
        keep: steps at the end whose graphs are kept; budget: bytes for them, in place of a number. checks,
            publish, save_ops: see the stack.
        fit: of the tile "auto", the bytes that one layer's graph may have, and the choices of earlier passes.
        follow: measure what the blocks keep outside of autograd; the report then says it.
        leave_tape: also where no gradient is wanted, with every block evaluated as in training (for
            ``states``).

    Attributes:
        view: the float view of the current state, which the next function reads.
        aux: what each function returned beside its increment.
        taped: steps that will be rebuilt (known, under a budget, once the first layer is through); kept:
            layers that will not.
        differentiated: a tape was asked for; with a budget that holds all graphs there is none in the end.
    """

    def __init__(
        self,
        functions: Sequence[nn.Module],
        fmt: StateFormat,
        coefficients: Sequence[Coefficients | RowCoefficients],
        halves: int,
        x: tuple[Tensor, Tensor],
        arguments: Any,
        keep: int,
        checks: bool | str,
        publish: Callable[[Report | None], None],
        leave_tape: bool = False,
        budget: int | None = None,
        save_ops: Any = None,
        follow: bool = False,
        tile: int | str | None = None,
        offload: bool = False,
        fit: tuple[int, dict] | None = None,
    ):
        self.functions = functions
        self.format = fmt
        self.halves = halves
        self.coefficients = _there(coefficients, x[0].device)
        _refuse_transforms(x)
        devices = [t.device for t in tree_leaves((x, arguments)) if isinstance(t, Tensor)]
        self.audit = Audit(fmt, halves, checks, all(d.type == "cpu" for d in devices), publish)
        self.audit.shape = x[0].shape
        self.audit.coefficients = self.coefficients
        self.done = 0
        self._leave_tape = leave_tape
        self.pair = self._begin(x)
        self._origin = self.prev if not fmt.exact and checks else None
        self._members = _members(functions, save_ops, tile)
        self._repeated = len(set(map(id, functions))) < len(functions)
        wants_grad = torch.is_grad_enabled() and (
            _any_grad(x, arguments) or any(m.trains for m in self._members)
        )
        self.audit.trains = wants_grad
        wanted = (wants_grad or leave_tape) and not any(map(_forgets, coefficients))
        self.taped = len(functions) - keep if wanted else 0
        self.tape = Tape(self._members, fmt, self.view.dtype, devices, self.audit) if self.taped else None
        self.differentiated = self.tape is not None
        if wants_grad and self.tape is None:  # its backward pass will rebuild, and say, nothing
            self.audit.begin(None)
        self._budget = budget
        self._fit = fit
        seen = not leave_tape and not any(m.opaque for m in self._members)
        self._follow = follow and seen
        measured = self.tape is not None and seen and (follow or budget is not None)
        self._offload = Offload(x[0].device) if offload and self.tape is not None else None
        self._outside = Outside((), placeholders=False) if measured else None
        self.aux: list = []
        self.lookalike: Lookalike | None = None
        self._arguments: tuple[Any, bool] = (None, False)

    @property
    def prev(self) -> Tensor:
        """s[k] before step k."""
        return self.pair.states[self.done % 2]

    @property
    def cur(self) -> Tensor:
        """s[k + 1] before step k: the last state."""
        return self.pair.states[1 - self.done % 2]

    @property
    def view(self) -> Tensor:
        return self.pair.views[1 - self.done % 2]

    @view.setter
    def view(self, view: Tensor) -> None:
        self.pair.views[1 - self.done % 2] = view

    def step(self, args: tuple, kwargs: dict, at: Tensor | None = None) -> tuple:
        """Evaluate the next function at ``view`` with these arguments and take its step. Returns what it gave
        beside the increment.

        ``at``: ``view`` as it reaches the function, an alias of it behind nodes that a sharding engine has
        put on the way.
        """
        k = self.done
        c = self.coefficients[self.done]
        pair = self.pair
        i = self.done % 2
        # The step forgets prev (a residual network): with cur in its place the kernels know it.
        if _forgets(c):
            pair.views[i] = pair.views[1 - i]
            pair.states[i] = pair.states[1 - i]
            pair.lend()
            c = Coefficients(c.beta, 0.0, c.gamma)
        cell = StepCell(self.format, c, pair, i)
        cell.guard = self.audit.guard(k, c)
        taped = self.tape is not None and k < self.taped
        if taped and self._fit is not None:
            self._choose_tile(args, kwargs)
        hooks = (
            taped
            and not self._leave_tape
            and (self.view.requires_grad or self._members[k].trains or self._needs_grad(args, kwargs))
        )
        if self._leave_tape:
            self.view = self.view.detach().requires_grad_()
        if at is not None:
            self.view = at  # all that the state's gradient is made of passes through those nodes
        x = self.view
        grad = torch.enable_grad() if self._leave_tape else nullcontext()
        measure = self._budget is not None
        with (
            grad,
            self.tape.recording(k, c, x, args, kwargs, hooks, measure) if taped else nullcontext() as record,
        ):
            with self._around(k, hooks and (measure or self._follow)):
                if taped:
                    record.mode = dispatch_modes() > 0
                out = self.functions[k](x, *args, **kwargs)
            f, aux = increment(out)
            del out
            if taped and not self._repeated:
                _forget_casts()
            if taped and aux:
                self.tape.returned(record, aux)
        self._check_increment(f, k)
        if self.lookalike is not None:
            self.lookalike.saw(x, f)
        pair.views[i] = Step.apply(pair.views[i], self.view, f.detach() if self._leave_tape else f, cell)
        del f  # what is still alive below is kept by somebody else
        if taped:
            record.carry = self._offload(cell.carry) if self._offload else cell.carry
        self.audit.wrote(cell.stats)
        self.aux.append(aux)
        self.done += 1
        if measure and taped and self.done % self.halves == 0:
            self._spend()
        if self.tape is not None and self.done == self.taped and not self._leave_tape:
            self._gate()  # before anything else reads the view
        return aux

    def end(self, readout: str) -> Tensor | tuple[Tensor, Tensor]:
        """Close the pass: the last state as the readout wants it."""
        self.audit.read()
        v_prev, v_cur = self.pair.views[self.done % 2], self.view
        # NaN everywhere, with a gradient that is NaN too, so that a GradScaler skips the step.
        if self.audit.poisoned:
            v_prev, v_cur = v_prev * float("nan"), v_cur * float("nan")
        if readout == "pair":
            return v_prev, v_cur
        return v_cur if readout == "last" else (v_prev + v_cur) * 0.5

    @property
    def kept(self) -> int:
        return len(self.functions) // self.halves - self.taped // self.halves

    # ---- parts ----

    def _choose_tile(self, args: tuple, kwargs: dict) -> None:
        """Before the first step: whether tokenwise halves are taken by tiles in this pass."""
        (budget, known), self._fit = self._fit, None
        x = self.view
        kind = x.device.type
        casts = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = tuple(x.shape), x.dtype, casts, budget
        if key not in known:
            if any(m.opaque for m in self._members):
                raise UnsupportedError(
                    "tile is 'auto', and blocks are compiled or an engine gathers their weights, where what"
                    " one layer saves is not seen: expected a number of tokens"
                )
            layer = self.functions[: self.halves]
            known[key] = chosen(weigh(layer, x, args, kwargs, self.tape.generators), budget)
            _forget_casts()
        if known[key]:
            self._budget = None  # a layer that is kept would be whole
            for m in self._members:
                m.tile = known[key] if m.tokenwise else 0

    def _spend(self) -> None:
        """The first layer that has a graph has been measured: keep as many as the budget holds."""
        each = self.tape.measured()
        layers = len(self.functions) // self.halves
        first = self.done // self.halves - 1
        if not each:
            return
        stored = self._budget // each >= layers - first
        self.tape.settle(stored)
        # What blocks keep by themselves, each layer keeps, stored or rebuilt. It is seen
        # once the placeholders have let go.
        outside = 0 if stored else self._bytes_outside() or 0
        kept = max(0, self._budget - outside * layers) // each
        self._budget = None
        self.taped = 0 if stored else (layers - kept) * self.halves
        if stored:
            self.tape = None
            # No backward of this pass will say anything: the verdict on an earlier one is not this one's.
            self.audit.begin(None)

    def _begin(self, x: tuple[Tensor, Tensor]) -> Pair:
        views, states = [], []
        for t in x if x[0] is not x[1] else x[:1]:
            cell = StartCell(self.format)
            views.append(Start.apply(t, cell))
            states.append(cell.state)
            self.audit.wrote(cell.stats)
        if len(views) == 1:
            views, states = views * 2, states * 2
            self.audit.wrote(cell.stats)
        # A float state is what blocks read, and ``states`` hands all of them out.
        return Pair(states, self.format.frac_bits, views, reuse=self.format.exact and not self._leave_tape)

    def _gate(self) -> None:
        tape = self.tape
        self.audit.read()
        tape.finish()
        saved = (self.prev, self.cur) if self._origin is None else (self.prev, self.cur, self._origin)
        self.pair.lend()
        self.audit.layers_kept = self.kept
        self.audit.bytes_outside = self._bytes_outside() if self._follow else None
        self._outside = None
        self.audit.bytes_saved = (
            sum(t.numel() * t.element_size() for t in saved) + tape.nbytes() + 8 * (len(tape.records) + 2)
        )
        leaves, spec = tree_flatten(self.aux)
        through = [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.requires_grad]
        alias = self.format.view_dtype(self.view.dtype) is None
        views = self.pair.views
        i = self.done % 2
        views[i], views[1 - i], *rest = Gate.apply(
            views[i], views[1 - i], tape, saved, alias, *(leaves[n] for n in through)
        )
        for n, t in zip(through, rest):
            leaves[n] = t
        self.aux = tree_unflatten(leaves, spec)

    def _around(self, k: int, follow: bool) -> AbstractContextManager:
        if not follow or self._outside is None:
            return nullcontext()
        self._outside.add_leaves(self._members[k].tensors())
        return self._outside

    def _bytes_outside(self) -> int | None:
        """Bytes that the blocks so far keep beside what autograd saves; None where nobody looked."""
        if self._outside is None:
            return None
        outputs = [one.out for r in self.tape.records for one in r.outputs.values()]
        return self._outside.nbytes((self.aux, outputs))

    def _needs_grad(self, args: tuple, kwargs: dict) -> bool:
        key, answer = self._arguments
        if key is None or key[0] is not args or key[1] is not kwargs:
            answer = _any_grad(args, kwargs)
            self._arguments = (args, kwargs), answer
        return answer

    def _check_increment(self, f: Any, k: int) -> None:
        if spread(f):
            raise UnsupportedError(
                f"{layer_name(k, self.halves)} returned a DTensor, expected this process's plain tensor:"
                " leave use_local_output=True in the plan of its last module, or return"
                " f.redistribute(...).to_local() in the layout of the block's input"
            )
        if not isinstance(f, Tensor) or f.shape != self.view.shape:
            got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
            raise ConfigError(
                f"{layer_name(k, self.halves)} returned {got}, expected the increment f(x), a tensor of shape"
                f" {tuple(self.view.shape)}, or a tuple that begins with it"
            )


def _there(
    coefficients: Sequence[Coefficients | RowCoefficients], device: torch.device
) -> list[Coefficients | RowCoefficients]:
    """The coefficients with their choices of rows on ``device``: one copy for all steps, from page-locked
    memory to a GPU, so that the host goes on meanwhile.
    """
    away = [
        k for k, c in enumerate(coefficients) if not isinstance(c, Coefficients) and c.choice.device != device
    ]
    there = list(coefficients)
    if away:
        choices = torch.stack([coefficients[k].choice for k in away])
        if device.type == "cuda":
            choices = choices.pin_memory()
        for k, choice in zip(away, choices.to(device, non_blocking=True)):
            there[k] = there[k]._replace(choice=choice)
    return there


def _forget_casts() -> None:
    """Casts of weights, which autocast keeps for the next use until its context ends: half as many bytes as
    there are weights, at the end of the forward pass. A block's weights have no next use there.
    """
    if torch.is_autocast_cache_enabled() and torch._C._is_any_autocast_enabled():
        torch.clear_autocast_cache()


def _forgets(c: Coefficients | RowCoefficients) -> bool:
    return isinstance(c, Coefficients) and c.alpha == 0.0


def _any_grad(*trees: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(trees))


def _members(blocks: Sequence[nn.Module], save_ops: Any, tile: int | str | None) -> list[Members]:
    distinct = {id(b): b for b in blocks}  # a module used at several depths is walked once
    members = {key: Members(b, save_ops, tile) for key, b in distinct.items()}
    return [members[id(b)] for b in blocks]


def _refuse_transforms(x: tuple[Tensor, Tensor]) -> None:
    if transformed(x):
        raise UnsupportedError(
            "a reversible stack cannot rebuild its states under torch.func transforms (grad, vmap, jvp) or in"
            " forward mode: use torch.autograd.grad"
        )
