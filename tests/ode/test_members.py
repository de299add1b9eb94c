"""Systems of a batch side by side: units of their own, what is noticed of each, those that fail, steps with
programs of their own.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from revstep.errors import ConfigError
from revstep.ode import _compiled, _records, fields, methods
from revstep.ode._compiled import Watch
from revstep.ode._records import looked_at
from revstep.ode.methods._base import IDENTITY

H, STEPS = 1 / 64, 300
METHODS = {
    name: methods.resolve(name, H, None) for name in ("verlet", "kahan_li6", "midpoint", "blend", "leapfrog")
}
METHODS["reversible_rk4"] = methods.ReversibleRK("rk4", lam=0.75)
#: A field, and the methods of its equation: one with a tile of its own (Henon-Heiles), one without.
CASES = [
    (fields.HenonHeiles(equation="separable"), "verlet"),
    (fields.HenonHeiles(equation="second"), "kahan_li6"),
    (fields.VanDerPol(), "midpoint"),
    (fields.VanDerPol(), "blend"),
    (fields.VanDerPol(), "verlet"),
    (fields.VanDerPol(), "reversible_rk4"),
    (fields.HenonHeiles(equation="second"), "leapfrog"),
]
IDS = [f"{type(field).__name__}-{field.equation}-{name}" for field, name in CASES]


def start(field, batch, seed=0, name=""):
    """Slots in real numbers: both the same where both hold y or q."""
    random = torch.Generator().manual_seed(seed)
    q = 0.3 * torch.rand(batch, 2, generator=random, dtype=torch.float64) + 0.05
    return q, q.clone() if field.equation == "first" or name == "leapfrog" else 0.1 * q.flip(0)


def integers(slots, bits):
    return tuple(torch.round(x * torch.exp2(b.double())).to(torch.int64) for x, b in zip(slots, bits))


def advance(field, name, slots, bits, **more):
    method = METHODS[name]
    options = {
        "h": H,
        "steps": STEPS,
        "period": method.period,
        "frac_bits": bits,
        "tableau": method.tableau,
        **more,
    }
    return _compiled.run(field.compiled(), lambda n: method.micros(n, field.equation), slots, **options)


def carries_of(field, name, batch, dim=2, steps=STEPS):
    method = METHODS[name]
    return _compiled.Carries(
        batch, _records.carry_bits(lambda n: method.micros(n, field.equation), method.period, dim, steps)
    )


# ---- units
# ----------------------------------------------------------------------------------------------------


def own_units(batch, shared):
    """Different in every system and component; the same in both slots where they have to be."""
    bits = (40 + torch.arange(2 * batch).reshape(batch, 2) * 7 % 13).to(torch.int32)
    return bits, bits.clone() if shared else bits.flip(0).contiguous()


def alone(field, name, slots, bits, carries):
    """Each system by itself with its units a component, in one tile of one lane."""
    found = []
    for k in range(len(slots[0])):
        one = tuple(s[k : k + 1].clone() for s in slots)
        advance(field, name, one, tuple(b[k] for b in bits), lanes=1)
        found.append(one)
    return tuple(torch.cat([one[i] for one in found]) for i in (0, 1))


def units_differ(field, name, batch, lanes, spoil=None):
    bits = own_units(batch, shared=True)
    slots = integers(start(field, batch, name=name), bits)
    begin, carries = tuple(s.clone() for s in slots), carries_of(field, name, batch)
    expected = alone(field, name, slots, bits, carries)
    given = bits if spoil is None else tuple(spoil(b) for b in bits)
    ran = advance(field, name, slots, given, carries=carries, lanes=lanes)
    assert ran.bad_step == -1 or spoil is not None
    wrong = not all(torch.equal(a, b) for a, b in zip(slots, expected))
    if wrong:
        return True
    advance(field, name, slots, given, carries=carries, position=STEPS, undo=True, lanes=lanes)
    return not all(torch.equal(a, b) for a, b in zip(slots, begin))


@pytest.mark.parametrize("batch, lanes", [(1, 0), (3, 0), (3, 16), (19, 16), (37, 0), (19, 1)])
@pytest.mark.parametrize("field, name", CASES, ids=IDS)
def test_units_of_every_system(field, name, batch, lanes):
    assert not units_differ(field, name, batch, lanes)


@pytest.mark.parametrize(
    "spoil",
    [lambda b: b.flip(0), lambda b: b.flip(1), lambda b: b[:1].expand_as(b)],
    ids=["systems", "components", "first"],
)
@pytest.mark.parametrize("field, name", CASES, ids=IDS)
def test_units_of_another_system_are_noticed(field, name, spoil):
    assert units_differ(field, name, 19, 16, spoil)


def test_slots_may_have_units_of_their_own_where_they_are_not_mixed():
    field = fields.HenonHeiles()
    bits = own_units(19, shared=False)
    slots = integers(start(field, 19), bits)
    expected = alone(field, "verlet", slots, bits, None)
    advance(field, "verlet", slots, bits)
    assert all(torch.equal(a, b) for a, b in zip(slots, expected))
    field = fields.VanDerPol()
    with pytest.raises(RuntimeError, match="both need the same units"):
        advance(field, "blend", integers(start(field, 19), bits), bits)


@pytest.mark.parametrize("shape", [(19,), (1, 2), (19, 1), (2, 19)])
def test_units_of_another_shape_are_named(shape):
    field = fields.HenonHeiles()
    bits = own_units(19, shared=True)
    slots = integers(start(field, 19), bits)
    with pytest.raises(
        ConfigError,
        match=r"expected one number a component, \(2,\), or one a component of every system, \(19, 2\)",
    ):
        advance(field, "verlet", slots, (torch.zeros(shape, dtype=torch.int32),) * 2)
    with pytest.raises(ConfigError, match="both slots alike"):
        advance(field, "verlet", slots, (bits[0], bits[0][0]))


@pytest.mark.parametrize("lanes", [1, 16])
def test_a_value_that_does_not_fit_is_named_in_units_of_its_own(lanes):
    field = fields.Linear([[64.0]])
    bits = (torch.full((19, 1), 30, dtype=torch.int32),) * 2
    bits[0][7] = 45  # 2**15 times less range
    slots = integers((torch.ones(19, 1, dtype=torch.float64),) * 2, bits)
    ran = advance(field, "verlet", tuple(s.clone() for s in slots), bits, steps=5000, lanes=lanes)
    assert ran.bad_system == 7 and ran.largest > 2.0**62
    one = advance(
        field, "verlet", tuple(s[7:8].clone() for s in slots), tuple(b[7] for b in bits), steps=5000
    )
    assert ran.bad_step == one.bad_step and ran.largest == one.largest


# ---- what is noticed
# ------------------------------------------------------------------------------------------


class Recount:
    """The same statistics from the slots before and after single steps, of methods whose micro-steps have
    alpha = 1 and beta = 0.
    """

    def __init__(self, field, name, slots, bits, looked=looked_at):
        self.field, self.name, self.slots, self.bits, self.looked = (
            field,
            name,
            [s.clone() for s in slots],
            bits,
            looked,
        )
        batch, dim = slots[0].shape
        self.zero = [torch.zeros(batch, dim, dtype=torch.int64) for _ in range(2)]
        self.high = [torch.zeros(batch, dim, dtype=torch.int64) for _ in range(2)]
        self.apart, self.at = torch.zeros(batch, dtype=torch.float64), torch.full((batch,), -1)

    def step(self, n):
        looked = self.looked(n)
        for micro in METHODS[self.name].micros(n, self.field.equation):
            i = micro.slot
            before = self.slots[i].clone()
            self.one(micro, n)
            moved = self.slots[i] - before
            if looked:
                x = self.slots[1 - i].double() * torch.exp2(-self.bits[1 - i].double())
                given = x if micro.field == IDENTITY else self.field.force(0.0, x)
                self.zero[i] += (moved == 0) & (given != 0)
                self.high[i] = torch.maximum(self.high[i], moved.abs())
        if looked:
            u, v = (s.double() * torch.exp2(-b.double()) for s, b in zip(self.slots, self.bits))
            apart = (u - v).abs().amax(1)
            self.at = torch.where(apart > self.apart, n, self.at)
            self.apart = torch.maximum(self.apart, apart)

    def one(self, micro, n):
        method = METHODS[self.name]
        _compiled.run(
            self.field.compiled(),
            lambda k: (micro,),
            tuple(self.slots),
            h=H,
            steps=1,
            position=n,
            period=None,
            frac_bits=self.bits,
            tableau=method.tableau,
        )


def watched(field, name, batch, lanes, chunks=(STEPS,), looked=looked_at, mutate=None):
    """Whether what the loop notices differs from a recount."""
    bits = own_units(batch, shared=True)
    # Coarse: much rounds to zero.
    bits = tuple(torch.where(torch.arange(batch)[:, None] % 3 == 0, 6, b).to(torch.int32) for b in bits)
    slots = integers(start(field, batch, name=name), bits)
    recount, plain = Recount(field, name, slots, bits, looked), tuple(s.clone() for s in slots)
    watch, at = Watch(batch, 2), 0
    for steps in chunks:
        ran = advance(field, name, slots, bits, steps=steps, position=at, watch=watch, lanes=lanes)
        assert ran.watch is watch and ran.bad_step == -1
        at += steps
    advance(field, name, plain, bits, steps=at, lanes=lanes)
    assert all(torch.equal(a, b) for a, b in zip(slots, plain)), "watching changes nothing"
    for n in range(at):
        recount.step(n)
    if mutate is not None:
        mutate(watch)
    same = all(torch.equal(a, b) for a, b in zip((*watch.zero, *watch.high), (*recount.zero, *recount.high)))
    return not (same and torch.equal(watch.apart, recount.apart) and torch.equal(watch.apart_at, recount.at))


def _plain(field, name):
    return all(m.alpha == 1.0 and m.beta == 0.0 for m in METHODS[name].micros(1, field.equation))


PLAIN = [
    (field, name)
    for field, name in CASES
    if name in ("verlet", "kahan_li6", "midpoint") and _plain(field, name)
]


@pytest.mark.parametrize("batch, lanes", [(1, 0), (5, 1), (19, 16)])
@pytest.mark.parametrize("field, name", PLAIN)
def test_what_is_noticed_is_what_happened(field, name, batch, lanes):
    assert not watched(field, name, batch, lanes)
    assert not watched(field, name, batch, lanes, chunks=(3, 13, 1, 239, 44))


def test_a_wrong_recount_is_noticed():
    field, name = CASES[0]
    assert watched(field, name, 5, 16, looked=lambda n: n < 4)
    assert watched(field, name, 5, 16, mutate=lambda w: w.zero[1].add_(1))
    assert watched(field, name, 5, 16, mutate=lambda w: w.high[0][4, 1].add_(1))
    assert watched(field, name, 5, 16, mutate=lambda w: w.apart_at[2].add_(1))


@pytest.mark.parametrize("lanes", [1, 16])
def test_zero_increments_are_none_that_rounded(lanes):
    field = fields.Harmonic(equation="separable")
    bits = (torch.full((2,), 10, dtype=torch.int32),) * 2
    slots = integers(
        (torch.tensor([[0.0, 2.0**-9]] * 5, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.float64)),
        bits,
    )
    watch = Watch(5, 2)
    advance(field, "verlet", slots, bits, steps=16, watch=watch, lanes=lanes)
    assert watch.zero[0].sum() == 0  # p stays zero: the drifts of q are zero
    # 8 of 16 steps are looked at.
    assert torch.equal(watch.zero[1], torch.tensor([[0, 8]] * 5))


def test_floats_have_copies_to_watch_and_no_increments():
    field = fields.VanDerPol()
    slots = start(field, 5)
    watch, again = Watch(5, 2), Watch(5, 2, copies=False)
    advance(field, "verlet", slots, None, watch=watch)
    assert (
        int(sum(x.sum() for x in (*watch.zero, *watch.high))) == 0
        and bool((watch.apart > 0).all())
        and bool((watch.apart_at >= 0).all())
    )
    advance(field, "verlet", start(field, 5), None, watch=again)
    assert again.apart.sum() == 0 and bool((again.apart_at == -1).all())


def test_the_way_back_is_not_watched():
    field, name = CASES[0]
    bits = own_units(5, shared=True)
    slots = integers(start(field, 5), bits)
    watch = Watch(5, 2)
    advance(field, name, slots, bits)
    advance(field, name, slots, bits, position=STEPS, undo=True, watch=watch)
    assert watch.high[0].sum() == 0
    with pytest.raises(ConfigError, match=r"watch is for \(4, 2\) numbers, the slots have \(5, 2\)"):
        advance(field, name, slots, bits, watch=Watch(4, 2))


# ---- steps with programs of their own
# --------------------------------------------------------------------------


def odd(field, name, first, last):
    """The method's programs, and outside of ``first <= n < last`` others: a micro-step more, different in
    every step.
    """
    method = METHODS[name]

    def programs(n):
        micros = tuple(method.micros(n + 2 * method.period, field.equation))  # the first step as all others
        if first <= n < last:
            return micros
        return (*micros, replace(micros[0], gamma_coef=micros[0].gamma_coef * (1 + n) / 8))

    return programs


@pytest.mark.parametrize("first, last", [(0, 12), (1, 12), (3, 9), (1, 11), (5, 5), (0, 0), (1, 2), (12, 12)])
@pytest.mark.parametrize("field, name", CASES[:4], ids=IDS[:4])
def test_irregular_steps_at_both_ends(field, name, first, last, steps=12):
    method, programs = METHODS[name], odd(field, name, first, last)
    period = 2 * method.period  # more than one program, although the method may have one
    bits = own_units(5, shared=True)
    begin = integers(start(field, 5), bits)

    def go(slots, regular, **more):
        options = {
            "h": H,
            "steps": steps,
            "frac_bits": bits,
            "tableau": method.tableau,
            "period": period,
            **more,
        }
        return _compiled.run(field.compiled(), programs, slots, regular=regular, **options)

    whole, pieces, given = (tuple(s.clone() for s in begin) for _ in range(3))
    needed = _records.carry_bits(programs, None, 2, steps)
    assert _records.carry_bits(programs, period, 2, steps, regular=(first, last)) == needed
    for a, b in itertools.combinations(range(steps + 1), 2):
        part = _records.carry_bits(programs, None, 2, b - a, a)
        assert _records.carry_bits(programs, period, 2, b - a, a, (first, last)) == part
    expected = go(given, (1, None), period=None, saves=(4, 8, 12))
    carries = _compiled.Carries(5, needed)
    ran = go(whole, (first, last), saves=(4, 8, 12), carries=carries)
    for n in range(steps):
        go(pieces, (first, last), steps=1, position=n)
    for found in (whole, pieces):
        assert all(torch.equal(a, b) for a, b in zip(found, given))
    assert ran.evaluations == expected.evaluations and all(
        torch.equal(a, b) for a, b in zip(ran.saved, expected.saved)
    )
    back = go(whole, (first, last), position=steps, undo=True, carries=carries, saves=(8, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole, begin)) and carries.at == 0
    assert torch.equal(back.saved[0], ran.saved[0][:2].flip(0))
    if last < steps:  # read as the method's own, the last steps are wrong
        mutant = tuple(s.clone() for s in begin)
        go(mutant, (first, None)) if first < steps and first != last else go(mutant, (1, None))
        assert not all(torch.equal(a, b) for a, b in zip(mutant, given))


def test_a_period_that_is_none_is_named():
    field, name = CASES[0]
    bits = own_units(5, shared=True)
    with pytest.raises(ConfigError, match="period is 1 from step 3 to 2"):
        advance(field, name, integers(start(field, 5), bits), bits, regular=(3, 2))
