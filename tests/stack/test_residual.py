"""Blocks written the usual way: the increment to the bit, or a refusal."""

import pytest
import stacks
import torch
from residual_blocks import (
    OLD_NAMES,
    UNTRACKED,
    USUAL,
    WIDTH,
    BranchWritten,
    BranchWrittenLast,
    Dictionary,
    Flat,
    FlatIncrement,
    Increment,
    Narrow,
    Nothing,
    PostNorm,
    Reentrant,
    Scaled,
    ScaledAfterwards,
    ScaledInPart,
    ScaledThroughAView,
    ThroughItsView,
    Usual,
    ViewBefore,
    alike,
    batch,
    step,
)
from torch import nn

import revstep
from revstep import ConfigError, UnsupportedError, from_residual
from revstep.stack import _residual, _stream

# ---- the increment ----


@pytest.mark.parametrize("cls", USUAL)
@pytest.mark.parametrize("scheme", ["blend", "midpoint"])
def test_a_stack_of_usual_blocks_is_the_stack_of_their_increments(cls, scheme):
    ours = stacks.stack(scheme, blocks=alike(cls), residual=True)
    expected = stacks.stack(scheme, blocks=alike(FlatIncrement if cls is Flat else Increment))
    assert stacks.same(step(ours, batch()), step(expected, batch())) and ours.report.exact


@pytest.mark.parametrize("cls", USUAL)
def test_output_and_gradient_of_one_block(cls):
    increments = FlatIncrement if cls is Flat else Increment
    (block,), (own,) = alike(cls, 1, dropout=0.0), alike(increments, 1, dropout=0.0)
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
    bound = torch.finfo(torch.float32).eps * float((x.abs() + 2).max())  # two sums, one rounding each
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
    sentence = rf'{cls.__name__} does not return .* from_residual\(block, by="difference"\)'
    with pytest.raises(UnsupportedError, match=sentence):
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
    difference = from_residual(block, by="difference")(x)
    assert torch.equal(difference, block(given) - x), "the difference works on a copy"


@pytest.mark.parametrize("cls", [BranchWritten, BranchWrittenLast])
def test_a_branch_written_after_it_was_added(cls):
    """Seen by torch's counter; where torch counts nothing, the increment is of a copy."""
    (block,) = alike(cls, 1, dropout=0.0)
    x = batch()
    right = block(x) - x
    with pytest.raises(UnsupportedError, match="writes in place to a tensor that it has added"):
        from_residual(block)(x)
    with torch.inference_mode():
        assert torch.allclose(from_residual(block)(x.clone()), right, atol=1e-6)
    compiled = torch.compile(from_residual(alike(cls, 1, dropout=0.0)[0]), backend="aot_eager")
    assert torch.allclose(compiled(x), right, atol=1e-6)


@pytest.mark.parametrize("cls, got", [(Nothing, "NoneType"), (Dictionary, "dict"), (Narrow, r"\(2, 5, 4\)")])
@pytest.mark.parametrize("by", _residual.BY)
def test_what_is_no_output_of_a_residual_block_is_named(cls, got, by):
    with pytest.raises(UnsupportedError, match=rf"{cls.__name__} returned .*{got}.*expected x \+ f\(x\)"):
        from_residual(alike(cls, 1)[0], by=by)(batch())


def test_without_gradients_too():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            for cls in (PostNorm, Scaled, ScaledAfterwards, ScaledInPart):
                with pytest.raises(UnsupportedError, match="does not return"):
                    from_residual(alike(cls, 1)[0])(batch().clone())
            (usual,), (own,) = alike(Usual, 1, dropout=0), alike(Increment, 1, dropout=0)
            assert torch.equal(from_residual(usual)(batch()), own(batch()))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: from_residual(lambda x: x), "got function, expected an nn.Module"),
        (lambda: from_residual((Usual(), Usual())), "each half of a pair"),
        (lambda: from_residual(Usual(), by="magic"), "expected one of"),
        (lambda: from_residual(from_residual(Usual())), "returns the increment already"),
        (lambda: stacks.stack(blocks=[from_residual(Usual())], residual=True), "increment already"),
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


# ---- the same checks reject a stream that looks less closely ----

MUTANTS = {
    "writes are not noticed": ("_version", lambda t: 0, ScaledThroughAView),
    "writes to a branch are not noticed": ("_version", lambda t: 0, BranchWritten),
    "names of writes are not noticed": ("_note", lambda *_: None, ScaledAfterwards),
    "an output of a function is taken for a stream": ("_own", lambda t: True, Reentrant),
    "old names are not refused": ("_refuse_replaced", lambda t: None, ThroughItsView),
    "views are not remembered": ("_note", lambda *_: None, ViewBefore),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_stream_that_looks_less_closely_is_seen(name, monkeypatch):
    """It gives an increment, and a wrong one: of its value or of its gradient."""
    attribute, mutant, cls = MUTANTS[name]
    monkeypatch.setattr(_stream, attribute, mutant)
    (block,) = alike(cls, 1, dropout=0.0)
    x = batch()
    with torch.inference_mode(cls is ScaledAfterwards):
        f, right = from_residual(block)(x.clone()), block(x.clone()) - x
    assert not torch.allclose(f, right, atol=1e-4) or not f.requires_grad
