"""The dial: the cheapest step, in carry bits, that keeps a pretrained model's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from .. import ops
from ..errors import ConfigError
from ..schemes import Blend, Scheme
from ..state import FixedPoint
from .adapters import Adapter
from .calibrate import mean_loss
from .installing import install

#: Points of the dial: c = 1 (Midpoint) and down to the smallest that the kernels undo.
DIAL = tuple(2.0**-bits for bits in range(9))
#: Points that are always measured, so that the table shows where the loss starts to give.
SHOWN = 4


@dataclass(frozen=True)
class Trial:
    """One point: the scheme, its start, the carry bits it costs an element and layer, the loss on the calibration text, relative change."""

    scheme: Scheme
    start: str
    bits: int
    loss: float
    change: float


def trial(model: nn.Module, scheme: Scheme, start: str, batches: Sequence[dict], original: float, adapter: str | Adapter | None = None) -> Trial:
    """The loss of ``model`` run as ``scheme``, without touching its weights; in 64-bit states, so that no format interferes."""
    made = install(model, scheme, FixedPoint(64, 24), start, False, adapter)
    try:
        loss = mean_loss(model, batches)
    finally:
        made.detach()
    return Trial(scheme, start, ops.carry_bits(scheme.coefficients(0).alpha), loss, loss / original - 1.0)


def table(trials: Sequence[Trial], original: float, chosen: Trial | None) -> str:
    """The trials as lines of text, the chosen one marked."""
    lines = [f"original loss {original:.4f}", f"{'step':24} {'start':8} {'carry bits':>10} {'loss':>9} {'change':>9}"]
    for t in trials:
        mark = "  <- chosen" if t is chosen else ""
        lines.append(f"{f'Blend c = {t.scheme.c:g}':24} {t.start:8} {t.bits:10d} {t.loss:9.4f} {t.change:+9.2%}{mark}")
    return "\n".join(lines)


def choose_scheme(
    model: nn.Module, batches: Sequence[dict], tolerance: float, start: str | None, say: Callable[[str], None], adapter: str | Adapter | None = None
) -> tuple[Scheme, str]:
    """(scheme, start): the fewest carry bits whose loss is at most ``(1 + tolerance)`` times the original's; the better start of two.

    ``start`` narrows the search to one. Says the table it chose from.

    Raises:
        ConfigError: a tolerance that is not positive; no point of the dial keeps the loss.
    """
    if not tolerance > 0:
        raise ConfigError(f"tolerance is {tolerance!r}, expected a positive relative change of the loss, e.g. 0.005")
    original = mean_loss(model, batches)
    trials: list[Trial] = []
    chosen = None
    for i, c in enumerate(DIAL):
        if chosen is not None and i >= SHOWN:
            break
        point = [trial(model, Blend(c=c), s, batches, original, adapter) for s in ((start,) if start else ("repeat", "euler"))]
        trials += point
        best = min(point, key=lambda t: t.loss)
        if chosen is None and best.change <= tolerance:
            chosen = best
    say(table(trials, original, chosen))
    if chosen is None:
        best = min(trials, key=lambda t: t.loss)
        raise ConfigError(
            f"no point of the dial keeps the loss within {tolerance:.2%} of {original:.4f}; the best is {best.scheme} with start {best.start!r}, {best.change:+.2%}. "
            "Give a larger tolerance, or a scheme and fine-tune"
        )
    return chosen.scheme, chosen.start
