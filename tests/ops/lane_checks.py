"""Systems in lanes of the compiled integration loops: the bits that each system has alone, and their sine."""

import torch

from revstep.ode import _compiled, fields, methods

H, STEPS, BATCH = 2.0**-6, 12, 70
#: Of one system, of one block of lanes, and of as many blocks as a tile takes: 70 systems fill neither.
LANES = (1, 16, 64)


def check_lanes(frac_bits: int | None) -> None:
    """Pendulums forwards and back; ``frac_bits``: below the point, None for floats. From 57 on increments are
    beyond 2**51 and states beyond 2**61, which lanes round and look at in another way.
    """
    q = torch.linspace(0.1, 3.0, BATCH, dtype=torch.float64)[:, None]
    q, v = (q, q.flip(0) / 2) if frac_bits is None or frac_bits < 57 else (q / 2 + 0.25, q.flip(0) / 2 + 0.25)
    bits = None if frac_bits is None else (torch.full((1,), frac_bits, dtype=torch.int32),) * 2
    start = (q, v) if bits is None else tuple((x * 2.0**frac_bits).to(torch.int64) for x in (q, v))
    method = methods.resolve("kahan_li6", H, None)
    ends = []
    for lanes in LANES:
        slots = tuple(s.clone() for s in start)
        for position, undo in ((0, False), (STEPS, True)):
            _compiled.run(
                fields.Pendulum(equation="second").compiled(),
                lambda n: method.micros(n, "second"),
                slots,
                h=H,
                steps=STEPS,
                period=method.period,
                t0=0.0,
                position=position,
                undo=undo,
                frac_bits=bits,
                lanes=lanes,
            )
            if not undo:
                ends.append(tuple(s.clone() for s in slots))
                same = all(torch.equal(a, b) for a, b in zip(ends[-1], ends[0]))
                assert same, f"{lanes} lanes have other bits than one"
        if bits is not None:
            assert all(torch.equal(a, b) for a, b in zip(slots, start)), f"{lanes} lanes do not return"
    assert not torch.equal(ends[0][0], start[0]), "nothing moved: the check is empty"


def arguments() -> torch.Tensor:
    """Of all quadrants and both signs, close to multiples of pi/2, and beyond the fast reduction."""
    n = torch.arange(-200, 200, dtype=torch.float64)
    near = n * (torch.pi / 2) * (1.0 + 2.0**-40 * torch.cos(n))
    return torch.cat(
        [torch.linspace(-30, 30, 2001, dtype=torch.float64), near, 1e5 * n, 1e9 * n, n * 2.0**-30]
    )


def check_sine(function: str) -> None:
    """Lanes and one number have the same bits, within one ulp of the true value."""
    import mpmath

    x = arguments()
    found = _compiled.math_of(function, x)
    alone = torch.cat([_compiled.math_of(function, x[k : k + 1]) for k in range(len(x))])
    assert torch.equal(found.view(torch.int64), alone.view(torch.int64)), (
        "one number has other bits than lanes"
    )
    with mpmath.workprec(200):
        exact = getattr(mpmath, function)
        for a, b in zip(x.tolist(), found.tolist()):
            truth = exact(mpmath.mpf(a))
            nearest = float(truth)
            ulp = torch.finfo(torch.float64).eps * 2.0 ** (mpmath.frexp(mpmath.mpf(nearest))[1] - 1)
            assert abs(mpmath.mpf(b) - truth) < ulp, (
                f"{function}({a!r}) is {b!r}, not within an ulp of {nearest!r}"
            )


def battery() -> dict:
    return {
        "lanes": lambda: [check_lanes(bits) for bits in (None, 40, 55)],
        "lanes range": lambda: check_lanes(61),
        "lanes sine": lambda: [check_sine(f) for f in ("sin", "cos")],
    }
