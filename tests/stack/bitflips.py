"""What becomes of single bits flipped in memory between a forward pass and the end of its backward.

A draw is one pass of a small stack in which one bit of one victim is flipped behind torch's back. It ends in
one of three ways: the stack reported it ("reported"), the gradients are still those of the clean pass to the
bit ("same"), or neither ("silent"). All is drawn from a seed.
"""

from __future__ import annotations

import contextlib
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
from flip_victims import Victim, victims
from stacks import bf16, same, stack
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import revstep
from revstep._recurrence import walk
from revstep._recurrence.ambient import rebuilding
from revstep.stack import _tape as tape_module
from revstep.stack._tape import Tape

#: What the library keeps from the forward pass; what backward rebuilds; what is the caller's.
KEPT = ("state", "carry", "checksum", "generator", "choice", "copy", "output")
REBUILT = ("rebuilt state", "rebuilt view")
CALLERS = ("weight", "buffer", "argument")
#: Before backward and before a second one; after an inverse step; inside a re-evaluation; at a saved tensor.
MOMENTS = ("before", "between", "rebuilt", "evaluating", "asked")
MM = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Block(nn.Module):
    """An MLP behind a gate that may be zero, if wanted after attention under a mask, and a loss beside it."""

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
    """Element by element, behind a gate: a change of one element is seen in no other one, nor in a state."""

    def __init__(self, gate: float):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * x.tanh()


@dataclass(frozen=True)
class Case:
    """A stack and its input.

    ``twice``: a second backward pass through the same graph. ``shift``: so many blocks at the bottom save
    nothing. ``curve``: blocks that work element by element. ``beside``: the loss is of what was recorded in
    the blocks, so that backward comes in beside the end of the stack. ``padded``: the last sample is zero.
    ``every``: ``checks="all"``.
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
        low, steps = case.shift * halves, case.layers * halves
        made = [Shift(case.width) if k < low else self._block() for k in range(steps)]
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
        """Of one pass, or of two, with the plan carried out. ``seed``: of the sampled fingerprints."""
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
        if self.plan is None or self.victim is not None:
            return
        if (moment, self.counts[moment]) != (self.plan.moment, self.plan.n):
            return
        found = list(victims(self, self.plan.kind))
        if found:
            self.victim = self.plan.rng.choice(found)
            self.back = self.victim.flip(self.plan.rng)


watch = Watch()


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Within it the moments of backward passes are counted in :data:`watch`."""
    undo, evaluate, saved = walk.undo, Tape._evaluate, Tape.saved

    def undone(c: Any, nxt: Tensor, cur: Tensor, *rest: Any) -> tuple:
        view, prev, _ = out = undo(c, nxt, cur, *rest)
        watch.states, watch.views = (prev, cur, nxt), (view, *watch.views[-1:])
        watch.reached("rebuilt")
        return out

    def evaluated(self: Tape, step: int, view: Tensor) -> Tensor:
        watch.views = (view,)
        return evaluate(self, step, view)

    def asked(self: Tape, step: int, index: int) -> Tensor:
        out = saved(self, step, index)
        watch.reached("asked")
        return out

    with (
        mock.patch.object(walk, "undo", undone),
        mock.patch.object(Tape, "_evaluate", evaluated),
        mock.patch.object(Tape, "saved", asked),
    ):
        yield


class Drawn(NamedTuple):
    """One draw: what was flipped, when, and what became of it. ``error``: see :func:`off`."""

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
    """``count`` draws of these kinds. ``strict``: what is reported must name its layer."""
    out: list[Drawn] = []
    for trial in itertools.count():
        if len(out) == count:
            return out
        assert trial < 20 * count, f"{kinds} at {moments}: there is hardly anything to flip"
        rng = random.Random(f"{seed} {trial}")
        kind = rng.choice(kinds)
        outside = ("before", "between") if kind in REBUILT else ()
        moment = rng.choice([m for m in moments if subject.counts.get(m) and m not in outside])
        n = 1 + rng.randrange(subject.counts[moment])
        drawn = one(subject, Plan(kind, moment, n, rng), trial, strict)
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
