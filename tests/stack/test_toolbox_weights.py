"""torch's own tools inside and around a stack, part 2: parametrised weights, copies, and weights that change
between forward and backward.
"""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from stacks import batch, run, same, stack
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as spectral_norm_hook
from torch.nn.utils import weight_norm as weight_norm_hook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import revstep
from revstep._recurrence.ambient import ParametrizationCache
from revstep.stack._members import Members

LAYERS = 4

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")


class Bounded(nn.Module):
    def forward(self, w):
        return 0.3 * torch.tanh(w)


WEIGHTS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "custom": lambda linear: parametrize.register_parametrization(linear, "weight", Bounded()),
    "weight_norm_hook": weight_norm_hook,
    "spectral_norm_hook": spectral_norm_hook,
    "prune": lambda linear: prune.l1_unstructured(linear, "weight", 0.3),
}
SPECTRAL = ["spectral_norm", "spectral_norm_hook"]


def parametrised(kind, count=LAYERS, twice=False):
    torch.manual_seed(0)
    out = []
    for _ in range(count):
        block = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        for linear in (block[0], block[2]):
            WEIGHTS[kind](linear)
        out.append(nn.Sequential(block, block) if twice else block)
    return out


def train(module, steps=2, **options):
    """Results of each step of plain gradient descent, then weights and buffers."""
    out = []
    for _ in range(steps):
        out += run(module, batch(), **options)
        with torch.no_grad():
            for p in module.parameters():
                if p.grad is not None:
                    p -= 0.01 * p.grad
    return [*out, *(t.detach().clone() for t in (*module.parameters(), *module.buffers()))]


def equal(kind, **options):
    ours, stored = (stack("blend", blocks=parametrised(kind, **options), keep=keep) for keep in (0, LAYERS))
    assert same(train(ours), train(stored)) and ours.report.exact and ours.report.layers == LAYERS
    return ours


# ---- parametrizations ----


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("twice", [False, True])
def test_parametrised_weights_train(kind, twice):
    module = equal(kind, twice=twice)
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("kind", WEIGHTS)
def test_only_the_parametrised_weights_train(kind):
    """Frozen biases: the block still trains by what stands behind its weights alone, here with an input that
    needs no gradient.
    """
    results = []
    for keep in (0, LAYERS):
        module = stack("blend", blocks=parametrised(kind), keep=keep)
        for name, p in module.named_parameters():
            p.requires_grad_("bias" not in name)
        x = batch(grad=False)
        module(x).square().sum().backward()
        results.append([p.grad for name, p in module.named_parameters() if "bias" not in name])
    assert same(*results) and all(g is not None for g in results[0])


@pytest.mark.parametrize("kind", SPECTRAL)
def test_power_iteration_without_its_vectors_is_caught(kind, monkeypatch):
    """The block evaluated again must start from the vectors of the forward pass, not from those that pass
    left.
    """
    equal(kind)
    monkeypatch.setattr(Members, "iterated", lambda self: {})
    with pytest.raises(revstep.ReconstructionError):
        equal(kind)


@pytest.mark.parametrize("kind", SPECTRAL)
def test_power_iteration_moves_on_once_a_pass(kind):
    """Two forwards before two backwards, a shared block, evaluation mode, ``states``; the copies of the
    vectors are in the report.
    """
    results = []
    for keep in (0, LAYERS):
        shared = parametrised(kind, 1)[0]
        module, x = stack("blend", blocks=[shared] * LAYERS, keep=keep), batch()
        first, second = module(x).square().sum(), module(2 * x).square().sum()
        second.backward()
        first.backward()
        module.eval()
        module(x).sum().backward()
        results.append(
            [x.grad, *(p.grad for p in module.parameters()), *(b.clone() for b in module.buffers())]
        )
    assert same(*results)
    module = stack("blend", blocks=parametrised(kind))
    states = module.states(batch())
    assert all(torch.equal(a, b) for a, b in zip(states, module.reconstruct(states.last_two)))
    run(module, batch())
    plain = stack("blend", blocks=parametrised("prune"))
    run(plain, batch())
    assert module.report.bytes_saved - plain.report.bytes_saved == LAYERS * 2 * (32 + 64) * 4


# ---- parametrize.cached() ----


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("around", ["forward", "both", "backward"])
def test_cached_parametrizations(kind, around):
    """Blocks that use each weight twice, so that caching changes what is saved."""
    results = []
    for keep in (0, LAYERS):
        module, x = stack("blend", blocks=parametrised(kind, twice=True), keep=keep), batch()
        cached, plain = parametrize.cached, contextlib.nullcontext
        with cached() if around == "both" else plain():
            with cached() if around == "forward" else plain():
                y = module(x).square().sum()
            with cached() if around == "backward" else plain():
                y.backward()
        results.append(
            [x.grad, *(p.grad for p in module.parameters()), *(b.clone() for b in module.buffers())]
        )
        assert keep or module.report.exact
        assert not parametrize._cache and not parametrize._cache_enabled
    assert same(*results)


