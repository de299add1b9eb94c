"""Blocks that return an increment and auxiliary tensors: the auxiliaries keep their gradients, those of the
stored recurrence bit for bit.
"""

import pytest
import torch
from stacks import SCHEMES, batch, bf16, run, same, scheme, stack
from torch import nn

from revstep import ConfigError
from revstep.stack._nodes import Gate
from revstep.stack._run import Pass

WIDTH, LAYERS = 32, 5


class Routed(nn.Module):
    """An increment, a router's loss and what else it has to say (an integer tensor, a dict of tensors)."""

    def __init__(self, dropout=0.1, kind="tuple"):
        super().__init__()
        self.router, self.up, self.down = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4 * 8), nn.Linear(8, WIDTH)
        self.dropout, self.kind = nn.Dropout(dropout), kind

    def forward(self, x):
        logits = self.router(x)
        weights = logits.softmax(-1)
        mixed = (weights.unsqueeze(-1) * self.up(x).view(*x.shape[:-1], 4, 8)).sum(-2)
        f = self.dropout(self.down(mixed.tanh()))
        out = (f, weights.square().mean(), {"best": logits.argmax(-1), "logits": logits})
        return list(out) if self.kind == "list" else out


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.linear(x).tanh()


def blocks(name, second=Routed, **options):
    torch.manual_seed(0)
    made = [Routed(**options) for _ in range(LAYERS)]
    return list(zip(made, [second() for _ in range(LAYERS)])) if scheme(name).halves == 2 else made


def total(out):
    """The sum of squares of the output and all router losses, as an MoE model adds them; also a loss on one
    inner tensor.
    """
    y, aux = out
    entries = [a for a in aux if a]
    return (
        y.square().sum()
        + sum(a[0] * (i + 1.0) for i, a in enumerate(entries))
        + entries[1][1]["logits"].square().mean()
    )


def only_aux(out):
    return sum(a[0] * (i + 1.0) for i, a in enumerate(filter(None, out[1])))


def filled(result):
    return [torch.zeros(()) if t is None or not t.any() else t for t in result]


