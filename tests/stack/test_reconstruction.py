"""Every state rebuilt from the last two, and the check that runs on every backward pass."""

import pytest
import torch
from stacks import EXACT, FORMATS, SCHEMES, batch, bf16, run, scheme, stack

import revstep
from revstep import verify
from revstep.schemes import available
from revstep.stack import _surroundings
from revstep_lab.verify import checksums, example_blocks, example_input


@pytest.mark.parametrize("start", revstep.schemes._base.STARTS)
@pytest.mark.parametrize("state", EXACT)
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 8, 33])
def test_states_come_back_bit_for_bit(name, state, start, layers):
    if start not in available()[name].starts:
        pytest.skip(f"{name} has no start {start!r}")
    module = stack(name, layers, state, start=start, scale=2.0)
    torch.manual_seed(0)
    states = module.states(batch())
    rebuilt = module.reconstruct(states.last_two)
    assert len(states) == len(rebuilt) == module.steps + 2
    assert all(torch.equal(a, b) for a, b in zip(states, rebuilt))
    assert all(s.dtype == FORMATS[state].dtype for s in states)


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [(n, {}) for n in SCHEMES] + [("midpoint_blend", {"a": 0.5})])
def test_trained_like_weights_under_autocast(name, options):
    """24 layers, width 256, weights 8x their initial scale, bf16: exact; the same stack in float states is
    off by its own norm.
    """
    steep = revstep.FixedPoint(32, 16) if name == "leapfrog" else revstep.FixedPoint()
    kind = available()[name](**options)
    blocks = example_blocks(24, width=256, dropout=0.0, scale=8.0)
    x = example_input(256, 2, 16)
    module = stack(kind, blocks=blocks, state=steep)
    with bf16():
        exact = verify.reconstruction(module, x)
        floating = verify.reconstruction(stack(kind, blocks=blocks, state="float32"), x)
    assert exact.ok and exact.measured == 0.0, exact
    assert verify.gradients(module, x, context=bf16).ok
    assert floating.measured > 1.0, (
        "float states used to be off by more than their own norm here: is the case still hard?"
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_float_error_is_reported_not_hidden(name):
    module = stack(name, 12, "float32", scale=8.0)
    module.state = revstep.Float(max_error=1e-9)
    with pytest.warns(revstep.ReconstructionWarning, match="off by"):
        run(module, batch(), context=bf16)
    assert (
        not module.report.exact
        and module.report.max_error > 0
        and module.report.matched < module.report.layers
    )


def test_report():
    module = stack("blend", 4)
    assert module.report is None
    run(module, batch())
    report = module.report
    assert (
        report.exact
        and report.layers == report.matched == 4
        and report.max_error == 0.0
        and report.headroom > 2
    )
    assert str(report) == "exact (4 states)"
    elements = 2 * 9 * 32
    carries = 4 * 2 * (elements // 8)  # c = 1/4: two bits an element and layer
    rng = 4 * torch.get_rng_state().numel()
    assert report.bytes_saved == 2 * 4 * elements + 8 * (4 + 2) + carries + rng


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_random_block_is_named(name, layer):
    class Noisy(torch.nn.Module):
        # Not one of torch's global generators: it cannot be replayed.
        generator = torch.Generator().manual_seed(0)

        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return self.block(x) * (1 + 0.1 * torch.rand(1, generator=self.generator))

        def halves(self):
            f, g = self.block.halves()
            return Noisy(f), g

    blocks = example_blocks(5)
    blocks[layer] = Noisy(blocks[layer])
    with pytest.raises(revstep.ReconstructionError, match=rf"layer {layer}\b.*likely causes") as caught:
        run(stack(name, blocks=blocks), batch())
    assert caught.value.layer == layer


def test_hidden_state_is_named():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = torch.nn.Linear(32, 32), 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x) / self.calls

    with pytest.raises(revstep.ReconstructionError, match="layer 3") as caught:
        run(stack("midpoint", blocks=[torch.nn.Linear(32, 32) for _ in range(3)] + [Counting()]), batch())
    assert caught.value.layer == 3


def test_changing_work_is_named():
    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = torch.nn.Linear(32, 32), 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x) if self.calls == 1 else self.linear(x.exp())

    with pytest.raises(revstep.NonDeterministicBlockError, match=r"layer 1.*saved tensor") as caught:
        run(stack("midpoint", blocks=[torch.nn.Linear(32, 32), Moody()]), batch())
    assert caught.value.layer == 1


def test_changed_weights_are_named():
    module = stack("blend", 5)
    loss = module(batch()).sum()
    with torch.no_grad():
        module.blocks[3].mlp.up.weight.mul_(1.001)
    with pytest.raises(revstep.ReconstructionError, match="layer 3"):
        loss.backward()


def test_checks_off_does_not_look():
    module = stack("blend", 5, checks=False)
    loss = module(batch()).sum()
    with torch.no_grad():
        module.blocks[3].mlp.up.weight.mul_(1.001)
    loss.backward()
    assert module.report is None


