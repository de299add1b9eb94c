"""Linear stability: growth measured on a grid of z against the characteristic polynomial built from the
method's coefficients.

Test equations: y' = lambda y with z = h lambda; q'' = lambda q and q' = p, p' = lambda q with z = h**2
lambda. Over K steps a 2 x 2 step matrix M with largest root r obeys ``r**K <= |M**K| <= r**K + K r**(K-1)
|M|`` (Schur's form), so theory gives an interval for the measured growth ``|M**K| ** (1/K)`` at every z; it
is narrow except where both roots are small, and decides stable from unstable wherever \\|r - 1\\| is above
log(1 + K |M|) / K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from revstep import ops
from revstep.ode.methods import Method, ReversibleRK, SplittingMethod, TwoStep
from revstep.verify._checks import Result

from .bounds import walker
from .oracle import altered, scaled

NAME = "stability"
STEPS = 48
#: Fewer steps where the largest step matrix of the grid would leave float64: |M**K| is kept below this.
LIMIT = 1e250
POINTS = 21
#: Grids of z by kind of equation: (real range, imaginary range).
GRIDS = {
    "first": ((-3.0, 1.0), (-3.0, 3.0)),
    "second": ((-6.0, 2.0), (-2.0, 2.0)),
    "separable": ((-6.0, 2.0), (-2.0, 2.0)),
}
EPS = 2.0**-52


@dataclass(frozen=True)
class Region:
    """``z`` (complex grid, flat), measured growth a step over ``steps`` steps, largest root of theory, and
    the interval theory allows for the growth.
    """

    steps: int
    z: np.ndarray
    growth: np.ndarray
    root: np.ndarray
    low: np.ndarray
    high: np.ndarray


def points(equation: str) -> np.ndarray:
    (left, right), (bottom, top) = GRIDS[equation]
    x, y = np.meshgrid(np.linspace(left, right, POINTS), np.linspace(bottom, top, POINTS))
    return (x + 1j * y).ravel()


def _field(z: np.ndarray) -> tuple:
    """x -> x and x -> z x, on complex numbers as pairs of reals; states (points, start vectors, 2)."""
    re, im = (torch.from_numpy(np.ascontiguousarray(part))[:, None] for part in (z.real, z.imag))

    def times(t: Tensor, x: Tensor) -> Tensor:
        a, b = x[..., 0], x[..., 1]
        return torch.stack([re * a - im * b, im * a + re * b], dim=-1)

    return (lambda t, x: x), times


def run(method: Method, equation: str, z: np.ndarray, count: int, first: int = 1) -> np.ndarray:
    """The matrices of steps ``first`` to ``first + count - 1`` on the two slots, measured with h = 1:
    (points, 2, 2), complex.
    """
    same, times = _field(z)
    functions = {"first": (times,), "second": (times,), "separable": (same, times)}[equation]
    slots = [torch.zeros(len(z), 2, 2, dtype=torch.float64) for _ in range(2)]
    for k in range(2):
        slots[k][:, k, 0] = 1.0  # start vector k has a one in slot k
    w = walker(method, equation, functions, slots, 1.0, n=first)
    for _ in range(count):
        w.forward()
    return np.stack([s[..., 0].numpy() + 1j * s[..., 1].numpy() for s in w.states], axis=1)


def _matrix(entries: list[list]) -> np.ndarray:
    return np.stack([np.stack(np.broadcast_arrays(*row), axis=-1) for row in entries], axis=-2)


def steps(method: Method, equation: str, z: np.ndarray, absolute: bool = False) -> list[np.ndarray]:
    """Step matrices of theory, from the coefficients of the scheme, composition or tableau; not from the
    micro-steps that are measured.

    Of the pair (y[n-1], y[n]) for two-step schemes, of the two streams otherwise. One matrix stands for all
    steps, unless the coefficients vary. With ``absolute``, all coefficients and z by their absolute values:
    the majorant that rounding errors are proportional to.
    """
    size = np.abs if absolute else lambda x: x
    z, one, zero = size(z.astype(complex)), np.ones(len(z)), np.zeros(len(z))
    if isinstance(method, TwoStep):
        count = STEPS if method.period is None else 1
        return [
            _matrix([[zero, one], [size(c.alpha) * one, size(c.beta) + size(c.gamma) * z]])
            for c in (method.scheme.coefficients(1 + k) for k in range(count))
        ]
    if isinstance(method, ReversibleRK):
        plus, minus = _increment(method, z, size), -_increment(method, -z, size)
        if absolute:
            minus = _increment(method, z, size)
        over = 1 - method.lam + plus
        return [_matrix([[method.lam * one, over], [minus * method.lam, 1 + minus * over]])]
    a, b = (
        (method.data.full_a(), method.data.full_b())
        if isinstance(method, SplittingMethod)
        else ((1.0,), (1.0,))
    )
    up, down = (z, z) if equation == "first" else (one, z)
    product = _matrix([[one, zero], [zero, one]])
    for k, x in enumerate(a):
        product = _matrix([[one, size(x) * up], [zero, one]]) @ product
        if k < len(b):
            product = _matrix([[one, zero], [size(b[k]) * down, one]]) @ product
    if equation == "first" and isinstance(method, SplittingMethod) and method.couple:
        product = _drawn_together(method.couple, one, zero) @ product
    return [product]


def _drawn_together(couple: float, one: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """The mean of the two copies kept, their difference times 1 - couple, in two triangular steps: all
    entries are positive.
    """
    a = couple / 2
    b = ops.snap(a / (1 - a))
    return _matrix([[one, zero], [b * one, (1 - b) * one]]) @ _matrix([[(1 - a) * one, a * one], [zero, one]])


def _increment(method: ReversibleRK, z: np.ndarray, size: Callable) -> np.ndarray:
    """z b^T (1 - z A)^-1 1, stage by stage."""
    stages: list[np.ndarray] = []
    for row in method.tableau.a:
        stages.append(z * (1 + sum(size(a) * k for a, k in zip(row, stages, strict=True))))
    return sum(size(b) * k for b, k in zip(method.tableau.b, stages, strict=True))


def largest_root(m: np.ndarray) -> np.ndarray:
    """Of ``w**2 - trace w + determinant``, the characteristic polynomial of 2 x 2 matrices."""
    trace, det = np.trace(m, axis1=1, axis2=2), m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]
    split = np.sqrt(trace * trace / 4 - det + 0j)
    return np.maximum(np.abs(trace / 2 + split), np.abs(trace / 2 - split))


def region(method: Method, equation: str, theory: Method | None = None) -> Region:
    """Measured and theoretical growth on the grid; ``theory``: the method whose coefficients are meant, where
    it is not the one that runs.
    """
    z = points(equation)
    matrices = steps(theory or method, equation, z)
    norm = np.max([np.linalg.norm(m, 2, axis=(1, 2)) for m in matrices], axis=0)
    count = min(STEPS, int(np.log(LIMIT) / np.log(norm.max())))
    measured = np.linalg.norm(run(method, equation, z, count), 2, axis=(1, 2)) ** (1 / count)
    if len(matrices) == 1:
        (m,) = matrices
        root = largest_root(m)
        low, high = root, root * (1 + count * norm / root) ** (1 / count)
    else:
        product = np.broadcast_to(np.eye(2, dtype=complex), matrices[0].shape)
        for m in matrices[:count]:
            product = m @ product
        root = low = high = np.linalg.norm(product, 2, axis=(1, 2)) ** (1 / count)
    # Rounding: each of K steps of m micro-steps puts some 8 m eps |M| on a factor, so |M**K| is off by at
    # most 8 m K eps times the product of the norms; the same for the roots at a double one, where they move
    # by the square root.
    micros = len(method.micros(1, equation)) * (len(method.tableau.b) if method.tableau else 1)
    relative = 8 * EPS * micros * np.maximum(norm, 1) / np.maximum(root, 0.1)
    slack = relative + np.sqrt(relative)
    return Region(count, z, measured, root, low * (1 - slack), high * (1 + slack))


def judged(found: Region, varying: bool) -> list[Result]:
    outside = np.maximum(found.low - found.growth, found.growth - found.high)
    worst = int(np.argmax(outside))
    what = (
        f"{len(found.z)} values of z, {found.steps} steps; worst at z = {found.z[worst]:.3g}: growth"
        f" {found.growth[worst]:.6g}, theory {found.root[worst]:.6g}"
    )
    if varying:
        what += " (random coefficients: against the product of the companion matrices of the same draw)"
    first = Result(
        "growth within the interval of the characteristic roots",
        bool(outside[worst] <= 0),
        float(outside[worst]),
        0.0,
        "outside it",
        what,
    )
    width = found.high - found.low
    near = np.abs(found.root - 1) <= width
    wrong = ((found.growth > 1) != (found.root > 1)) & ~near
    what = (
        f"{int((found.root <= 1).sum())} of {len(found.z)} values stable; {int(near.sum())} nearer the"
        f" boundary than the interval is wide (at most {width.max():.2g})"
    )
    return [
        first,
        Result(
            "stable and unstable as the roots say",
            not wrong.any(),
            int(wrong.sum()),
            0,
            "values of z that disagree",
            what,
        ),
    ]


def roots(method: Method, equation: str, theory: Method) -> Result:
    """The characteristic polynomial itself: the largest root of two measured steps is the square of theory's.

    Rounding puts at most E = 8 m eps |M+|**2 on the two steps of m micro-steps each, M+ being the majorant; a
    root of a 2 x 2 matrix N then moves by at most ``sqrt(E (2 |N| + E))`` (Elsner). Two steps, as two-step
    schemes write their slots in turn.
    """
    z = points(equation)
    z = z[np.abs(z) <= 1.5]
    (m,), (majorant,) = steps(theory, equation, z), steps(theory, equation, z, absolute=True)
    measured, expected = largest_root(run(method, equation, z, 2)), largest_root(m) ** 2
    micros = 2 * len(method.micros(1, equation)) * (len(method.tableau.b) if method.tableau else 1)
    error = 8 * EPS * micros * np.linalg.norm(majorant, 2, axis=(1, 2)) ** 2
    bound = np.sqrt(error * (2 * np.linalg.norm(m @ m, 2, axis=(1, 2)) + error))
    off = np.abs(measured - expected)
    worst = int(np.argmax(off / bound))
    what = (
        f"{len(z)} values of |z| <= 1.5; worst at z = {z[worst]:.3g}: {measured[worst]:.9g}, theory"
        f" {expected[worst]:.9g}"
    )
    return Result(
        "roots of the characteristic polynomial",
        bool(off[worst] <= bound[worst]),
        float(off[worst]),
        float(bound[worst]),
        "distance",
        what,
    )


def measure(method: Method, equation: str) -> list[Result]:
    theory = getattr(method, "base", None)
    # A broken method is held against what it says it is.
    theory = theory if isinstance(theory, Method) else method
    varying = theory.period is None
    results = judged(region(method, equation, theory), varying)
    return results if varying else [roots(method, equation, theory), *results]


MUTANTS = {
    "midpoint with an increment 1% too large": (altered("midpoint", scaled(1.01)), "first"),
    "leapfrog with the wrong sign": (altered("leapfrog", scaled(-1.0)), "second"),
    "yoshida4 with one coefficient 1% off": (altered("yoshida4", scaled(1.01, 3)), "separable"),
    "reversible rk4 with half the increment back": (altered("reversible_rk4", scaled(0.5, 1)), "first"),
}
