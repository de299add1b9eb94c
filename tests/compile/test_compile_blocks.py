"""Blocks compiled one by one: the same graph in both passes, so the same bits."""

import contextlib
import inspect

import pytest
import stacks
import torch
import torch.nn.functional as F
from compiled import graphs
from torch import nn

import revstep
from revstep import verify
from revstep.stack import _compiling, _nodes, _tape
from revstep_lab.verify import example_blocks

CONTEXTS = {"float32": contextlib.nullcontext, "bf16": stacks.bf16}


def exact(stack, x=None, context=contextlib.nullcontext):
    """Output, gradients and generator equal those of the stored recurrence with the same compiled blocks, and
    every state was rebuilt.
    """
    result = verify.gradients(stack, stacks.batch() if x is None else x, context=context)
    return result.ok and stack.report is not None and stack.report.exact


def compiled(name="blend", backend="aot_eager", **options):
    stack = stacks.stack(name, **options)
    stack.compile(backend=backend)
    return stack


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("state", stacks.EXACT)
@pytest.mark.parametrize("name", stacks.SCHEMES)
def test_every_scheme_is_exact_with_compiled_blocks(name, state, context):
    stack = compiled(name, layers=3, state=state, keep=int(state == "fixed64"))
    assert exact(stack, context=CONTEXTS[context])
    expected = {"hamiltonian": 2}.get(name, 1)
    assert graphs() == expected  # blocks that are alike share a graph
    assert exact(stack, context=CONTEXTS[context]) and graphs() == expected


def frames_of_python(kind):
    """Blocks whose call dynamo leaves to Python in part, so that it watches what runs beneath."""
    torch.manual_seed(0)
    if kind == "Sequential":
        return [nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(3)]
    return [nn.Linear(16, 16) for _ in range(3)]


@pytest.mark.parametrize("kind", ["Sequential", "Linear"])
def test_blocks_that_are_modules_of_torch(kind):
    stack = revstep.ReversibleStack(frames_of_python(kind), revstep.Blend(c=0.25))
    stack.compile(backend="aot_eager")
    assert exact(stack, torch.randn(2, 4, 16))


