"""Tokenwise halves taken by tiles: the gradients, what exists at once, what is compared, what is refused."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import revstep
from revstep.stack import _members, _nodes, _tiles

WIDTH, TOKENS, TILE = 16, 40, 12


class Block(nn.Module):
    """Attention half and MLP half; ``after``: a norm behind the MLP, as in Gemma."""

    def __init__(self, dropout=0.0, after=False):
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)  # the first half where there are two
        hidden = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * WIDTH, WIDTH)
        self.mlp = revstep.tokenwise(nn.Sequential(*hidden))
        self.after = nn.LayerNorm(WIDTH) if after else nn.Identity()

    def forward(self, x):
        q, k, v = (t[:, None] for t in self.qkv(self.norm(x)).chunk(3, -1))
        a = self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return a + self.after(self.mlp(self.norm2(x + a)))

    def halves(self):
        return nn.Sequential(self.norm, self.mix), nn.Sequential(self.norm2, self.mlp)


def made(scheme=None, layers=3, dropout=0.0, after=False, dtype=torch.float64, **options):
    torch.manual_seed(0)
    blocks = [Block(dropout, after) for _ in range(layers)]
    return revstep.ReversibleStack(blocks, scheme or revstep.Blend(c=0.25), **options).to(dtype)


def gradients(stack, dtype=torch.float64, backward=lambda loss: loss.backward()):
    x = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    torch.manual_seed(2)
    y = stack(x)
    backward(y.square().sum())
    return [y.detach(), x.grad, *(p.grad for p in stack.parameters())]


def close(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.fixture
def sweeps(monkeypatch):
    """What each evaluation of a tokenwise half did: 'forward', 'both' (with gradients), 'again'."""
    seen = []
    sweep, again = _tiles.Call._sweep, _tiles.Call.again

    def watched(self, x, needs_input, weights, g):
        seen.append("forward" if g is None else "both")
        return sweep(self, x, needs_input, weights, g)

    monkeypatch.setattr(_tiles.Call, "_sweep", watched)
    monkeypatch.setattr(_tiles.Call, "again", lambda self, x, g: (seen.append("again"), again(self, x, g)))
    return seen


@pytest.mark.parametrize("scheme", [revstep.Blend(c=0.25), revstep.Midpoint(h=0.5), revstep.Hamiltonian()])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_the_whole_module(scheme, dropout, sweeps):
    by_tiles = made(scheme, dropout=dropout, tile=TILE)
    found = gradients(by_tiles)
    assert sweeps == ["forward"] * 3 + ["both"] * 3, "every tile once forwards, once both ways"
    assert by_tiles.report.exact
    close(found, gradients(made(scheme, dropout=dropout)))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_where_something_comes_after_it_the_tiles_are_taken_again(dropout, sweeps):
    found = gradients(made(after=True, dropout=dropout, tile=TILE))
    assert sweeps.count("again") == 3 and sweeps.count("both") == 3
    close(found, gradients(made(after=True, dropout=dropout)))


def test_a_state_of_one_tile_is_taken_whole(sweeps):
    gradients(made(tile=2 * TOKENS))
    assert sweeps == []


def test_kept_layers_and_evaluation_are_whole(sweeps):
    stack = made(tile=TILE, keep=1)
    close(gradients(stack), gradients(made()))
    assert sweeps.count("forward") == 2
    del sweeps[:]
    with torch.no_grad():
        stack(torch.randn(2, TOKENS, WIDTH, dtype=torch.float64))
    assert sweeps == []


def test_states_have_the_bits_of_training(sweeps):
    stack = made(tile=TILE)
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    states = stack.states(x)
    assert sweeps == ["forward"] * 3
    rebuilt = stack.reconstruct(states.last_two)
    assert all(torch.equal(a, b) for a, b in zip(states, rebuilt, strict=True))


def test_frozen_weights_and_frozen_input():
    for stack in (a := made(tile=TILE)), (b := made()):
        for p in stack.parameters():
            p.requires_grad_(False)
        for block in stack.blocks:
            block.mlp[3].weight.requires_grad_()
    close(gradients(a), gradients(b))


def test_narrow_weights_are_summed_in_float32():
    """A tile's gradient of 1 beside a sum of 256 would be lost in bfloat16."""
    stack = revstep.ReversibleStack(
        [revstep.tokenwise(nn.Linear(1, 1, bias=False))], revstep.Midpoint(h=0.5), tile=1
    ).to(torch.bfloat16)
    x = torch.ones(1, 257, 1, dtype=torch.bfloat16)
    x[0, 0] = 256.0
    stack(x).sum().backward()
    whole = revstep.ReversibleStack(copy.deepcopy(stack.blocks), revstep.Midpoint(h=0.5))
    whole.zero_grad()
    whole(x).sum().backward()
    assert torch.equal(stack.blocks[0].weight.grad, whole.blocks[0].weight.grad)


