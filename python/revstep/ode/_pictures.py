"""Pictures of a solution, with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ._equations import FIRST, SECOND

if TYPE_CHECKING:
    from ._solution import Solution

#: More lines are no picture.
MOST = 12


def draw(solution: Solution, what: str, ax: Any) -> Any:
    """One of :data:`KINDS` of a solution of NumPy arrays; returns the axes."""
    if what not in KINDS:
        raise ConfigError(f"plot({what!r}) is not known, expected one of {', '.join(map(repr, KINDS))}")
    if ax is None:
        try:
            from matplotlib import pyplot
        except ModuleNotFoundError as error:
            raise ConfigError("plot() needs matplotlib; run: pip install matplotlib") from error
        ax = pyplot.gca()
    KINDS[what](solution, ax)
    stats = solution.stats
    ax.set_title(f"{stats.method}, h = {stats.h:g}, {stats.steps:,} steps, {stats.state}", fontsize=10)
    if len(ax.get_lines()) > 1:
        ax.legend(fontsize=8, ncols=2)
    return ax


def _flat(solution: Solution, values: np.ndarray) -> np.ndarray:
    """(M, lines), real; a complex component is its real part."""
    flat = values.reshape(len(solution.ts), -1)
    return flat.real if np.iscomplexobj(flat) else flat


def _parts(solution: Solution) -> dict[str, np.ndarray]:
    first = "y" if solution.equation == FIRST else "q"
    second = "v" if solution.equation == SECOND else "p"
    found = {first: solution.ys, second: solution.second}
    return {name: _flat(solution, values) for name, values in found.items() if values is not None}


def _label(name: str, i: int, count: int) -> str:
    return f"{name}[{i}]" if count > 1 else name


def _components(solution: Solution, ax: Any) -> None:
    for name, flat in _parts(solution).items():
        for i in range(min(flat.shape[1], MOST)):
            style = "-" if name in "yq" else "--"
            ax.plot(solution.ts, flat[:, i], style, label=_label(name, i, flat.shape[1]), linewidth=1.2)
    ax.set_xlabel("t")


def _energy(solution: Solution, ax: Any) -> None:
    energy = solution.energy
    found = {"energy": energy} if energy is not None else {}
    found |= {name: values for name, values in solution.integrals.items() if name != "energy"}
    if not found:
        raise ConfigError(
            "plot('energy') needs a field that knows its energy or a first integral: give energy="
        )
    for name, values in found.items():
        flat = _flat(solution, np.asarray(values))
        for i in range(min(flat.shape[1], MOST)):
            ax.plot(solution.ts, flat[:, i] - flat[0, i], label=_label(name, i, flat.shape[1]), linewidth=1.2)
    ax.set_xlabel("t")
    ax.set_ylabel("change since the start")


def _phase(solution: Solution, ax: Any) -> None:
    parts = list(_parts(solution).items())
    if len(parts) == 2:
        (x_name, x), (y_name, y) = parts
        for i in range(min(x.shape[1], MOST)):
            ax.plot(x[:, i], y[:, i], label=_label(x_name, i, x.shape[1]), linewidth=1.2)
        ax.set_xlabel(x_name)
        ax.set_ylabel(y_name)
        return
    name, flat = parts[0]
    if flat.shape[1] < 2:
        raise ConfigError("plot('phase') of y' = f(t, y) needs two components, and y has one")
    ax.plot(flat[:, 0], flat[:, 1], label=name, linewidth=1.2)
    ax.set_xlabel(f"{name}[0]")
    ax.set_ylabel(f"{name}[1]")


KINDS = {"components": _components, "energy": _energy, "phase": _phase}