def test_a_report_does_not_outlive_its_pass():
    module = stack("midpoint", 4, dropout=0.0, state=revstep.FixedPoint(on_nonfinite="propagate"))
    run(module, batch())
    assert module.report.exact
    with torch.no_grad():
        module.blocks[1].mlp.down.bias.fill_(5000.0)
    module(batch()).sum().backward()  # NaN: nothing was compared
    assert module.report is None
    module = stack("midpoint", 4, dropout=0.0)
    run(module, batch())
    loss = module(batch()).sum()
    with torch.no_grad():
        module.blocks[1].mlp.up.weight.mul_(1.01)
    with pytest.raises(revstep.ReconstructionError):
        loss.backward()
    assert module.report is None


def test_one_flipped_bit_is_found():
    assert checksums(stack("midpoint_blend", 6).eval(), batch(grad=False), flips=40).ok


@pytest.mark.parametrize("bit", [0, 7, 30])
def test_corrupted_saved_state_is_found(bit):
    module = stack("midpoint", 4)
    y = module(batch())
    y.grad_fn.saved_tensors[0].view(-1)[5] ^= 1 << bit
    with pytest.raises(
        (revstep.ReconstructionError, RuntimeError),
        match=r"changed since the forward pass|modified by an inplace operation",
    ):
        y.sum().backward()


# --- mutants: each break must turn the check red ---


def test_mutant_without_rng_replay(monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(_surroundings.Generators, "at", lambda self, states: nullcontext())
    with pytest.raises(revstep.ReconstructionError, match="layer"):
        run(stack("midpoint", 4, dropout=0.2), batch())


def test_mutant_without_autocast_replay(monkeypatch):
    monkeypatch.setattr(_surroundings.Autocast, "enter", lambda self, stack: None)
    with pytest.raises(revstep.ReconstructionError):
        run(stack("midpoint", 4, dropout=0.0), batch(), context=bf16)


def test_mutant_that_drops_the_carry(monkeypatch):
    inverse = revstep.ops.inverse
    monkeypatch.setattr(
        revstep.ops,
        "inverse",
        lambda nxt, cur, f, carry, *rest: inverse(nxt, cur, f, torch.zeros_like(carry), *rest),
    )
    module = stack("blend", 4, dropout=0.0)
    with pytest.raises(revstep.ReconstructionError):
        run(module, batch())
    assert not verify.reconstruction(module, batch(grad=False)).ok


def test_mutant_with_another_coefficient(monkeypatch):
    module = stack("midpoint", 4, dropout=0.0)
    states = module.states(batch(grad=False))
    for record in states.last_two.tape.records:
        record.coefficients = record.coefficients._replace(gamma=record.coefficients.gamma * (1 + 1e-3))
    with pytest.raises(revstep.ReconstructionError):
        module.reconstruct(states.last_two)


# --- range ---


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value.expand_as(x) + 0 * x


@pytest.mark.parametrize(
    "value, largest",
    [(3000.0, 3000.0), (-1e30, 1e30), (float("nan"), float("inf")), (float("-inf"), float("inf"))],
)
def test_overflow_names_layer_value_and_format(value, largest):
    blocks = [torch.nn.Linear(32, 32), Constant(value), torch.nn.Linear(32, 32)]
    with pytest.raises(revstep.StateOverflowError, match=r"layer 1: \d+ value") as caught:
        stack("midpoint", blocks=blocks)(batch())
    assert caught.value.layer == 1 and caught.value.limit == pytest.approx(2048, rel=1e-6)
    assert caught.value.largest == largest or caught.value.largest == pytest.approx(largest, rel=1e-2)
    with torch.no_grad(), pytest.raises(revstep.StateOverflowError):
        stack("midpoint", blocks=blocks)(batch())


def test_overflow_of_the_input():
    with pytest.raises(revstep.StateOverflowError, match="the stack's input") as caught:
        stack("midpoint", 2)(torch.full((2, 9, 32), 5000.0))
    assert caught.value.layer == -1


@pytest.mark.parametrize("value", [3000.0, float("nan")])
def test_propagate_gives_nan_and_lets_a_grad_scaler_skip(value):
    blocks = [torch.nn.Linear(32, 32), Constant(value), torch.nn.Linear(32, 32)]
    module = stack("midpoint", blocks=blocks, state=revstep.FixedPoint(on_nonfinite="propagate"))
    x = batch()
    y = module(x)
    assert y.isnan().all()
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = [p.detach().clone() for p in module.parameters()]
    scaler.scale(y.sum()).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.get_scale() == 8.0 and all(
        torch.equal(a, b) for a, b in zip(before, module.parameters()) if not a.isnan().any()
    )


def test_scheme_helper_uses_the_registry():
    assert {scheme(n).name for n in SCHEMES} == set(available())
