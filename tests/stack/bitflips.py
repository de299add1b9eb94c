"""Single bits flipped in memory, at any moment from the end of a forward pass to the end of its backward: what becomes of them.

A draw is one pass of a small stack in which one bit of one victim is flipped behind torch's back. Its outcome is one of :data:`OUTCOMES`: the
stack reported it, the gradients are still those of the clean pass to the bit, or neither, and then it was silent. All is drawn from a seed.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from stacks import bf16, same, stack
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import revstep
from revstep.stack import tape as tape_module
from revstep.stack.replay import rebuilding
from revstep.stack.tape import Tape

OUTCOMES = ("reported", "same", "silent")
#: What the library keeps from the forward pass; what backward rebuilds; what is the caller's.
KEPT = ("state", "carry", "checksum", "generator", "choice", "copy", "output")
REBUILT = ("rebuilt state", "rebuilt view")
CALLERS = ("weight", "buffer", "argument")
#: Between the passes; right after an inverse step; inside a re-evaluation; when backward asks for a saved tensor.
MOMENTS = ("before", "between", "rebuilt", "evaluating", "asked")
MM = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Block(nn.Module):
    """An MLP behind a gate that may be zero, if wanted after attention under a mask. ``aux``: a loss beside the increment."""

    def __init__(self, width: int, gate: float, dropout: float, attend: bool, aux: bool, spectral: bool):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width, bias=False) if attend else None
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=False)
        if spectral:
            self.up = spectral_norm(self.up)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width))
        self.gate, self.dropout, self.aux = nn.Parameter(torch.tensor(gate)), dropout, aux

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        h = self.norm(x)
        if self.qkv is not None:
            q, k, v = self.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
            mask = mask if mask is None else mask.to(q.dtype)
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        if rebuilding():
            watch.reached("evaluating")
        else:
            watch.recorded.append(h)
        h = self.down(F.gelu(self.up(F.dropout(h, self.dropout)))) * self.scale
        y = F.dropout(h, self.dropout) * self.gate
        return (y, h.square().mean()) if self.aux else y


class Shift(nn.Module):
    """A learned shift: it saves nothing, so backward never asks for it."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand_as(x)


class Curve(nn.Module):
    """Element by element and behind a gate: a change of one element is seen in no other one, and not in a state where the gate is zero."""

    def __init__(self, gate: float):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * x.tanh()


@dataclass(frozen=True)
class Case:
    """A stack and its input. ``twice``: a second backward pass through the same graph; ``shift``: so many blocks at the bottom save nothing;
    ``curve``: blocks without any product; ``beside``: the loss is of what was recorded inside the blocks, so that backward comes in beside the end of the stack.

    ``padded``: the last sample is zero, so that nothing of it is seen in a state; ``every``: compare what is the caller's as a whole.
    """

    scheme: str = "midpoint"
    state: str = "fixed32"
    gate: float = 1.0
    dropout: float = 0.0
    autocast: bool = False
    twice: bool = False
    aux: bool = False
    attend: bool = False
    mask: bool = False
    spectral: bool = False
    padded: bool = False
    beside: bool = False
    shift: int = 0
    curve: bool = False
    keep: int = 0
    layers: int = 3
    width: int = 16
    shape: tuple[int, int] = (2, 4)
    save_ops: Any = None
    start: str = "repeat"
    every: bool = False


class Subject:
    """The stack of a case, its input, and the gradients of the clean pass."""

    def __init__(self, case: Case):
        torch.manual_seed(0)
        self.case, halves = case, revstep.schemes.available()[case.scheme].halves
        made = [Shift(case.width) if k < case.shift * halves else self._block() for k in range(case.layers * halves)]
        blocks = list(zip(made[::2], made[1::2])) if halves == 2 else made
        checks, save_ops = (
            "all" if case.every else True,
            list(case.save_ops) if isinstance(case.save_ops, tuple) else case.save_ops,
        )
        self.module = stack(
            case.scheme,
            blocks=blocks,
            state=case.state,
            start=case.start,
            checks=checks,
            save_ops=save_ops,
            keep=case.keep,
        )
        self.module._looked.append(True)  # no look at whether the blocks are written x + f(x)
        self.x = torch.randn(*case.shape, case.width)
        if case.padded:
            self.x[-1] = 0
        self.x.requires_grad_()
        length = case.shape[1]
        self.kwargs = {"mask": torch.randn(length, length).tril()} if case.mask else {}
        self.inputs = [self.x, *self.module.parameters()]
        self._buffers = [(b, b.clone()) for b in self.module.buffers()]
        self.clean = self.gradients(None)
        self.counts = dict(watch.counts)

    def _block(self) -> nn.Module:
        c = self.case
        if c.curve:
            return Curve(c.gate)
        return Block(c.width, c.gate, c.dropout, c.attend, c.aux, c.spectral)

    def gradients(self, plan: Plan | None, seed: int = 0) -> list[Tensor | None]:
        """Of one pass, or two passes in one list, in which the plan is carried out. ``seed``: which lines of large tensors are looked at."""
        for buffer, value in self._buffers:
            buffer.copy_(value)  # a spectral norm moves its own on
        torch.manual_seed(3)
        with (
            mock.patch.object(tape_module, "_seeds", itertools.count(seed)),
            bf16() if self.case.autocast else contextlib.nullcontext(),
        ):
            watch.recorded = []
            run = self.module.begin(self.x, ((), self.kwargs))
            for _ in run.functions:
                run.step((), self.kwargs)
            y = run.end("last")
        parts = watch.recorded if self.case.beside else [y, *(t for aux in run.aux for t in aux)]
        loss = torch.stack([t.square().sum() for t in parts]).sum()
        watch.recorded = [y]  # who holds on to the output holds on to the states
        watch.arm(self, run.tape, run.coefficients, plan)
        watch.last = run.prev, run.cur
        del run, y, parts
        watch.reached("before")
        found = torch.autograd.grad(loss, self.inputs, retain_graph=self.case.twice, allow_unused=True)
        if self.case.twice:
            watch.reached("between")
            found += torch.autograd.grad(loss, self.inputs, allow_unused=True)
        return list(found)


