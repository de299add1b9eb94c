"""Blocks written the usual way: the increment to the bit, or a refusal; the block itself stays what it was."""

import copy
import pickle

import pytest
import stacks
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import revstep
from revstep import ConfigError, UnsupportedError, from_residual
from revstep.stack import residual, stream

WIDTH = 16


class Branches(nn.Module):
    """Two pre-norm branches; subclasses say how they are put together."""

    def __init__(self, width=WIDTH, dropout=0.1):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = dropout
        self.register_buffer("scale", torch.tensor(0.5))

    def a(self, x):
        return F.dropout(self.first(self.norm(x)).tanh(), self.dropout, self.training) * self.scale

    def b(self, x):
        return self.second(self.norm(x)).tanh()

    def forward(self, x):
        raise AssertionError("only subclasses are called")


class Increment(Branches):
    def forward(self, x):
        a = self.a(x)
        return a + self.b(x + a)


class Usual(Branches):
    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(x)


class Named(Branches):
    def forward(self, x):
        res = x
        h = self.a(x)
        x = torch.add(h, res)
        return self.b(x).add(x)


class InPlace(Branches):
    def forward(self, x):
        x += self.a(x)
        x += self.b(x)
        return x


class OntoBranch(Branches):
    def forward(self, x):
        h = self.a(x)
        h += x
        return self.b(h) + h


class Flat(Branches):
    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        x = x + self.a(x)
        return (x + self.b(x)).view(shape)


class FlatIncrement(Increment):
    """Rows in one dimension: the sums over rows are other ones, in their last bits."""

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view(x.shape)


class Auxiliary(Branches):
    def forward(self, x):
        y = x + self.a(x)
        return y + self.b(y), y.square().mean(), y


class Listed(Branches):
    def forward(self, x):
        y = x + self.a(x)
        return [y + self.b(y), None]


USUAL = [Usual, Named, InPlace, OntoBranch, Flat, Auxiliary, Listed]


class PostNorm(Branches):
    def forward(self, x):
        return self.norm(x + self.b(x))


class Scaled(Branches):
    def forward(self, x):
        return 0.5 * x + self.b(x)


class ScaledAfterwards(Branches):
    def forward(self, x):
        y = x + self.b(x)
        y.mul_(0.5)
        return y


class ScaledInPart(Branches):
    def forward(self, x):
        y = x + self.b(x)
        y[..., 0] = 0.0
        return y


class ScaledThroughAView(Branches):
    def forward(self, x):
        y = x + self.b(x)
        y.detach()[..., 0].mul_(2.0)
        return y


class OldName(Branches):
    def forward(self, x):
        old = x
        x += self.b(x)
        return old + self.a(x)


class Discarded(Branches):
    def forward(self, x):
        x = x + self.a(x)
        x.add_(self.b(x))
        return x


class ThroughItsView(Branches):
    def forward(self, x):
        x = x + self.a(x)
        flat = x.view(-1, WIDTH)
        flat += self.b(flat)
        return x


class ViewBefore(Branches):
    def forward(self, x):
        x = x + self.a(x)
        head = x[..., :1]
        x += self.b(x)
        return x + head.expand_as(x)


class Reentrant(Branches):
    def forward(self, x):
        return checkpoint(lambda t: t + self.b(t), x, use_reentrant=True)


class Nothing(Branches):
    def forward(self, x):
        self.b(x)


class Dictionary(Branches):
    def forward(self, x):
        return {"x": x + self.b(x)}


class Narrow(Branches):
    def forward(self, x):
        return (x + self.b(x))[..., :4]


UNTRACKED = [PostNorm, Scaled, ScaledAfterwards, ScaledInPart, ScaledThroughAView, Reentrant]
OLD_NAMES = [OldName, Discarded, ThroughItsView, ViewBefore]


def alike(cls, layers=3, **options):
    """Blocks of a class with the weights that any other class gets."""
    torch.manual_seed(0)
    return [cls(**options) for _ in range(layers)]


def batch(dtype=torch.float32):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def step(stack, x):
    return stacks.run(stack, x, loss=lambda y: (y[0] if isinstance(y, tuple) else y).square().sum())


