"""What broke other libraries, part 2: uses of autograd, copies, composition with torch's own tools."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from stacks import SCHEMES, batch, bf16, run, same, stack
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import revstep
from revstep.stack import _members
from revstep_lab.verify import example_blocks


@pytest.mark.parametrize("state", ["fixed32", "float64"])
@pytest.mark.parametrize("readout", ["last", "mean", "pair"])
def test_in_place_operation_on_the_output(state, readout):
    """Right, or refused by torch's version check; never silently wrong. Nothing we keep aliases
    the output.
    """

    def loss(y):
        y = y[1] if readout == "pair" else y
        return y.mul_(3.0).add_(1.0).square().sum()

    def loss_out_of_place(y):
        y = y[1] if readout == "pair" else y
        return (y * 3.0 + 1.0).square().sum()

    in_place, out_of_place = (
        run(stack("midpoint", 5, state, readout=readout), batch(), loss=f) for f in (loss, loss_out_of_place)
    )
    assert same(in_place, out_of_place)
    if state == "fixed32":
        assert same(in_place, run(stack("midpoint", 5, state, readout=readout, keep=5), batch(), loss=loss))


def test_retain_graph_and_second_backward():
    module, x = stack("blend", 5), batch()
    torch.manual_seed(0)
    y = module(x).square().sum()
    y.backward(retain_graph=True)
    first = x.grad.clone()
    y.backward()
    assert torch.equal(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_autograd_grad_of_one_layer():
    grads = []
    for keep in (0, 6):
        module = stack("blend", 6, dropout=0.0, keep=keep)
        grads.append(torch.autograd.grad(module(batch()).square().sum(), list(module.blocks[3].parameters())))
    assert same(list(grads[0]), list(grads[1]))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("keep", [0, 2])
def test_create_graph(name, keep):
    """A gradient penalty: second derivatives equal those of the stored pass bit for bit."""

    def once(k):
        module, x = stack(name, 4, keep=k, dtype=torch.float64, dropout=0.0), batch(torch.float64)
        with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative in torch
            (g,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
            g.square().sum().backward()
        return [x.grad, *(p.grad for p in module.parameters())]

    ours, stored = once(keep), once(4)
    assert same(ours, stored) and ours[0].abs().max() > 0


@pytest.mark.parametrize("scheme", ["midpoint", "blend", "bdia", "leapfrog", "midpoint_blend", "hamiltonian"])
def test_batched_gradients(scheme):
    module, x = stack(scheme, 3, dropout=0.0), batch()
    y = module(x)
    cotangents = torch.randn(3, *y.shape)
    (together,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True, retain_graph=True)
    for g, c in zip(together, cotangents):
        (one,) = torch.autograd.grad(y, x, c, retain_graph=True)
        assert torch.allclose(g, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 3])
def test_torch_func_is_refused(keep):
    x, module = batch(grad=False), stack("midpoint", 3, dropout=0.0, keep=keep)
    for transform in (
        torch.func.grad(lambda t: module(t).sum()),
        torch.func.vmap(module),
        lambda t: torch.func.jvp(module, (t,), (t,)),
    ):
        with pytest.raises(revstep.UnsupportedError, match=r"torch\.func"):
            transform(x)


def test_functional_call_with_other_parameters():
    module, x = stack("blend", 3, dropout=0.0), batch()
    swapped = {n: (1.1 * p).detach().requires_grad_() for n, p in module.named_parameters()}
    torch.func.functional_call(module, swapped, (x,)).square().sum().backward()
    reference = stack("blend", 3, dropout=0.0, keep=3)
    reference.load_state_dict(swapped)
    run(reference, batch())
    assert all(torch.equal(swapped[n].grad, p.grad) for n, p in reference.named_parameters())
    assert all(p.grad is None for p in module.parameters())


class Normed(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x):
        return self.linear(self.norm(x)).tanh()


def normed(seed=0, **options):
    torch.manual_seed(seed)
    return revstep.ReversibleStack([Normed() for _ in range(3)], revstep.Blend(c=0.25), **options)


@pytest.mark.parametrize("state", [revstep.FixedPoint(), revstep.Float(torch.float64)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_functional_call_with_parameters_and_buffers_of_another_model(training, state):
    """The re-evaluation has them too: its own statistics are read and written, and nobody else's."""
    found = []
    for keep in (0, 3):
        module, other = normed(state=state, keep=keep).train(training), normed(seed=1)
        with torch.no_grad():
            for b in other.buffers():
                b.add_(1)
        own = copy.deepcopy(module.state_dict())
        x = torch.randn(8, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
        given = dict(other.named_parameters()) | dict(other.named_buffers())
        torch.func.functional_call(module, given, (x,)).square().sum().backward()
        assert all(torch.equal(own[n], t) for n, t in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
        found.append([x.grad, *(p.grad for p in other.parameters()), *other.buffers()])
    assert not state.exact or all(torch.equal(a, b) for a, b in zip(*found))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*found))


