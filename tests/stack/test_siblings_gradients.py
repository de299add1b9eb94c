"""Siblings of the cases in which "exact" was said of a wrong gradient, each beside the recurrence by hand
(see ``siblings.py``).
"""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from siblings import TOLERANCE, Plain, Wrapped, built, distance, example, results, reversible
from torch import nn
from torch.utils import checkpoint as checkpoints

import revstep
from revstep.stack import _members, _saved, _selection

aten = torch.ops.aten


def compare(make, shape=(4, 6), context=contextlib.nullcontext, train=True, **options):
    """The distance of the stack from the recurrence, both of blocks by ``make``."""
    found = []
    for wrap in (reversible, Plain):
        net = built(wrap, make, **(options if wrap is reversible else {})).train(train)
        with context():
            found.append(results(net, example(*shape)))
        if wrap is reversible:
            assert net.report.exact
    return distance(*found)


# ---- modules ----


class FunctionalNorm(nn.Module):
    """Batch norm by the functional, whose statistics the version counters do not see."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x):
        return 0.3 * F.batch_norm(self.linear(x), self.mean, self.var, None, None, self.training, 0.1)


class Exchanging(nn.Module):
    """Each evaluation puts another tensor in the place of its buffer, and reads it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        h = self.linear(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return 0.3 * torch.tanh(h - self.mean)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 6))
        self.reentrant = reentrant

    def forward(self, x):
        return 0.3 * checkpoints.checkpoint(self.body, x, use_reentrant=self.reentrant)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2)) for _ in range(2)]
        self.inner = reversible(map(Wrapped, blocks))

    def forward(self, x):
        return 0.5 * (self.inner(x) - x)


def scripted():
    """After a few calls: TorchScript optimises after the first ones, and saves other tensors from then on."""
    module = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    for _ in range(4):
        module(example(4, 6)).sum().backward()
    module.zero_grad()
    return module


def first(module, x):
    return module(x)[0]


def attends(module, x):
    return module(x, x, x)[0]


SEQUENCE = (2, 5, 8)
MODULES = {
    "lstm": (lambda: Wrapped(nn.LSTM(8, 4, 2, dropout=0.5, bidirectional=True), first), SEQUENCE),
    "gru": (lambda: Wrapped(nn.GRU(8, 8, batch_first=True), first), SEQUENCE),
    "batch norm": (lambda: Wrapped(nn.BatchNorm1d(6)), (4, 6)),
    "instance norm": (lambda: Wrapped(nn.InstanceNorm1d(5, affine=True, track_running_stats=True)), SEQUENCE),
    "functional batch norm": (FunctionalNorm, (4, 6)),
    "exchanged buffer": (Exchanging, (4, 6)),
    "attention": (lambda: Wrapped(nn.MultiheadAttention(8, 2, dropout=0.2), attends), SEQUENCE),
    "encoder layer": (lambda: Wrapped(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2)), SEQUENCE),
    "fourier": (lambda: Wrapped(nn.Linear(6, 6), lambda m, x: torch.fft.fft(m(x)).real), (4, 6)),
    "rrelu": (lambda: Wrapped(nn.Sequential(nn.Linear(6, 6), nn.RReLU())), (4, 6)),
    "rrelu in place": (lambda: Wrapped(nn.Linear(6, 6), lambda m, x: F.rrelu_(m(x), training=True)), (4, 6)),
    "lazy": (lambda: Wrapped(nn.LazyLinear(6)), (4, 6)),
    "scripted": (lambda: Wrapped(scripted()), (4, 6)),
    "checkpointed": (lambda: Checkpointed(False), (4, 6)),
    "checkpointed, reentrant": (lambda: Checkpointed(True), (4, 6)),
    "vmap": (lambda: Wrapped(nn.Linear(6, 6), lambda m, x: torch.vmap(m)(x).tanh()), (4, 6)),
    "a stack in a block": (Nested, (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"checks": "all"}, {"checks": False, "keep": 1}], ids=str)
@pytest.mark.parametrize(("make", "shape"), MODULES.values(), ids=MODULES)
def test_modules(make, shape, options):
    found = []
    for wrap in (reversible, Plain):
        net = built(wrap, make, **(options if wrap is reversible else {}))
        found.append(results(net, example(*shape)))
    assert distance(*found) < TOLERANCE


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", [lambda: Wrapped(nn.BatchNorm1d(6)), FunctionalNorm])
def test_running_statistics_move_once(make, train):
    assert compare(make, train=train) < TOLERANCE


def test_statistics_that_move_twice_are_told_apart(monkeypatch):
    monkeypatch.setattr(_members.Members, "changed", lambda self, before: [])
    assert compare(FunctionalNorm) > TOLERANCE


def test_a_buffer_exchanged_twice_is_told_apart(monkeypatch):
    monkeypatch.setattr(_members.Members, "exchanged", lambda self, before: {})
    with pytest.raises(revstep.ReconstructionError):
        compare(Exchanging)