@pytest.mark.parametrize("loss", [total, only_aux])
@pytest.mark.parametrize("context", ["float32", "bf16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_are_the_stored_ones(name, context, loss):
    options = {"loss": loss} | ({"context": bf16} if context == "bf16" else {})
    results = [
        run(stack(name, blocks=blocks(name), keep=keep).train(), batch(), **options)
        for keep in (0, 2, LAYERS)
    ]
    assert same(results[0], results[2]) and same(results[1], results[2])
    assert all(g is not None and g.any() for g in results[0][1:3]), "input and first router"


@pytest.mark.parametrize("name", SCHEMES)
def test_what_has_no_part_in_the_loss_has_no_gradient(name):
    results = [
        run(stack(name, blocks=blocks(name), keep=keep).train(), batch(), loss=only_aux)
        for keep in (0, LAYERS)
    ]
    assert same(*results)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_layer_gives_its_own(name):
    made = stack(name, blocks=blocks(name)).train()
    y, aux = made(batch())
    assert len(aux) == LAYERS * scheme(name).halves and y.shape == batch().shape
    assert all(
        len(a) == 2 and a[0].ndim == 0 and a[0].requires_grad and a[1]["best"].dtype == torch.int64
        for a in aux
    )
    assert len({float(a[0]) for a in aux}) == len(aux)


def test_one_half_alone():
    """Only F or only G of a Hamiltonian layer returns more than its increment."""
    torch.manual_seed(0)
    for routed_first in (True, False):
        results = []
        for keep in (0, 1, LAYERS):
            torch.manual_seed(0)
            pairs = [(Routed(), Plain()) if routed_first else (Plain(), Routed()) for _ in range(LAYERS)]
            made = stack("hamiltonian", blocks=pairs, keep=keep).train()
            results.append(filled(run(made, batch(), loss=only_aux)))
            aux = made(batch())[1]
            assert [bool(a) for a in aux] == [routed_first, not routed_first] * LAYERS
        assert same(results[0], results[2]) and same(results[1], results[2])


@pytest.mark.parametrize("name", SCHEMES)
def test_a_frozen_input(name):
    """Nothing below the first block needs a gradient."""
    results = [
        run(stack(name, blocks=blocks(name), keep=keep).train(), batch(grad=False), loss=total)
        for keep in (0, LAYERS)
    ]
    assert same(*results) and results[0][1] is None and results[0][2].any()


@pytest.mark.parametrize("name", SCHEMES)
def test_frozen_blocks_below(name):
    results = []
    for keep in (0, LAYERS):
        made = stack(name, blocks=blocks(name), keep=keep).train()
        for p in [p for block in made.blocks[:3] for p in block.parameters()]:
            p.requires_grad_(False)
        results.append(run(made, batch(grad=False), loss=lambda out: only_aux(out) + out[0].sum()))
    assert same(*results) and sum(g is not None for g in results[0][2:-1]) == 6 * 2 * scheme(name).halves


def test_lists_and_tuples():
    one, two = (
        run(stack("blend", blocks=blocks("blend", kind=kind)).train(), batch(), loss=total)
        for kind in ("tuple", "list")
    )
    assert same(one, two)


def test_some_blocks_have_none():
    torch.manual_seed(0)
    results = []
    for keep in (0, 4):
        torch.manual_seed(0)
        made = stack("blend", blocks=[Plain(), Routed(), Plain(), Routed()], keep=keep).train()
        results.append(run(made, batch(), loss=total))
    assert same(*results)
    assert isinstance(stack("blend", blocks=[Plain()])(batch()), torch.Tensor), (
        "no auxiliary at all: the output alone, as before"
    )


def test_without_gradients():
    made = stack("blend", blocks=blocks("blend")).eval()
    with torch.no_grad():
        y, aux = made(batch())
    assert not y.requires_grad and not aux[0][0].requires_grad and len(aux) == LAYERS


def test_twice_backward_needs_a_kept_graph():
    made = stack("blend", blocks=blocks("blend", dropout=0.0)).train()
    y, aux = made(batch())
    aux[0][0].backward(retain_graph=True)
    once = made.blocks[0].router.weight.grad.clone()
    aux[0][0].backward()
    assert torch.equal(made.blocks[0].router.weight.grad, 2 * once)
    with pytest.raises(RuntimeError):
        y.sum().backward()


def test_not_an_increment():
    class Wrong(nn.Module):
        def forward(self, x):
            return {"f": x}, x

    with pytest.raises(ConfigError, match=r"layer 0 returned dict, expected the increment f\(x\)"):
        stack("blend", blocks=[Wrong()])(batch())


# ---- mutants ----


def test_detached_auxiliaries_are_seen(monkeypatch):
    """An auxiliary that leaves its block without its graph: the router's gradient lacks its part."""
    step = Pass.step

    def detaching(self, args, kwargs):
        out = step(self, args, kwargs)
        self.aux[-1] = (out[0].detach(), *out[1:])
        return out

    stored = run(stack("blend", blocks=blocks("blend"), keep=LAYERS).train(), batch(), loss=total)
    monkeypatch.setattr(Pass, "step", detaching)
    assert not same(run(stack("blend", blocks=blocks("blend")).train(), batch(), loss=total), stored)


def test_a_gate_that_drops_them_is_seen(monkeypatch):
    backward = Gate.backward
    stored = run(stack("blend", blocks=blocks("blend"), keep=LAYERS).train(), batch(), loss=total)
    monkeypatch.setattr(
        Gate, "backward", staticmethod(lambda ctx, p, c, *aux: backward(ctx, p, c, *(None for _ in aux)))
    )
    assert not same(run(stack("blend", blocks=blocks("blend")).train(), batch(), loss=total), stored)
