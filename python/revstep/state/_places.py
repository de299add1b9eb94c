"""What an error of range says: one builder, and the places a value can come from, each with its own advice.

The same number out of range calls for different deeds. Rows of padding in a stack's input are zeroed, a
block's weights are looked at, an argument of ``Scheme.step`` is encoded in another format, an integration
takes a smaller step. So whoever finds a value out of range says where it stood (a :class:`Place`), and
:func:`overflow` builds the error. The place in an integration is in ``revstep.ode._overflow``, because it
speaks of steps, times and scales.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import StateOverflowError
from ..ops import Stats

if TYPE_CHECKING:
    from ._formats import StateFormat


class Place(abc.ABC):
    """Where a value stood that its format does not hold.

    Attributes:
        name: how the message calls it, at its beginning.
        layer: the number that ``StateOverflowError.layer`` is to have.
        unit: what the values are divided by, as it follows ``|value|``; "" where they are divided by nothing.
    """

    name: str
    layer: int
    unit: str = ""

    @abc.abstractmethod
    def advice(self, stats: Stats, fmt: StateFormat) -> str:
        """What the caller can do at this place."""

    def advised(self, stats: Stats, fmt: StateFormat) -> StateFormat | None:
        """The format that holds what ``fmt`` did not; None where there is none, or none is the answer."""
        return fmt.wider(stats.largest) if math.isfinite(stats.largest) else None


def overflow(stats: Stats, fmt: StateFormat, place: Place, shape: Sequence[int] = ()) -> StateOverflowError:
    """The error of a state that left its format.

    Args:
        stats: what the kernel that wrote the state saw.
        fmt: the state's format.
        place: where the state stood.
        shape: of the state; with it the message names row and index beside the flat index.
    """
    seen = f"largest |value|{place.unit} {stats.largest:.6g}" + _where(stats.first_bad, shape)
    if math.isfinite(fmt.limit):
        fault = f"{place.name}: {stats.bad} value(s) outside {fmt} ({seen}, range +-{fmt.limit:.6g})"
    else:
        fault = f"{place.name}: {stats.bad} value(s) not finite in {fmt} ({seen})"
    message = f"{fault}; {place.advice(stats, fmt)}"
    advised = place.advised(stats, fmt)
    return StateOverflowError(message, place.layer, stats.largest, fmt.limit, stats.first_bad, fault, advised)


def unravel(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of element number ``flat`` in a tensor of this shape."""
    index = []
    for n in reversed(shape):
        index.append(flat % n)
        flat //= n
    return tuple(reversed(index))


def _where(flat: int, shape: Sequence[int]) -> str:
    if flat < 0:
        return ""
    text = f", first at flat index {flat}"
    if len(shape) < 2:  # the flat index says it all
        return text
    index = unravel(flat, shape)
    return f"{text}, which is index {index}, in row {index[0]}"


def take(fmt: StateFormat, wider: StateFormat | None) -> str | None:
    """The words that name the ``wider`` format; None where there is none."""
    if wider is None:
        return None
    return f"use {wider}, which holds +-{wider.limit:.6g} on a grid of {2.0**-wider.frac_bits:.2g}"


def no_number(fmt: StateFormat) -> str:
    """What stands behind a magnitude of ``inf``: kernels multiply by ``2**frac_bits`` before they look."""
    if not fmt.exact:
        return "NaN or Inf"
    top = torch.finfo(torch.float32).max * 2.0**-fmt.frac_bits
    return f"NaN or Inf (below float64 also a finite value above {top:.1g}, which no format holds)"


@dataclass(frozen=True)
class StackInput(Place):
    """What a stack was given, before any block: ``part`` 1 is the second tensor of a pair ``(prev, cur)``."""

    part: int = 0
    layer = -1

    @property
    def name(self) -> str:  # type: ignore[override]
        return "the stack's input" + (", the second tensor of the pair" if self.part else "")

    def advice(self, stats: Stats, fmt: StateFormat) -> str:
        if not math.isfinite(stats.largest):
            return (
                f"the input itself holds {no_number(fmt)}, before any block has run: zero or drop rows that "
                "no loss reads (padding), or look at what made it (an embedding, a preprocessing)"
            )
        wider = take(fmt, self.advised(stats, fmt))
        if wider is None:
            return "scale the input down (normalise it): no fixed-point format holds such values"
        return f"scale the input down (normalise it), or {wider}"


