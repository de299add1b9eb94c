"""Properties of the steps whose coefficients depend on the row, as functions that raise AssertionError (see
kernel_checks).
"""

import itertools

import kernel_checks as checks
import scalar_oracle as oracle
import torch

from revstep import ops
from revstep.ops import reference


def blend(c: float) -> tuple[float, float, float]:
    """(alpha, beta, gamma) of ``c prev + (1 - c) cur + (1 + c) f``."""
    return c, 1.0 - c, 1.0 + c


#: Two sets of coefficients: BDIA's; others with carries of different widths, with none beside some, without
#: ``cur`` in one set only.
PAIRS = {
    "bdia": (blend(0.5), blend(-0.5)),
    "quarter": (blend(0.25), blend(-0.5)),
    "unit": (blend(1.0), blend(0.5)),
    "mixed": ((1.0, 0.0, 0.37), (ops.snap(-0.3), ops.snap(1.3), 1.0)),
    "none": ((ops.snap(-1.3), 2.0, 1.0), (-1.0, 0.0, 1.0)),
}


def lists(pair) -> list[list[float]]:
    """[alpha], [beta], [gamma] as the operators take them."""
    return [list(x) for x in zip(*pair)]


class OfRows:
    """Step and inverse of a module with both sets of coefficients as they are listed here: [alpha], [beta],
    [gamma].
    """

    def __init__(self, module):
        self.module = module

    def step(self, prev, cur, f, choice, alpha, beta, gamma, frac_bits, view):
        first, second = zip(alpha, beta, gamma)
        return self.module.step(prev, cur, f, *first, frac_bits, view, choice, list(second))

    def inverse(self, nxt, cur, f, carry, choice, alpha, beta, gamma, frac_bits, view):
        first, second = zip(alpha, beta, gamma)
        return self.module.inverse(nxt, cur, f, carry, *first, frac_bits, view, choice, list(second))


compiled, plain = OfRows(ops), OfRows(reference)


