"""What an integration returns: :class:`Solution`, the trajectory at the saved times, :class:`Stats` of its
run, its way back, and values between steps.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..state import Float
from . import _pictures
from ._bits import Bits
from ._equations import WRITTEN

# ---- Values between steps, from the two around them ----


def hermite(theta: Any, h: Any, y0: Tensor, f0: Tensor, y1: Tensor, f1: Tensor) -> Tensor:
    """Cubic Hermite interpolant at t_n + theta h (error O(h**4)); Hairer, Norsett, Wanner, Solving ODEs I,
    II.6.
    """
    a, b = theta * theta * (3 - 2 * theta), theta * (theta - 1)
    return y0 + a * (y1 - y0) + h * b * ((theta - 1) * f0 + theta * f1)


# ---- What an integration returns ----


@dataclass(frozen=True)
class Stats:
    """What a run did.

    Args:
        method: its name.
        state: the format, as text.
        loop: ``"compiled"``, ``"captured"`` or ``"python"``.
        h: step size.
        steps: taken.
        evaluations: of the field's functions, summed over F and G (of one system; a batch counts once).
        headroom: range of the fixed-point format over the largest state value that a step made; inf for float
            states, and where none was made or all were zero.
        carry_bytes: kept for exact reversal where abs(alpha) < 1.
        bytes_saved: kept for backward; 0 where no gradient was asked for.
        scales: the unit of each slot, a number, or an array where components have units of their own.
        increment_bits: bits of the largest increment of the component that has the fewest, among those that
            moved; None for float states and where none moved.
        rounded_to_zero: increments that were not zero and rounded to zero, on the steps that were looked at:
            the first four and two of every octave after them, and the last for the copies.
        looked_at: how many increments were looked at.
        copies_apart: largest distance of the two copies of y that some methods keep, in units of the scale,
            on the steps that were looked at; None for other methods.
        fallback: of a run with ``loop="captured"`` that the loop in Python took, why.
    """

    method: str
    state: str
    loop: str
    h: float
    steps: int
    evaluations: int
    headroom: float
    carry_bytes: int
    bytes_saved: int = 0
    scales: tuple[Any, Any] = (1.0, 1.0)
    increment_bits: float | None = None
    rounded_to_zero: int = 0
    looked_at: int = 0
    copies_apart: float | None = None
    fallback: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, lists and texts."""
        found = asdict(replace(self, scales=(1.0, 1.0)))
        return {
            **found,
            "scales": [s if isinstance(s, float) else np.asarray(s).tolist() for s in self.scales],
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stats) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.method, self.state, self.loop, self.h, self.steps))


