"""A batch in which systems fail while the others go on."""

import pytest
import torch

from revstep.errors import CallbackError, ConfigError
from revstep.ode import _compiled, _records, fields, methods
from revstep.ode._compiled import Carries, Failures, Watch
from revstep.ode._functions import CFUNCTYPE, CompiledField

H, STEPS, BATCH = 1 / 16, 400, 53
BAD = (0, 7, 20, 21, 52)
KINDS = {
    "verlet": fields.HenonHeiles(equation="separable"),
    "kahan_li6": fields.HenonHeiles(equation="separable"),
    "midpoint": fields.Linear([[0.0, 1.0], [-1.0, 0.02]]),
    "blend": fields.Linear([[0.0, 1.0], [-1.0, 0.02]]),
    "reversible_rk4": fields.Linear([[0.0, 1.0], [-1.0, 0.02]]),
}


def method_of(name):
    return (
        methods.ReversibleRK("rk4", lam=0.75) if name == "reversible_rk4" else methods.resolve(name, H, None)
    )


def batch_of(name, fixed, bad=BAD):
    """Slots, and units in which the bad ones soon do not fit: Henon-Heiles escapes, and the others spiral
    outwards.
    """
    field = KINDS[name]
    random = torch.Generator().manual_seed(1)
    q = 0.1 * torch.rand(BATCH, 2, generator=random, dtype=torch.float64) + 0.05
    p = q.clone() if field.equation == "first" else 0.1 * q
    if field.equation == "first":
        for k in bad:
            q[k], p[k] = torch.tensor([0.0, 1.7 + 0.002 * k]), torch.tensor([0.0, 1.7 + 0.002 * k])
    else:
        for k in bad:
            q[k], p[k] = torch.tensor([1.5, 1.5 - 0.003 * k]), torch.tensor([1.0, 1.0])
    if not fixed:
        return (q, p), None
    bits = torch.full((2,), 61 if field.equation == "first" else 55, dtype=torch.int32)
    return tuple(torch.round(x * 2.0 ** int(bits[0])).to(torch.int64) for x in (q, p)), (bits, bits)


def advance(name, slots, bits, **more):
    field, method = KINDS[name], method_of(name)
    options = {
        "h": H,
        "steps": STEPS,
        "period": method.period,
        "tableau": method.tableau,
        "frac_bits": bits,
        "threads": 1,
        **more,
    }
    return _compiled.run(field.compiled(), lambda n: method.micros(n, field.equation), slots, **options)


def carries_for(name):
    field, method = KINDS[name], method_of(name)
    return Carries(
        BATCH, _records.carry_bits(lambda n: method.micros(n, field.equation), method.period, 2, STEPS)
    )


def one_by_one(name, fixed, saves):
    """Each system by itself: its slots, its saves, the step in which it failed, what was noticed."""
    found = []
    slots, bits = batch_of(name, fixed)
    for k in range(BATCH):
        one, watch = tuple(s[k : k + 1].clone() for s in slots), Watch(1, 2)
        found.append((one, advance(name, one, bits, saves=saves, watch=watch, lanes=1), watch))
    return found


SAVES = (1, 2, 3, 16, 100, 250, 400)
NAMES = [
    (name, fixed) for name in KINDS for fixed in (True, False) if fixed or KINDS[name].equation != "first"
]


@pytest.mark.parametrize(
    "lanes, threads, chunks",
    [(0, 1, (STEPS,)), (1, 1, (STEPS,)), (16, 3, (STEPS,)), (16, 1, (1, 15, 84, 150, 150))],
)
@pytest.mark.parametrize("name, fixed", NAMES)
def test_the_others_have_the_bits_they_have_alone(name, fixed, lanes, threads, chunks, monkeypatch):
    expected = one_by_one(name, fixed, SAVES)
    slots, bits = batch_of(name, fixed)
    watch, failures, at, kept = Watch(BATCH, 2), Failures(BATCH), 0, [[], []]
    for steps in chunks:
        saves = tuple(s for s in SAVES if at < s <= at + steps)
        more = {
            "saves": tuple(s for s in saves),
            "position": at,
            "steps": steps,
            "watch": watch,
            "lanes": lanes,
            "threads": threads,
        }
        ran = advance(name, slots, bits, keep_going=failures, **more)
        assert ran.bad_step == ran.bad_system == -1 and ran.failures is failures
        for i in (0, 1):
            kept[i].append(ran.saved[i])
        at += steps
    failed = [k for k in range(BATCH) if expected[k][1].bad_step >= 0]
    assert failed == list(BAD) and failures.step.ge(0).nonzero().flatten().tolist() == failed
    for k, (one, ran, seen) in enumerate(expected):
        assert int(failures.step[k]) == ran.bad_step
        # Floats may be NaN there.
        assert all(torch.equal(slots[i][k], one[i][0]) for i in (0, 1)) or not fixed
        assert float(failures.value[k]) == (ran.largest if k in failed else 0.0)
        for i in (0, 1):
            assert torch.equal(watch.zero[i][k], seen.zero[i][0]) and torch.equal(
                watch.high[i][k], seen.high[i][0]
            )
            rows = torch.cat(kept[i])[:, k]
            for row, save in zip(rows, SAVES):
                alone = (
                    ran.saved[i][SAVES.index(save), 0]
                    if k not in failed or save <= ran.bad_step
                    else slots[i][k]
                )
                assert torch.equal(row, alone) or not (fixed or bool(torch.isfinite(alone).all()))
        assert watch.apart[k] == seen.apart[0] and watch.apart_at[k] == seen.apart_at[0]