class Victim(NamedTuple):
    """What is flipped. ``layer``: the one to be named for it, None where several can be."""

    layer: int | None
    flip: Callable[[random.Random], Any]


class Plan(NamedTuple):
    """Flip one bit of one victim of this kind when this moment comes for the n-th time."""

    kind: str
    moment: str
    n: int
    rng: random.Random


@dataclass
class Watch:
    """Counts the moments of the pass at hand and flips a bit at the one that was drawn."""

    subject: Any = None
    tape: Any = None
    coefficients: list = field(default_factory=list)
    plan: Plan | None = None
    counts: Counter = field(default_factory=Counter)
    last: tuple = ()
    states: tuple = ()
    views: tuple = ()
    recorded: list = field(default_factory=list)
    victim: Victim | None = None
    back: Callable[[], None] | None = None

    def arm(self, subject: Subject, tape: Tape, coefficients: list, plan: Plan | None) -> None:
        self.subject, self.tape, self.coefficients, self.plan = subject, tape, coefficients, plan
        self.counts, self.states, self.views, self.victim, self.back = Counter(), (), (), None, None

    def reached(self, moment: str) -> None:
        self.counts[moment] += 1
        if self.plan is None or self.victim is not None or (moment, self.counts[moment]) != (self.plan.moment, self.plan.n):
            return
        found = list(victims(self, self.plan.kind))
        if found:
            self.victim = self.plan.rng.choice(found)
            self.back = self.victim.flip(self.plan.rng)


watch = Watch()


