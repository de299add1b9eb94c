"""What from_residual returns is a module like any other, and the block itself stays what it was."""

import copy
import pickle

import pytest
import stacks
import torch
from residual_blocks import WIDTH, Increment, Usual, alike, batch, step
from torch import nn

from revstep import from_residual


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
    assert len({id(b) for b in ours.blocks}) == 1
    assert len(list(ours.parameters())) == len(list(own.parameters()))
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
        assert given[0].halves()[0] is given[0].attention, "the plain one"
        assert ours.blocks[0].halves()[0] is ours.blocks[0].halves()[0], "compiled once, it stays compiled"


def test_compiled():
    expected = stacks.stack(blocks=alike(Increment, dropout=0.0))
    ours = stacks.stack(blocks=alike(Usual, dropout=0.0), residual=True)
    ours.compile(backend="aot_eager")
    for a, b in zip(step(ours, batch()), step(expected, batch())):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert ours.report.exact
    whole = stacks.stack(blocks=alike(Usual, dropout=0.0), residual=True)
    x = batch()
    compiled = torch.compile(lambda t: whole(t) * 2, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected(x) * 2)
