"""The loop in C++ against the recurrence in Python, bit for bit; saves, pieces, interruption, what is
refused.
"""

import itertools
import os
import signal
import threading
import time

import field_cases as cases
import pytest
import torch

from revstep import ops
from revstep.errors import ConfigError
from revstep.ode import _compiled, _records, fields, methods
from revstep.ode._problem import increment
from revstep.ode.methods._base import IDENTITY

H = 1 / 128
STEPS = 12
#: Of every family: splitting, composition, two-step with and without blend, Runge-Kutta with carries.
METHODS = {
    name: methods.resolve(name, H, None)
    for name in ("verlet", "kahan_li6", "midpoint", "blend", "leapfrog", "hamiltonian")
}
METHODS["reversible_rk4"] = methods.ReversibleRK("rk4", lam=0.75)

CASES = [
    (name, kind, method) for name, kind in cases.CASES for method, m in METHODS.items() if kind in m.equations
]


def prepared(name, kind, fixed, batch=(5,)):
    """``(field, slots, frac_bits)``, flat; integer slots with a unit of their own for every component."""
    field = cases.make(name, kind)
    n, dim = _compiled.layout(field, cases.state(name, batch)[0].shape)
    q, v = (x.reshape(n, dim) for x in cases.state(name, batch))
    slots = (q.clone(), v.clone() if kind != "first" else q.clone())
    if not fixed:
        return field, slots, None
    bits = (50 + torch.arange(dim) % 4).to(torch.int32)
    return (
        field,
        tuple(torch.round(x * torch.exp2(bits.double())).to(torch.int64) for x in slots),
        (bits, bits),
    )


class Reference:
    """The program by revstep.ops.step and inverse, one component at a time."""

    def __init__(self, field, method, slots, frac_bits, event):
        # On arrays: NumPy's square root is correctly rounded, torch's vectorised one is not everywhere.
        self.functions = [
            lambda t, x, f=f: torch.from_numpy(f(float(t), x.numpy())) for f in field.functions()
        ]
        self.method, self.equation, self.event = method, field.equation, event
        self.slots, self.bits, self.carries = [s.clone() for s in slots], frac_bits, []

    def view(self, i):
        return (
            self.slots[i]
            if self.bits is None
            else self.slots[i].double() * torch.exp2(-self.bits[i].double())
        )

    def phi(self, m, n):
        x, t = self.view(1 - m.slot), 0.25 + (n + m.tau) * H
        if m.field == IDENTITY:
            return x
        f, shaped = self.functions[m.field], x.reshape(-1, *self.event)
        if m.rk_sign:
            value = increment(
                self.method.tableau, f, torch.tensor(t, dtype=torch.float64), H * m.rk_sign, shaped, ()
            )
        else:
            value = f(t, shaped)
        return value.reshape(x.shape)

    def go(self, n):
        for m in self.method.micros(n, self.equation):
            value, own, other = self.phi(m, n), self.slots[m.slot], self.slots[1 - m.slot]
            out = torch.empty_like(own)
            for i in range(own.shape[1]):
                bits = 0 if self.bits is None else int(self.bits[m.slot][i])
                cur = other[:, i].contiguous() if m.beta else None
                out[:, i] = ops.step(
                    own[:, i].contiguous(),
                    cur,
                    value[:, i].contiguous(),
                    m.alpha,
                    m.beta,
                    m.gamma(H),
                    bits,
                    None,
                )[1]
            self.slots[m.slot] = out


def advance(field, method, slots, frac_bits, **more):
    programs = lambda n: method.micros(n, field.equation)  # noqa: E731
    options = {
        "h": H,
        "t0": 0.25,
        "steps": STEPS,
        "period": method.period,
        "frac_bits": frac_bits,
        "tableau": method.tableau,
        **more,
    }
    return _compiled.run(field.compiled(), programs, slots, **options)


