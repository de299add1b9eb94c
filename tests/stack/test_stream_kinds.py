"""Streams that a layer casts, or scales by a tensor of one element: their increment, or no stream."""

import pytest
import stacks
import torch
from torch import nn

from revstep import UnsupportedError, from_residual
from revstep.stack import _stream
from revstep.stack._stream import Stream, remembered

WIDTH = 8


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.lin, self.other = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.scale = nn.Parameter(torch.tensor([0.75]))
        self.zero_dim = nn.Parameter(torch.tensor(1.25))

    def a(self, x):
        return self.lin(self.norm(x)).tanh()

    def b(self, x):
        return self.other(self.norm(x)).tanh()


class Wide(Base):
    """Mamba: the residual in a wider type, the norm in that of its weights."""

    def forward(self, x):
        residual = x.to(torch.float64)
        return residual + self.a(x.to(self.norm.weight.dtype))


class ThereAndBack(Base):
    """HY-V4: the sum in a wider type, the result in the stream's own."""

    def forward(self, x):
        dtype = x.dtype
        x = (self.a(x).double() + x.double()).to(dtype)
        return (self.b(x).double() + x.double()).type(dtype)


class Likewise(Base):
    def forward(self, x):
        return (x.double() + self.a(x)).type_as(x)


class OntoTheCopy(Base):
    """The copy that a cast makes is the block's own memory: what is added in place is in every name of it."""

    def forward(self, x):
        y = x.to(torch.float64, copy=True)
        z = y
        y += self.a(x).double()
        return y + self.b(z.to(self.norm.weight.dtype))


class Last(Base):
    """Gemma 4: the whole layer times its own scalar."""

    def forward(self, x):
        x = x + self.a(x)
        x = x + self.b(x)
        x *= self.scale
        return x


class First(Base):
    def forward(self, x):
        x = self.zero_dim * x
        return torch.mul(x + self.a(x), self.scale) + self.b(x)


class Twice(Base):
    def forward(self, x):
        x = (x + self.a(x)).mul(self.scale)
        x = x.mul_(self.zero_dim)
        return x + self.b(x)


class ScaledBranch(Base):
    """What is scaled and added to the stream is a branch like any other."""

    def forward(self, x):
        return x + self.scale * x + self.a(x)


class Flat(Base):
    def forward(self, x):
        shape = x.shape
        x = x.view(-1, WIDTH) * self.scale
        return (x + self.a(x)).view(shape)


FOLLOWED = [Wide, ThereAndBack, Likewise, OntoTheCopy, Last, First, Twice, ScaledBranch, Flat]


def batch(scale=1.0):
    return (scale * torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))).requires_grad_()


def increment(block, x):
    """In float64, where the difference has bits enough."""
    return type(block)().double()(x.detach().double().clone()).detach() - x.detach().double()


@pytest.mark.parametrize("cls", FOLLOWED)
def test_the_increment(cls):
    block, x = cls(), batch()
    f = from_residual(block)(x)
    assert type(f) is torch.Tensor and torch.allclose(f.double(), increment(block, x), atol=1e-6)


@pytest.mark.parametrize("cls", FOLLOWED)
def test_its_gradients(cls):
    block, x = cls(), batch()
    loss = from_residual(block)(x).double().square().sum()
    ours = torch.autograd.grad(loss, [x, *block.parameters()], allow_unused=True)
    wide, y = cls().double(), x.detach().double().requires_grad_()
    given = y.clone()  # a block may write to its input
    loss = (wide(given) - y).square().sum()
    theirs = torch.autograd.grad(loss, [y, *wide.parameters()], allow_unused=True)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [Wide, ThereAndBack, Likewise, Last, First])
def test_it_keeps_its_low_bits(cls):
    """At an input 2**20 times the branch a difference in float32 keeps four bits. The factors are one."""
    block, x = cls().requires_grad_(False), batch(2.0**20).detach()
    with torch.no_grad():
        block.scale.fill_(1.0)
        block.zero_dim.fill_(1.0)
        wide = type(block)().double()
        wide.scale.fill_(1.0)
        wide.zero_dim.fill_(1.0)
        f, right = from_residual(block)(x), wide(x.double()) - x.double()
    assert float((f.double() - right).abs().max()) < 1e-5
    if cls is not Wide:  # whose sum is in float64 itself
        assert float((block(x.clone()) - x - right).abs().max()) > 1e-2


