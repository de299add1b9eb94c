"""Explicit Runge-Kutta tableaus, each proved to have its order when it is defined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import ConfigError

EPS = float(np.finfo(np.float64).eps)

#: A rooted tree is the sorted tuple of its root's subtrees; () is the single node.
Tree = tuple["Tree", ...]


@cache
def trees(order: int) -> tuple[Tree, ...]:
    """All rooted trees with ``order`` nodes: 1, 1, 2, 4, 9, 20, ..."""

    def forests(nodes: int, largest: tuple[int, Tree] | None = None) -> list[Tree]:
        """Multisets of trees with ``nodes`` nodes together, no tree behind ``largest``."""
        if nodes == 0:
            return [()]
        found = []
        for size in range(min(nodes, largest[0] if largest else nodes), 0, -1):
            for tree in trees(size):
                if largest is None or (size, tree) <= largest:
                    found += [(tree, *rest) for rest in forests(nodes - size, (size, tree))]
        return found

    return tuple(sorted(set(forests(order - 1))))


def _nodes(tree: Tree) -> int:
    return 1 + sum(map(_nodes, tree))


def _density(tree: Tree) -> int:
    return _nodes(tree) * math.prod(map(_density, tree))


def _weights(tree: Tree, a: np.ndarray) -> np.ndarray:
    """The elementary weights of the stages: the product over the root's subtrees u of A weights(u)."""
    return np.prod([a @ _weights(child, a) for child in tree], axis=0) if tree else np.ones(len(a))