@dataclass(frozen=True)
class Layer(Place):
    """The state after a block of a stack.

    Args:
        name: of the layer, with its half where it has two: "layer 3 (G)".
        layer: its index.
        weights: ``|alpha| + |beta|`` of its step: the two states before it enter the sum with these.
        trains: gradients are wanted of this pass, so that a step of training can be skipped.
    """

    name: str
    layer: int
    weights: float = 0.0
    trains: bool = True

    def advised(self, stats: Stats, fmt: StateFormat) -> StateFormat | None:
        # An increment that is out of range is reported by itself, and the states can still enlarge the sum.
        largest = stats.largest
        return fmt.wider(largest, largest + self.weights * fmt.limit) if math.isfinite(largest) else None

    def advice(self, stats: Stats, fmt: StateFormat) -> str:
        if not math.isfinite(stats.largest):
            skip = ", and the loss scale" if self.trains else ""
            if self.trains and fmt.exact:
                skip += "; on_nonfinite='propagate' lets a GradScaler skip such a step"
            return (
                f"a block returned {no_number(fmt)}: look at its weights, its input and its arguments (a "
                f"softmax over a row that is masked everywhere is NaN){skip}"
            )
        wider = take(fmt, self.advised(stats, fmt))
        if wider is None:
            return "scale the blocks' outputs down: no fixed-point format holds such values"
        return f"what the block returned is finite, its sum with the states is too large: {wider}"


@dataclass(frozen=True)
class Primitive(Place):
    """The result of ``Scheme.step`` or ``Scheme.inverse`` on the caller's tensors.

    Args:
        name: of the call, e.g. "Midpoint.step, layer 3".
        layer: the layer that chose the coefficients.
        terms: of the first element out of range: an argument, what it adds in words, and the amount.
        largest: largest absolute value of the whole result, computed in float64.
        inverse: the call undoes a step.
    """

    name: str
    layer: int
    terms: tuple[tuple[str, str, float], ...]
    largest: float
    inverse: bool = False

    def advised(self, stats: Stats, fmt: StateFormat) -> StateFormat | None:
        largest = max(stats.largest, self.largest)
        return fmt.wider(largest) if math.isfinite(largest) else None

    def advice(self, stats: Stats, fmt: StateFormat) -> str:
        bad = next((argument for argument, _, amount in self.terms if not math.isfinite(amount)), None)
        if bad is not None:
            return f"{bad} holds {no_number(fmt)} there: look at what computed {bad}"
        argument, *_ = max(self.terms, key=lambda term: abs(term[2]))
        sums = ", ".join(f"{words} = {amount:.6g}" for _, words, amount in self.terms)
        cause = f"there {sums}; {argument} brings the largest part"
        wider = take(fmt, self.advised(stats, fmt))
        if wider is None:
            cure = f"make {argument} smaller: no fixed-point format holds such values"
        else:
            cure = f"make {argument} smaller, or encode the states in another format: {wider}"
        if self.inverse:
            cure = f"give the nxt, cur, f and carry of one step, whose inverse stays in range; or {cure}"
        return f"{cause}: {cure}"


def describe_terms(
    tensors: dict[str, Any], coefficients: tuple[float, float, float], fmt: StateFormat, flat: int
) -> tuple[tuple[tuple[str, str, float], ...], float]:
    """``(terms, largest)`` of a :class:`Primitive`.

    Args:
        tensors: the three arguments by name, in the order of the step's sum: state, state, increment.
        coefficients: alpha, beta and gamma.
        fmt: the states' format.
        flat: which element the terms are of.
    """
    inverse = "nxt" in tensors
    alpha, beta, gamma = coefficients
    factors = (1 / alpha, -beta / alpha, -gamma / alpha) if inverse else (alpha, beta, gamma)
    terms, total = [], 0.0
    for factor, (name, tensor) in zip(factors, tensors.items(), strict=True):
        if factor == 0.0:
            continue
        values = tensor.detach().to(torch.float64) * (factor if name == "f" else factor * 2.0**-fmt.frac_bits)
        total = total + values
        terms.append((name, f"{factor:.6g} {name}", float(values.reshape(-1)[flat])))
    return tuple(terms), float(total.abs().nan_to_num(math.inf).max())