# ---- the increment ----


@pytest.mark.parametrize("cls", USUAL)
@pytest.mark.parametrize("scheme", ["blend", "midpoint"])
def test_a_stack_of_usual_blocks_is_the_stack_of_their_increments(cls, scheme):
    ours = stacks.stack(scheme, blocks=alike(cls), residual=True)
    expected = stacks.stack(scheme, blocks=alike(FlatIncrement if cls is Flat else Increment))
    assert stacks.same(step(ours, batch()), step(expected, batch())) and ours.report.exact


@pytest.mark.parametrize("cls", USUAL)
def test_output_and_gradient_of_one_block(cls):
    (block,), (own,) = alike(cls, 1, dropout=0.0), alike(FlatIncrement if cls is Flat else Increment, 1, dropout=0.0)
    x = batch()
    f = from_residual(block)(x.clone())
    f, rest = (f[0], f[1:]) if isinstance(f, tuple) else (f, ())
    assert type(f) is torch.Tensor and all(type(t) in (torch.Tensor, type(None)) for t in rest)
    assert torch.equal(f, own(x)) and torch.equal(x, batch()), "and the input is as it was"
    ours = torch.autograd.grad(f.sum(), (x, *block.parameters()))
    assert stacks.same(ours, torch.autograd.grad(own(x).sum(), (x, *own.parameters())))


def test_the_increment_keeps_its_low_bits():
    """At an input 2**16 times the branch, the difference keeps 7 of float32's 24 bits."""
    (block,), (own,) = alike(Usual, 1, dropout=0.0), alike(Increment, 1, dropout=0.0)
    block.requires_grad_(False)
    x = batch().detach() * 2**16
    bound = torch.finfo(torch.float32).eps * float((x.abs() + 2).max())  # one rounding of each of the block's two sums
    f = own(x).detach()
    assert torch.equal(from_residual(block)(x), f)
    assert 0 < float((from_residual(block, by="difference")(x) - f).abs().max()) <= bound


def test_a_block_that_adds_nothing_has_the_increment_zero():
    assert torch.equal(from_residual(nn.Identity())(batch()), torch.zeros(2, 5, WIDTH))


def test_a_block_of_blocks():
    outer = nn.Sequential(*alike(Usual, 2, dropout=0.0))
    x = batch()
    first, second = alike(Increment, 2, dropout=0.0)
    f = first.a(x)
    f = f + first.b(x + f)
    assert torch.allclose(from_residual(outer)(x), f + second(x + f), atol=1e-6)
    inside = nn.Sequential(from_residual(alike(Usual, 1, dropout=0.0)[0]))
    assert torch.equal(from_residual(_Around(inside))(x), alike(Increment, 1, dropout=0.0)[0](x))


class _Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


# ---- refused, or by difference ----


@pytest.mark.parametrize("cls", UNTRACKED)
def test_an_output_that_is_not_tracked_is_refused(cls):
    (block,) = alike(cls, 1, dropout=0.0)
    with pytest.raises(UnsupportedError, match=rf'{cls.__name__} does not return .* from_residual\(block, by="difference"\)'):
        from_residual(block)(batch())
    with pytest.raises(UnsupportedError, match=cls.__name__):
        revstep.ReversibleStack([block] * 2, revstep.Blend(), residual=True)(batch())
    x = batch()
    assert torch.equal(from_residual(block, by="difference")(x), block(x.clone()) - x)


@pytest.mark.parametrize("cls", OLD_NAMES)
def test_a_name_from_before_an_addition_in_place_is_refused(cls):
    (block,) = alike(cls, 1, dropout=0.0)
    with pytest.raises(UnsupportedError, match=r"x = x \+ \.\.\. instead of x \+="):
        from_residual(block)(batch())
    x = batch()
    given = x.clone()
    assert torch.equal(from_residual(block, by="difference")(x), block(given) - x), "the difference works on a copy"


