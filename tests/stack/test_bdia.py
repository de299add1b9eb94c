"""BDIA: signs per sample and layer in training, the residual network in evaluation, and nothing left of the
draw in between.
"""

import pytest
import torch
from stacks import EXACT, FORMATS, batch, run, same, stack

import revstep
from revstep import verify
from revstep._recurrence import walk


def signs(scheme, layers, rows, start="repeat"):
    return torch.stack([c.choice for c in scheme.draw(layers, start, rows, training=True)])


@pytest.mark.parametrize("state", EXACT)
def test_each_sample_is_the_blend_of_its_own_signs(state):
    """With one layer a row is Blend(+c) or Blend(-c) of that row alone, bit for bit."""
    x, scheme = batch(grad=False)[:1].repeat(8, 1, 1), revstep.BDIA(c=0.5, seed=3)
    choice = signs(scheme, 1, 8)[0]
    assert 0 < int(choice.sum()) < 8
    y = stack(scheme, 1, state, dropout=0.0)(x)
    for row, chosen in enumerate(choice.tolist()):
        alone = stack(revstep.Blend(c=-0.5 if chosen else 0.5), 1, state, dropout=0.0)(x[row : row + 1])
        assert torch.equal(y[row : row + 1], alone)


def test_signs_are_drawn_anew_in_each_pass_and_come_back_with_the_generator():
    module, x = stack("bdia", dropout=0.0, blocks=None).train(), batch(grad=False)
    module.scheme = revstep.BDIA()
    torch.manual_seed(5)
    first, second = module(x), module(x)
    torch.manual_seed(5)
    assert torch.equal(module(x), first) and not torch.equal(first, second)
    assert not torch.equal(signs(revstep.BDIA(), 12, 4), signs(revstep.BDIA(), 12, 4))
    assert torch.equal(signs(revstep.BDIA(seed=2), 12, 4), signs(revstep.BDIA(seed=2), 12, 4))


def test_signs_are_fair():
    """Of 4096 independent fair signs the share of ones is within 5 standard deviations, 5 / (2 sqrt(4096)),
    of a half; rows and layers differ.
    """
    torch.manual_seed(0)
    drawn = signs(revstep.BDIA(), 64, 64).double()
    assert abs(float(drawn.mean()) - 0.5) < 5 / (2 * 64)
    assert (
        len({tuple(row) for row in drawn.tolist()}) == 64
        and len({tuple(column) for column in drawn.T.tolist()}) == 64
    )


@pytest.mark.parametrize("state", FORMATS)
def test_evaluation_is_the_residual_network_and_stores_what_it_needs(state):
    """Float64 states: x + f(x) layer by layer, to the bit; other formats: what keeping everything gives."""
    module = stack("bdia", 4, state, dropout=0.0, start="euler").eval()
    x = batch(grad=True)
    ours = run(module, x)
    assert module.report is None
    assert same(ours, run(stack("bdia", 4, state, dropout=0.0, start="euler", keep=4).eval(), x))
    if state == "float64":
        wide = stack("bdia", 4, state, dropout=0.0, start="euler", dtype=torch.float64).eval()
        y = x.detach().double()
        for block in wide.blocks:
            y = y + block(y)
        assert torch.equal(wide(x.detach().double()), y)
    with pytest.raises(revstep.ConfigError, match=r"residual network in evaluation mode.*\.train\(\)"):
        module.states(x)


def test_evaluation_is_the_mean_of_training_for_a_linear_layer():
    """One linear layer, start repeat: E[(1 + c) f] = f; averaged over both signs exactly, in float64."""
    torch.manual_seed(1)
    blocks, x = [torch.nn.Linear(8, 8).double()], torch.randn(64, 8, dtype=torch.float64)
    module = stack(revstep.BDIA(seed=0), state="float64", blocks=blocks)
    twice = torch.stack([x + (1 + c) * blocks[0](x) for c in (0.5, -0.5)])
    choice = signs(module.scheme, 1, 64)[0].long()
    eps = 4 * torch.finfo(torch.float64).eps * float(twice.detach().abs().max())
    assert (module(x) - twice[choice, torch.arange(64)]).abs().max() <= eps
    assert (module.eval()(x) - twice.mean(0)).abs().max() <= eps


@pytest.mark.parametrize("start", ["repeat", "euler"])
def test_gradients_with_signs_from_the_generator_are_the_stored_ones(start):
    module = stack(revstep.BDIA(), 5, start=start)
    assert verify.gradients(module, batch(grad=False)).ok
    assert module.report.exact and module.report.layers == 5


def test_one_carry_bit_an_element_and_layer():
    module, x = stack("bdia", 6, dropout=0.0), batch()
    module(x).sum().backward()
    words = (x.numel() + 31) // 32
    assert module.report.bytes_saved == 2 * 4 * x.numel() + 6 * 4 * words + 8 * (6 + 2)


# --- mutants ---


def test_mutant_that_draws_new_signs_for_backward(monkeypatch):

    original = walk.undo

    def redrawn(c, *rest):
        return original(c._replace(choice=torch.randint_like(c.choice, 2)), *rest)

    monkeypatch.setattr(walk, "undo", redrawn)
    with pytest.raises(revstep.ReconstructionError):
        run(stack("bdia", 6), batch())


@pytest.mark.parametrize("which", ["alpha", "beta", "gamma"])
def test_mutant_that_uses_one_rows_coefficient_for_all(monkeypatch, which):
    from revstep.stack import _nodes

    original = _nodes.gradients

    def wrong(g, c, *rest):
        return original(g, c._replace(second=c.second._replace(**{which: getattr(c.first, which)})), *rest)

    assert verify.gradients(stack("bdia", 3), batch(grad=False)).ok
    monkeypatch.setattr(_nodes, "gradients", wrong)
    assert not verify.gradients(stack("bdia", 3), batch(grad=False)).ok


@pytest.mark.parametrize(
    "options, words",
    [
        ({"c": 1.0}, r"\|c\| < 1"),
        ({"c": -1.5}, r"\|c\| < 1"),
        ({"c": 0.0}, "non-zero"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
    ],
)
def test_refused(options, words):
    with pytest.raises(revstep.ConfigError, match=words):
        revstep.BDIA(**options)
