"""torch's own tools inside and around a stack, part 3: threads, and inputs of unusual kinds."""

import functools
import threading
import types

import pytest
import torch
from stacks import batch, run, same, stack
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.masked import masked_tensor
from torch.utils import _python_dispatch

import revstep
from revstep._recurrence import ambient
from revstep.stack import _modes, _surroundings, rebuilding
from revstep_lab.verify import example_blocks

LAYERS = 4


def blocks(dropout=0.1):
    return example_blocks(LAYERS, dropout=dropout)


# ---- threads ----


def in_threads(*functions):
    """Each in a thread of its own; what it returned. An exception of one is raised here."""
    out, threads = {}, []

    def call(i, f):
        try:
            out[i] = f()
        except BaseException as e:
            out[i] = e

    for i, f in enumerate(functions):
        threads.append(threading.Thread(target=call, args=(i, f)))
        threads[-1].start()
    for t in threads:
        t.join()
    for value in out.values():
        if isinstance(value, BaseException):
            raise value
    return [out[i] for i in range(len(functions))]


def times(module, x, n=3):
    """``n`` passes in a row, each with the same gradients; they, and the report of the last."""
    passes = [
        list(torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])) for _ in range(n)
    ]
    assert all(same(p, passes[0]) for p in passes)
    return passes[0]


def test_stacks_in_threads():
    """Two stacks, and one stack in two threads: each pass has its own tape. Without dropout: torch's
    generator is one for all threads.
    """
    expected = times(stack("blend", blocks=blocks(0.0), keep=LAYERS), batch(), 1)
    modules = [stack("blend", blocks=blocks(0.0)) for _ in range(2)]
    for used in (modules, modules[:1] * 2):
        assert all(
            same(got, expected) for got in in_threads(*(functools.partial(times, m, batch()) for m in used))
        )
        assert all(m.report.exact for m in used)
    different = times(stack("midpoint", blocks=blocks(0.0)), batch(), 1)
    assert not same(different, expected)


def overlapping(kind):
    """Torch's flags of the process, and what torch.compile does, after two modes that overlapped in two
    threads: the one that came second left last.
    """

    class Mode(kind):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with Mode():
            first_in.set()
            second_in.wait(60)
        first_out.set()

    def second():
        first_in.wait(60)
        with Mode():
            second_in.set()
            first_out.wait(60)

    in_threads(first, second)
    torch._dynamo.reset()
    graphs = CompileCounter()
    torch.compile(lambda x: x.sin(), backend=graphs)(torch.ones(2))
    return _python_dispatch.is_in_torch_dispatch_mode(), graphs.frame_count


def test_modes_in_threads_leave_the_process_as_it_was():
    assert overlapping(_modes.ThreadedMode) == (False, 1)
    with _modes.ThreadedMode(), _modes.ThreadedMode():
        assert _python_dispatch.is_in_torch_dispatch_mode()
    assert not _python_dispatch.is_in_torch_dispatch_mode()
    flags = tuple(getattr(_python_dispatch, name) for name in _modes._FLAGS)
    try:  # the mutant: torch's own
        assert overlapping(_python_dispatch.TorchDispatchMode)[0]
    finally:
        _modes._put_back(flags)


def test_backward_in_another_thread():
    """Under that thread's own grad mode and autocast: the block is evaluated again under neither; the
    gradients' own operations are, as in torch.
    """

    def once(keep, autocast):
        module, x = stack("blend", blocks=blocks(), keep=keep), batch()
        torch.manual_seed(3)
        y = module(x).square().sum()

        def backward():
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                y.backward()

        in_threads(backward)
        assert keep or module.report.exact
        return [x.grad, *(p.grad for p in module.parameters())]

    plain, low = once(0, False), once(0, True)
    assert same(plain, run(stack("blend", blocks=blocks()), batch())[1:-1])
    assert same(low, once(LAYERS, True)) and not same(low, plain)


def test_rebuilding_is_of_one_thread(monkeypatch):
    """Another thread, asked while this one evaluates a block again, is not rebuilding; a flag for all of them
    would say so.
    """
    module, answers = stack("blend", blocks=blocks(0.0)), []
    module.blocks[1].register_forward_hook(
        lambda m, args, out: answers.append((rebuilding(), *in_threads(rebuilding)))
    )
    run(module, batch())
    assert answers == [(False, False), (True, False)]
    answers.clear()
    shared = types.SimpleNamespace(depth=0)
    monkeypatch.setattr(
        ambient._Rebuilds,
        "depth",
        property(lambda _: shared.depth, lambda _, value: setattr(shared, "depth", value)),
    )
    monkeypatch.setattr(ambient, "rebuilds", ambient._Rebuilds())
    monkeypatch.setattr(_surroundings, "rebuilds", ambient.rebuilds)
    run(module, batch())
    assert answers == [(False, False), (True, True)]


# ---- inputs ----


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("kind", ["parameter", "subclass"])
def test_parameters_and_subclasses_as_input(kind):
    def make():
        return (
            nn.Parameter(batch(grad=False))
            if kind == "parameter"
            else batch(grad=False).as_subclass(Tagged).requires_grad_()
        )

    got, expected = (run(stack("blend", blocks=blocks(), keep=keep), make()) for keep in (0, LAYERS))
    assert same(got, expected) and same(got, run(stack("blend", blocks=blocks()), batch()))
    assert type(stack("blend", blocks=blocks())(make())) is (torch.Tensor if kind == "parameter" else Tagged)


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of MaskedTensors", "ignore:The PyTorch API of nested tensors"
)
def test_inputs_that_are_not_dense_are_refused():
    x = batch(grad=False)
    for wrong, kind in (
        (x.to_sparse(), "sparse_coo"),
        (masked_tensor(x, x > 0), "masked"),
        (torch.nested.nested_tensor([x[0], x[1, :3]]), "nested"),
        (torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged), "nested"),
    ):
        with pytest.raises(revstep.ConfigError, match=f"is a {kind} tensor, expected a dense one"):
            stack("blend", blocks=blocks())(wrong)
