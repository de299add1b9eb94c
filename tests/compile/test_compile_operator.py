"""``revstep::stack`` as an operator: its schema, what it keeps, when it lets go, what it may share."""

import ast
import contextlib
import gc
import itertools
import pickle

import pytest
import stacks
import torch
from compiled import around, tokens, train
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from revstep.stack import _compiling, _operator

CALL = (
    "{'pair': %s, 'grad': %s, 'cache': True, 'autocast': [('cpu', False, 'bfloat16')], 'arguments': ('tuple',"
    " [('tuple', []), ('dict', [])])}"
)


def arguments(stack, pair=False, grad=True):
    """What a compiled graph calls the operator with."""
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2)).requires_grad_(grad)
    weights = list(stack.parameters())
    needs = [grad] * (1 + len(weights))
    return x, None, weights, needs, stack._handle, 0, CALL % (pair, grad)


@pytest.mark.parametrize("pair", (False, True))
def test_schema_fake_kernel_and_autograd_registration(pair):
    stack = stacks.stack(layers=2, dropout=0.0, readout="pair" if pair else "last")
    # The ticket's number differs from call to call: outputs are not compared.
    utils = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.revstep.stack.default, arguments(stack, pair), test_utils=utils)
    torch.library.opcheck(
        torch.ops.revstep.stack.default, arguments(stack, pair, grad=False), test_utils=utils
    )


def backward_arguments(stack):
    with torch.no_grad():
        _, _, weights, needs, *_ = given = arguments(stack)
        y, other, ticket = torch.ops.revstep.stack(*given)
    return ticket, torch.ones_like(y), other, 1, weights, needs


