"""The step around a stack compiled as one graph (fullgraph): same losses, gradients and random numbers as
uncompiled, to the bit.
"""

import contextlib
import copy

import pytest
import stacks
import torch
from compiled import Around, around, breaks, graphs, tokens, train
from torch import nn

import revstep
from revstep import UnsupportedError
from revstep.stack import _operator

BACKEND = (  # the same kernels as eager code runs, so that bits can be compared around the stack as well
    "aot_eager"
)

OLD = not hasattr(torch._dynamo.config, "trace_autograd_ops")  # 2.9


def whole(model, **options):
    return torch.compile(model, backend=BACKEND, fullgraph=True, **options)


def agrees(model, *args, call=None, **options):
    """One graph, compiled once, and two compiled steps equal to the uncompiled one; reports too. Nothing is
    left behind.
    """
    plain = train(model, model, *args, **options)
    report = model.stack.report
    call = whole(model) if call is None else call
    before = graphs()
    same = True
    for _ in range(2):
        same &= stacks.same(plain, train(model, call, *args, **options)) and model.stack.report == report
    return same and graphs() == before + 1 and breaks() == [] and len(_operator._tickets) == 0


CASES = {
    **{name: {"name": name} for name in stacks.SCHEMES},
    "mean": {"name": "midpoint", "readout": "mean", "start": "euler", "keep": 1},
    "pair": {"readout": "pair", "keep": 2},
    "fixed64": {"state": "fixed64"},
    "float": {"name": "midpoint", "state": "float32", "readout": "pair", "keep": 1},
    "all kept": {"keep": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_one_graph_the_same_bits(case):
    assert agrees(around(dropout=0.1, **CASES[case]), tokens())


def test_under_autocast():
    assert agrees(around(), tokens(), context=stacks.bf16)


def test_autocast_that_is_not_entered_again_is_seen(monkeypatch):
    monkeypatch.setattr(_operator, "_autocast", lambda ambient: contextlib.nullcontext())
    assert not agrees(around(), tokens(), context=stacks.bf16)


def test_blocks_compiled_inside():
    model = around(dropout=0.1)
    model.stack.compile(backend=BACKEND)
    plain = train(model, model, tokens())
    whole_model = whole(model)
    assert stacks.same(plain, train(model, whole_model, tokens())) and model.stack.report.exact
    compiled = graphs()
    assert stacks.same(plain, train(model, whole_model, tokens())) and graphs() == compiled


def test_two_forwards_before_two_backwards():
    assert agrees(around(dropout=0.1), tokens(), forwards=2)


def test_a_pass_kept_per_graph_is_seen(monkeypatch):
    """As an operator that keeps its pass with the graph, not with a ticket, would have it: the second forward
    replaces the first.
    """

    class Last(dict):
        def get(self, key):
            return super().get(max(self))

    monkeypatch.setattr(_operator, "_tickets", Last())
    model = around(dropout=0.1)
    plain = train(model, model, tokens())
    assert stacks.same(plain, train(model, whole(model), tokens()))  # with one pass at a time it is right
    plain = train(model, model, tokens(), forwards=2)
    with pytest.raises(RuntimeError, match="released"):
        train(model, whole(model), tokens(), forwards=2)
    assert stacks.same(plain, train(model, model, tokens(), forwards=2))


def test_frozen_parts_and_copies():
    model = around(dropout=0.1)
    model.embedding.requires_grad_(False)
    model.stack.blocks[0].requires_grad_(False)
    assert agrees(model, tokens()) and agrees(copy.deepcopy(model), tokens())


def test_hooks_run_as_often_as_uncompiled():
    model, seen = around(dropout=0.1), []
    # Were it run twice, the loss would be another.
    model.stack.register_forward_hook(lambda module, args, y: y * 1.5)
    model.stack.blocks[1].register_forward_hook(lambda *_: seen.append("block"))
    model.stack.blocks[1].mlp.up.weight.register_hook(lambda g: seen.append("weight"))
    plain = train(model, model, tokens())
    expected, seen[:] = sorted(seen), []
    assert stacks.same(plain, train(model, whole(model), tokens()))
    assert sorted(seen) == expected and set(seen) == {"block", "weight"}


def test_other_weights_by_functional_call():
    model = around(dropout=0.1)
    t, weights = tokens(), {name: (p.detach() * 1.1).requires_grad_() for name, p in model.named_parameters()}

    def gradients(call):
        torch.manual_seed(0)
        return torch.autograd.grad(call(weights), list(weights.values()))

    def loss(w):
        return torch.func.functional_call(model, w, (t,))

    assert stacks.same(
        list(gradients(loss)), list(gradients(torch.compile(loss, backend=BACKEND, fullgraph=True)))
    )


class Normed(nn.Module):
    """Reads and writes buffers; ``shared`` is another's parameter."""

    def __init__(self, shared=None):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.__dict__["shared"] = shared

    def forward(self, x):
        y = self.linear(self.norm(x)).tanh()
        return y if self.shared is None else y @ self.shared


def normed(shared=None):
    torch.manual_seed(0)
    return revstep.ReversibleStack([Normed(shared) for _ in range(2)], revstep.Blend(c=0.25))


def test_other_buffers_by_functional_call():
    """Those are read and written, and the stack's own are not."""
    found = []
    for make in (lambda call: call, lambda call: torch.compile(call, backend=BACKEND, fullgraph=True)):
        stack = normed()
        own = copy.deepcopy(dict(stack.named_buffers()))
        given = {name: b.clone() + 1 for name, b in own.items()}
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = make(lambda b, z, stack=stack: torch.func.functional_call(stack, b, (z,)))(given, x)
        y.square().sum().backward()
        assert all(torch.equal(own[name], b) for name, b in stack.named_buffers())
        found.append([y, x.grad, *given.values()])
    assert stacks.same(*found)


def test_a_weight_that_is_registered_elsewhere_is_refused(monkeypatch):
    shared = nn.Parameter(torch.randn(8, 8))
    x = torch.randn(4, 8)

    def gradient(stack, call):
        shared.grad = None
        call(x @ shared).square().sum().backward()
        return shared.grad

    stack = normed(shared)
    right = gradient(stack, stack)
    with pytest.raises(UnsupportedError, match=r"tensor of shape \(8, 8\) .* no parameter of the stack"):
        gradient(stack, torch.compile(stack, backend=BACKEND, fullgraph=True))
    monkeypatch.setattr(_operator, "_refuse_strangers", lambda *_: None)  # the mutant: part of it is lost
    stack = normed(shared)
    lost = gradient(stack, torch.compile(stack, backend=BACKEND, fullgraph=True))
    assert (lost - right).norm() > 0.1 * right.norm()
    stack = normed(shared)
    stack.opaque = False
    assert torch.equal(gradient(stack, torch.compile(stack, backend=BACKEND)), right)


def test_a_new_batch_size_is_compiled_once():
    model = around(dropout=0.1)
    call = whole(model)
    counts = []
    for batch in (2, 3, 4, 5, 2):
        assert stacks.same(train(model, model, tokens(batch)), train(model, call, tokens(batch)))
        counts.append(graphs())
    assert counts == [1, 2, 2, 2, 2]


def test_without_gradients():
    model = around(dropout=0.1)
    call = whole(model)
    train(model, call, tokens())
    model.eval()
    with torch.no_grad():
        expected = model(tokens())
        assert torch.equal(expected, call(tokens())) and len(_operator._tickets) == 0
    model.train()
    assert stacks.same(train(model, model, tokens()), train(model, call, tokens()))


class Arguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x, mask, *, tables=(), scale=1.0, power=1, name=None):
        y = self.linear(x) * mask * scale + tables[0] * 0.1 + tables[1]["b"].sin() * power
        return y if name == "plain" else -y


def test_arguments_of_every_kind_and_gradients_to_them():
    torch.manual_seed(0)
    model = Around(stacks.stack(blocks=[Arguments() for _ in range(3)]))
    table, mask = torch.randn(9, 32, requires_grad=True), torch.rand(9, 32)

    def call_with(call):
        def run(t, power):
            return call(t, mask, tables=[table, {"b": torch.ones(1)}], scale=0.5, power=power, name="plain")

        return run

    compiled = call_with(whole(model))
    counts = []
    for power in (1, 2, 3, 4):
        plain = train(model, call_with(model), tokens(), power)
        expected, table.grad = table.grad, None
        assert stacks.same(plain, train(model, compiled, tokens(), power)) and torch.equal(
            expected, table.grad
        )
        table.grad = None
        counts.append(graphs())
    assert counts == [1, 2, 2, 2]  # a number that changes becomes a variable of the graph


def test_an_argument_written_to_before_backward_is_seen():
    """The operator's backward takes the arguments too: autograd checks them, and no compiler uses their
    memory in between.
    """
    model, mask = Around(stacks.stack(blocks=[Arguments() for _ in range(2)])), torch.rand(9, 32)
    loss = whole(model)(tokens(), mask, tables=[torch.zeros(9, 32), {"b": torch.ones(1)}])
    mask.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif(OLD, reason="this torch cannot trace backward")
def test_the_whole_step_in_one_graph():
    """Forward, loss and backward in one graph, where torch is told to trace ``backward``."""
    model = around(dropout=0.1)

    def step(t):
        loss = model(t)
        loss.backward()
        return loss.detach()

    def run(call):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        return [call(tokens()), *(p.grad for p in model.parameters())]

    plain = run(step)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(step, backend=BACKEND, fullgraph=True)
        assert stacks.same(plain, run(compiled)) and stacks.same(plain, run(compiled))
    assert graphs() == 1 and model.stack.report.exact


def test_a_step_that_breaks_at_backward_only():
    model = around(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        loss = model(tokens())
        loss.backward()
        return loss.detach()

    other, compiled = copy.deepcopy(model), torch.compile(step, backend=BACKEND)
    others = torch.optim.SGD(other.parameters(), lr=0.1)
    compiled_by = []
    for _ in range(4):
        loss = compiled()
        optimizer.step()
        optimizer.zero_grad()
        plain = other(tokens())
        plain.backward()
        others.step()
        others.zero_grad()
        assert torch.equal(loss, plain.detach()) and model.stack.report == other.stack.report
        compiled_by.append(graphs())
    assert (
        all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
        and compiled_by[1:] == [compiled_by[1]] * 3
    )
    assert breaks() and not any("ReversibleStack" in reason for reason in breaks())


# ---- a graph break instead ----


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        return self.linear(x), x.square().mean()


class RoutedModel(Around):
    def forward(self, t):
        y, aux = self.stack(self.embedding(t))
        return self.head(self.norm(y)).square().mean() + sum(loss for (loss,) in aux)


def test_auxiliary_tensors_need_a_graph_break():
    model = RoutedModel(stacks.stack(blocks=[Routed() for _ in range(3)]))
    plain = train(model, model, tokens())
    refusal = (AssertionError, "unpack a tensor") if OLD else (revstep.UnsupportedError, "opaque = False")
    with pytest.raises(refusal[0], match=refusal[1]):  # the older dynamo stops before the operator runs
        torch.compile(model, backend=BACKEND)(tokens())
    model.stack.opaque = False
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend=BACKEND)
    for _ in range(3):
        assert stacks.same(plain, train(model, compiled, tokens())) and model.stack.report.exact
        assert graphs() == 2  # before the stack and after it, compiled in the first step
    assert all("opaque=False" in reason for reason in breaks()) and breaks()
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ReversibleStack with opaque=False"):
        torch.compile(model, backend=BACKEND, fullgraph=True)(tokens())


class Option:
    factor = 2.0


class Objects(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x, option):
        return self.linear(x) * option.factor


def test_arguments_an_operator_cannot_carry_break_the_graph():
    model = Around(stacks.stack(blocks=[Objects() for _ in range(3)]))
    assert stacks.same(
        train(model, model, tokens(), Option()),
        train(model, torch.compile(model, backend=BACKEND), tokens(), Option()),
    )
    assert graphs() == 2
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="tuples, lists and dicts"):
        whole(model)(tokens(), Option())


def test_inductor_around_the_stack(inductor):
    """Other kernels around, so gradients to rounding; the stack itself as ever. float32, sums of at most 2 *
    9 * 50 terms.
    """
    model = around(layers=2, dropout=0.0)
    plain = train(model, model, tokens())
    compiled = torch.compile(model, fullgraph=True)
    for _ in range(2):
        ours = train(model, compiled, tokens())
        bound = 2 * 9 * 50 * torch.finfo(torch.float32).eps
        assert (
            all(float((a - b).norm()) <= bound * float(b.norm()) for a, b in zip(ours, plain))
            and model.stack.report.exact
        )
    assert graphs() == 1 and breaks() == [] and len(_operator._tickets) == 0