def test_without_it_the_run_ends_at_the_first():
    slots, bits = batch_of("verlet", True)
    expected = one_by_one("verlet", True, ())
    first = min(ran.bad_step for _, ran, _ in expected if ran.bad_step >= 0)
    ran = advance("verlet", slots, bits)
    assert ran.failures is None and ran.bad_step == first and ran.bad_system in BAD


def test_lanes_that_are_not_put_back_would_be_wrong():
    """The broken variant: after a failing call the whole tile is where it was, not some of it further on."""
    expected = one_by_one("verlet", True, ())
    slots, bits = batch_of("verlet", True)
    advance("verlet", slots, bits)  # ends within a tile
    ran = advance("verlet", slots, bits, keep_going=True)
    assert int(ran.failures.step.max()) >= 0
    assert not all(torch.equal(slots[0][k], expected[k][0][0][0]) for k in range(BATCH) if k not in BAD)


@pytest.mark.parametrize("name", [name for name in KINDS])
def test_the_living_come_back_to_the_bit(name):
    slots, bits = batch_of(name, True)
    begin, carries = tuple(s.clone() for s in slots), carries_for(name)
    ran = advance(name, slots, bits, keep_going=True, carries=carries, progress=lambda done, total: None)
    assert carries.at == carries.bits
    dead = ran.failures.step.ge(0)
    at_end = tuple(s.clone() for s in slots)
    back = advance(name, slots, bits, position=STEPS, undo=True, carries=carries, keep_going=ran.failures)
    assert back.failures is ran.failures and carries.at == 0
    for i in (0, 1):
        assert torch.equal(slots[i][~dead], begin[i][~dead]) and torch.equal(slots[i][dead], at_end[i][dead])
        assert not torch.equal(at_end[i], begin[i])


def test_the_way_back_may_fail_too():
    """Of a state that no way forwards led to: far out, the step before is beyond the format."""
    slots, bits = batch_of("verlet", True)
    ran = advance("verlet", slots, bits, undo=True, position=STEPS, keep_going=True, saves=(399, 0))
    assert set(BAD) >= set(ran.failures.step.ge(0).nonzero().flatten().tolist()) != set()
    for k in ran.failures.step.ge(0).nonzero().flatten().tolist():
        assert torch.equal(ran.saved[0][1, k], slots[0][k])


def test_all_may_fail():
    slots, bits = batch_of("reversible_rk4", True, bad=range(BATCH))
    carries = carries_for("reversible_rk4")
    ran = advance("reversible_rk4", slots, bits, keep_going=True, carries=carries, saves=(STEPS,))
    assert (
        bool(ran.failures.step.ge(0).all())
        and carries.at == carries.bits
        and torch.equal(ran.saved[0][0], slots[0])
    )
    before = tuple(s.clone() for s in slots)
    advance("reversible_rk4", slots, bits, keep_going=ran.failures, position=STEPS, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(slots, before))  # they are left alone


def test_none_may_fail_and_the_largest_is_of_the_living():
    slots, bits = batch_of("verlet", True, bad=())
    plain = tuple(s.clone() for s in slots)
    ran, expected = advance("verlet", slots, bits, keep_going=True), advance("verlet", plain, bits)
    assert int(ran.failures.step.max()) == -1 and all(torch.equal(a, b) for a, b in zip(slots, plain))
    assert (ran.largest, ran.evaluations) == (expected.largest, expected.evaluations)
    slots, bits = batch_of("verlet", True)
    ran = advance("verlet", slots, bits, keep_going=True)
    assert ran.largest < 2.0**60 < float(ran.failures.value[7])


def test_a_callback_that_fails_is_no_member_that_fails():
    @CFUNCTYPE
    def function(t, x, out, n, user):
        if x[0] > 2.0:
            raise ValueError("no table there")
        for i in range(n):
            out[i] = -x[i] if x[0] < 1.0 else float("nan")

    field, method = CompiledField(function, equation="second", dim=2), methods.resolve("verlet", H, None)
    q = torch.full((20, 2), 0.5, dtype=torch.float64)
    q[3] = 1.5

    def go():
        slots = (q.clone(), torch.zeros_like(q))
        bits = (torch.full((2,), 50, dtype=torch.int32),) * 2
        slots = tuple(torch.round(s * 2.0**50).to(torch.int64) for s in slots)
        return _compiled.run(
            field.compiled(),
            lambda n: method.micros(n, "second"),
            slots,
            h=H,
            steps=9,
            frac_bits=bits,
            keep_going=True,
        )

    assert go().failures.step.ge(0).nonzero().flatten().tolist() == [3] and float(
        go().failures.value[3]
    ) == float("inf")
    q[11] = 2.5
    with pytest.raises(CallbackError, match="system 11 of 20: the callback raised ValueError"):
        go()


def test_failures_of_another_batch_are_named():
    slots, bits = batch_of("verlet", True)
    with pytest.raises(ConfigError, match=f"keep_going knows 3 systems, the slots have {BATCH}"):
        advance("verlet", slots, bits, keep_going=Failures(3))
