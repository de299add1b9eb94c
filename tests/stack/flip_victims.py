"""What can be flipped: everything that a pass keeps or rebuilds, and what is the caller's."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_leaves

from revstep.stack._tape import Tape


class Victim(NamedTuple):
    """What is flipped. ``layer``: the one to be named for it, None where several can be."""

    layer: int | None
    flip: Callable[[random.Random], Any]


def victims(w: Any, kind: str) -> Iterator[Victim]:
    """What there is of this kind now, to the watch ``w``."""
    halves, records = w.tape.audit.halves, w.tape.records
    if kind in ("state", "rebuilt state", "rebuilt view"):
        now = {"state": w.last, "rebuilt state": w.states, "rebuilt view": w.views}
        found: list = [(None, t) for t in now[kind]]
    elif kind == "carry":
        found = [(k, r.carry) for k, r in enumerate(records) if r.carry is not None]
    elif kind == "generator":
        found = [(k, t) for k, r in enumerate(records) for t in r.rng or ()]
    elif kind == "choice":
        found = [(k, c.choice) for k, c in enumerate(w.coefficients) if hasattr(c, "choice")]
    elif kind == "copy":
        found = [(k, t) for k, r in enumerate(records) for t in r.before.values()]
    elif kind == "output":
        kept = [(k, one.out) for k, r in enumerate(records) for one in r.outputs.values()]
        found = [(k, t) for k, out in kept for t in tree_leaves(out) if isinstance(t, Tensor)]
    elif kind == "checksum":
        yield from checksums(w.tape)
        return
    else:
        module, arguments = w.subject.module, w.subject.kwargs
        theirs = {"weight": module.parameters, "buffer": module.buffers, "argument": arguments.values}
        found = [(None, t) for t in theirs[kind]()]
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
    """Every number kept to compare with: of states, saved tensors, auxiliary and kept outputs, copies."""

    def put(owner: Any, key: Any, make: Callable) -> Victim:
        return Victim(None, lambda rng: owner.__setitem__(key, make(owner[key], rng)))

    def in_list(owner: list) -> Iterator[Victim]:
        for i, bits in enumerate(owner):
            if isinstance(bits, int):
                yield put(owner, i, flipped)

    for k in range(len(tape.audit.forward)):
        yield put(tape.audit.forward, k, lambda s, rng: s._replace(checksum=flipped(s.checksum, rng)))
    for record in tape.records:
        for i in range(len(record.slots)):
            if record.slots[i].bits is not None:
                yield put(record.slots, i, lambda s, rng: s._replace(bits=flipped(s.bits, rng)))
        yield from in_list(record.aux)
        yield from in_list(record.copies)
        for one in record.outputs.values():
            yield from in_list(one.bits)
