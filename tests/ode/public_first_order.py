"""Public problems that are y' = f(t, y)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from public_problems import PublicProblem
from scipy.linalg import expm
from scipy.special import ellipj, jv, jvp

sin, cos, exp, sqrt = math.sin, math.cos, math.exp, math.sqrt


def first(name, f, start, end, closed=None, steps=32, begin=0.0):
    return PublicProblem(name, "first", (f,), (tuple(map(float, start)),), end, closed, steps, begin)


def linear(name, matrix, start, end, steps=32):
    """y' = A y, in closed form by the matrix exponential."""
    rows, a = [tuple(map(float, row)) for row in matrix], np.array(matrix, dtype=np.float64)
    f = lambda t, y: [sum(c * x for c, x in zip(row, y)) for row in rows]  # noqa: E731
    return first(name, f, start, end, lambda t: expm(t * a) @ np.array(start, dtype=np.float64), steps)


def oscillator(damping, end):
    """q'' + 2 damping q' + q = 0 from (1, 0)."""
    return linear(f"oscillator_damped_{damping:g}", [[0, 1], [-1, -2 * damping]], [1, 0], end)


# ---- growth and decay ----------------------------------------------------------------------------


def _gompertz(t):
    return [exp(math.log(0.1) * exp(-t))]


def _bernoulli(t):
    return [1 / sqrt(1 + 24 * exp(-2 * t))]


def _follower(t, y):
    return (-2 * (y[0] - cos(t)) - sin(t),)


def _rocket(t, y):
    """Height, velocity, mass: thrust from exhaust at velocity 3 and mass rate 1/5, gravity 1."""
    return y[1], 3.0 * 0.2 / y[2] - 1.0, -0.2


def _rocket_flown(t):
    m = 1.0 - 0.2 * t
    return 3.0 * (t + m / 0.2 * math.log(m)) - t * t / 2, -3.0 * math.log(m) - t, m


GROWTH = [
    first("exponential_decay", lambda t, y: (-y[0],), [1], 4.0, lambda t: [exp(-t)]),
    first("exponential_growth", lambda t, y: (y[0],), [1], 4.0, lambda t: [exp(t)]),
    first(
        "logistic_detest_A4",
        lambda t, y: (y[0] / 4 * (1 - y[0] / 20),),
        [1],
        20.0,
        lambda t: [20 / (1 + 19 * exp(-t / 4))],
    ),
    first("gompertz", lambda t, y: (-y[0] * math.log(y[0]),), [0.1], 4.0, _gompertz),
    first("square_root_detest_A2", lambda t, y: (-(y[0] ** 3) / 2,), [1], 8.0, lambda t: [1 / sqrt(1 + t)]),
    first("periodic_growth_detest_A3", lambda t, y: (y[0] * cos(t),), [1], 7.0, lambda t: [exp(sin(t))]),
    first("spiral_detest_A5", lambda t, y: ((y[0] - t) / (y[0] + t),), [4], 6.0),
    first("riccati_tangent", lambda t, y: (1 + y[0] * y[0],), [0], 1.2, lambda t: [math.tan(t)]),
    first("bernoulli", lambda t, y: (y[0] - y[0] ** 3,), [0.2], 4.0, _bernoulli),
    first("prothero_robinson_mild", _follower, [1], 4.0, lambda t: [cos(t)]),
    first("rocket_tsiolkovsky", _rocket, [0, 0, 1], 3.0, _rocket_flown),
    first(
        "terminal_velocity",
        lambda t, y: (9.81 - 0.1 * y[0] * abs(y[0]),),
        [0],
        2.0,
        lambda t: [sqrt(98.1) * math.tanh(sqrt(0.981) * t)],
    ),
]

# ---- reactions and epidemics ---------------------------------------------------------------------


def _bateman(t):
    """A chain of five with rates 1, 2, 3, 4 and a stable end, from one unit of the first."""
    rates = (1.0, 2.0, 3.0, 4.0)
    found = []
    for n in range(4):
        total = 0.0
        for i in range(n + 1):
            total += exp(-rates[i] * t) / math.prod(rates[j] - rates[i] for j in range(n + 1) if j != i)
        found.append(math.prod(rates[:n]) * total)
    return [*found, 1.0 - sum(found)]


def _chain(t, y):
    flow = [k * x for k, x in zip((1.0, 2.0, 3.0, 4.0), y)]
    return [-flow[0], *(flow[k] - flow[k + 1] for k in range(3)), flow[3]]


def _reaction(t, y):
    return -y[0], y[0] - y[1] ** 2, y[1] ** 2


def _enzyme(t, y):
    """Michaelis and Menten's: substrate, enzyme, complex, product."""
    bound, freed, made = 2.0 * y[0] * y[1], 1.0 * y[2], 0.8 * y[2]
    return freed - bound, freed + made - bound, bound - freed - made, made