def test_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(made(tile=TILE, dtype=torch.float32), torch.float32)
        expected = gradients(made(dtype=torch.float32), torch.float32)
    close(found, expected, 0.02)


def test_twice_through_one_graph(sweeps):
    def twice(loss):
        loss.backward(retain_graph=True)
        loss.backward()

    found, expected = gradients(made(tile=TILE), backward=twice), gradients(made(), backward=twice)
    close(found, expected)


def test_beside_the_functional_call():
    stack, x = made(tile=TILE), torch.randn(2, TOKENS, WIDTH, dtype=torch.float64)
    others = {name: (2 * p).detach().requires_grad_() for name, p in stack.named_parameters()}

    def grads(stack):
        y = torch.func.functional_call(stack, others, (x,))
        return torch.autograd.grad(y.square().sum(), list(others.values()), allow_unused=True)

    close(grads(stack), grads(made()))


def test_inside_checkpointing_and_in_a_copy():
    stack = copy.deepcopy(made(tile=TILE))
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    checkpoint(stack, x, use_reentrant=False).square().sum().backward()
    found = [x.grad.clone(), *(p.grad for p in stack.parameters())]
    x.grad = None
    whole = made()
    whole(x).square().sum().backward()
    close(found, [x.grad, *(p.grad for p in whole.parameters())])


