"""Tiles that a memory budget chooses: when, which, once for each shape, and with the bits of tiles that were
given.
"""

import copy

import pytest
import torch
from test_tiles import TOKENS, WIDTH, Block, close, gradients, made
from torch import nn

import revstep
from revstep.errors import FallbackWarning
from revstep.stack import _fitting, _run

#: Of a layer's graph, in bytes: the hidden units before and behind their nonlinearity, for two rows.
HALVES = 2 * TOKENS * 4 * WIDTH * 2 * 8


class Plain(Block):
    """Without dropout, so that what is saved can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.mlp = revstep.tokenwise(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        )


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setattr(_fitting, "TILES", (20, 8))


@pytest.fixture
def weighed(monkeypatch):
    """What was weighed."""
    found, weigh = [], _run.weigh
    monkeypatch.setattr(_run, "weigh", lambda *args: found.append(weigh(*args)) or found[-1])
    return found


def stack_of(budget, layers=3, scheme=None, **options):
    torch.manual_seed(0)
    options = {"keep": "auto", "memory_budget": budget, "tile": "auto", **options}
    blocks = [Plain() for _ in range(layers)]
    return revstep.ReversibleStack(blocks, scheme or revstep.Blend(c=0.25), **options).double()


def given(tile, layers=3, scheme=None, **options):
    torch.manual_seed(0)
    blocks = [Plain() for _ in range(layers)]
    return revstep.ReversibleStack(blocks, scheme or revstep.Blend(c=0.25), tile=tile, **options).double()


def same(a, b):
    return all(x is y or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def weight(weighed):
    gradients(stack_of(1 << 40))
    return weighed.pop()


def test_what_one_layer_saves(weight):
    assert weight.tokens == 2 * TOKENS
    assert weight.halves == HALVES
    assert weight.by_tiles(20) == weight.whole - HALVES * 3 // 4
    assert weight.by_tiles(1000) == weight.whole


@pytest.mark.parametrize("scheme", [revstep.Blend(c=0.25), revstep.Hamiltonian()])
def test_the_largest_tile_that_fits(scheme, weighed):
    """As many bytes as a layer has: whole. One less: tiles, of 20 tokens while they fit, then of 8."""

    def run(budget):
        stack = stack_of(budget, scheme=scheme)
        return stack, gradients(stack)

    run(1 << 40)
    weight = weighed[0]
    for budget, tile in (
        (weight.whole, None),
        (weight.whole - 1, 20),
        (weight.by_tiles(20), 20),
        (weight.by_tiles(20) - 1, 8),
        (weight.by_tiles(8), 8),
    ):
        stack, found = run(budget)
        assert same(found, gradients(given(tile, scheme=scheme)))
        assert stack.report.exact
        assert (stack.report.kept > 0) == (tile is None), "graphs are kept where a layer fits, and else none"


def test_a_budget_that_nothing_fits_is_said(weight):
    stack = stack_of(weight.by_tiles(8) - 1)
    with pytest.warns(FallbackWarning, match=r"tiles of 8 are taken, and backward will hold more"):
        found = gradients(stack)
    assert same(found, gradients(given(8)))


def test_a_shape_is_weighed_once(weighed):
    stack = stack_of(1 << 40)
    stack(torch.randn(2, TOKENS, WIDTH, dtype=torch.float64))
    stack(torch.randn(2, TOKENS, WIDTH, dtype=torch.float64))
    assert len(weighed) == 1
    stack(torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
    assert len(weighed) == 2
    with torch.no_grad():
        stack(torch.randn(3, TOKENS, WIDTH, dtype=torch.float64))
    assert len(weighed) == 2, "where nothing is rebuilt, nothing is chosen"
    copy.deepcopy(stack)(torch.randn(1, TOKENS, WIDTH, dtype=torch.float64))
    assert len(weighed) == 2


class Counting(Plain):
    """Draws, and keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.batch = nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        seen = self.batch(x.flatten(0, 1)).view_as(x)
        return super().forward(nn.functional.dropout(seen, 0.3))