@pytest.mark.parametrize("cls", [ThereAndBack, Last, First, Twice])
def test_a_stack_of_them_is_exact(cls):
    made = stacks.stack("blend", blocks=[cls() for _ in range(3)], residual=True)
    made(batch()).sum().backward()
    assert made.report.exact


# ---- what is no stream any more ----


def scaled_by(make):
    class Block(Base):
        def forward(self, x):
            return (x + self.a(x)) * make(x)

    return Block


NOT_FOLLOWED = {
    "a number": scaled_by(lambda x: 0.5),
    "a channel each": scaled_by(lambda x: torch.ones(WIDTH)),
    "itself": scaled_by(lambda x: x),
    "a wider type": scaled_by(lambda x: torch.ones(1, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_other_factors(name):
    with pytest.raises(UnsupportedError, match="does not return its input plus"):
        from_residual(NOT_FOLLOWED[name]())(batch())


def test_casts_that_lose_the_stream():
    s = Stream.of(batch().detach()) + torch.ones(2, 3, WIDTH)
    for read in (s.to(torch.int64), s.type(torch.int32), s.to("meta"), s.double().long()):
        assert type(read) is torch.Tensor
    assert s.type() == "torch.FloatTensor"
    casts = s.to(s.dtype), s.float(), s.double(), s.half(), s.bfloat16(), s.to("cpu"), s.type(torch.float64)
    for cast in casts:
        assert isinstance(cast, Stream) and torch.equal(remembered(cast), torch.ones(2, 3, WIDTH))
    assert s.float().value is s.value and s.float().memory is s.memory, "the same tensor stays the same"


def test_a_factor_in_place_leaves_the_input_as_it_was():
    class InPlace(Base):
        def forward(self, x):
            x *= self.scale
            return x + self.a(x)

    x = batch().detach()
    before = x.clone()
    f = from_residual(InPlace())(x)
    assert torch.equal(x, before) and torch.allclose(f.double(), increment(InPlace(), x), atol=1e-6)


def test_old_names_and_views_after_a_factor_in_place():
    class Old(Base):
        def forward(self, x):
            old = x
            x *= self.scale
            return old + self.a(x)

    class View(Base):
        def forward(self, x):
            head = x[..., :1]
            x *= self.scale
            return x + self.a(x) + head.expand_as(x)

    for cls, sentence in ((Old, "instead of x"), (View, "multiplies its input in place while a view")):
        with pytest.raises(UnsupportedError, match=sentence):
            from_residual(cls())(batch().detach())


def test_first_branches_are_seen_through_casts_and_factors():
    x, branch = batch().detach(), torch.ones(2, 3, WIDTH)
    uses = (
        lambda s: s.double() + branch,
        lambda s: torch.tensor([2.0]) * s + branch,
        lambda s: s.float().add_(branch),
    )
    for use in uses:
        with pytest.raises(_stream.FirstBranch) as first:
            use(Stream.of(x, stop=True))
        assert first.value.branch is branch


MUTANTS = {
    "a cast is no stream": ("_cast", lambda *_: None, ThereAndBack),
    "a factor is no stream": ("_is_factor", lambda *_: False, Last),
    "a scaled stream is no branch": (
        "_sides",
        lambda a, b: (a, b) if isinstance(a, Stream) else (b, a),
        ScaledBranch,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_stream_that_follows_less(name, monkeypatch):
    attribute, mutant, cls = MUTANTS[name]
    monkeypatch.setattr(_stream, attribute, mutant)
    with pytest.raises(UnsupportedError, match="does not return its input plus"):
        from_residual(cls())(batch())


def test_a_factor_that_is_forgotten(monkeypatch):
    monkeypatch.setattr(Stream, "factor", property(lambda s: None, lambda s, v: None), raising=False)
    f = from_residual(Last())(batch())
    assert not torch.allclose(f.double(), increment(Last(), batch()), atol=1e-2)
