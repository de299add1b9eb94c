"""The quantiser of both loops: to nearest for every method; a truncating one is rejected by name."""

import pytest
import torch

from revstep import ode, ops
from revstep_lab.verify.ode import rounding

METHODS = ode.available()


@pytest.mark.parametrize("name, equation", [(n, e) for n, m in METHODS.items() for e in m.equations])
def test_increments_are_rounded_to_nearest(name, equation):
    results = rounding.measure(METHODS[name], equation)
    assert len(results) == 2 and all(r.ok for r in results), [str(r) for r in results]


def test_mutants_are_rejected():
    for method, equation in rounding.MUTANTS.values():
        assert not all(r.ok for r in rounding.measure(method, equation))


@pytest.mark.parametrize(
    "quantiser",
    [torch.trunc, torch.floor, lambda x: torch.floor(x + 0.5)],
    ids=["truncates", "rounds down", "ties upwards"],
)
def test_another_quantiser_is_rejected_by_name(monkeypatch, quantiser):
    """It is still reversible, which is why reversal alone does not show it."""

    class Quantised(ops.BoundStep):
        def __init__(self, state, value, coefficients, frac_bits, view_dtype):
            alpha, beta, gamma = coefficients
            self.before, unit = gamma * 2.0**frac_bits, 2.0**frac_bits
            super().__init__(state, value, (alpha, beta, 1.0 / unit), frac_bits, view_dtype)

        def step(self, prev, cur, value, stats):
            return super().step(prev, cur, quantiser(value * self.before), stats)

        def inverse(self, nxt, cur, value, carry, stats):
            return super().inverse(nxt, cur, quantiser(value * self.before), carry, stats)

    monkeypatch.setattr(ops, "BoundStep", Quantised)
    method = METHODS["verlet"]
    failed = [r.claim for r in rounding.measure(method, "second") if not r.ok]
    assert failed == ["tensor loop: increments rounded to nearest"]
    y0 = (torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    assert ode.integrate(ode.SecondOrder(lambda t, q: -q), y0, scheme=method, h=0.1, steps=9).reverse().exact