def victims(w: Watch, kind: str) -> Iterator[Victim]:
    """What there is of this kind now."""
    halves, layers = w.tape.audit.halves, w.tape.layers
    if kind in ("state", "rebuilt state", "rebuilt view"):
        found: list = [(None, t) for t in {"state": w.last, "rebuilt state": w.states, "rebuilt view": w.views}[kind]]
    elif kind == "carry":
        found = [(k, r.carry) for k, r in enumerate(layers) if r.carry is not None]
    elif kind == "generator":
        found = [(k, t) for k, r in enumerate(layers) for t in r.rng or ()]
    elif kind == "choice":
        found = [(k, c.choice) for k, c in enumerate(w.coefficients) if hasattr(c, "choice")]
    elif kind == "copy":
        found = [(k, t) for k, r in enumerate(layers) for t in r.before.values()]
    elif kind == "output":
        found = [(k, t) for k, r in enumerate(layers) for one in r.kept.values() for t in torch.utils._pytree.tree_leaves(one.out) if isinstance(t, Tensor)]
    elif kind == "checksum":
        yield from checksums(w.tape)
        return
    else:
        module = w.subject.module
        found = {"weight": module.parameters, "buffer": module.buffers, "argument": w.subject.kwargs.values}[kind]()
        found = [(None, t) for t in found]
    for k, t in found:
        if t.numel():
            yield Victim(None if k is None else k // halves, lambda rng, t=t: flip(t, rng))


def flip(t: Tensor, rng: random.Random) -> Callable[[], None]:
    """One bit of one element, at its address: no version counter sees it. Returns what puts it back."""
    index = rng.randrange(t.numel())
    at = t.data_ptr() + rng.randrange(t.element_size())
    for size, stride in zip(reversed(t.shape), reversed(t.stride())):
        at += index % size * stride * t.element_size()
        index //= size
    byte, bit = ctypes.c_ubyte.from_address(at), 1 << rng.randrange(8)
    byte.value ^= bit

    def back(t: Tensor = t) -> None:  # holds on to the memory
        byte.value ^= bit

    return back


def flipped(number: int, rng: random.Random) -> int:
    """A signed number of 64 bits with one of them flipped."""
    return ((number ^ (1 << rng.randrange(64))) + 2**63) % 2**64 - 2**63


def checksums(tape: Tape) -> Iterator[Victim]:
    """Every number that is kept to compare with: of states, saved tensors, auxiliary outputs, generator records, kept outputs."""

    def put(owner: Any, key: Any, make: Callable) -> Victim:
        return Victim(None, lambda rng: owner.__setitem__(key, make(owner[key], rng)))

    def in_list(owner: list) -> Iterator[Victim]:
        for i, bits in enumerate(owner):
            if isinstance(bits, int):
                yield put(owner, i, flipped)

    for k in range(len(tape.audit.forward)):
        yield put(tape.audit.forward, k, lambda s, rng: s._replace(checksum=flipped(s.checksum, rng)))
    for record in tape.layers:
        for i in range(len(record.slots)):
            if record.slots[i].bits is not None:
                yield put(record.slots, i, lambda s, rng: s._replace(bits=flipped(s.bits, rng)))
        yield from in_list(record.aux)
        yield from in_list(record.copies)
        for one in record.kept.values():
            yield from in_list(one.bits)


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Within it the moments of backward passes are counted in :data:`watch`."""
    undo, evaluate, saved = tape_module.undo, Tape._evaluate, Tape.saved

    def undone(c: Any, nxt: Tensor, cur: Tensor, *rest: Any) -> tuple:
        view, prev, _ = out = undo(c, nxt, cur, *rest)
        watch.states, watch.views = (prev, cur, nxt), (view, *watch.views[-1:])
        watch.reached("rebuilt")
        return out

    def evaluated(self: Tape, layer: int, view: Tensor) -> Tensor:
        watch.views = (view,)
        return evaluate(self, layer, view)

    def asked(self: Tape, layer: int, index: int) -> Tensor:
        out = saved(self, layer, index)
        watch.reached("asked")
        return out

    with (
        mock.patch.object(tape_module, "undo", undone),
        mock.patch.object(Tape, "_evaluate", evaluated),
        mock.patch.object(Tape, "saved", asked),
    ):
        yield


class Drawn(NamedTuple):
    """One draw: what was flipped, when, and what became of it; ``error``: the largest change of a gradient over its largest entry."""

    kind: str
    moment: str
    n: int
    outcome: str
    error: float
    text: str


def draws(
    subject: Subject,
    count: int,
    kinds: tuple[str, ...],
    seed: int = 0,
    moments: tuple[str, ...] = MOMENTS,
    strict: bool = True,
) -> list[Drawn]:
    """``count`` draws of these kinds, each with one bit flipped. ``strict``: what is reported must name its layer."""
    out: list[Drawn] = []
    for trial in itertools.count():
        if len(out) == count:
            return out
        assert trial < 20 * count, f"{kinds} at {moments}: there is hardly anything to flip"
        rng = random.Random(f"{seed} {trial}")
        kind = rng.choice(kinds)
        possible = [m for m in moments if subject.counts.get(m) and not (kind in REBUILT and m in ("before", "between"))]
        moment = rng.choice(possible)
        drawn = one(subject, Plan(kind, moment, 1 + rng.randrange(subject.counts[moment]), rng), trial, strict)
        if drawn is not None:
            out.append(drawn)


def one(subject: Subject, plan: Plan, seed: int, strict: bool) -> Drawn | None:
    """The outcome of one plan; None where there was nothing to flip at that moment."""
    try:
        found, text = subject.gradients(plan, seed), ""
    except revstep.RevstepError as error:
        found, text = None, named(error, watch.victim, subject) if strict else str(error)
    finally:
        if plan.kind in CALLERS and watch.back is not None:
            watch.back()
    if watch.victim is None:
        return None
    if found is None:
        return Drawn(*plan[:3], "reported", 0.0, text)
    clean = same(found, subject.clean)
    return Drawn(*plan[:3], "same" if clean else "silent", 0.0 if clean else off(found, subject.clean), "")


def named(error: revstep.RevstepError, victim: Victim | None, subject: Subject) -> str:
    """The message, which must name the layer, and the right one where it is known."""
    text = str(error)
    layer = getattr(error, "layer", None)
    assert victim is not None, f"nothing was flipped, but: {text}"
    assert layer is not None and 0 <= layer < subject.case.layers, f"names no layer: {text}"
    assert re.search(rf"layer {layer}\b", text), f"is about layer {layer} and does not say so: {text}"
    assert victim.layer in (None, layer), f"layer {victim.layer} was flipped, not layer {layer}: {text}"
    return text


def off(found: list, clean: list) -> float:
    """The largest change of a gradient, relative to the largest entry of that gradient."""
    worst = 0.0
    for a, b in zip(found, clean):
        if b is not None and not torch.equal(a, b):
            worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    return worst
