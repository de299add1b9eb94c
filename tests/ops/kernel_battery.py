"""The quick battery that broken builds are put to: every property of the kernels under its name."""

import kernel_checks as checks
import lane_checks
import look_checks
import row_checks
import scale_checks
import torch


def battery() -> dict:
    """Name of every property to a function of no arguments."""
    n = (1061,)

    def agreement(states_):
        for state in states_:
            for value in (torch.float32, torch.float64):
                for c in checks.COEFFICIENTS:
                    checks.check_agreement(*checks.operands(n, state, value), c)

    def oracle_():
        for state in checks.FIXED:
            for c in checks.COEFFICIENTS:
                prev, cur, f = checks.operands((257,), state, torch.float32)
                checks.check_oracle(prev, cur, f, c, checks.FRAC[state])

    def round_trip():
        done = 0
        for state in checks.FIXED:
            for c in checks.COEFFICIENTS:
                prev, cur, f = (
                    checks.states(n, state, 1)[200:],
                    checks.states(n, state, 2)[200:],
                    torch.randn(861, generator=torch.Generator().manual_seed(3)),
                )
                done += checks.check_round_trip(prev, cur, f, c, checks.FRAC[state])
        assert done > len(checks.COEFFICIENTS), "hardly any step stayed in range: the check is empty"

    return {
        "agreement fixed": lambda: agreement(checks.FIXED),
        "agreement float": lambda: agreement(checks.FLOATS),
        "oracle": oracle_,
        "round trip": round_trip,
        "range": lambda: [checks.check_range(d, checks.FRAC[d]) for d in checks.FIXED],
        "checksum": lambda: [checks.check_checksum(d) for d in checks.STATES],
        **row_checks.battery(),
        **scale_checks.battery(),
        **look_checks.battery(),
        **lane_checks.battery(),
    }


def failures(names: list[str]) -> dict[str, str]:
    """Of these properties (none given: of all), those that do not hold, with the reason."""
    found, every = {}, battery()
    for name in names or every:
        try:
            every[name]()
        except AssertionError as e:
            found[name] = str(e).splitlines()[0][:200]
    return found
