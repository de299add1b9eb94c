"""Public problems that are q'' = f(t, q), or q' = F(t, p), p' = G(t, q)."""

from __future__ import annotations

import itertools
import math

from public_problems import PublicProblem
from scipy.special import airy, ellipj

sin, cos, exp, sqrt = math.sin, math.cos, math.exp, math.sqrt


def second(name, f, q0, v0, end, closed=None, steps=32):
    start = tuple(map(float, q0)), tuple(map(float, v0))
    return PublicProblem(name, "second", (f,), start, end, closed, steps)


def separable(name, F, G, q0, p0, end, closed=None, steps=32):
    start = tuple(map(float, q0)), tuple(map(float, p0))
    return PublicProblem(name, "separable", (F, G), start, end, closed, steps)


# ---- oscillators ---------------------------------------------------------------------------------


def _libration(t):
    """q'' = -sin q from (0, 1.2): q = 2 asin(k sn(t | k**2)) with k = 0.6."""
    sn, cn, _, _ = ellipj(t, 0.36)
    return 2 * math.asin(0.6 * sn), 1.2 * cn


def _rotation(t):
    """q'' = -sin q from (0, 2.5), over the top: q = 2 am(1.25 t | 0.64)."""
    _, _, dn, am = ellipj(1.25 * t, 0.64)
    return 2 * am, 2.5 * dn


def _quartic(t):
    sn, cn, dn, _ = ellipj(t, 0.5)
    return cn, -sn * dn


def _airy(t):
    ai, dai, _, _ = airy(t)
    return ai, dai


def _hill(t, q):
    return (-(0.6 + 0.3 * cos(t) + 0.2 * sin(3 * t)) * q[0],)


def _driven(t, q):
    return (-q[0] + cos(1.5 * t),)


def _off_resonance(t):
    """q'' = -q + cos(1.5 t) from rest."""
    return (cos(t) - cos(1.5 * t)) / 1.25, (1.5 * sin(1.5 * t) - sin(t)) / 1.25


TRAP = 2 * math.pi * 1e5  # radians a second


def _wave(t):
    """The lowest mode of seven masses between walls."""
    w = 2 * sin(math.pi / 16)
    shape = [sin(math.pi * (k + 1) / 8) for k in range(7)]
    return [*(s * cos(w * t) for s in shape), *(-w * s * sin(w * t) for s in shape)]


def _string(t, q):
    padded = [0.0, *q, 0.0]
    return [padded[k] - 2 * padded[k + 1] + padded[k + 2] for k in range(len(q))]


def _fput(t, q):
    padded = [0.0, *q, 0.0]
    stretch = [b - a for a, b in itertools.pairwise(padded)]
    tension = [s + 0.25 * s * s for s in stretch]
    return [b - a for a, b in itertools.pairwise(tension)]


def _toda(t, q):
    """Four masses with exponential springs, periodic."""
    n = len(q)
    return [exp(q[k - 1] - q[k]) - exp(q[k] - q[(k + 1) % n]) for k in range(n)]


OSCILLATORS = [
    second("oscillator", lambda t, q: (-q[0],), [1], [0], 6.0, lambda t: [cos(t), -sin(t)]),
    second(
        "oscillator_resonant_from_rest",
        lambda t, q: (-q[0] + cos(t),),
        [0],
        [0],
        6.0,
        lambda t: [t * sin(t) / 2, (sin(t) + t * cos(t)) / 2],
    ),
    second("oscillator_driven_from_rest", _driven, [0], [0], 6.0, _off_resonance),
    second("pendulum_libration", lambda t, q: (-sin(q[0]),), [0], [1.2], 6.0, _libration),
    second("pendulum_rotation", lambda t, q: (-sin(q[0]),), [0], [2.5], 6.0, _rotation, steps=48),
    second("duffing_quartic", lambda t, q: (-(q[0] ** 3),), [1], [0], 6.0, _quartic),
    second("airy", lambda t, q: (t * q[0],), _airy(0.0)[:1], _airy(0.0)[1:], 2.0, _airy),
    second("mathieu", lambda t, q: (-(1.2 - 0.4 * cos(2 * t)) * q[0],), [1], [0], 8.0),
    second("hill", _hill, [1], [0.2], 8.0, steps=48),
    second(
        "atom_trap_si",
        lambda t, q: (-(TRAP**2) * q[0],),
        [1e-6],
        [0],
        1.2e-5,
        lambda t: [1e-6 * cos(TRAP * t), -1e-6 * TRAP * sin(TRAP * t)],
    ),
    second("wave_method_of_lines", _string, _wave(0.0)[:7], _wave(0.0)[7:], 8.0, _wave),
    second("fput_chain", _fput, [0.3, 0.6, 0.8, 0.9, 0.8, 0.6, 0.3], [0] * 7, 6.0),
    second("toda_lattice", _toda, [0.5, -0.2, 0.1, -0.4], [0, 0.3, -0.1, -0.2], 5.0),
]

# ---- bodies --------------------------------------------------------------------------------------


def _kepler(t, q):
    r = (q[0] ** 2 + q[1] ** 2) ** 1.5
    return -q[0] / r, -q[1] / r