def test_a_cache_carried_into_backward_is_told_apart(monkeypatch):
    """What the test above must reject: weights cached in the forward pass, or not cached where they were
    then.
    """
    monkeypatch.setattr(ParametrizationCache, "enter", lambda self, stack: None)
    for around in ("both", "forward", "backward"):
        with pytest.raises(revstep.NonDeterministicBlockError), contextlib.ExitStack() as cleared:
            cleared.callback(parametrize._cache.clear)
            test_cached_parametrizations("custom", around)


def test_a_weight_cached_across_layers_is_refused():
    """One module at several depths: its weight belongs to the graph of the first, and to no other layer's
    evaluation.
    """
    module = stack("blend", blocks=parametrised("custom", 1) * LAYERS)
    with pytest.raises(
        revstep.NonDeterministicBlockError, match=r"parametrize\.cached\(\) shares between layers"
    ):
        run(module, batch(), context=parametrize.cached)
    run(module, batch())
    assert module.report.exact


# ---- copies ----


def test_averaged_copies():
    """Updated between forward and backward too: the average is a stack of its own."""
    module = stack("blend", LAYERS, dropout=0.0)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(module)  # the first copies
    expected = run(module, batch())
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
    halved = run(module, batch())
    x = batch()
    y = module(x).square().sum()
    average.update_parameters(module)
    y.backward()
    assert torch.equal(x.grad, halved[1]) and module.report.exact
    ours, stored = average.module, copy.deepcopy(average.module)
    stored.keep = LAYERS
    got = run(ours, batch())
    assert (
        same(got, run(stored, batch()))
        and not same(got, expected)
        and not same(got, halved)
        and ours.report.exact
    )
    for p, q in zip(average.module.parameters(), module.parameters()):
        assert torch.allclose(p, 1.5 * q)


def test_copies_made_while_a_tape_is_alive():
    module, x = stack("blend", LAYERS, dropout=0.0), batch()
    expected = run(stack("blend", LAYERS, dropout=0.0), batch())
    y = module(x).square().sum()
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ]
    y.backward()
    assert torch.equal(x.grad, expected[1]) and module.report.exact
    for twin in copies:
        assert all(
            p.grad is None or p.grad is not q.grad for p, q in zip(twin.parameters(), module.parameters())
        )
        assert same(run(twin, batch()), expected) and twin.report.exact


# ---- weights changed between forward and backward ----


@contextlib.contextmanager
def swapping():
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _optimiser_step(module):
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    module.zero_grad()


def _other_weights(module):
    return {name: 1.01 * value for name, value in module.state_dict().items()}


CHANGES = {
    "optimiser step": (_optimiser_step, contextlib.nullcontext),
    "load_state_dict": (lambda m: m.load_state_dict(_other_weights(m)), contextlib.nullcontext),
    "swapped": (lambda m: m.load_state_dict(_other_weights(m)), swapping),
    "one weight, last bits": (
        lambda m: m.blocks[1].mlp.down.weight.data.mul_(1 + 2.0**-22),
        contextlib.nullcontext,
    ),
    "other dtype": (lambda m: m.double(), contextlib.nullcontext),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_before_backward_are_caught(change):
    act, around = CHANGES[change]
    module, x = stack("blend", LAYERS, dropout=0.0), batch()
    with around():
        y = module(x).square().sum()
        act(module)
        error, text = (
            (revstep.NonDeterministicBlockError, "float64")
            if change == "other dtype"
            else (revstep.ReconstructionError, "its weights")
        )
        with pytest.raises(error, match=text) as caught:
            y.backward()
    assert (
        caught.value.layer == (1 if change == "one weight, last bits" else LAYERS - 1)
        and module.report is None
    )
    module.float()
    run(module, batch())
    assert module.report.exact  # nothing of it stays


def test_equal_weights_assigned_before_backward():
    """Gradients go to the parameters of the forward pass, as in torch; the same bits under new names are no
    change to what is rebuilt.
    """
    results = []
    for keep in (0, LAYERS):
        module, x = stack("blend", LAYERS, dropout=0.0, keep=keep), batch()
        old = list(module.parameters())
        y = module(x).square().sum()
        module.load_state_dict(
            {name: value.clone() for name, value in module.state_dict().items()}, assign=True
        )
        y.backward()
        assert all(p.grad is None for p in module.parameters())
        results.append([x.grad, *(p.grad for p in old)])
    assert same(*results) and all(g is not None for g in results[0])


def test_swapped_parameters():
    """``swap_tensors`` as conversions use it: right before a pass; within one, other values are caught, and
    equal ones refused by torch.
    """
    with swapping():
        ours, stored = (stack("blend", LAYERS, keep=keep, dropout=0.0).double() for keep in (0, LAYERS))
        assert same(run(ours, batch(torch.float64)), run(stored, batch(torch.float64))) and ours.report.exact
    for factor, error, text in (
        (2.0, revstep.ReconstructionError, "its weights"),
        (1.0, RuntimeError, "poisoned by swap_tensors"),
    ):
        module = stack("blend", LAYERS, dropout=0.0)
        p = module.blocks[2].mlp.down.weight
        y = module(batch()).square().sum()
        torch.utils.swap_tensors(p, nn.Parameter(factor * p.detach()))
        with pytest.raises(error, match=text):
            y.backward()
