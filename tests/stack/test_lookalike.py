"""A stack of blocks that return x + f(x) says so at its first forward pass, and no other stack does."""

import copy
import pickle
import warnings

import pytest
import stacks
import torch
from torch import nn

import revstep
from revstep import ResidualBlockWarning
from revstep.stack import _residual
from revstep_lab.verify import example_blocks


class Skip(nn.Module):
    def __init__(self, inner, weight=1.0):
        super().__init__()
        self.inner, self.weight = inner, weight

    def forward(self, x):
        return (x if self.weight == 1.0 else self.weight * x) + self.inner(x)


class Auxiliary(Skip):
    def forward(self, x):
        return super().forward(x), x.square().mean()


class Normalising(nn.Module):
    """The input's direction, at its size at the start: a share of one in the first layer only."""

    def forward(self, x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:])


def skips(layers=4, cls=Skip, **options):
    return [cls(block, **options) for block in example_blocks(layers)]


def said(stack, x=None, times=1):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(times):
            stack(stacks.batch() if x is None else x)
    return [str(w.message) for w in seen if w.category is ResidualBlockWarning]


@pytest.mark.parametrize("cls", [Skip, Auxiliary])
@pytest.mark.parametrize("name", [n for n in stacks.SCHEMES if n != "hamiltonian"])
def test_blocks_that_return_x_plus_f_are_noticed(name, cls):
    (sentence,) = said(stacks.stack(name, blocks=skips(cls=cls)))
    assert "all 4 blocks" in sentence and "residual=True" in sentence and "revstep.from_residual" in sentence


def test_halves_are_noticed():
    pairs = [(Skip(block.attention), Skip(block.mlp)) for block in example_blocks(3)]
    (sentence,) = said(stacks.stack("hamiltonian", blocks=pairs))
    assert "all 6 blocks" in sentence


@pytest.mark.parametrize("name", stacks.SCHEMES)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_increments_are_not(name, scale):
    assert said(stacks.stack(name, scale=scale)) == []


def test_after_from_residual_it_is_quiet():
    assert said(stacks.stack(blocks=skips(), residual=True)) == []


@pytest.mark.parametrize(
    "blocks",
    [
        skips(1),
        [*skips(3), *example_blocks(1)],
        skips(weight=0.8),
        skips(weight=1.2),
        [Normalising() for _ in range(4)],
        [nn.Linear(32, 32) for _ in range(4)],
        [],
    ],
    ids=["one layer", "one of four", "less", "more", "normalising", "linear", "none"],
)
def test_what_only_comes_near_is_not(blocks):
    assert said(stacks.stack(blocks=blocks)) == []


def test_the_first_pass_only(monkeypatch):
    stack, measured = stacks.stack(blocks=skips()), []
    share = _residual.share
    monkeypatch.setattr(_residual, "share", lambda x, f: measured.append(1) or share(x, f))
    assert len(said(stack, times=3)) == 1 and len(measured) == 4
    for again in (copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
        assert said(again(stack)) == [] and len(said(again(stacks.stack(blocks=skips())))) == 1
    old = stacks.stack(blocks=skips())
    state = {name: value for name, value in vars(old).items() if name != "_looked"}
    restored = revstep.ReversibleStack.__new__(revstep.ReversibleStack)
    restored.__setstate__(state)
    assert said(restored) == [], "a stack from before there was such a look"


def test_states_that_leave_the_format_are_explained():
    stack = stacks.stack("midpoint", blocks=skips(30))
    with pytest.warns(ResidualBlockWarning), pytest.raises(revstep.StateOverflowError):
        stack(stacks.batch())


def test_an_error_of_a_block_passes():
    class Raises(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), warnings.catch_warnings():
        warnings.simplefilter("error")
        stacks.stack(blocks=[*example_blocks(2), Raises()])(stacks.batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    blocks = [b.to(dtype) for b in skips()]
    assert len(said(stacks.stack(blocks=blocks), stacks.batch(dtype))) == 1
    with stacks.bf16():
        assert len(said(stacks.stack(blocks=skips()))) == 1
        assert said(stacks.stack()) == []


def test_nothing_of_the_step_changes():
    ours, expected = stacks.stack(), stacks.stack()
    expected._looked.append(True)
    assert stacks.same(stacks.run(ours, stacks.batch()), stacks.run(expected, stacks.batch()))


def test_under_a_compiler():
    stack = stacks.stack(blocks=skips())
    assert len(said(torch.compile(lambda x: stack(x) * 2, backend="aot_eager", fullgraph=True))) == 1


def test_zeros_are_no_share_of_one():
    assert said(stacks.stack(blocks=skips()), torch.zeros(2, 9, 32)) == []


# ---- the same checks reject a look that is less strict, or that never ends ----


def test_a_look_at_one_layer_is_seen(monkeypatch):
    def saw(self, x, f):
        self._shares.append(self._shares[0] if self._shares else _residual.share(x, f))

    monkeypatch.setattr(_residual.Lookalike, "saw", saw)
    assert said(stacks.stack(blocks=[Normalising() for _ in range(4)])) != []


def test_a_look_at_every_pass_is_seen(monkeypatch):
    monkeypatch.setattr(_residual, "first", lambda looked, halves: _residual.Lookalike(halves))
    assert len(said(stacks.stack(blocks=skips()), times=3)) == 3