def differing(name, kind, method, fixed, spoil=lambda slots: None):
    field, slots, bits = prepared(name, kind, fixed)
    reference = Reference(field, METHODS[method], slots, bits, cases.MADE[name][1])
    spoil(slots)
    ran = advance(field, METHODS[method], slots, bits)
    assert ran.bad_step == ran.bad_system == -1 and ran.evaluations > 0
    for n in range(STEPS):
        reference.go(n)
    if name in cases.TRANSCENDENTAL:  # an ulp or two each evaluation, the state being of order 1
        unit = 1.0 if bits is None else 2.0 ** -int(bits[0].min())
        return max(float((a - b).abs().max()) * unit for a, b in zip(slots, reference.slots)) > STEPS * 1e-14
    return not all(torch.equal(a, b) for a, b in zip(slots, reference.slots))


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "float"])
@pytest.mark.parametrize("name, kind, method", CASES)
def test_the_loop_is_the_recurrence(name, kind, method, fixed):
    assert not differing(name, kind, method, fixed)


@pytest.mark.parametrize("name, kind, method", CASES)
def test_another_start_is_noticed(name, kind, method):
    def spoil(slots):
        slots[0][0, 0] += 64  # a few ulps of the pendulum's tolerance, too

    assert differing(name, kind, method, True, spoil) or name in cases.TRANSCENDENTAL


@pytest.mark.parametrize("name, kind, method", CASES)
def test_undone_to_the_bit(name, kind, method):
    field, slots, bits = prepared(name, kind, True)
    start = [s.clone() for s in slots]
    m = METHODS[method]
    needed = _records.carry_bits(lambda n: m.micros(n, kind), m.period, slots[0].shape[1], STEPS)
    carries = _compiled.Carries(len(slots[0]), needed)
    # Splittings on y' = f keep two copies of y, drawn together at two bits an element.
    coupled = kind == "first" and method in ("verlet", "kahan_li6")
    assert (needed > 0) == (coupled or method in ("blend", "reversible_rk4"))
    advance(field, m, slots, bits, carries=carries)
    assert carries.at == needed and not torch.equal(slots[0], start[0])
    there = [s.clone() for s in slots]
    advance(field, m, slots, bits, position=STEPS, undo=True, carries=carries)
    assert carries.at == 0 and all(torch.equal(a, b) for a, b in zip(slots, start))
    if needed:  # without the bits it would not come back
        carries.at = needed
        carries.rows.zero_()
        advance(field, m, there, bits, position=STEPS, undo=True, carries=carries)
        assert not all(torch.equal(a, b) for a, b in zip(there, start))


@pytest.mark.parametrize("name, kind, method", CASES[::5])
def test_pieces_threads_and_programs_of_their_own_do_not_matter(name, kind, method):
    field, slots, bits = prepared(name, kind, True, (19,))
    m = METHODS[method]
    variants = [tuple(s.clone() for s in slots) for _ in range(3)]
    advance(field, m, slots, bits)
    advance(field, m, variants[0], bits, threads=3, lanes=1)
    advance(field, m, variants[1], bits, period=None)
    for n in range(STEPS):
        advance(field, m, variants[2], bits, position=n, steps=1)
    for variant in variants:
        assert all(torch.equal(a, b) for a, b in zip(slots, variant))


@pytest.mark.parametrize("saves", [(), (1, 2, 3), (2, 4, 6, 7, 12), (5,), tuple(range(1, 13))])
@pytest.mark.parametrize("method", ["verlet", "midpoint"])
def test_saves_are_the_slots_on_the_way(method, saves):
    name, kind = ("Kepler", "separable") if method == "verlet" else ("VanDerPol", "first")
    field, slots, bits = prepared(name, kind, True, (18,))
    seen, one = [], tuple(s.clone() for s in slots)
    for n in range(STEPS):
        seen.append(tuple(s.clone() for s in one))
        advance(field, METHODS[method], one, bits, position=n, steps=1)
    seen.append(one)
    ran = advance(field, METHODS[method], slots, bits, saves=saves)
    back = advance(
        field, METHODS[method], slots, bits, position=STEPS, undo=True, saves=[STEPS - s for s in saves]
    )
    for i in (0, 1):
        assert ran.saved[i].shape == back.saved[i].shape == (len(saves), *slots[0].shape)
        for row, save in enumerate(saves):
            assert torch.equal(ran.saved[i][row], seen[save][i])
            assert torch.equal(back.saved[i][row], seen[STEPS - save][i])