@pytest.mark.parametrize("cls, got", [(Nothing, "NoneType"), (Dictionary, "dict"), (Narrow, r"\(2, 5, 4\)")])
@pytest.mark.parametrize("by", residual.BY)
def test_what_is_no_output_of_a_residual_block_is_named(cls, got, by):
    with pytest.raises(UnsupportedError, match=rf"{cls.__name__} returned .*{got}.*expected x \+ f\(x\)"):
        from_residual(alike(cls, 1)[0], by=by)(batch())


def test_without_gradients_too():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for cls in (PostNorm, Scaled, ScaledAfterwards, ScaledInPart):
                with pytest.raises(UnsupportedError, match="does not return"):
                    from_residual(alike(cls, 1)[0])(batch().clone())
            assert torch.equal(from_residual(alike(Usual, 1, dropout=0)[0])(batch()), alike(Increment, 1, dropout=0)[0](batch()))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: from_residual(lambda x: x), "got function, expected an nn.Module"),
        (lambda: from_residual((Usual(), Usual())), "each half of a pair"),
        (lambda: from_residual(Usual(), by="magic"), "expected one of"),
        (lambda: from_residual(from_residual(Usual())), "returns the increment already"),
        (lambda: stacks.stack(blocks=[from_residual(Usual())], residual=True), "returns the increment already"),
        (lambda: from_residual(torch.compile(Usual(), backend="eager")), "compiled already"),
        (lambda: stacks.stack(blocks=[lambda x: x], residual=True), "layer 0 is function"),
        (lambda: stacks.stack("hamiltonian", blocks=[Usual()], residual=True), "needs a pair"),
    ],
)
def test_mistakes_are_sentences(make, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_a_block_compiled_in_place_is_refused_and_compiled_afterwards():
    block = Usual(dropout=0.0)
    block.compile(backend="eager")
    with pytest.raises(ConfigError, match="compiled already"):
        from_residual(block)


# ---- a module like any other ----


def test_names_parameters_and_the_block_itself():
    (block,) = alike(Usual, 1, dropout=0.0)
    before, x = block(batch()), batch()
    made = from_residual(block)
    assert isinstance(made, Usual) and list(made.state_dict()) == list(block.state_dict())
    assert all(a is b for a, b in zip(made.parameters(), block.parameters())) and made.scale is block.scale
    assert torch.equal(block(x), before) and "forward" not in vars(block), "the block is still the plain one"
    other = Usual(dropout=0.0)
    other.load_state_dict(made.state_dict())
    made.load_state_dict(Usual(dropout=0.0).state_dict())
    assert torch.equal(other(x), before) and not torch.equal(block(x), before), "weights are shared"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_weights_of_their_own(again):
    made = from_residual(alike(Usual, 1, dropout=0.0)[0])
    other, x = again(made), batch()
    assert torch.equal(other(x), made(x)) and other.first.weight is not made.first.weight
    with torch.no_grad():
        other.first.weight.zero_()
    assert not torch.equal(other(x), made(x)) and torch.equal(made(x), alike(Increment, 1, dropout=0.0)[0](x))
    whole = stacks.stack(blocks=alike(Usual), residual=True)
    assert stacks.same(step(again(whole), batch()), step(whole, batch()))


def test_training_and_dtype():
    made, own = from_residual(alike(Usual, 1, dropout=0.5)[0]), alike(Increment, 1, dropout=0.5)[0]
    x = batch()
    for train in (False, True):
        torch.manual_seed(3)
        ours = made.train(train)(x)
        torch.manual_seed(3)
        assert torch.equal(ours, own.train(train)(x))
    assert not torch.equal(made(x), made(x)) and torch.equal(made.eval()(x), made(x))
    assert torch.equal(made.double()(x.double()), own.double().eval()(x.double()))


def test_hooks_run_and_see_the_increment():
    (block,) = alike(Usual, 1, dropout=0.0)
    seen = []
    block.register_forward_hook(lambda module, args, out: seen.append((type(args[0]), out)))
    made = from_residual(block)
    made.first.register_forward_hook(lambda module, args, out: seen.append((type(args[0]), out)))
    f = made(batch())
    assert len(seen) == 2 and all(kind is torch.Tensor for kind, _ in seen) and seen[1][1] is f
    grads = []
    made.register_full_backward_hook(lambda module, gi, go: grads.append(go[0]))
    made(batch()).sum().backward()
    assert torch.equal(grads[0], torch.ones(2, 5, WIDTH))


def test_a_block_used_at_several_depths():
    (block,), (own,) = alike(Usual, 1), alike(Increment, 1)
    ours = stacks.stack(blocks=[block] * 4, residual=True)
    assert len({id(b) for b in ours.blocks}) == 1 and len(list(ours.parameters())) == len(list(own.parameters()))
    assert stacks.same(step(ours, batch()), step(stacks.stack(blocks=[own] * 4), batch()))


def test_functional_call():
    made, own = from_residual(alike(Usual, 1, dropout=0.0)[0]), alike(Increment, 1, dropout=0.0)[0]
    weights = {name: p.detach() * 2 for name, p in own.named_parameters()}
    ours, theirs = (torch.func.functional_call(m, weights, (batch(),)) for m in (made, own))
    assert torch.equal(ours, theirs)


def test_state_dict_of_a_stack_is_that_of_plain_layers():
    plain = nn.ModuleDict({"blocks": nn.ModuleList(alike(Usual))})
    ours = stacks.stack(blocks=alike(Usual), residual=True)
    assert list(plain.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(plain.state_dict())
    plain.load_state_dict(ours.state_dict())


class Halves(nn.Module):
    def __init__(self, half):
        super().__init__()
        self.attention, self.mlp = half(), half()

    def halves(self):
        return self.attention, self.mlp


@pytest.mark.parametrize("make", [lambda cls: (cls(), cls()), lambda cls: Halves(cls)])
def test_the_halves_of_hamiltonian(make):
    def made(cls):
        torch.manual_seed(0)
        return [make(cls) for _ in range(3)]

    given = made(Usual)
    ours = stacks.stack("hamiltonian", blocks=given, residual=True)
    expected = stacks.stack("hamiltonian", blocks=made(Increment))
    assert stacks.same(step(ours, batch()), step(expected, batch()))
    assert list(ours.state_dict()) == list(expected.state_dict())
    assert stacks.same(step(copy.deepcopy(ours), batch()), step(expected, batch()))
    if isinstance(given[0], Halves):
        assert isinstance(given[0].halves()[0], Usual) and given[0].halves()[0] is given[0].attention, "the plain one"
        assert ours.blocks[0].halves()[0] is ours.blocks[0].halves()[0], "compiled once, it stays compiled"


def test_compiled():
    ours, expected = (stacks.stack(blocks=alike(cls, dropout=0.0), residual=cls is Usual) for cls in (Usual, Increment))
    ours.compile(backend="aot_eager")
    for a, b in zip(step(ours, batch()), step(expected, batch())):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert ours.report.exact
    whole = stacks.stack(blocks=alike(Usual, dropout=0.0), residual=True)
    x = batch()
    assert torch.equal(torch.compile(lambda t: whole(t) * 2, backend="aot_eager", fullgraph=True)(x), expected(x) * 2)


# ---- the same checks reject a stream that looks less closely ----

MUTANTS = {
    "writes are not noticed": ("_version", lambda t: 0, ScaledThroughAView),
    "names of writes are not noticed": ("_note", lambda *_: None, ScaledAfterwards),
    "an output of a function is taken for a stream": ("_own", lambda t: True, Reentrant),
    "old names are not refused": ("_refuse_replaced", lambda t: None, ThroughItsView),
    "views are not remembered": ("_note", lambda *_: None, ViewBefore),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_stream_that_looks_less_closely_is_seen(name, monkeypatch):
    """It gives an increment, and a wrong one: of its value or of its gradient."""
    attribute, mutant, cls = MUTANTS[name]
    monkeypatch.setattr(stream, attribute, mutant)
    (block,) = alike(cls, 1, dropout=0.0)
    x = batch()
    with torch.inference_mode(cls is ScaledAfterwards):
        f, right = from_residual(block)(x.clone()), block(x.clone()) - x
    assert not torch.allclose(f, right, atol=1e-4) or not f.requires_grad