class Shared(nn.Module):
    """Two parameters whose gradients autograd leaves in one memory, and one that has none."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = (nn.Parameter(torch.zeros(2, 9, 32)) for _ in range(3))

    def forward(self, x):
        return self.a + self.b


def memories(tensors):
    return {t.untyped_storage().data_ptr() for t in tensors}


def test_no_two_gradients_share_memory_with_each_other_or_with_what_came_in():
    ticket, g, *rest = backward_arguments(stacks.stack("midpoint", blocks=[Shared()]))
    grads = torch.ops.revstep.stack_backward(ticket, g, *rest)
    assert len(memories([*grads, g])) == len(grads) + 1
    assert [float(t.sum()) != 0 for t in grads] == [True, True, True, False]  # x, a, b, unused
    assert all(t.is_contiguous() for t in grads)


def test_shared_gradients_are_seen(monkeypatch):
    monkeypatch.setattr(
        _operator,
        "_apart",
        lambda grads, like, inputs: [torch.zeros_like(t) if g is None else g for g, t in zip(grads, like)],
    )
    ticket, g, *rest = backward_arguments(stacks.stack("midpoint", blocks=[Shared()]))
    grads = torch.ops.revstep.stack_backward(ticket, g, *rest)
    assert len(memories([*grads, g])) < len(grads) + 1


def test_the_result_shares_nothing_with_what_is_kept():
    """A compiler may write into it when nothing in its graph reads it any more."""
    stack = stacks.stack(layers=3, dropout=0.0, readout="pair", keep=2)
    expected = None
    for write in (False, True):
        with torch.no_grad():
            y, other, ticket = torch.ops.revstep.stack(*arguments(stack, pair=True))
            if write:
                y.fill_(float("nan")), other.fill_(float("nan"))
            ones = torch.ones_like(y)
            grads = torch.ops.revstep.stack_backward(
                ticket,
                ones,
                ones.clone(),
                1,
                list(stack.parameters()),
                [True] * (1 + len(list(stack.parameters()))),
            )
        expected = grads if expected is None else expected
        assert stacks.same(expected, grads) and stack.report.exact


def test_blocks_evaluated_below_autograd_are_seen(monkeypatch):
    """Where an operator's kernel runs, no block records a graph: the recurrence alone would be
    differentiated.
    """
    first, ordinary = iter([contextlib.nullcontext()]), _operator._ordinary_dispatch
    monkeypatch.setattr(_operator, "_ordinary_dispatch", lambda: next(first, None) or ordinary())
    model = around()
    plain = train(model, model, tokens())
    ours = train(model, torch.compile(model, backend="aot_eager", fullgraph=True), tokens())
    assert torch.equal(plain[0], ours[0]) and not stacks.same(plain, ours)


# ---- tickets ----


def test_a_pass_lives_as_long_as_its_graph():
    model = around()
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    first, second = call(tokens()), call(tokens())
    assert len(_operator._tickets) == 2
    del first
    gc.collect()
    assert len(_operator._tickets) == 1
    second.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    second.backward()
    assert len(_operator._tickets) == 0 and all(
        torch.equal(2 * a, p.grad) for a, p in zip(once, model.parameters())
    )
    with pytest.raises(RuntimeError, match="second time"):
        second.backward()


def test_saved_tensors_that_are_copied_lose_the_pass():
    call = torch.compile(around(), backend="aot_eager", fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        loss = call(tokens())
    with pytest.raises(RuntimeError, match="opaque = False"):
        loss.backward()


def test_offloaded_saved_tensors_do_not():
    model = around()
    plain = train(model, model, tokens())
    assert stacks.same(
        plain,
        train(
            model,
            torch.compile(model, backend="aot_eager", fullgraph=True),
            tokens(),
            context=torch.autograd.graph.save_on_cpu,
        ),
    )


def test_two_calls_alike_are_two_calls():
    """Dropout: were the two calls merged into one, or their order changed, the masks would be others."""
    model = around(dropout=0.5)

    def both(t):
        x = model.embedding(t)
        return (model.stack(x) * model.stack(x).sin()).sum()

    plain = train(model, both, tokens())
    assert stacks.same(
        plain, train(model, torch.compile(both, backend="aot_eager", fullgraph=True), tokens())
    )


def merging(calls):
    """A backend that merges equal calls of the stack in a forward graph and notes how many are left. torch's
    own did so until 2.13.
    """

    def compiled(graph, _):
        first = {}
        for node in [n for n in graph.graph.nodes if n.target is torch.ops.revstep.stack.default]:
            twin = first.setdefault(str(node.args), node)
            if twin is not node:
                node.replace_all_uses_with(twin)
                graph.graph.erase_node(node)
        calls.append(len(first))
        graph.recompile()
        return make_boxed_func(graph)

    return aot_autograd(fw_compiler=compiled, bw_compiler=lambda graph, _: make_boxed_func(graph))


def test_calls_that_were_merged_are_seen(monkeypatch):
    model = around(dropout=0.5)

    def both(t):
        x = model.embedding(t)
        return (model.stack(x) * model.stack(x).sin()).sum()

    calls = []
    plain = train(model, both, tokens())
    apart = train(model, torch.compile(both, backend=merging(calls), fullgraph=True), tokens())
    assert stacks.same(plain, apart) and calls == [2]  # they are not equal
    torch._dynamo.reset()
    monkeypatch.setattr(_compiling, "_sites", itertools.repeat(0))
    with pytest.raises(RuntimeError, match="released"):  # one pass, asked for twice
        train(model, torch.compile(both, backend=merging(calls), fullgraph=True), tokens())
    assert calls == [2, 1]


def test_checkpointing_around_a_compiled_stack():
    from torch.utils.checkpoint import checkpoint

    model = around(dropout=0.1)

    def call(t):
        return checkpoint(model, t, use_reentrant=False)

    plain = train(model, model, tokens())
    assert (
        stacks.same(plain, train(model, torch.compile(call, backend="aot_eager", fullgraph=True), tokens()))
        and model.stack.report.exact
    )


# ---- handles and text ----


def test_handles_name_one_stack_each():
    stack = stacks.stack(layers=1)
    other = pickle.loads(pickle.dumps(stack))
    assert other._handle != stack._handle and _operator._stacks[other._handle] is other
    gone = arguments(other)
    del other
    gc.collect()
    with pytest.raises(RuntimeError, match="no longer exists"):
        torch.ops.revstep.stack(*gone)


def test_arguments_as_text_and_back():
    tree = (
        [torch.ones(1), (None, True, "a'b")],
        {"n": 3, "f": 0.1, "inf": float("inf"), "t": {"deep": torch.zeros(2)}},
    )
    tensors = []
    text = _compiling.encode(tree, tensors)
    back = _operator.decode(ast.literal_eval(text), tensors)
    assert _compiling.carried(tree) and str(back) == str(tree) and type(back[0][1]) is tuple
    assert not any(map(_compiling.carried, (object(), [nn.Linear(1, 1)], {1: 2}, torch.Size([1]))))