def test_evaluations_are_counted_and_shared():
    field, slots, bits = prepared("Kepler", "separable", True)
    assert advance(field, METHODS["verlet"], slots, bits, steps=1).evaluations == 1
    field, slots, bits = prepared("VanDerPol", "first", True)
    # The last drift of a step is the first of the next, although calls end in between; not where the copies
    # are coupled, which moves them.
    bare = methods.SplittingMethod(METHODS["verlet"].data, couple=0.0)
    assert advance(field, bare, slots, bits, steps=1).evaluations == 3
    assert advance(field, bare, slots, bits, position=1, steps=100).evaluations == 201
    assert advance(field, bare, slots, bits, position=101, steps=100, undo=True).evaluations == 201
    assert advance(field, METHODS["verlet"], slots, bits, position=1, steps=100).evaluations == 300
    assert advance(field, METHODS["midpoint"], slots, bits, position=1, steps=100).evaluations == 100
    assert advance(field, METHODS["reversible_rk4"], slots, bits, position=1, steps=100).evaluations == 800


def test_largest_is_in_units_of_the_slots():
    field, slots, bits = prepared("Harmonic", "separable", True)
    ran = advance(field, METHODS["verlet"], slots, bits, steps=1)
    assert ran.largest == float(max(s.abs().max() for s in slots))


# ---- values that do not fit
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "float"])
def test_overflow_names_step_and_system(fixed, lanes):
    field = fields.Linear([[64.0]])
    slots = tuple(torch.ones(40, 1, dtype=torch.float64) for _ in range(2))
    slots[0][7] = slots[1][7] = 1e3
    bits = None
    if fixed:
        bits = (torch.tensor([30], dtype=torch.int32),) * 2
        slots = tuple((s * 2.0**30).to(torch.int64) for s in slots)
    ran = advance(field, METHODS["verlet"], slots, bits, steps=5000, lanes=lanes)
    assert ran.bad_step > 10 and ran.bad_system == 7 and ran.largest > (2.0**62 if fixed else 1e300)
    assert not fixed or max(int(s.abs().max()) for s in slots) < 2**62


# ---- interruption and progress
# --------------------------------------------------------------------------------


def test_progress_is_told_between_chunks_and_may_stop_the_run():
    field, slots, bits = prepared("Harmonic", "separable", True)
    told, again = [], tuple(s.clone() for s in slots)

    def progress(done, total):
        told.append((done, total))
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        advance(field, METHODS["verlet"], slots, bits, steps=10**9, progress=progress)
    done = [d for d, _ in told]
    assert done == sorted(set(done)) and {t for _, t in told} == {10**9} and done[-1] < 10**8
    advance(field, METHODS["verlet"], again, bits, steps=done[-1])  # it stopped at a whole step
    assert all(torch.equal(a, b) for a, b in zip(slots, again))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_is_honoured():
    field, slots, bits = prepared("Harmonic", "separable", False)
    start = time.monotonic()

    def deaf(done, total):
        assert time.monotonic() - start < 10, "the signal was not honoured"

    # A process started in the background of a script ignores the signal unless told otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            advance(field, METHODS["verlet"], slots, bits, steps=10**11, progress=deaf)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_other_threads_run_meanwhile():
    field, slots, bits = prepared("Harmonic", "separable", False)
    stop, turns = threading.Event(), []

    def count():
        while not stop.is_set():
            turns.append(1)
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    seen = []
    advance(
        field, METHODS["verlet"], slots, bits, steps=1_000_000, progress=lambda d, t: seen.append(len(turns))
    )
    stop.set()
    thread.join()
    assert max(b - a for a, b in itertools.pairwise(seen)) >= 5  # within one call of about 50 ms


# ---- what is refused
# ------------------------------------------------------------------------------------------