@dataclass(frozen=True)
class Tableau:
    """``k_i = f(t + c_i h, y + h sum_j a_ij k_j)``, ``y' = y + h sum_i b_i k_i``.

    Args:
        name: registry key.
        order: proved by the conditions of all rooted trees, up to order 5 where it is higher.
        a: row i has i entries (0 for the first), so the step is explicit.
        b: weights, one a stage.
        c: nodes, one a stage.
        source: paper or book, and table in it.

    Raises:
        ConfigError: rows of the wrong length, non-finite entries, nodes that are not the row sums, an order
            condition that fails (the first is named), or an order below 5 that is higher than claimed.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        if (
            isinstance(self.order, bool)
            or not isinstance(self.order, int)
            or self.order < 1
            or not self.source
        ):
            raise ConfigError(
                f"tableau {self.name!r}: got order {self.order!r} and source {self.source!r}, expected a"
                " positive integer and a paper or book"
            )
        if not len(self.a) == len(self.b) == len(self.c) or not self.b:
            raise ConfigError(
                f"tableau {self.name}: got {len(self.a)} rows, {len(self.b)} weights, {len(self.c)} nodes,"
                " expected one of each a stage"
            )
        for i, row in enumerate(self.a):
            if len(row) != i:
                raise ConfigError(
                    f"tableau {self.name} is not explicit: row {i} has {len(row)} entries, expected {i}"
                    " (strictly lower triangular, no zeros above)"
                )
        if not all(
            isinstance(x, float) and math.isfinite(x) for row in (*self.a, self.b, self.c) for x in row
        ):
            raise ConfigError(
                f"tableau {self.name}: got an entry that is no finite float: {self.a}, {self.b}, {self.c}"
            )
        for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)):
            # Every entry and the node are off by half an ulp of their size: eps/2 times what they sum to; the
            # 2 leaves as much for the comparison.
            if not abs(math.fsum(row) - node) <= 2 * EPS * (math.fsum(map(abs, row)) + abs(node)):
                raise ConfigError(
                    f"tableau {self.name}: node c[{i}] is {node!r}, but row {i} adds up to"
                    f" {math.fsum(row)!r}: one of them is wrong"
                )
        self._check_order()

    def matrix(self) -> np.ndarray:
        """a as a square matrix, float64."""
        return np.array([[*row, *[0.0] * (len(self.b) - len(row))] for row in self.a])

    def _check_order(self) -> None:
        proved = min(self.order, 5)
        for order in range(1, proved + 1):
            for tree in trees(order):
                residual, bound = self._condition(tree)
                if not abs(residual) <= bound:
                    raise ConfigError(
                        f"tableau {self.name} is not of order {self.order}: the condition of the tree {tree}"
                        f" of order {order} is off by {residual:.3g}, expected 0 within {bound:.1e}: an entry"
                        f" is wrong (check it against {self.source}), or the order is lower"
                    )
        if proved < 5 and all(abs(r) <= bound for r, bound in map(self._condition, trees(proved + 1))):
            raise ConfigError(
                f"tableau {self.name} claims order {self.order}, but every condition of order"
                f" {self.order + 1} holds too: claim its true order"
            )

    def _condition(self, tree: Tree) -> tuple[float, float]:
        """``b . weights - 1/density`` and the bound on its rounding error.

        The weight is a sum of products of one entry per node; with absolute values it is M. Each entry
        carries half an ulp, and each of the at most n nodes adds a product and a sum over at most s stages, s
        + 1 roundings: n (s + 2) eps M, eps being twice the unit roundoff.
        """
        a, b = self.matrix(), np.array(self.b)
        majorant = np.abs(b) @ _weights(tree, np.abs(a))
        return float(b @ _weights(tree, a)) - 1 / _density(tree), float(
            _nodes(tree) * (len(b) + 2) * EPS * (majorant + 1 / _density(tree))
        )

    def error_constant(self) -> float:
        """Norm over the trees of order + 1 of ``(b . weights - 1/density) / symmetry``: the size of the
        leading error term (Hairer, Norsett, Wanner II.3).
        """
        return math.sqrt(
            sum((self._condition(tree)[0] / _symmetry(tree)) ** 2 for tree in trees(self.order + 1))
        )


def _symmetry(tree: Tree) -> int:
    return math.prod(
        math.factorial(tree.count(child)) * _symmetry(child) ** tree.count(child) for child in set(tree)
    )


HNW = "Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I"
EULER = Tableau("euler", 1, ((),), (1.0,), (0.0,), "Euler (1768)")
MIDPOINT = Tableau(
    "explicit_midpoint", 2, ((), (1 / 2,)), (0.0, 1.0), (0.0, 1 / 2), f"Runge (1895); {HNW}, II.1"
)
HEUN2 = Tableau(
    "heun2", 2, ((), (1.0,)), (1 / 2, 1 / 2), (0.0, 1.0), f"Runge (1895), the trapezoidal one; {HNW}, II.1"
)
RALSTON2 = Tableau(
    "ralston2", 2, ((), (2 / 3,)), (1 / 4, 3 / 4), (0.0, 2 / 3), "Ralston, Math. Comp. 16 (1962)"
)
BOSH3 = Tableau(
    "bosh3",
    3,
    ((), (1 / 2,), (0.0, 3 / 4)),
    (2 / 9, 1 / 3, 4 / 9),
    (0.0, 1 / 2, 3 / 4),
    "Bogacki and Shampine, Appl. Math. Lett. 2 (1989), third-order weights",
)
RK4 = Tableau(
    "rk4",
    4,
    ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 1 / 2, 1 / 2, 1.0),
    f"Kutta (1901), the classical one; {HNW}, II.1",
)
DOPRI5 = Tableau(
    "dopri5", 5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    f"Dormand and Prince, J. Comput. Appl. Math. 6 (1980), fifth-order weights; {HNW}, table II.5.2",
)  # fmt: skip


def available() -> dict[str, Tableau]:
    """Every tableau of this module, by name."""
    return {
        table.name: table
        for table in sorted(
            (v for v in globals().values() if isinstance(v, Tableau)), key=lambda table: table.name
        )
    }


def get(name: str) -> Tableau:
    """The tableau of that name. Raises ConfigError listing the names when there is none."""
    known = available()
    if name not in known:
        raise ConfigError(f"no tableau {name!r}, expected one of {', '.join(known)}")
    return known[name]