def choices(rows: int, seed: int) -> torch.Tensor:
    """Both values as soon as there are two rows."""
    choice = torch.randint(0, 2, (rows,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    if rows > 1:
        choice[seed % rows] = 1 - choice[(seed + 1) % rows]
    return choice


def of_elements(choice: torch.Tensor, shape) -> list[int]:
    """The set of every element, in memory order: written as indices, not by broadcasting."""
    n = torch.Size(shape).numel()
    length = n // max(1, len(choice))
    return [int(choice[i // length]) for i in range(n)]


def check_agreement(prev, cur, f, choice, pair, views=(torch.float32,), on=((-1, None),)) -> None:
    """Compiled step and inverse with rows give the reference's bits: view, state, carry, statistics."""
    frac = checks.FRAC.get(prev.dtype, 0)
    where = (
        f"{prev.dtype}, f {f.dtype}, coefficients {pair}, shape {tuple(f.shape)}, choice"
        f" {choice.tolist()[:8]}"
    )
    _, nxt, carry, stats = plain.step(prev, cur, f, choice, *lists(pair), frac, None)
    for (level, threads), view in zip(on, itertools.cycle(views)):
        with checks.launched(level, threads):
            got = compiled.step(prev, cur, f, choice, *lists(pair), frac, view)
        checks.compare(
            "step of rows",
            got,
            (checks.expected_view(nxt, frac, view), nxt, carry, stats),
            f"{where}, view {view}, level {level}, {threads} threads",
        )
    if prev.dtype == torch.int64 and stats[1]:
        by_row = [
            torch.tensor(x, dtype=torch.float64)[choice.long()].view(-1, *(1,) * (prev.ndim - 1))
            for x in lists(pair)
        ]
        prev, cur, f = checks.tame(prev, cur, f, by_row, frac)
        _, nxt, carry, stats = plain.step(prev, cur, f, choice, *lists(pair), frac, None)
    _, back, stats = plain.inverse(nxt, cur, f, carry, choice, *lists(pair), frac, None)
    for (level, threads), view in zip(on, itertools.cycle(views)):
        with checks.launched(level, threads):
            got = compiled.inverse(nxt, cur, f, carry, choice, *lists(pair), frac, view)
        checks.compare(
            "inverse of rows",
            got,
            (checks.expected_view(back, frac, view), back, stats),
            f"{where}, view {view}, level {level}, {threads} threads",
        )


def check_oracle(prev, cur, f, choice, pair, frac_bits: int) -> None:
    """Fixed point, against Python integers: each element by the set of its row."""
    bits, double = checks.width(prev.dtype), f.dtype == torch.float64
    _, nxt, words, stats = compiled.step(prev, cur, f, choice, *lists(pair), frac_bits, None)
    sets = [pair[w] for w in of_elements(choice, prev.shape)]
    operands = list(zip(*(x.reshape(-1).tolist() for x in (prev, cur, f.double()))))
    expected = [oracle.step(*t, *c, frac_bits, double, bits) for t, c in zip(operands, sets)]
    flat = nxt.reshape(-1).tolist()
    assert flat == [oracle.wrapped(e.total, bits) for e in expected], (
        f"next is not that of the row's set: {pair}, {choice.tolist()}"
    )
    b = max(oracle.carry_bits(c[0]) for c in pair)
    assert tuple(words.shape) == ops.carry_shape(len(flat), b), (
        f"{tuple(words.shape)} carry words for {b} bits"
    )
    if b:
        kept = reference.unpack_carry(words, words.shape[0] * 32).tolist()
        wanted = [oracle.carry(t[0], c[0]) if oracle.carry_bits(c[0]) else 0 for t, c in zip(operands, sets)]
        assert kept == wanted + [0] * (len(kept) - len(wanted)), f"carries differ: {pair}, {choice.tolist()}"
    s = ops.read_stats(stats)[0]
    flags = [e.bad for e in expected]
    assert (s.bad, s.first_bad) == (sum(flags), flags.index(True) if any(flags) else -1), (
        f"bad {s.bad} at {s.first_bad}, expected {sum(flags)}"
    )
    magnitudes = [e.largest if e.largest is not None else abs(e.total) * 2.0**-frac_bits for e in expected]
    assert s.largest == max(magnitudes, default=0.0), (
        f"largest {s.largest}, expected {max(magnitudes, default=0.0)}"
    )
    assert s.checksum == oracle.checksum(dict(enumerate(flat)), bits) == int(ops.checksum(nxt)), (
        "the checksum is not that of the state"
    )


def check_round_trip(prev, cur, f, choice, pair, frac_bits: int) -> bool:
    """No bad element reported implies that the inverse returns the same bits. True when nothing was bad."""
    _, nxt, carry, stats = compiled.step(prev, cur, f, choice, *lists(pair), frac_bits, None)
    _, back, undone = compiled.inverse(nxt, cur, f, carry, choice, *lists(pair), frac_bits, None)
    if ops.read_stats(stats)[0].bad:
        return False
    wrong = (back != prev).reshape(-1).nonzero().reshape(-1)
    assert not len(wrong), (
        f"step then inverse changed {len(wrong)} elements, the first {int(wrong[0])}: {prev.dtype},"
        f" {tuple(prev.shape)}, {pair}"
    )
    assert ops.read_stats(undone)[0].bad == 0 and int(undone[0]) == reference.checksum(prev), (
        "the inverse's statistics are not those of prev"
    )
    return True


def check_one_bad_row(dtype: torch.dtype) -> None:
    """A row that overflows by its own coefficients is named by its first element; with the second set it is
    good.
    """
    frac, limit = checks.FRAC[dtype], oracle.LIMIT[checks.width(dtype)]
    pair = (blend(0.5), (2.0, -1.0, 1.0))
    for rows, length, at in ((7, 33, 4), (3, 1000, 1), (2, 1, 1), (5, 5, 0)):
        prev = torch.full((rows, length), limit // 2 + 1, dtype=dtype)
        choice = torch.zeros(rows, dtype=torch.uint8)
        zero, quiet = torch.zeros_like(prev), torch.zeros(rows, length)
        good = ops.read_stats(compiled.step(prev, zero, quiet, choice, *lists(pair), frac, None)[3])[0]
        assert good.bad == 0, f"half the limit was flagged: {good}"
        choice[at] = 1
        s = ops.read_stats(compiled.step(prev, zero, quiet, choice, *lists(pair), frac, None)[3])[0]
        assert (s.bad, s.first_bad) == (length, at * length), (
            f"row {at} of {rows} x {length} is beyond the limit, reported: {s}"
        )
        assert s.largest == (2 * (limit // 2 + 1)) * 2.0**-frac, f"the largest magnitude is {s.largest}"


def battery() -> dict:
    """For the broken builds: rows that end inside tiles and words, at their edges, and beyond them."""
    shapes = ((7, 33), (2, 32), (3, 128), (40, 5), (5, 300), (61, 1))

    def rows(check, states):
        done = 0
        for (i, shape), state, pair in itertools.product(enumerate(shapes), states, PAIRS.values()):
            prev, cur = (
                checks.states((1200 + shape[0] * shape[1],), state, i + j)[1200:].view(shape) // 4
                for j in range(2)
            )
            f = torch.randn(shape, generator=torch.Generator().manual_seed(i))
            done += bool(check(prev, cur, f, choices(shape[0], i), pair, checks.FRAC[state]))
        return done

    def round_trip():
        done, expected = rows(check_round_trip, checks.FIXED), len(shapes) * len(checks.FIXED) * len(PAIRS)
        assert done == expected, f"only {done} of {expected} steps stayed in range"

    def agreement():
        for (i, shape), state, pair in itertools.product(enumerate(shapes), checks.STATES, PAIRS.values()):
            check_agreement(*checks.operands(shape, state, torch.float32, seed=i), choices(shape[0], i), pair)

    return {
        "rows agreement": agreement,
        "rows oracle": lambda: rows(check_oracle, checks.FIXED),
        "rows round trip": round_trip,
        "rows range": lambda: [check_one_bad_row(d) for d in checks.FIXED],
    }
