"""The properties of the step kernels as functions that raise AssertionError: the tests run them on the
product, the mutants test on deliberately broken builds.
"""

import contextlib
import itertools

import scalar_oracle as oracle
import torch

from revstep import _C, ops
from revstep.ops import _direct, _kernels, reference

FIXED = (torch.int32, torch.int64)
FLOATS = (torch.float32, torch.float64)
STATES = (*FIXED, *FLOATS)
VALUES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
VIEWS = (None, *VALUES)
#: (alpha, beta, gamma): unit, power-of-two and general alpha, with beta none, whole and general; all on the
#: 2**-24 grid.
_ALPHAS = (
    1.0,
    -1.0,
    2.0,
    -2.0,
    0.5,
    -0.5,
    0.25,
    0.125,
    1 / 256,
    -1 / 256,
    0.7,
    -1.3,
    0.5 - 2.0**-24,
    -0.3,
    1 + 2.0**-24,
    1 - 2.0**-24,
)
COEFFICIENTS = [
    *((ops.snap(a), 1.0 - ops.snap(a), 1.0) for a in _ALPHAS),
    (1.0, 0.0, 0.37),
    (-1.0, 2.0, -1.0),
    (-1.0, -4.0, 0.0),
    (ops.snap(0.7), 0.0, 2.0),
    (0.5, 0.0, 1.0),
    (ops.snap(-1.3), 3.0, 1e-3),
    (1.0, ops.snap(0.3), 1.0),
]
BITS = {
    torch.int32: torch.int32,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
FRAC = {torch.int32: 20, torch.int64: 32}


def width(dtype: torch.dtype) -> int:
    return 32 if dtype == torch.int32 else 64


def bit_pattern(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(BITS.get(x.dtype, torch.int64))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same shape, dtype and bits (so -0.0 is not 0.0); NaN matches NaN of any payload and never a number."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    equal = bit_pattern(a) == bit_pattern(b)
    return bool((equal | (a.isnan() & b.isnan()) if a.is_floating_point() else equal).all())


def same_stats(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> bool:
    """All four numbers; the checksum only where no NaN, whose payload is free, went into it."""
    free = out.is_floating_point() and bool(out.isnan().any())
    return torch.equal(a[1:], b[1:]) and (free or torch.equal(a[:1], b[:1]))


#: Operators with a short way to the best kernel.
DIRECT = ("step", "inverse", "encode", "decode", "scale")


@contextlib.contextmanager
def launched(level: int = -1, threads: int | None = None):
    """CPU kernels of this instruction set level (index into ``isa_levels()``), with this many threads."""

    class Extension:
        def __getattr__(self, name):
            found = getattr(_C, name)
            if isinstance(found, type):  # a struct of arguments
                return found
            return lambda arguments, wanted, _: found(arguments, threads or wanted, level)

    _kernels._C = Extension()
    direct = {name: getattr(_direct, name) for name in DIRECT if (level, threads) != (-1, None)}
    for name in direct:  # the short way takes no level
        setattr(_direct, name, lambda *_: None)
    try:
        yield
    finally:
        _kernels._C = _C
        for name, call in direct.items():
            setattr(_direct, name, call)


def launches():
    """Every instruction set level on one thread, and the best on two and three."""
    return [(level, 1) for level in range(len(_C.isa_levels()))] + [(-1, 2), (-1, 3)]


def floats(shape, dtype: torch.dtype, seed: int, scale: float = 3.0) -> torch.Tensor:
    """Normal numbers over many binades, with subnormals, signed zeros, ties, huge values, NaN and Inf mixed
    in.
    """
    g = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(shape, generator=g, dtype=torch.float64)
        * scale
        * 2.0 ** torch.randint(-12, 3, shape, generator=g)
    )
    special = torch.tensor(
        [
            0.0,
            -0.0,
            5e-324,
            1e-45,
            -1e-40,
            6e-8,
            2.0**-21,
            -1.5 * 2.0**-20,
            2.5 * 2.0**-20,
            2047.99,
            -2048.0,
            65504.0,
            -7e4,
            3e38,
            -1e39,
            2.0**30,
            -(2.0**30),
            float("nan"),
            float("inf"),
            float("-inf"),
        ],
        dtype=torch.float64,
    )
    flat = x.view(-1)
    if flat.numel() > 200:  # special values in some tiles only, so that tiles without any take the fast path
        where = torch.randperm(min(flat.numel(), 700), generator=g)[: len(special)]
        flat[where] = special
    return x.to(dtype)


def states(shape, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """States whose first part reaches to the limits of the format and whose rest is of ordinary size."""
    if dtype.is_floating_point:
        return floats(shape, dtype, seed)
    g = torch.Generator().manual_seed(seed)
    limit = oracle.LIMIT[width(dtype)]
    x = torch.randint(-(limit >> 9), limit >> 9, shape, generator=g, dtype=torch.int64)
    flat = x.view(-1)
    if flat.numel() > 200:
        edge = torch.tensor(
            [
                limit,
                -limit,
                limit - 1,
                1 - limit,
                0,
                1,
                -1,
                2,
                limit // 2,
                -(limit // 2) - 1,
                1 << 23,
                -(1 << 23),
            ]
        )
        flat[: len(edge)] = edge
        flat[40:140] = torch.randint(-limit, limit, (100,), generator=g)
    return x.to(dtype)


def operands(shape, state: torch.dtype, value: torch.dtype, seed: int = 0):
    return states(shape, state, seed), states(shape, state, seed + 1), floats(shape, value, seed + 2)


def tame(prev, cur, f, c, frac_bits: int):
    """The operands with zeros where the step would leave the range: an int64 step that wrapped has no defined
    inverse.
    """
    alpha, beta, gamma = c
    sum_ = alpha * prev.double() + beta * cur.double() + f.double() * gamma * 2.0**frac_bits
    fine = sum_.abs() < oracle.LIMIT[width(prev.dtype)] * (1 - 1e-6)
    return (torch.where(fine, x, torch.zeros_like(x)) for x in (prev, cur, f))


def check_agreement(
    prev, cur, f, c, views=(torch.float32,), frac_bits: int | None = None, on=((-1, None),)
) -> None:
    """Compiled step and inverse give the reference's bits: view, state, carry, statistics. ``on``: (level,
    threads) launches; the reference runs once with the first of ``views``, launch i asks for the i-th,
    cyclically.
    """
    frac_bits = FRAC.get(prev.dtype, 0) if frac_bits is None else frac_bits
    where = f"{prev.dtype}, f {f.dtype}, F {frac_bits}, coefficients {c}, shape {tuple(f.shape)}"
    _, nxt, carry, stats = reference.step(prev, cur, f, *c, frac_bits, None)
    for (level, threads), view in zip(on, itertools.cycle(views)):
        with launched(level, threads):
            got = ops.step(prev, cur, f, *c, frac_bits, view)
        compare(
            "step",
            got,
            (expected_view(nxt, frac_bits, view), nxt, carry, stats),
            f"{where}, view {view}, level {level}, {threads} threads",
        )
    if prev.dtype == torch.int64 and stats[1]:
        prev, cur, f = tame(prev, cur, f, c, frac_bits)
        _, nxt, carry, stats = reference.step(prev, cur, f, *c, frac_bits, None)
    _, back, stats = reference.inverse(nxt, cur, f, carry, *c, frac_bits, None)
    for (level, threads), view in zip(on, itertools.cycle(views)):
        with launched(level, threads):
            got = ops.inverse(nxt, cur, f, carry, *c, frac_bits, view)
        compare(
            "inverse",
            got,
            (expected_view(back, frac_bits, view), back, stats),
            f"{where}, view {view}, level {level}, {threads} threads",
        )


def expected_view(state, frac_bits, view):
    return torch.empty(0) if view is None else reference.decode(state, frac_bits, view)


def compare(name, got, expected, where) -> None:
    for part, a, b in zip(
        ("state", "view", "carry"), (got[1], got[0], *got[2:-1]), (expected[1], expected[0], *expected[2:-1])
    ):
        assert same(a, b), f"{name}: {part} differs from the reference: {where}"
    assert same_stats(got[-1], expected[-1], expected[1]), (
        f"{name}: stats {got[-1].tolist()}, reference {expected[-1].tolist()}: {where}"
    )


def check_oracle(prev, cur, f, c, frac_bits: int) -> None:
    """Fixed point, against Python integers: state, carry, which elements are bad, the largest magnitude, the
    checksum.
    """
    bits, double = width(prev.dtype), f.dtype == torch.float64
    _, nxt, words, stats = ops.step(prev, cur, f, *c, frac_bits, None)
    triples = list(zip(prev.tolist(), cur.tolist(), f.double().tolist()))
    expected = [oracle.step(*t, *c, frac_bits, double, bits) for t in triples]
    assert nxt.tolist() == [oracle.wrapped(e.total, bits) for e in expected], (
        f"next is not r(A prev) + r(B cur) + D: {c}"
    )
    b = oracle.carry_bits(c[0])
    assert words.shape == ((len(triples) + 31) // 32, b) if b else words.numel() == 0, (
        f"{tuple(words.shape)} carry words for {b} bits: {c}"
    )
    if b:
        kept = reference.unpack_carry(words, len(triples)).tolist()
        assert kept == [oracle.carry(p, c[0]) for p, _, _ in triples], f"carries differ: {c}"
        tail = torch.zeros(words.shape[0] * 32, dtype=torch.bool)
        tail[: len(triples)] = True
        assert not reference.unpack_carry(words, tail.numel())[~tail].any(), (
            "carry bits beyond the end are set"
        )
    s = ops.read_stats(stats)[0]
    flags = [e.bad for e in expected]
    assert (s.bad, s.first_bad) == (sum(flags), flags.index(True) if any(flags) else -1), (
        f"bad {s.bad} at {s.first_bad}, expected {sum(flags)}: {c}"
    )
    magnitudes = [e.largest if e.largest is not None else abs(e.total) * 2.0**-frac_bits for e in expected]
    assert s.largest == max(magnitudes, default=0.0), (
        f"largest {s.largest}, expected {max(magnitudes, default=0.0)}: {c}"
    )
    assert s.checksum == oracle.checksum(dict(enumerate(nxt.tolist())), bits), (
        "the checksum is not that of the state"
    )


def check_round_trip(prev, cur, f, c, frac_bits: int) -> bool:
    """No bad element reported implies that the inverse returns the same bits. True when nothing was bad."""
    _, nxt, carry, stats = ops.step(prev, cur, f, *c, frac_bits, None)
    _, back, undone = ops.inverse(nxt, cur, f, carry, *c, frac_bits, None)
    bad, limit = ops.read_stats(stats)[0].bad, oracle.LIMIT[width(prev.dtype)]
    assert bad >= int(((nxt > limit) | (nxt < -limit)).sum()), "elements out of range were not reported"
    if bad == 0:
        wrong = int((back != prev).sum())
        assert wrong == 0, f"step then inverse changed {wrong} of {prev.numel()} elements: {prev.dtype}, {c}"
        assert ops.read_stats(undone)[0].bad == 0, "the inverse of a good step reports bad elements"
        assert int(undone[0]) == reference.checksum(prev), (
            "the inverse reports another checksum than that of prev"
        )
    return bad == 0


def check_range(dtype: torch.dtype, frac_bits: int, n: int = 1061) -> None:
    """One element out of range among good ones is flagged, at its index, by any of the ways out."""
    limit = oracle.LIMIT[width(dtype)]
    zero, quiet = torch.zeros(n, dtype=dtype), torch.zeros(n)
    for at in (0, 31, 640, n - 1):
        for value in (
            float("nan"),
            float("inf"),
            float("-inf"),
            2.0 * limit * 2.0**-frac_bits,
            -2.0 * limit * 2.0**-frac_bits,
        ):
            f = quiet.clone()
            f[at] = value
            for c in ((1.0, 0.0, 1.0), (0.5, 0.5, 1.0), (ops.snap(0.7), ops.snap(0.3), 1.0)):
                _expect_one_bad(zero, zero, f, c, frac_bits, at, f"an increment of {value}")
            stats = ops.read_stats(ops.encode(f, dtype, frac_bits, None)[2])[0]
            assert (stats.bad, stats.first_bad) == (1, at), (
                f"encode of {value} was not flagged at {at}: {stats}"
            )
        top = zero.clone()
        for sign in (1, -1):
            top[at] = sign * limit
            f = quiet.clone()
            f[at] = sign * 2.0**-frac_bits
            _expect_one_bad(top, zero, f, (1.0, 0.0, 1.0), frac_bits, at, "limit + 1")
            _expect_one_bad(zero, top, f, (1.0, 1.0, 1.0), frac_bits, at, "limit + 1 through cur")
            f[at] = sign * 0.5 * limit * 2.0**-frac_bits
            _expect_one_bad(top, zero, f, (1.0, 0.0, 1.0), frac_bits, at, "one and a half times the limit")
            _expect_one_bad(top, zero, quiet, (2.0, 0.0, 1.0), frac_bits, at, "twice the limit")
            _expect_one_bad(top, top, quiet, (1.0, 2.0, 1.0), frac_bits, at, "three times the limit")
            good = ops.read_stats(ops.step(top, zero, quiet, 1.0, 0.0, 1.0, frac_bits, None)[3])[0]
            assert good.bad == 0, "the limit itself is in range"


def _expect_one_bad(prev, cur, f, c, frac_bits, at, what) -> None:
    s = ops.read_stats(ops.step(prev, cur, f, *c, frac_bits, None)[3])[0]
    assert (s.bad, s.first_bad) == (1, at), f"{what} at {at} was not flagged: {s}, {prev.dtype}, {c}"


def check_checksum(dtype: torch.dtype, n: int = 1500) -> None:
    """One flipped bit, two swapped elements, a shifted array are found."""
    x = (
        states((n,), dtype, 5)
        if not dtype.is_floating_point
        else torch.randn(n, generator=torch.Generator().manual_seed(5), dtype=dtype)
    )
    base, pattern = int(ops.checksum(x)), bit_pattern(x)
    assert base == reference.checksum(x), "the checksum differs from the reference"
    bits = x.element_size() * 8
    for i in (0, 1, 31, 32, 777, n - 1):
        for bit in range(bits):
            flipped = pattern.clone()
            flipped[i] ^= (1 << bit) - (1 << bits if bit == bits - 1 else 0)
            assert int(ops.checksum(flipped.view(dtype))) != base, (
                f"flipped bit {bit} of element {i} was not found"
            )
    for i, j in ((0, 1), (0, n - 1), (500, 501), (3, 1027)):
        swapped = pattern.clone()
        swapped[i], swapped[j] = pattern[j], pattern[i]
        assert int(ops.checksum(swapped.view(dtype))) != base, f"elements {i} and {j} swapped were not found"
    for shift in (1, 2, 32, n // 2):
        assert int(ops.checksum(pattern.roll(shift).view(dtype))) != base, (
            f"an array shifted by {shift} was not found"
        )