def test_mutant_whose_hooks_dynamo_traces(monkeypatch):
    """The hooks through which saved tensors are seen are Python too, and are not to be traced."""
    saving = _nodes.saving
    monkeypatch.setattr(
        _tape, "saving", lambda pack, unpack, name, compiled: saving(pack, unpack, name, False)
    )
    stack = revstep.ReversibleStack(frames_of_python("Sequential"), revstep.Blend(c=0.25))
    stack.compile(backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
        stack(torch.randn(2, 4, 16, requires_grad=True))


class Small(nn.Module):
    """Few kernels for inductor to compile; dropout among them."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x):
        return F.dropout(F.gelu(self.linear(self.norm(x))), 0.1, self.training)


def small(backend, layers=3):
    torch.manual_seed(0)
    return compiled(blocks=[Small() for _ in range(layers)], backend=backend)


def test_inductor_is_exact(inductor):
    """Dropout included: inductor draws its seeds from torch's generator, which the tape records and puts
    back.
    """
    stack = compiled(backend=inductor, layers=3, dropout=0.1)
    assert exact(stack) and exact(stack) and graphs() == 1
    assert not torch.equal(stack(stacks.batch()), stack(stacks.batch()))


def test_inductor_is_exact_under_autocast(inductor):
    stack = small(inductor)
    assert exact(stack, context=stacks.bf16) and exact(stack, context=stacks.bf16) and graphs() == 1


def test_inductor_with_torchs_own_random_numbers_is_exact(inductor):
    import torch._inductor.config

    with torch._inductor.config.patch(fallback_random=True):
        assert exact(small(inductor))


def test_dropout_that_is_not_replayed_is_seen(monkeypatch):
    from revstep._recurrence.ambient import Generators

    monkeypatch.setattr(Generators, "at", lambda self, states: contextlib.nullcontext())
    assert not exact(compiled(layers=3, dropout=0.1))


def test_compiling_by_hand_is_the_same_thing():
    ours = compiled(layers=3)
    wrapped = stacks.stack(blocks=[torch.compile(b, backend="aot_eager") for b in example_blocks(3)])
    in_place = stacks.stack(layers=3)
    for block in in_place.blocks:
        block.compile(backend="aot_eager")
    results = [stacks.run(s, stacks.batch()) for s in (ours, wrapped, in_place)]
    assert all(stacks.same(results[0], other) for other in results[1:]) and all(
        s.report.exact for s in (ours, wrapped, in_place)
    )
    assert (
        ours.state_dict().keys() == stacks.stack(layers=3).state_dict().keys() == in_place.state_dict().keys()
    )
    assert graphs() == 1


# ---- recompilation ----


def recompilations(stack, sizes):
    """Graphs compiled in each training step, one step a batch size."""
    counts = []
    for size in sizes:
        before = graphs()
        x = torch.randn(size, 9, 32, generator=torch.Generator().manual_seed(size)).requires_grad_()
        stack(x).square().sum().backward()
        assert stack.report.exact
        counts.append(graphs() - before)
    return counts


def test_nothing_is_compiled_after_the_second_step():
    stack = compiled(layers=3)
    assert recompilations(stack, [2] * 5) == [1, 0, 0, 0, 0]


def test_a_new_batch_size_is_compiled_once():
    stack = compiled(layers=3)
    assert recompilations(stack, [2, 3, 4, 5, 2]) == [1, 1, 0, 0, 0]
    assert exact(stack, torch.randn(6, 9, 32))


class Counted(nn.Module):
    """A block whose graph depends on a number of its own that changes from step to step."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(32, 32), 0
        self.steps = 0

    def forward(self, x):
        return self.linear(x) + self.steps


def test_recompilations_are_counted():
    block = Counted()
    stack = compiled(blocks=[block])
    counts = []
    for block.steps in range(4):
        counts += recompilations(stack, [2])
    assert counts == [1, 1, 1, 1]


def test_evaluation_between_passes_leaves_training_as_it_was():
    stack = compiled(layers=3, dropout=0.1)
    x = stacks.batch()
    y = stack(x)
    with torch.no_grad():
        plain = stack.eval()(x)
    stack.train()
    y.sum().backward()
    assert stack.report.exact and exact(stack)
    with torch.no_grad():
        assert torch.equal(plain, stack.eval()(x)) and torch.equal(plain, verify.stored(stack, x))
    assert graphs() == 2  # training, evaluation


def test_passes_of_two_sizes_interleaved_are_exact():
    """The second forward compiles a graph that would fit the first one's backward too."""
    stack = compiled(layers=3, dropout=0.1)
    small, large = (torch.randn(n, 9, 32).requires_grad_() for n in (2, 3))
    first, second = stack(small), stack(large)
    for y in (second, first):
        y.sum().backward()
        assert stack.report.exact


# ---- blocks that differ, blocks that cannot be right ----


class Scaled(nn.Module):
    """A block with a number of its own, as in networks that scale each layer differently."""

    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(32, 32), scale

    def forward(self, x):
        return torch.tanh(self.linear(x)) * self.scale


#: Graphs of nine blocks that differ: where torch cannot compile them apart, the ninth runs uncompiled.
MOST = 9 if "isolate_recompiles" in inspect.signature(torch.compile).parameters else 8


def scaled(layers, backend="aot_eager", kind=float):
    torch.manual_seed(0)
    return compiled(
        blocks=[Scaled(kind(k + 3) / 7 if kind is float else k + 3) for k in range(layers)],
        state=revstep.FixedPoint(64),
        backend=backend,
    )


def test_blocks_with_numbers_of_their_own_get_graphs_of_their_own():
    stack = scaled(9)  # more than dynamo keeps for one function
    assert exact(stack) and exact(stack) and graphs() == MOST


def test_integers_of_their_own_too():
    assert exact(scaled(9, kind=int)) and graphs() == MOST


def test_blocks_that_differ_and_share_graphs_are_refused(monkeypatch):
    """The second float makes the graph a function of it, which the first layer then finds in backward."""
    monkeypatch.setattr(_compiling, "_alike", lambda blocks: True)
    with pytest.raises(revstep.NonDeterministicBlockError, match="layer 0"):
        scaled(3)(stacks.batch()).sum().backward()
    torch._dynamo.reset()
    stack = scaled(3)
    stack.compile(backend="aot_eager", dynamic=False)
    assert exact(stack)


CALLS = 0


class Global(nn.Module):
    """Reads a global that changes with every evaluation: dynamo compiles it anew, and the second graph
    computes something else.
    """

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        global CALLS
        CALLS += 1
        return self.linear(x) * (1 + CALLS % 2)


def test_a_graph_that_differs_between_the_passes_is_caught():
    stack = compiled(blocks=[Global() for _ in range(3)])
    assert not exact(stack)
    with pytest.raises(revstep.ReconstructionError):
        stack(stacks.batch()).sum().backward()


def test_copies_are_compiled_anew():
    import copy

    stack = compiled(layers=2)
    assert exact(stack)
    other = copy.deepcopy(stack)
    assert exact(other) and other._handle != stack._handle