def test_threads_evaluate_one_stack_at_once():
    stack, found = made(tile=TILE), []

    def work():
        x = (
            torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(3))
            .double()
            .requires_grad_()
        )
        y = stack(x).square().sum()
        found.append(torch.autograd.grad(y, [x])[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4 and all(torch.equal(found[0], other) for other in found[1:])
    assert "forward" not in vars(stack.blocks[0].mlp), "nothing is left on the module"


def test_nothing_is_left_where_the_block_raises():
    stack = made(tile=TILE)
    stack.blocks[1].mlp[3] = nn.Linear(3, 3).double()
    with pytest.raises(RuntimeError):
        stack(torch.randn(2, TOKENS, WIDTH, dtype=torch.float64))
    assert all("forward" not in vars(block.mlp) for block in stack.blocks)


# ---- what exists at once ----


def held_elements(monkeypatch, **options):
    """Elements of hidden activations (4 x WIDTH wide) that one re-evaluation holds at once."""
    held = []
    end = _nodes.Again.pack

    def pack(self, t):
        token = end(self, t)
        held.append(sum(x.numel() for x, _ in filter(None, self.held) if x.shape[-1:] == (4 * WIDTH,)))
        return token

    monkeypatch.setattr(_nodes.Again, "pack", pack)
    gradients(made(**options))
    return max(held)


def test_the_graph_of_the_hidden_layer_is_never_whole(monkeypatch):
    whole = held_elements(monkeypatch)
    assert whole >= 2 * TOKENS * 4 * WIDTH, "its input and its output at least"
    assert held_elements(monkeypatch, tile=TILE) == 0


# ---- what is compared ----


class Moody(nn.Module):
    """A hidden layer behind a zero, which in the second evaluation is another one."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.second.weight)
        self.change = change

    def forward(self, x):
        return self.second(self.first(x) + (self.change if revstep.stack.rebuilding() else 0.0))


def test_saved_tensors_of_tiles_are_compared():
    def stack(change):
        return revstep.ReversibleStack(
            [revstep.tokenwise(Moody(change))], revstep.Blend(c=0.25), tile=TILE, checks="all"
        )

    x = torch.randn(2, TOKENS, WIDTH)
    stack(0.0)(x).sum().backward()
    with pytest.raises(revstep.NonDeterministicBlockError, match="layer 0"):
        stack(1.0)(x).sum().backward()


def test_mutant_that_compares_nothing(monkeypatch):
    monkeypatch.setattr(_nodes.Again, "_compare", lambda self, t: None)
    with pytest.raises(pytest.fail.Exception):
        test_saved_tensors_of_tiles_are_compared()


MUTANTS = {
    "no sum at all": ("add", lambda self, found: None),
    "the first tile alone": (
        "add",
        lambda self, found: [
            self.sums.__setitem__(i, g) for i, g in enumerate(found) if self.sums[i] is None
        ],
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_sums_are_seen(mutant, monkeypatch):
    monkeypatch.setattr(_tiles._Sums, *MUTANTS[mutant])
    with pytest.raises(AssertionError):
        close(gradients(made(tile=TILE)), gradients(made()))


def test_mutant_that_draws_other_numbers_the_second_time(monkeypatch):
    from contextlib import nullcontext

    from revstep.stack._surroundings import Generators

    at = Generators.at
    called = []

    def once(self, states):
        called.append(1)
        return at(self, states) if len(called) % 3 == 1 else nullcontext()

    monkeypatch.setattr(Generators, "at", once)
    with pytest.raises((AssertionError, revstep.RevstepError)):
        close(gradients(made(after=True, dropout=0.3, tile=TILE)), gradients(made(after=True, dropout=0.3)))


# ---- what is refused ----


@pytest.mark.parametrize("tile", [0, -1, 1.5, True, "64"])
def test_a_wrong_tile_is_refused(tile):
    with pytest.raises(revstep.ConfigError, match=r"tile is .*expected a number of tokens"):
        made(tile=tile)


def test_no_block_declares_one():
    with pytest.raises(revstep.ConfigError, match=r"tile is 4, and no block .*revstep.tokenwise"):
        revstep.ReversibleStack([nn.Linear(WIDTH, WIDTH)], revstep.Blend(c=0.25), tile=4)


class Two(nn.Module):
    def __init__(self, returns):
        super().__init__()
        self.linear, self.returns = nn.Linear(WIDTH, WIDTH), returns

    def forward(self, x):
        return self.returns(self.linear(x), x)


@pytest.mark.parametrize(
    "returns, message",
    [
        (lambda y, x: (y, y), r"returned tuple for a tile"),
        (lambda y, x: y.sum(-2, keepdim=True), r"returned \(1, 1, 16\) for a tile of shape \(1, 12, 16\)"),
        (lambda y, x: y + x.mul_(2), r"changed its input in place"),
    ],
)
def test_what_is_not_tokenwise_is_named(returns, message):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = revstep.tokenwise(Two(returns))

        def forward(self, x):
            out = self.inner(x * 1.0)
            return out[0] if isinstance(out, tuple) else out.expand_as(x)

    stack = revstep.ReversibleStack([Holder()], revstep.Blend(c=0.25), tile=TILE)
    with pytest.raises(revstep.UnsupportedError, match=message):
        stack(torch.randn(2, TOKENS, WIDTH))


def test_more_than_one_argument_is_named():
    block = Block()
    block.forward = lambda x: block.mlp(input=x)
    with pytest.raises(revstep.UnsupportedError, match=r"0 argument\(s\) \['input'\], expected one tensor"):
        revstep.ReversibleStack([block], revstep.Blend(c=0.25), tile=TILE)(torch.randn(2, TOKENS, WIDTH))


def test_a_hook_on_a_weight_is_named():
    stack = made(tile=TILE)
    stack.blocks[0].mlp[0].weight.register_hook(lambda g: g)
    with pytest.raises(revstep.UnsupportedError, match=r"'0.weight' .*register_post_accumulate_grad_hook"):
        gradients(stack)


@pytest.mark.parametrize("made_of", [lambda t: t, lambda t: 2 * t])
def test_a_tensor_from_elsewhere_is_named(made_of):
    """Its gradient would be lost without a word."""
    other = torch.ones(WIDTH, requires_grad=True)
    block = revstep.tokenwise(Two(lambda y, x: y * made_of(other)))
    stack = revstep.ReversibleStack([block], revstep.Blend(c=0.25), tile=TILE)
    with pytest.raises(revstep.UnsupportedError, match=r"a tensor of shape \(16,\) that needs a gradient"):
        stack(torch.randn(2, TOKENS, WIDTH))


def test_second_derivatives_are_named():
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    y = made(tile=TILE)(x).square().sum()
    with pytest.raises(revstep.UnsupportedError, match="second derivatives"):
        torch.autograd.grad(y, x, create_graph=True)


def test_compiled_blocks_are_named():
    stack = made(tile=TILE)
    stack.compile(backend="eager")
    with pytest.raises(revstep.UnsupportedError, match=r"tile=12 takes Sequential apart.*compiled"):
        gradients(stack)


def test_sharded_blocks_are_named(monkeypatch):
    monkeypatch.setattr(_members, "gathers", lambda modules: True)
    with pytest.raises(revstep.UnsupportedError, match=r"tile=12 takes Sequential apart.*fully_shard"):
        gradients(made(tile=TILE))
    gradients(made())