class Moving(Exchanging):
    def forward(self, x):
        h = self.linear(x)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return 0.3 * torch.tanh(h - self.mean)


def test_a_buffer_that_a_block_moves_on_and_reads_is_named():
    with pytest.raises(revstep.NonDeterministicBlockError, match="its own buffer 'mean' each time"):
        compare(Moving)


# ---- saved tensors of unspecified content ----


def ctc(module, x):
    # The second sequence is shorter: the rest of its alphas is never written.
    h = module(x).transpose(0, 1).log_softmax(-1)
    return x * F.ctc_loss(h, torch.tensor([[1, 2], [3, 0]]), torch.tensor([4, 3]), torch.tensor([2, 1])) * 0.1


UNWRITTEN = {
    "alphas": ctc, "drawn": lambda m, x: F.rrelu(m(x), 0, 1, True), "mean": lambda m, x: F.rrelu(m(x)),
}  # fmt: skip


def with_other_memory(use):
    """The largest of several distances, with other numbers in freed memory each time."""
    draws = (torch.rand(2, 5, 8).shape for _ in range(20))
    return max(compare(lambda: Wrapped(nn.Linear(8, 8), use), shape) for shape in draws)


@pytest.mark.parametrize("use", UNWRITTEN.values(), ids=UNWRITTEN)
def test_unwritten_memory_is_no_difference(use):
    assert with_other_memory(use) < TOLERANCE


@pytest.mark.parametrize("use", UNWRITTEN.values(), ids=UNWRITTEN)
def test_unwritten_memory_is_one_without_its_name(use, monkeypatch):
    monkeypatch.setattr(_saved, "UNSPECIFIED", ())
    with pytest.raises(revstep.NonDeterministicBlockError, match=r"noise of Rrelu|result1 of Ctc"):
        with_other_memory(use)


# ---- hidden state behind a zero, or beside the state ----


def hidden(module, x):
    return torch.tanh(module(x * (1 + torch.from_numpy(numbers.random(x.shape).astype("f")))))


numbers = np.random.default_rng(0)


class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.router = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return 0.3 * torch.tanh(self.linear(x)), hidden(self.router, x).square().mean()


HIDDEN = {"gate": lambda: Wrapped(nn.Linear(6, 6), hidden, gated=True), "beside": Beside}


@pytest.mark.parametrize("checks", [True, "all"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_randomness_is_reported(name, checks):
    with pytest.raises(revstep.NonDeterministicBlockError, match="layer 2"):
        compare(HIDDEN[name], checks=checks)


@pytest.mark.parametrize("name", HIDDEN)
def test_states_alone_do_not_show_it(name, monkeypatch):
    """The mutant: a check of states says exact of these, and the gradient is another one."""
    monkeypatch.setattr(_saved, "fingerprint", lambda *args: None)
    assert compare(HIDDEN[name]) > 10 * TOLERANCE


# ---- kept outputs ----


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(6, 12), nn.Linear(12, 6), nn.Dropout(0.3)

    def forward(self, x):
        return self.down(self.drop(F.gelu(self.up(x)))) * 0.3


class Same(Mlp):
    def forward(self, x):
        return self.down(self.up(x) * self.up(x)) * 0.3


class Forked(Mlp):
    def forward(self, x):
        h = self.up(x)
        with torch.autocast("cpu", enabled=False):
            g = self.up(x.float())
        return self.down(h * g.to(h.dtype)) * 0.3


class Noisy(Mlp):
    def forward(self, x):
        h = F.dropout(self.up(x), 0.5)
        return self.down(h * torch.rand_like(h) + torch.bernoulli(torch.full_like(h, 0.5))) * 0.3


def everything(context, op, *args, **kwargs):
    return checkpoints.CheckpointPolicy.MUST_SAVE


POLICIES = {
    "everything": everything,
    "products": [aten.addmm.default],
    "casts": [aten._to_copy.default, aten.t.default],
}
CONTEXTS = {
    "float32": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no cache": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("make", [Mlp, Same, Forked, Noisy])
def test_kept_outputs(make, policy, context, shared):
    """Backward inside the region, blocks shared or not. In bfloat16 both round: 2**-8 a value."""
    found = []
    for wrap, options in ((reversible, {"save_ops": POLICIES[policy]}), (Plain, {})):
        torch.manual_seed(1)
        one = make()
        net = wrap([one] * 3 if shared else [make() for _ in range(3)], **options)
        with CONTEXTS[context]():
            found.append(results(net, example(4, 6)))
    assert distance(*found) < (TOLERANCE if context == "float32" else 0.1)


def test_kept_memory_that_nothing_was_written_to_is_a_refusal(monkeypatch):
    """Dropout draws into such memory: to keep it is to be told that it changed."""
    monkeypatch.setattr(_selection, "_worth_keeping", lambda op: True)
    with pytest.raises(revstep.RevstepError, match="empty_like"):
        compare(Mlp, save_ops=everything)
