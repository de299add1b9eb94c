"""Schemes measured on closed forms: order of convergence and time symmetry. Problems are keyed by the
equation a scheme claims.
"""

import math

import numpy as np
import torch

from revstep import Float
from revstep.schemes import Coefficients, Scheme, available

FLOAT64 = Float(torch.float64)
HALVINGS = 5
NON_NORMAL = torch.tensor([[0.0, 8.0], [0.0, -1.0]], dtype=torch.float64)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _non_normal(t: float) -> torch.Tensor:
    return torch.linalg.matrix_exp(NON_NORMAL * t) @ vector(1.0, 1.0)


#: equation -> name -> (fields f(t, y), exact y(t)); two streams have two fields and two solutions.
PROBLEMS = {
    "y' = f(y)": {
        "logistic": ([lambda t, y: y * (1 - y)], [lambda t: vector(1 / (1 + 3 * math.exp(-t)))]),
        "non-normal": ([lambda t, y: NON_NORMAL @ y], [_non_normal]),
        "non-autonomous": ([lambda t, y: math.cos(t) * y], [lambda t: vector(math.exp(math.sin(t)))]),
    },
    "y'' = f(y)": {
        "oscillator": ([lambda t, y: -y], [lambda t: vector(math.cos(t + 0.4))]),
        "nonlinear": ([lambda t, y: 2 * y**3], [lambda t: vector(1 / (1 + t))]),
        "non-autonomous": (
            [lambda t, y: (math.cos(t) ** 2 - math.sin(t)) * y],
            [lambda t: vector(math.exp(math.sin(t)))],
        ),
    },
    "q' = F(p), p' = G(q)": {
        "oscillator": (
            [lambda t, p: p, lambda t, q: -q],
            [lambda t: vector(math.sin(t + 0.3)), lambda t: vector(math.cos(t + 0.3))],
        ),
        "non-autonomous": (
            [lambda t, p: math.cos(t) * p, lambda t, q: -math.cos(t) * q],
            [lambda t: vector(math.sin(math.sin(t) + 0.3)), lambda t: vector(math.cos(math.sin(t) + 0.3))],
        ),
    },
}


def error_at_1(scheme: Scheme, h: float, steps: int, problem) -> float:
    """Error at t = 1 of ``steps`` steps of size h = 1/steps, started on the solution."""
    fields, exact = problem
    if scheme.halves == 2:
        q, p = (y(0.0) for y in exact)
        for j in range(steps):
            q = scheme.step(q, p, fields[0](j * h, p), layer=2 * j, state=FLOAT64)
            p = scheme.step(p, q, fields[1](j * h, q), layer=2 * j + 1, state=FLOAT64)
        return float(torch.cat([q - exact[0](1.0), p - exact[1](1.0)]).norm())
    prev, cur = exact[0](-h), exact[0](0.0)
    for j in range(steps):
        prev, cur = cur, scheme.step(prev, cur, fields[0](j * h, cur), layer=j, state=FLOAT64)
    return float((cur - exact[0](1.0)).norm())


def slopes(errors: list[float]) -> float:
    """Fitted slope of log2(error) over halvings of h."""
    return -float(np.polyfit(range(len(errors)), np.log2(np.maximum(errors, 1e-300)), 1)[0])


def measured_order(make, problem, first: int = 32, halvings: int = HALVINGS) -> float:
    counts = [first << k for k in range(halvings + 1)]
    return slopes([error_at_1(make(1.0 / n), 1.0 / n, n, problem) for n in counts])


def check_order(make, claims) -> None:
    """``make(h)`` gives the scheme with that step size; it must converge at the claimed order on every
    problem of its equation.
    """
    assert claims.equation in PROBLEMS, f"no test problem for {claims.equation!r}: add one to PROBLEMS"
    for name, problem in PROBLEMS[claims.equation].items():
        order = measured_order(make, problem)
        assert abs(order - claims.order) <= 0.15, f"order {order:.2f} on {name}, claimed {claims.order}"