def test_weights_and_buffers_exchanged_before_backward():
    """Autograd holds the old ones, and so does the re-evaluation."""
    grads = []
    for exchange in (False, True):
        module = normed().eval()
        before = dict(module.named_parameters())
        y = module(torch.ones(8, 32))
        if exchange:
            module.load_state_dict(copy.deepcopy(normed(seed=1).state_dict()), assign=True)
        y.square().sum().backward()
        assert module.report.exact
        grads.append([p.grad for p in before.values()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


class Counts(nn.Module):
    """Moves its statistics on as many codebooks do, where torch does not count the writes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.register_buffer("moments", torch.zeros(32, 32))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        h = self.linear(x)
        self.moments.data.mul_(0.9).add_(h.detach().T @ h.detach(), alpha=0.1)
        self.calls.data.add_(1)
        return h.tanh()


def test_buffers_that_are_written_through_data_are_written_once():
    torch.manual_seed(0)
    module = revstep.ReversibleStack([Counts() for _ in range(2)], revstep.Blend(c=0.25))
    y = module(torch.randn(4, 32))
    after = copy.deepcopy(dict(module.named_buffers()))
    y.sum().backward()
    assert module.report.exact and [int(b.calls) for b in module.blocks] == [1, 1]
    assert all(torch.equal(after[n], b) for n, b in module.named_buffers())


@pytest.mark.parametrize("name", ["swapped", "watched"])
def test_mutants_of_what_is_put_back(name, monkeypatch):
    if name == "swapped":
        monkeypatch.setattr(_members.Members, "exchanged", lambda self, before: {})
        with pytest.raises((AssertionError, revstep.RevstepError)):
            test_functional_call_with_parameters_and_buffers_of_another_model(True, revstep.FixedPoint())
    else:
        monkeypatch.setattr(_members, "_may_move", lambda b: b.ndim == 1)
        with pytest.raises(AssertionError):
            test_buffers_that_are_written_through_data_are_written_once()


def test_forward_mode_is_refused():
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(revstep.UnsupportedError, match="forward mode"),
    ):
        stack("midpoint", 2, dropout=0.0)(
            torch.autograd.forward_ad.make_dual(batch(grad=False), torch.ones(2, 9, 32))
        )


def test_deepcopy_pickle_state_dict():
    module, x = stack("midpoint_blend", 4, dropout=0.0), batch()
    run(module, x)
    expected = module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), expected)
        run(twin, batch())
        assert twin.report.exact
    other = stack("midpoint_blend", blocks=example_blocks(4, dropout=0.0, seed=9))
    assert not torch.equal(other(x), expected)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), expected)


def test_nothing_leaks():
    """The tape dies with the graph, without the garbage collector."""
    module, x = stack("blend", 4), batch()
    gc.disable()
    try:
        y = module(x)
        tape = weakref.ref(y.grad_fn.tape)
        y.square().sum().backward()
        del y
        assert tape() is None
    finally:
        gc.enable()


def test_block_that_writes_to_its_input_is_refused():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2.0)

    with pytest.raises(revstep.UnsupportedError, match="layer 0 changed its input in place"):
        stack("midpoint", blocks=[InPlace(), InPlace()])(torch.randn(2, 32).requires_grad_().clone())


def test_block_that_writes_to_what_autograd_saved_is_refused_as_by_torch():
    class InPlace(nn.Linear):
        def forward(self, x):
            y = super().forward(x).exp()
            y.add_(1.0)
            return 0.1 * y

    for keep in (0, 2):
        with pytest.raises(RuntimeError, match=r"in place|inplace"):
            run(stack("midpoint", blocks=[InPlace(32, 32), InPlace(32, 32)], keep=keep), batch())


def test_block_that_differentiates_inside_is_refused():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x):
            with torch.enable_grad():
                e = self.linear(x).cosh().log().sum()
                return torch.autograd.grad(e, x, create_graph=True)[0]

    with pytest.raises(revstep.UnsupportedError, match="layer 0 differentiates inside"):
        run(stack("midpoint", blocks=[Energy(), Energy()]), batch())
    run(stack("midpoint", blocks=[Energy(), Energy()], keep=2), batch())


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


def test_checkpoint_inside_and_around():
    blocks = example_blocks(4)
    expected = run(stack("blend", blocks=blocks, keep=4), batch())
    inside = stack("blend", blocks=[Checkpointed(b) for b in blocks])
    assert same(run(inside, batch()), expected)
    around = Checkpointed(stack("blend", blocks=blocks))
    assert same(run(around, batch()), expected)
    assert inside.report.exact and around.block.report.exact


def test_save_on_cpu_around():
    module, x = stack("blend", 4), batch()
    expected = run(module, x)
    torch.manual_seed(3)
    x.grad = None
    with torch.autograd.graph.save_on_cpu():
        y = module(x)
    y.square().sum().backward()
    assert torch.equal(x.grad, expected[1]) and module.report.exact


def test_compiled_blocks():
    blocks = example_blocks(3, dropout=0.0)
    compiled = stack("blend", blocks=[torch.compile(b, backend="aot_eager") for b in blocks])
    run(compiled, batch(), context=bf16)
    assert compiled.report.exact and compiled.report.layers == 3


def test_weight_norm_and_hooks():
    torch.manual_seed(0)
    calls = []

    def build(keep):
        torch.manual_seed(0)
        blocks = [nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)) for _ in range(3)]
        blocks[1].register_forward_hook(lambda m, i, o: calls.append(keep))
        return stack("midpoint", blocks=blocks, keep=keep)

    assert same(run(build(0), batch()), run(build(3), batch()))
    assert calls.count(0) == 2 and calls.count(3) == 1, (
        "each block is evaluated once in backward, and not at all when kept"
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_each_block_is_evaluated_once_in_backward(name):
    calls = []
    blocks = example_blocks(5)
    for i, b in enumerate(blocks):
        for half in b.halves() if name == "hamiltonian" else (b,):
            half.register_forward_hook(lambda m, a, o, i=i: calls.append(i))
    module, x = stack(name, blocks=blocks), batch()
    y = module(x).sum()
    forward = list(calls)
    calls.clear()
    y.backward()
    assert sorted(calls) == sorted(forward) and calls == forward[::-1]


def test_parameter_gradients_appear_layer_by_layer():
    """What DDP's overlap needs: the last layer's gradients are there before the first block is evaluated
    again.
    """
    order = []
    module = stack("blend", 4, dropout=0.0)
    for i, b in enumerate(module.blocks):
        b.mlp.down.weight.register_post_accumulate_grad_hook(lambda p, i=i: order.append(("gradient", i)))
        b.register_forward_hook(lambda m, a, o, i=i: order.append(("evaluated", i)))
    y = module(batch()).sum()
    order.clear()
    y.backward()
    assert order == [(what, i) for i in (3, 2, 1, 0) for what in ("evaluated", "gradient")]


def test_bad_arguments_are_sentences():
    blocks = [nn.Linear(32, 32) for _ in range(3)]
    for wrong, match in [
        ({"scheme": "blend"}, "instance of a scheme"),
        ({"state": "fixed"}, "FixedPoint"),
        ({"start": "heun"}, "repeat, euler"),
        ({"readout": "first"}, "one of"),
        ({"keep": 4}, "0 to 3"),
        ({"keep": True}, "0 to the number of layers"),
        ({"blocks": [lambda x: x]}, "nn.Module"),
    ]:
        with pytest.raises(revstep.ConfigError, match=match):
            revstep.ReversibleStack(**{"blocks": blocks, "scheme": revstep.Midpoint(), **wrong})
    with pytest.raises(revstep.ConfigError, match="pair"):
        revstep.ReversibleStack(blocks, revstep.Hamiltonian())
    with pytest.raises(revstep.ConfigError, match="knows 'repeat'"):
        revstep.ReversibleStack([], revstep.Hamiltonian(), start="euler")
    module = revstep.ReversibleStack(blocks, revstep.Midpoint())
    for x, match in [
        ("text", "expected a tensor"),
        ((torch.zeros(2, 32), torch.zeros(3, 32)), "expected the same"),
        (torch.zeros(2, 32, dtype=torch.int64), "int64"),
    ]:
        with pytest.raises(revstep.ConfigError, match=match):
            module(x)
    with pytest.raises(revstep.ConfigError, match=r"layer 0 returned \(2, 5\)"):
        revstep.ReversibleStack([nn.Linear(32, 5)], revstep.Midpoint())(torch.zeros(2, 32))
    with pytest.raises(revstep.ConfigError, match="last_two"):
        module.reconstruct((torch.zeros(2), torch.zeros(2)))
    with pytest.warns(revstep.AmplificationWarning, match="rounding errors by 64"):
        revstep.ReversibleStack(blocks, revstep.Blend(c=0.25), state=revstep.Float())