def _sir(t, y):
    new = 1.2 * y[0] * y[1]
    return -new, new - 0.4 * y[1], 0.4 * y[1]


def _seir(t, y):
    new = 1.5 * y[0] * y[2]
    return -new, new - 0.6 * y[1], 0.6 * y[1] - 0.4 * y[2], 0.4 * y[2]


REACTIONS = [
    first("bateman_chain_detest_C1", _chain, [1, 0, 0, 0, 0], 2.0, _bateman),
    linear("linear_reaction_detest_B2", [[-1, 1, 0], [1, -2, 1], [0, 1, -1]], [2, 0, 1], 3.0),
    first("nonlinear_reaction_detest_B3", _reaction, [1, 0, 0], 6.0),
    first("michaelis_menten", _enzyme, [1, 0.5, 0, 0], 2.0),
    first("sir", _sir, [0.99, 0.01, 0], 12.0),
    first("seir", _seir, [0.99, 0.0, 0.01, 0], 6.0),
    first(
        "lotka_volterra_detest_B1",
        lambda t, y: (2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])),
        [1, 3],
        5.0,
        steps=96,
    ),
    first(
        "brusselator",
        lambda t, y: (1 + y[0] ** 2 * y[1] - 4 * y[0], 3 * y[0] - y[0] ** 2 * y[1]),
        [1.5, 3],
        4.0,
        steps=128,
    ),
]

# ---- circuits, drag, fields ----------------------------------------------------------------------


def _resistor(t, y):
    return (1.0 - y[0],)


def _rlc(t, y):
    """Charge and current of a driven circuit, L = 1, R = 0.4, C = 1, at angular frequency 1.3."""
    return y[1], cos(1.3 * t) - 0.4 * y[1] - y[0]


def _drag_linear(t, y):
    return y[2], y[3], -0.3 * y[2], -9.81 - 0.3 * y[3]


def _drag_linear_flown(t):
    k, g, vx, vy = 0.3, 9.81, 20.0, 15.0
    e = exp(-k * t)
    return vx * (1 - e) / k, (vy + g / k) * (1 - e) / k - g * t / k, vx * e, (vy + g / k) * e - g / k


def _shell(t, y):
    """A shell of 500 m/s with drag 6e-4 v**2, in metres and seconds."""
    s = 6e-4 * sqrt(y[2] ** 2 + y[3] ** 2)
    return y[2], y[3], -s * y[2], -9.81 - s * y[3]


def _cyclotron(t, y):
    return y[2], y[3], y[3], -y[2]


def _crossed(t, y):
    """A charge in a magnetic field of 1 and an electric one of 0.2 across it, from rest: a cycloid."""
    return y[2], y[3], y[3] + 0.2, -y[2]


def _bloch(t, y):
    """Precession at 1, driven at 0.5, with relaxation times 5 and 3."""
    return y[1] - y[0] / 3, -y[0] + 0.5 * y[2] - y[1] / 3, -0.5 * y[1] + (1 - y[2]) / 5


def _two_level(t, y):
    """i psi' = H psi with H = [[d, w], [w, -d]], d = 0.3, w = 0.4, as (re, re, im, im)."""
    a, b, c, d = y
    return 0.3 * c + 0.4 * d, 0.4 * c - 0.3 * d, -0.3 * a - 0.4 * b, -0.4 * a + 0.3 * b


def _two_level_flown(t):
    s, c = sin(t / 2), cos(t / 2)
    return c, 0.0, -0.6 * s, -0.8 * s


CIRCUITS = [
    first("rc_charging", _resistor, [0], 4.0, lambda t: [1 - exp(-t)]),
    first("rlc_driven", _rlc, [0, 0], 8.0),
    first("projectile_linear_drag", _drag_linear, [0, 0, 20, 15], 3.0, _drag_linear_flown),
    first("shell_quadratic_drag_si", _shell, [0, 0, 470, 170], 20.0),
    first("cyclotron", _cyclotron, [0, 1, 1, 0], 6.0, lambda t: [sin(t), cos(t), cos(t), -sin(t)]),
    first(
        "crossed_fields_from_rest",
        _crossed,
        [0, 0, 0, 0],
        6.0,
        lambda t: [0.2 * (1 - cos(t)), 0.2 * (sin(t) - t), 0.2 * sin(t), 0.2 * (cos(t) - 1)],
    ),
    first("bloch_relaxation", _bloch, [0, 0, 1], 8.0),
    first("two_level_rabi", _two_level, [1, 0, 0, 0], 8.0, _two_level_flown),
]

# ---- oscillators and what is not linear ----------------------------------------------------------


def _euler(t):
    sn, cn, dn, _ = ellipj(t, 0.51)
    return sn, cn, dn


def _driven_pendulum(t, y):
    return y[1], -0.5 * y[1] - sin(y[0]) + 0.8 * cos(2 * t / 3)