def expected_path_order(make_with_a) -> float:
    """Order of the expectation over independent a_j = +-3/4: all 2**n paths of y' = -y at once, exactly
    averaged.
    """
    errors = []
    for n in (2, 4, 8, 16):
        h = 1.0 / n
        schemes = [make_with_a(h, a) for a in (0.75, -0.75)]
        prev = cur = vector(1.0)
        for _ in range(n):
            nxt = torch.cat([s.step(prev, cur, -cur, state=FLOAT64) for s in schemes])
            prev, cur = cur.repeat(2), nxt
        errors.append(abs(float(cur.mean()) - math.exp(-1.0)))
    return slopes(errors)


def asymmetry(make, steps: int = 5, h: float = 0.125) -> float:
    """How far the step with -h is from undoing the step with h, relative to the states; a few eps where it is
    the inverse.
    """
    forward, backward = make(h), make(-h)
    fields = [lambda x: torch.sin(x), lambda x: torch.cos(x)]
    a, b = vector(0.3, -1.2, 0.7), vector(0.5, -1.0, 0.8)
    start = torch.stack([a, b])
    for j in range(steps):
        if forward.halves == 2:
            a = forward.step(a, b, fields[0](b), layer=2 * j, state=FLOAT64)
            b = forward.step(b, a, fields[1](a), layer=2 * j + 1, state=FLOAT64)
        else:
            a, b = b, forward.step(a, b, fields[0](b), layer=j, state=FLOAT64)
    for j in reversed(range(steps)):
        if forward.halves == 2:
            a = backward.step(a, b, fields[0](b), layer=2 * j, state=FLOAT64)
            b = backward.step(b, a, fields[1](a), layer=2 * j + 1, state=FLOAT64)
        else:
            a, b = backward.step(b, a, fields[0](a), layer=j, state=FLOAT64), a
    return float((torch.stack([a, b]) - start).abs().max() / start.abs().max())


def check_symmetry(make, claims) -> None:
    measured = asymmetry(make)
    # A few roundings in each of 5 steps up and 5 down, amplified at most a few times.
    bound = 64 * 5 * 2.0**-52
    assert (measured <= bound) == claims.symmetric, (
        f"asymmetry {measured:.2g}, claimed {'symmetric' if claims.symmetric else 'not symmetric'}"
    )


def check_symplectic(make, claims) -> None:
    """One degree of freedom: symplectic means that a layer keeps oriented area, det = 1 within a few
    roundings.
    """
    scheme = make(0.3)

    def layer(z):
        a, b = z[0:1], z[1:2]
        if scheme.halves == 2:
            a = scheme.step(a, b, torch.sin(b), layer=0, state=FLOAT64)
            return torch.cat([a, scheme.step(b, a, torch.cos(a), layer=1, state=FLOAT64)])
        return torch.cat([b, scheme.step(a, b, torch.sin(b), state=FLOAT64)])

    area = float(torch.linalg.det(torch.autograd.functional.jacobian(layer, vector(0.4, 0.9))))
    assert (abs(area - 1) <= 16 * 2.0**-52) == claims.symplectic, (
        f"area times {area}, claimed {'symplectic' if claims.symplectic else 'not symplectic'}"
    )


def broken(cls: type[Scheme], change) -> type[Scheme]:
    """A subclass whose coefficients went through ``change(alpha, beta, gamma)``."""
    return type(
        f"Broken{cls.__name__}",
        (cls,),
        {"coefficients": lambda self, layer: Coefficients(*change(*cls.coefficients(self, layer)))},
    )


BREAKS = {
    "gamma twice as large": lambda a, b, g: (a, b, 2 * g),
    "gamma 3 % off": lambda a, b, g: (a, b, 1.03 * g),
    "sign of the increment": lambda a, b, g: (a, b, -g),
    "weights that do not add up": lambda a, b, g: (a, b + 2.0**-6, g),
}
SCHEMES = available()
EXPECTED_ONLY = [name for name, cls in SCHEMES.items() if cls.claims.in_expectation]
PLAIN = [name for name in SCHEMES if name not in EXPECTED_ONLY]