GOOD = torch.ones(3, 2, dtype=torch.float64)
WRONG = {
    "dtype": (lambda a: a(slots=(GOOD.float(), GOOD.float())), "expected a contiguous"),
    "shape": (lambda a: a(slots=(GOOD, GOOD[:2].clone())), "two tensors of one shape"),
    "one tensor twice": (lambda a: a(slots=(GOOD, GOOD)), "expected two tensors"),
    "one axis": (lambda a: a(slots=(GOOD[0].clone(), GOOD[1].clone())), "expected a contiguous"),
    "strides": (lambda a: a(slots=(torch.ones(2, 3).double().T, GOOD.clone())), "expected a contiguous"),
    "gradient": (lambda a: a(slots=(GOOD.clone().requires_grad_(), GOOD.clone())), "detach it"),
    "no units": (lambda a: a(slots=(GOOD.long(), GOOD.long())), "int64 slots need it"),
    "units of floats": (lambda a: a(frac_bits=(torch.zeros(2), torch.zeros(2))), "float64 slots have none"),
    "units": (
        lambda a: a(slots=(GOOD.long(), GOOD.long()), frac_bits=(torch.zeros(3), torch.zeros(3))),
        "expected one number a component",
    ),
    "tiny units": (
        lambda a: a(
            slots=(GOOD.long(), GOOD.long()), frac_bits=(torch.tensor([1, 257]), torch.tensor([1, 1]))
        ),
        "expected at most 256",
    ),
    "range": (
        lambda a: a(slots=(GOOD.long() << 62, GOOD.long()), frac_bits=(torch.zeros(2), torch.zeros(2))),
        r"expected at most 2\*\*62 - 1",
    ),
    "negative steps": (lambda a: a(steps=-1), "expected non-negative numbers"),
    "below step 0": (lambda a: a(steps=2, position=1, undo=True), "no step below 0"),
    "threads": (lambda a: a(threads=0), "expected a positive integer"),
    "saves": (lambda a: a(saves=(2, 1)), "save at step 1 comes after 2"),
    "late save": (lambda a: a(saves=(4,)), "expected steps within the run"),
    "carries": (lambda a: a(carries=_compiled.Carries(2, 9)), "expected one a system, 3"),
}


@pytest.mark.parametrize("use, message", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(use, message):
    def attempt(**options):
        slots = options.pop("slots", (GOOD.clone(), GOOD.clone()))
        frac_bits = options.pop("frac_bits", None)
        advance(fields.VanDerPol(), METHODS["verlet"], slots, frac_bits, **{"steps": 3, **options})

    with pytest.raises(ConfigError, match=message):
        use(attempt)


def test_carries_are_asked_for_where_they_are_needed():
    field, slots, bits = prepared("VanDerPol", "first", True)
    advance(field, METHODS["blend"], slots, bits)
    with pytest.raises(ConfigError, match="cannot be undone without carries"):
        advance(field, METHODS["blend"], slots, bits, position=STEPS, undo=True)
    short = _compiled.Carries(len(slots[0]), 3)
    with pytest.raises(ConfigError, match="carry bits a system, but carries is at 0 of 3"):
        advance(field, METHODS["blend"], slots, bits, carries=short)


def test_states_of_another_shape_are_named():
    assert _compiled.layout(fields.NBody(), (4, 5, 2, 3)) == (20, 6)
    assert _compiled.layout(fields.Kepler(), (3,)) == (1, 3)
    with pytest.raises(ConfigError, match="takes the last 2 axes"):
        _compiled.layout(fields.NBody(), (6,))
    with pytest.raises(ConfigError, match=r"expected \(2, 3\): bodies, dimensions"):
        _compiled.layout(fields.NBody(), (3, 2))


@pytest.mark.parametrize("function", _compiled.MATH)
def test_sin_cos_and_exp(function):
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    truth = getattr(torch, function)(x)
    # Two ulps at most, ours and torch's.
    assert bool(((_compiled.math_of(function, x) - truth).abs() <= 2.0**-51 * truth.abs()).all())
    with pytest.raises(ConfigError, match="no function 'tan'"):
        _compiled.math_of("tan", x)
