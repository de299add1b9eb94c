"""Systems side by side in lanes: the checks that broken builds are put to (tests/mutants), on this build."""

import lane_checks
import pytest
import torch

from revstep.ode import _compiled


@pytest.mark.parametrize("name", lane_checks.battery())
def test_battery(name):
    lane_checks.battery()[name]()


@pytest.mark.parametrize("spoil", [lambda y: torch.nextafter(y, y + 1), lambda y: y.float().double()])
def test_the_bound_of_the_sine_is_a_bound(spoil, monkeypatch):
    """One double further, or rounded to float32, is not within an ulp."""
    found = _compiled.math_of
    monkeypatch.setattr(_compiled, "math_of", lambda function, x: spoil(found(function, x)))
    with pytest.raises(AssertionError, match="not within an ulp"):
        lane_checks.check_sine("sin")


def test_a_system_that_differs_by_a_bit_is_noticed(monkeypatch):
    """Of the last of 70 systems, in lanes only."""
    run = _compiled.run

    def spoilt(native, programs, slots, **options):
        ran = run(native, programs, slots, **options)
        if options["lanes"] == 64 and not options["undo"]:
            slots[0][-1] += 1 if slots[0].dtype == torch.int64 else 2.0**-51
        return ran

    monkeypatch.setattr(_compiled, "run", spoilt)
    for bits in (None, 55):
        with pytest.raises(AssertionError, match="64 lanes"):
            lane_checks.check_lanes(bits)
