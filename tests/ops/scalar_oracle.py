"""The fixed-point step in Python integers and fractions, one element at a time; written from the definition,
not from the reference.

A state element is an integer X that stands for X * 2**-F; coefficients are integers over 2**24; r(m) =
floor(m / 2**24 + 1/2).
"""

import math
import struct
from fractions import Fraction
from typing import NamedTuple

ONE = 1 << 24
LIMIT = {32: 2**31 - 1, 64: 2**62 - 1}  # largest |X|
VALUE_LIMIT = {32: 2.0**31, 64: 2.0**62}  # an increment must stay below


class Step(NamedTuple):
    total: int  # unwrapped result, with an increment of 0 where that is out of range
    bad: bool
    largest: float | None  # |v| in real units where v itself is out of range, inf for NaN; else None


def float32(x: float) -> float:
    """``x`` rounded once to float32, half to even."""
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def scaled(f: float, gamma: float, frac_bits: int, double: bool) -> float:
    """``(f * gamma) * 2**F``, each product rounded in float32 or float64. Products of two float32 are exact
    in a Python float.
    """
    if double:
        return f * gamma * 2.0**frac_bits
    return float32(float32(float32(f) * float32(gamma)) * 2.0**frac_bits)


def rounded(m: int) -> int:
    """r(m)."""
    return math.floor(Fraction(m, ONE) + Fraction(1, 2))


def increment(
    f: float, gamma: float, frac_bits: int, double: bool, bits: int
) -> tuple[int, bool, float | None]:
    v = scaled(f, gamma, frac_bits, double)
    if math.isnan(v):
        return 0, True, math.inf
    if not abs(v) < VALUE_LIMIT[bits]:
        return 0, True, abs(v) * 2.0**-frac_bits
    return round(Fraction(v)), False, None  # half to even


def step(
    prev: int,
    cur: int,
    f: float,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    double: bool,
    bits: int,
) -> Step:
    d, bad, largest = increment(f, gamma, frac_bits, double, bits)
    total = rounded(int(alpha * ONE) * prev) + rounded(int(beta * ONE) * cur) + d
    return Step(total, bad or abs(total) > LIMIT[bits], largest)


def wrapped(total: int, bits: int) -> int:
    low = total & ((1 << bits) - 1)
    return low - (1 << bits) if low >> (bits - 1) else low


def carry_bits(alpha: float) -> int:
    """Smallest b with |alpha| >= 2**-b."""
    return next(b for b in range(64) if abs(Fraction(alpha)) * 2**b >= 1)


def carry(prev: int, alpha: float) -> int:
    """How many integers below sign(alpha) * prev have the same image r(|alpha| U)."""
    a, u = abs(int(alpha * ONE)), prev if alpha > 0 else -prev
    image, below = rounded(a * u), 0  # A prev = |A| u
    while rounded(a * (u - below - 1)) == image:
        below += 1
    return below


def inverse(
    nxt: int,
    cur: int,
    f: float,
    kept: int,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    double: bool,
    bits: int,
) -> int:
    """``prev``, unwrapped."""
    y = nxt - rounded(int(beta * ONE) * cur) - increment(f, gamma, frac_bits, double, bits)[0]
    lowest = math.ceil(Fraction(y * ONE - ONE // 2, abs(int(alpha * ONE))))
    return (lowest + kept) if alpha > 0 else -(lowest + kept)


def mixed(k: int) -> int:
    mask = 0xFFFFFFFF
    a = ((2 * k + 1) * 0x9E3779B1) & mask
    a ^= a >> 15 & ~1
    a = (a * 0x2C1B3C6D) & mask
    return a ^ a >> 12 & ~1


def checksum(elements: dict[int, int], bits: int) -> int:
    """Checksum of a state that is zero except for ``{index: X}``; signed as in an int64."""
    total = 0
    for i, x in elements.items():
        w, inner, outer = x & ((1 << bits) - 1), mixed(i % 128), mixed(128 + i // 128)
        total += ((w & 0xFFFFFFFF) * inner + (w >> 32) * (inner ^ 0x5BD1E994)) * outer
    return wrapped(total, 64)