def outcome(**options):
    torch.manual_seed(0)
    stack = revstep.ReversibleStack([Counting() for _ in range(2)], revstep.Blend(c=0.25), **options).double()
    return [*gradients(stack), *stack.buffers()]


def test_weighing_leaves_no_trace():
    auto = {"keep": "auto", "memory_budget": 1000, "tile": "auto"}
    with pytest.warns(FallbackWarning):
        assert same(outcome(**auto), outcome(tile=8))


@pytest.mark.parametrize("broken", ["generators", "buffers"])
def test_a_trace_is_noticed(monkeypatch, broken):
    """Broken on purpose: numbers that are drawn stay drawn; running statistics stay moved."""
    weigh = _fitting.weigh

    def careless(layer, x, args, kwargs, generators):
        found = weigh(layer, x, args, kwargs, generators)
        if broken == "generators":
            torch.rand(1)
        else:
            layer[0].batch(torch.ones(2, WIDTH, dtype=x.dtype))
        return found

    monkeypatch.setattr(_run, "weigh", careless)
    with pytest.raises(AssertionError):
        test_weighing_leaves_no_trace()


def test_weighing_holds_nothing(weight):
    """Its storages are gone by then, but for those that would be alive anyway."""
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    scale = _fitting._Scale((), ())
    with torch.autograd.graph.saved_tensors_hooks(scale.put, _fitting._gone):
        y = Plain().double()(x)
    alive = [ref for ref in scale._seen.values() if not ref.expired()]
    assert y is not None and len(scale._seen) > 2 * len(alive)
    with pytest.raises(RuntimeError, match="made to be weighed"):
        y.sum().backward()


@pytest.mark.parametrize("change", ["whole", "nothing"])
def test_another_estimate_is_noticed(monkeypatch, weighed, change):
    """Broken on purpose: tiles that save nothing, or everything."""
    wrong = (lambda self, tile: self.whole) if change == "whole" else (lambda self, tile: 0)
    monkeypatch.setattr(_fitting.Weight, "by_tiles", wrong)
    whole, halves = 10, 8
    honest = _fitting.Weight(whole, halves, 40)
    expected = {"whole": 8, "nothing": 20}[change]
    if change == "whole":
        with pytest.warns(FallbackWarning):
            assert _fitting.chosen(honest, 4) == expected
    else:
        assert _fitting.chosen(honest, 4) == expected
    monkeypatch.undo()
    monkeypatch.setattr(_fitting, "TILES", (20, 10, 8))
    assert _fitting.chosen(honest, 4) == 10


def test_states_are_those_of_training(weight):
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    auto, tiled = stack_of(weight.by_tiles(8)), given(8)
    a, b = auto.states(x), tiled.states(x)
    assert same(a, b) and same(auto.reconstruct(a.last_two), b)


def test_gradients_are_those_of_whole_layers(weight):
    close(gradients(stack_of(weight.by_tiles(8))), gradients(given(None)))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"keep": 0, "memory_budget": None}, "keep is 0 and memory_budget is None"),
        ({"memory_budget": 0.5}, "expected it in bytes"),
        ({"tile": "all"}, "expected a number of tokens, 1 or more, 'auto' or None"),
    ],
)
def test_what_cannot_choose(options, words):
    with pytest.raises(revstep.ConfigError, match=words):
        stack_of(1000, **options)


def test_compiled_blocks_are_refused():
    stack = stack_of(1000)
    for block in stack.blocks:
        block._compiled_call_impl = block._call_impl
    with pytest.raises(revstep.UnsupportedError, match="expected a number of tokens"):
        stack(torch.randn(2, TOKENS, WIDTH, dtype=torch.float64))


def test_a_stack_of_an_earlier_build_can_be_read():
    state = stack_of(1 << 40).__getstate__()
    del state["_fitted"]
    old = revstep.ReversibleStack.__new__(revstep.ReversibleStack)
    old.__setstate__(state)
    gradients(old)


def test_dropout_of_another_build_of_the_layer(weighed):
    """The weight of a layer with dropout has its mask."""
    gradients(made(dropout=0.3, keep="auto", memory_budget=1 << 40, tile="auto"))
    assert weighed[0].halves > HALVES