def kepler(e, end, steps):
    """From the pericentre, by Kepler's equation E - e sin E = t."""

    def closed(t):
        anomaly = t + e * sin(t)
        for _ in range(40):
            anomaly -= (anomaly - e * sin(anomaly) - t) / (1 - e * cos(anomaly))
        c, s, b = cos(anomaly), sin(anomaly), sqrt(1 - e * e)
        return c - e, b * s, -s / (1 - e * c), b * c / (1 - e * c)

    return second(f"kepler_e{e:g}", _kepler, [1 - e, 0], [0, sqrt((1 + e) / (1 - e))], end, closed, steps)


def bodies(masses, space=2):
    """Gravity with G = 1 between point masses, components body by body."""

    def f(t, q):
        out = [0.0] * len(q)
        for i in range(len(masses)):
            for j in range(i):
                d = [q[space * j + k] - q[space * i + k] for k in range(space)]
                r = sum(x * x for x in d) ** 1.5
                for k in range(space):
                    out[space * i + k] += masses[j] * d[k] / r
                    out[space * j + k] -= masses[i] * d[k] / r
        return out

    return f


# Chenciner and Montgomery's eight, Simo's digits.
_EIGHT = (
    [0.97000436, -0.24308753, -0.97000436, 0.24308753, 0, 0],
    [0.466203685, 0.43236573, 0.466203685, 0.43236573, -0.93240737, -0.86473146],
)
# The sun (with the inner planets), Jupiter, Saturn, Uranus, Neptune, Pluto: Hairer, Lubich, Wanner, table
# I.2.2, times in days.
_GAUSS = 2.95912208286e-4
_OUTER_MASSES = [
    _GAUSS * m
    for m in (
        1.00000597682,
        0.000954786104043,
        0.000285583733151,
        0.0000437273164546,
        0.0000517759138449,
        1 / 1.3e8,
    )
]
_OUTER_Q = [
    0,
    0,
    0,
    -3.5023653,
    -3.8169847,
    -1.5507963,
    9.0755314,
    -3.0458353,
    -1.6483708,
    8.3101420,
    -16.2901086,
    -7.2521278,
    11.4707666,
    -25.7294829,
    -10.8169456,
    -15.5387357,
    -25.2225594,
    -3.1902382,
]
_OUTER_V = [
    0,
    0,
    0,
    0.00565429,
    -0.00412490,
    -0.00190589,
    0.00168318,
    0.00483525,
    0.00192462,
    0.00354178,
    0.00137102,
    0.00055029,
    0.00288930,
    0.00114527,
    0.00039677,
    0.00276725,
    -0.00170702,
    -0.00136504,
]


def _henon_heiles(t, q):
    x, y = q
    return -x - 2 * x * y, -y - x * x + y * y


def _fallen(t):
    return 100 - 9.81 * t * t / 2, -9.81 * t


def _electron(t, q):
    """An electron from rest in a field of 1e4 V/m that swings at 1e9 radians a second, in metres and
    seconds.
    """
    return (1.75882001e15 * cos(1e9 * t),)


def _swung(t):
    return 1.75882001e-3 * (1 - cos(1e9 * t)), 1.75882001e6 * sin(1e9 * t)


BODIES = [
    kepler(0, 6.0, 48),
    kepler(0.5, 6.0, 128),
    kepler(0.8, 6.0, 512),
    second("figure_eight", bodies([1, 1, 1]), *_EIGHT, 3.0, steps=64),
    second("pythagorean_short", bodies([3, 4, 5]), [1, 3, -2, -1, 1, -1], [0] * 6, 1.5, steps=96),
    second("outer_solar_system", bodies(_OUTER_MASSES, 3), _OUTER_Q, _OUTER_V, 3000.0),
    second("henon_heiles", _henon_heiles, [0, -0.15], [0.45, 0.1], 8.0),
    second("free_fall_si", lambda t, q: (-9.81,), [100], [0], 3.0, _fallen),
    second("electron_from_rest_si", _electron, [0], [0], 5e-9, _swung),
]

# ---- separable -----------------------------------------------------------------------------------


def _exponentials(t):
    """H = e**p + e**q = E from q = p = 1/2: e**q = E / (1 + e**(-E t)), e**p = E - e**q."""
    energy = 2 * exp(0.5)
    return math.log(energy / (1 + exp(energy * -t))), math.log(energy / (1 + exp(energy * t)))


def _logs_q(t, p):
    return (exp(p[0]) - 1,)


def _logs_p(t, q):
    return (1 - exp(q[0]),)


def _relativistic(t, p):
    return (p[0] / sqrt(1 + p[0] ** 2),)


def _growing_q(t, p):
    return (cos(t) * exp(sin(t)) * (1 + t) * p[0],)


def _growing_p(t, q):
    return (-q[0] * exp(-sin(t)) / (1 + t) ** 2,)


def _grown(t):
    return exp(sin(t)), 1 / (1 + t)


def _up(t, p):
    return (exp(p[0]),)


def _down(t, q):
    return (-exp(q[0]),)


SEPARABLE = [
    separable("lotka_volterra_in_logs", _logs_q, _logs_p, [0.4], [-0.3], 6.0),
    separable("exponential_energies", _up, _down, [0.5], [0.5], 1.0, _exponentials),
    separable("relativistic_oscillator", _relativistic, lambda t, q: (-q[0],), [1.5], [0], 6.0),
    separable("growing_mass", _growing_q, _growing_p, [1], [1], 3.0, _grown),
]

MECHANICS = [*OSCILLATORS, *BODIES, *SEPARABLE]
