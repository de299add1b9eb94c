"""What an integration returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .equations import FIRST, SECOND


@dataclass(frozen=True)
class Stats:
    """What a run did.

    Attributes:
        method, state: as text.
        loop: ``"compiled"`` or ``"python"``.
        steps: taken. evaluations: of the field's functions, summed over F and G (of one system; a batch counts once).
        headroom: range of the fixed-point format over the largest state value that occurred; inf for float states.
        carry_bytes: kept for exact reversal where |alpha| < 1.
        bytes_saved: kept for backward; 0 where no gradient was asked for.
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

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Solution:
    """A trajectory at the saved times; torch tensors when the start was torch, else NumPy arrays.

    Attributes:
        ts: (M,) times.
        ys: (M, *shape): y, or q for second-order and separable fields.
        velocities: (M, *shape) v of q'' = f(t, q), else None. momenta: p of separable fields, else None.
        stats: :class:`Stats`.
        start, final: the two slots in the state format (integers in fixed point), as torch tensors without gradient: the
            bits that :meth:`reverse` starts from and returns to.
        exact: of a reversed solution: it arrived at the forward run's start bit for bit. None otherwise.
    """

    ts: Any
    ys: Any
    velocities: Any
    momenta: Any
    stats: Stats
    start: tuple[Tensor, Tensor]
    final: tuple[Tensor, Tensor]
    equation: str
    exact: bool | None = None
    _energy: Callable[..., Any] | None = None
    _integrals: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    _reverse: Callable[[], Solution] | None = None

    @property
    def second(self) -> Any:
        """Velocities or momenta, whichever there are."""
        return self.velocities if self.velocities is not None else self.momenta

    @property
    def energy(self) -> Any:
        """The field's energy at the saved times, (M, batch...); None where the field has none."""
        return None if self._energy is None else self._at_saves(self._energy)

    @property
    def integrals(self) -> dict[str, Any]:
        """The field's first integrals at the saved times, by name; empty where the field names none."""
        return {name: self._at_saves(f) for name, f in self._integrals.items()}

    def _at_saves(self, f: Callable[..., Any]) -> Any:
        return f(self.ys) if self.second is None else f(self.ys, self.second)

    def reverse(self) -> Solution:
        """Integrate back to the start from the final states alone. In fixed point ``.exact`` is True: the same bits.

        Returns:
            a Solution with decreasing ``ts`` at the same grid points (times between grid points are left out).
        """
        if self._reverse is None:
            raise ConfigError("this solution is itself a reversed one: call integrate(...).reverse()")
        return self._reverse()

    def to_numpy(self) -> Solution:
        """The same with NumPy arrays, detached and on the CPU."""
        fields = {name: _numpy(getattr(self, name)) for name in ("ts", "ys", "velocities", "momenta")}
        return Solution(**{**{f: getattr(self, f) for f in self.__dataclass_fields__}, **fields})

    def plot(self, ax: Any = None) -> Any:
        """Components against time, on a matplotlib Axes; returns it.

        Args:
            ax: axes to draw on; None: a new figure's, without pyplot (``ax.figure.savefig(...)``).

        Raises:
            ConfigError: matplotlib is not installed.
        """
        if ax is None:
            try:
                from matplotlib.figure import Figure
            except ModuleNotFoundError as error:
                raise ConfigError("plot() needs matplotlib; run: pip install matplotlib") from error
            ax = Figure(figsize=(8, 4.5), layout="constrained").subplots()
        shown = self.to_numpy()
        parts = {"y" if self.equation == FIRST else "q": shown.ys, "v" if self.equation == SECOND else "p": shown.second}
        for name, values in parts.items():
            if values is None:
                continue
            flat = values.reshape(len(shown.ts), -1)
            for i in range(min(flat.shape[1], 12)):  # more lines are no picture
                ax.plot(shown.ts, flat[:, i], label=f"{name}[{i}]" if flat.shape[1] > 1 else name, linestyle="-" if name in "yq" else "--", linewidth=1.2)
        ax.set_xlabel("t")
        ax.set_title(f"{self.stats.method}, h = {self.stats.h:g}, {self.stats.steps:,} steps, {self.stats.state}", fontsize=10)
        if len(ax.get_lines()) > 1:
            ax.legend(fontsize=8, ncols=2)
        return ax


def _numpy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to("cpu", torch.float64 if x.dtype == torch.bfloat16 else x.dtype).numpy()
    return x if x is None else np.asarray(x)