@dataclass(frozen=True, repr=False)
class Solution:
    """A trajectory at the saved times; torch tensors when the start was torch, else NumPy arrays.

    It can be pickled, copied and sent between processes; the copy holds no graph. Where the field cannot be
    pickled (a lambda, an address), its energy and the way back are computed before and travel as data.

    Args:
        ts: (M,) times.
        ys: (M, *shape): y, or q for second-order and separable fields.
        velocities: (M, *shape) v of q'' = f(t, q), else None.
        momenta: p of separable fields, else None.
        stats: :class:`Stats`.
        start: the two slots at the beginning, in the state format (integers in fixed point), as torch tensors
            without gradient: the bits that :meth:`reverse` returns to.
        final: the two slots at the end: the bits that :meth:`reverse` starts from, and from which
            ``integrate(start=...)`` goes on.
        equation: ``"first"``, ``"second"`` or ``"separable"``.
        exact: of a reversed solution: it arrived at the forward run's start bit for bit. None otherwise.
        failed: of a run with ``on_failure="drop"``: the step at which a member failed, by its index.
    """

    ts: Any
    ys: Any
    velocities: Any
    momenta: Any
    stats: Stats
    start: Bits
    final: Bits
    equation: str
    exact: bool | None = None
    failed: Mapping[tuple[int, ...], int] = field(default_factory=dict)
    _field: Any = None
    _reverse: Callable[[], Solution] | None = None
    _known: Mapping[str, Any] | None = None

    @property
    def second(self) -> Any:
        """Velocities or momenta, whichever there are."""
        return self.velocities if self.velocities is not None else self.momenta

    @property
    def energy(self) -> Any:
        """The field's energy at the saved times, (M, batch...); None where the field has none."""
        if self._known is not None:
            return self._known["energy"]
        energy = getattr(self._field, "energy", None)
        return None if energy is None else self._at_saves(energy)

    @property
    def integrals(self) -> dict[str, Any]:
        """The field's first integrals at the saved times, by name; empty where the field names none."""
        if self._known is not None:
            return dict(self._known["integrals"])
        return {name: self._at_saves(f) for name, f in getattr(self._field, "integrals", dict)().items()}

    def _at_saves(self, f: Callable[..., Any]) -> Any:
        return f(self.ys) if self.second is None else f(self.ys, self.second)

    def reverse(self) -> Solution:
        """Integrate back to the start from the final states alone. In fixed point ``.exact`` is True: the
        same bits.

        Returns:
            a Solution at the same times in falling order (rising, where h is negative).
        """
        if self._reverse is None:
            raise ConfigError("this solution is itself a reversed one: call integrate(...).reverse()")
        return self._reverse()

    def to_numpy(self) -> Solution:
        """The same with NumPy arrays, detached and on the CPU."""
        return replace(self, **{name: _numpy(getattr(self, name)) for name in _VALUES})

    # ---- in words and pictures ----

    def __repr__(self) -> str:
        stats = self.stats
        shape = tuple(self.ys.shape)
        where = f"{_g(float(self.ts[0]))} to {_g(float(self.ts[-1]))}" if len(self.ts) else "none"
        energy = self._energy_text()
        exact = {True: "yes", False: "no", None: "call reverse() to see"}[self.exact]
        exact += f"; {_members(self.failed)} failed, see .failed" if self.failed else ""
        return "\n".join(
            (
                f"Solution of {WRITTEN[self.equation]} by {stats.method} ({stats.loop} loop, {stats.state})",
                f"  times     {where}, {len(self.ts)} saved; ys {shape} {self.ys.dtype}",
                f"  steps     {stats.steps:,} of h = {_g(stats.h)}, {stats.evaluations:,} evaluations",
                f"  energy    {energy}",
                f"  exact     {exact}",
            )
        )

    def _energy_text(self) -> str:
        energy = self.energy
        if energy is None or not len(self.ts):
            return "the field names none"
        values = _numpy(energy)
        first = np.abs(values[0])
        if np.isnan(values).all():  # of members that failed; the others are judged without them
            return "not a number" if values.size else "of no member"
        spread = np.nanmax(np.abs(values - values[0]))
        size = float(np.nanmax(first))
        return f"within {spread:.2g} of the start's" + (f", {spread / size:.2g} of it" if size else "")

    def summary(self) -> str:
        """What the grid and the method did to this run, in sentences."""
        stats = self.stats
        said = [repr(self), ""]
        if stats.state.startswith(Float.__name__):
            said.append(
                "The states are floats: nothing is counted, and the way back is algebraic, not exact."
            )
        else:
            units = ", ".join(_written(s) for s in stats.scales)
            fits = "no step made a state other than zero"
            if not math.isinf(stats.headroom):
                fits = f"the largest state fits {stats.headroom:.3g} times"
            said.append(f"The slots are held in units of {units}; {fits}.")
            said.append(self._bits_text())
        if stats.copies_apart is not None:
            said.append(f"The two copies of y were at most {stats.copies_apart:.2g} units apart.")
        if stats.carry_bytes:
            said.append(f"{stats.carry_bytes:,} bytes of carries are kept for the way back.")
        if stats.bytes_saved:
            rest = "the carries among them, which grow with the number of steps"
            rest = rest if stats.carry_bytes else "whatever the number of steps between the saved times"
            said.append(f"{stats.bytes_saved:,} bytes are kept for backward, {rest}.")
        if self.failed:
            names = ", ".join(f"{index} at step {step}" for index, step in list(self.failed.items())[:8])
            said.append(f"{_members(self.failed)} failed: {names}{', ...' if len(self.failed) > 8 else ''}.")
        return "\n".join(said)

    def _bits_text(self) -> str:
        stats = self.stats
        if not stats.looked_at:
            return "No increment was looked at."
        text = (
            f"Of {stats.looked_at:,} increments that were looked at, {stats.rounded_to_zero:,} rounded to"
            " zero"
        )
        if stats.increment_bits is not None:
            text += f"; the largest of the least component has {stats.increment_bits:.0f} bits"
        return text + "."

    def plot(self, what: str = "components", ax: Any = None) -> Any:
        """Draw the solution with matplotlib, on the axes of pyplot's current figure unless others are given.

        Args:
            what: ``"components"`` against time, ``"energy"`` (its change since the start, and that of the
                first integrals), or ``"phase"``: q against v or p, or the first two components of y.
            ax: axes to draw on.

        Returns:
            the axes; ``matplotlib.pyplot.savefig(...)`` or ``ax.figure.savefig(...)`` writes the picture.

        Raises:
            ConfigError: matplotlib is not installed, or there is nothing of that kind to draw.
        """
        return _pictures.draw(self.to_numpy(), what, ax)

    # ---- copies ----

    def _plain(self) -> dict[str, Any]:
        """The attributes without a graph."""
        state = dict(self.__dict__)
        for name in _VALUES:
            value = state[name]
            state[name] = value.detach() if isinstance(value, Tensor) else value
        return state

    def __getstate__(self) -> dict[str, Any]:
        state = self._plain()
        try:
            pickle.dumps((self._field, self._reverse))
        except (
            Exception
        ):  # whatever the caller's objects raise: they stay behind, what they know travels as data
            known = {"energy": self.energy, "integrals": self.integrals}
            state["_known"] = {k: _detached(v) for k, v in known.items()}
            state["_field"] = None
            state["_reverse"] = None if self._reverse is None else Undone(self.reverse())
        return state

    def __deepcopy__(self, memo: dict) -> Solution:
        state = self._plain()
        # The field is the caller's; the way back starts from its own copy of the bits.
        shared = {"_field", "_reverse"}
        made = object.__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update({k: v if k in shared else copy.deepcopy(v, memo) for k, v in state.items()})
        return made


class Undone:
    """The way back, taken before the solution was pickled."""

    def __init__(self, solution: Solution):
        self.solution = solution

    def __call__(self) -> Solution:
        return self.solution


_VALUES = ("ts", "ys", "velocities", "momenta")


def _detached(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _detached(v) for k, v in x.items()}
    return x.detach() if isinstance(x, Tensor) else x


def _numpy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to("cpu", torch.float64 if x.dtype == torch.bfloat16 else x.dtype).numpy()
    return x if x is None else np.asarray(x)


def _members(failed: Mapping[tuple[int, ...], int]) -> str:
    return f"{len(failed)} member{'s' if len(failed) > 1 else ''}"


def _g(x: float) -> str:
    return f"{x:.6g}"


def _written(scale: Any) -> str:
    if isinstance(scale, float):
        return f"2**{round(math.log2(scale))}"
    low, high = float(scale.min()), float(scale.max())
    return f"2**{round(math.log2(low))} to 2**{round(math.log2(high))}, by component"
