"""Gradients are those of ordinary autograd that stores everything, bit for bit in fixed point."""

import pytest
import torch
from stacks import EXACT, SCHEMES, batch, bf16, run, same, stack

import revstep
from revstep import verify
from revstep.schemes import Coefficients, available
from revstep.stack import _nodes
from revstep_lab.verify import example_input


@pytest.mark.parametrize("state", EXACT)
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 7, 16])
def test_equal_the_stored_oracle(name, state, layers):
    for start in available()[name].starts:
        for readout in ("last", "mean", "pair"):
            module = stack(name, layers, state, start=start, readout=readout, scale=2.0)
            result = verify.gradients(module, batch(grad=False))
            assert result.ok, (start, readout, str(result))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layers", [63, 64])
def test_equal_the_stored_oracle_when_deep(name, layers):
    module = stack(name, layers, scale=1.0, width=16)
    assert verify.gradients(module, example_input(16), context=bf16).ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SCHEMES)
def test_equal_the_stored_oracle_in_other_dtypes(name, dtype):
    assert verify.gradients(stack(name, 5, dtype=dtype), batch(dtype, grad=False)).ok


@pytest.mark.parametrize(
    "context",
    [
        bf16,
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    ],
)
@pytest.mark.parametrize("name", SCHEMES)
def test_equal_the_stored_oracle_under_autocast(name, context):
    assert verify.gradients(stack(name, 5), batch(grad=False), context=context).ok


@pytest.mark.parametrize("keep", [1, 2, 4, 5])
@pytest.mark.parametrize("state", ["fixed32", "float64"])
@pytest.mark.parametrize("name", SCHEMES)
def test_keep_does_not_change_a_bit(name, state, keep):
    """In fixed point; a float state rebuilds fewer layers and is closer to the stored pass the
    more are kept.
    """
    ours, none, every = (run(stack(name, 5, state, keep=k), batch(), context=bf16) for k in (keep, 0, 5))
    if state == "fixed32":
        assert same(ours, none) and same(ours, every)
    else:
        assert torch.equal(ours[0], every[0])


def by_row(scheme, layer, rows):
    """Coefficients of a layer as numbers, or, of a scheme that draws them per row, as columns (rows, 1)."""
    c = scheme.draw(layer + 1, "repeat", rows, training=True)[layer]
    if isinstance(c, Coefficients):
        return c
    return [
        torch.tensor([[pair[chosen]] for chosen in c.choice], dtype=torch.float64)
        for pair in zip(c.first, c.second)
    ]


@pytest.mark.parametrize("name", SCHEMES)
def test_linear_blocks_have_the_closed_form_gradient(name):
    """With linear blocks the input gradient does not depend on the states, so only float rounding separates
    it from plain autograd.

    Bound: every gradient element is a sum of at most 2**steps products, each rounded at most 4 (dim + 2)
    steps times.
    """
    layers, dim = 6, 8
    torch.manual_seed(0)
    blocks = [
        (
            (torch.nn.Linear(dim, dim), torch.nn.Linear(dim, dim))
            if name == "hamiltonian"
            else torch.nn.Linear(dim, dim)
        )
        for _ in range(layers)
    ]
    module = stack(name, blocks=blocks).double()
    x = torch.randn(4, dim, dtype=torch.float64, requires_grad=True)
    module(x).sum().backward()
    leaf = x.detach().clone().requires_grad_()
    prev, cur = leaf, leaf
    functions = [h for b in module.blocks for h in (b.halves() if name == "hamiltonian" else (b,))]
    for k, f in enumerate(functions):
        alpha, beta, gamma = by_row(module.scheme, k, len(x))
        prev, cur = cur, alpha * prev + beta * cur + gamma * f(cur)
    cur.sum().backward()
    scale = float(leaf.grad.abs().max())
    assert (x.grad - leaf.grad).abs().max() <= 4 * (dim + 2) * module.steps * torch.finfo(
        torch.float64
    ).eps * scale


@pytest.mark.parametrize("name", SCHEMES)
def test_distance_to_naive_autograd_falls_with_the_grid(name):
    """Against plain float64 autograd the gradient differs by the grid alone: four bits more, sixteen times
    closer (slope 1 within 0.15).
    """
    x = batch(torch.float64)
    wide = run(stack(name, 4, "float64", dtype=torch.float64, dropout=0.0, keep=4), x)
    errors = []
    for frac in (16, 20, 24, 28, 32):
        module = stack(name, 4, revstep.FixedPoint(64, frac), dtype=torch.float64, dropout=0.0)
        ours = run(module, x)
        errors.append(
            max(
                float((a - b).norm() / b.norm())
                for a, b in zip(ours[1:-1], wide[1:-1])
                if float(b.norm()) > 1e-9
            )
        )
    logs = torch.tensor(errors, dtype=torch.float64).log2()
    slope = float((logs[0] - logs[-1]) / 16)
    assert abs(slope - 1) <= 0.15, errors


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("context", [None, bf16])
def test_training_trajectory_is_the_stored_one(name, context):
    """Ten AdamW steps with dropout: the same losses and weights, bit for bit, reversible against stored."""

    def train(keep):
        module = stack(name, 4, keep=keep, scale=1.0)
        head = torch.nn.Linear(32, 1)
        with torch.no_grad():
            head.weight.fill_(0.1), head.bias.zero_()
        optimiser = torch.optim.AdamW([*module.parameters(), *head.parameters()], lr=3e-3)
        torch.manual_seed(7)
        losses, x = [], torch.randn(2, 9, 32)
        for _ in range(10):
            with context() if context else torch.autocast("cpu", enabled=False):
                loss = (head(module(x)) - x.mean(-1, keepdim=True)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return [*losses, *(p.detach() for p in module.parameters())]

    reversible, everything = train(0), train(4)
    assert same(reversible, everything)
    assert reversible[9] < reversible[0]


# --- mutants that the oracle comparison must reject ---


def _flip(which):
    def backward(ctx, g):
        grads = list(original(ctx, g))
        if grads[which] is not None:
            grads[which] = -grads[which]
        return tuple(grads)

    original = _nodes.Step.backward
    return staticmethod(backward)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_mutant_with_a_flipped_gradient_sign(monkeypatch, which):
    module = stack("blend", 3)
    assert verify.gradients(module, batch(grad=False)).ok
    monkeypatch.setattr(_nodes.Step, "backward", _flip(which))
    assert not verify.gradients(module, batch(grad=False)).ok


def test_mutant_that_forgets_gamma(monkeypatch):
    original = _nodes.Step.backward

    def backward(ctx, g):
        prev, cur, f, none = original(ctx, g)
        return prev, cur, f / ctx.coefficients.gamma, none

    monkeypatch.setattr(_nodes.Step, "backward", staticmethod(backward))
    assert not verify.gradients(stack("blend", 3), batch(grad=False)).ok


def test_mutant_that_evaluates_at_the_wrong_state(monkeypatch):
    """Re-evaluating one layer off must be found by the checksums."""
    from revstep.stack._tape import Tape

    original = Tape._evaluate
    monkeypatch.setattr(Tape, "_evaluate", lambda self, layer, view: original(self, layer, view.roll(1, 0)))
    with pytest.raises(revstep.ReconstructionError):
        run(stack("blend", 3), batch())