def _lorenz(t, y):
    return 10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]


def _torus(t, y):
    r = sqrt(y[0] ** 2 + y[1] ** 2)
    return -y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r


def _arenstorf(t, y):
    m, x, z = 0.012277471, y[0], y[1]
    a, b = ((x + m) ** 2 + z * z) ** 1.5, ((x - 1 + m) ** 2 + z * z) ** 1.5
    return (
        y[2],
        y[3],
        x + 2 * y[3] - (1 - m) * (x + m) / a - m * (x - 1 + m) / b,
        z - 2 * y[2] - (1 - m) * z / a - m * z / b,
    )


def _bessel(t, y):
    return y[1], -(y[1] / t + (1 - 0.25 / t**2) * y[0])


def _legendre(t, y):
    """(1 - t**2) y'' - 2 t y' + 12 y = 0: P_3."""
    return y[1], (2 * t * y[1] - 12 * y[0]) / (1 - t * t)


def _rod(n=8):
    return [[-2 if i == j else 1 if abs(i - j) == 1 else 0 for j in range(n)] for i in range(n)]


def _ring_matrix(n=8):
    return [[((j == (i - 1) % n) - (j == (i + 1) % n)) / 2 for j in range(n)] for i in range(n)]


def _turning(t, y):
    """y' = 2 t J y: a rotation by t**2."""
    return 2 * t * y[1], -2 * t * y[0]


OSCILLATORS = [
    oscillator(0.1, 6.0),
    oscillator(1, 5.0),
    oscillator(2, 2.0),
    first("pendulum_driven_damped", _driven_pendulum, [0.5, 0], 10.0),
    first("van_der_pol_detest_E2", lambda t, y: (y[1], (1 - y[0] ** 2) * y[1] - y[0]), [2, 0], 5.0, steps=64),
    first(
        "duffing_detest_E3",
        lambda t, y: (y[1], y[0] ** 3 / 6 - y[0] + 2 * sin(2.78535 * t)),
        [0, 0],
        6.0,
        steps=64,
    ),
    first(
        "fitzhugh_nagumo",
        lambda t, y: (y[0] - y[0] ** 3 / 3 - y[1] + 0.5, 0.08 * (y[0] + 0.7 - 0.8 * y[1])),
        [-1, 1],
        8.0,
        steps=64,
    ),
    first("lorenz_short", _lorenz, [1, 1, 20], 1.0, steps=128),
    first(
        "roessler_short",
        lambda t, y: (-y[1] - y[2], y[0] + 0.2 * y[1], 0.2 + y[2] * (y[0] - 5.7)),
        [1, 1, 0],
        1.2,
        steps=48,
    ),
    first(
        "rigid_body_detest_B5",
        lambda t, y: (y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]),
        [0, 1, 1],
        8.0,
        _euler,
    ),
    first("torus_detest_B4", _torus, [3, 0, 0], 6.0),
    first("arenstorf_short", _arenstorf, [0.994, 0, 0, -2.00158510637908252240537862224], 0.5, steps=1024),
    first(
        "bessel_detest_E1",
        _bessel,
        [jv(0.5, 1.0), jvp(0.5, 1.0)],
        7.0,
        lambda t: [jv(0.5, t), jvp(0.5, t)],
        begin=1.0,
    ),
    first("legendre", _legendre, [0, -1.5], 0.7, lambda t: [(5 * t**3 - 3 * t) / 2, (15 * t * t - 3) / 2]),
    linear("heat_method_of_lines", _rod(), [0, 0, 1, 2, 2, 1, 0, 0], 2.0),
    linear("advection_method_of_lines", _ring_matrix(), [0, 0, 1, 2, 1, 0, 0, 0], 4.0),
    first("turning_faster", _turning, [1, 0], 2.5, lambda t: [cos(t * t), -sin(t * t)], steps=64),
]


def lasting(name, end, steps):
    """One of the problems above for so long that what grows where the flow contracts has the time."""
    found = next(p for p in (*REACTIONS, *CIRCUITS, *OSCILLATORS) if p.name == name)
    return dataclasses.replace(found, name=f"{name}_long", end=end, steps=steps, long=True)


LONG = [
    lasting("pendulum_driven_damped", 60.0, 256),
    lasting("van_der_pol_detest_E2", 25.0, 256),
    lasting("fitzhugh_nagumo", 60.0, 256),
    lasting("brusselator", 20.0, 512),
    lasting("lorenz_short", 3.0, 512),
    lasting("shell_quadratic_drag_si", 50.0, 128),
    lasting("bloch_relaxation", 60.0, 256),
    lasting("rlc_driven", 80.0, 256),
]

FIRST_ORDER = [*GROWTH, *REACTIONS, *CIRCUITS, *OSCILLATORS, *LONG]
