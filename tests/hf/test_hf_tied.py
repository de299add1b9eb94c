"""A matrix that is embedding and head: its gradient exists once, and is that of autograd."""

import copy
import pickle

import pytest

pytest.importorskip("transformers")
import torch
import transformers

from revstep import hf
from revstep._models import training
from revstep.hf import _loss
from revstep_lab.bench.peaks import by_allocator

VOCAB, WIDTH = 4000, 16


def made(handing=True, padding=None, tied=True):
    """Its loss in chunks. ``handing``: as it is; else autograd adds the two gradients."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied, pad_token_id=padding,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().train()
    hf.chunk_loss(model, 8)
    if not handing:
        vars(model.get_input_embeddings()).pop("forward", None)
        model.loss_function.lookup = None
    return model


def ids():
    found = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(1))
    found[0, :3], found[1, 4:9] = 7, 7  # one token several times
    return found


def step(model, backward=lambda loss: loss.backward(), **given):
    given = given or {"input_ids": ids()}
    backward(model(**given, labels=ids(), use_cache=False).loss)
    return [p.grad for p in model.parameters()]


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None) and (a is None or (a - b).abs().max() < 1e-12)


@pytest.fixture
def handed(monkeypatch):
    """How often the head handed its gradient over."""
    seen, original = [], training.TiedEmbedding.backward
    monkeypatch.setattr(
        training.TiedEmbedding,
        "backward",
        staticmethod(lambda ctx, g: (seen.append(ctx.tie.gradient is not None), original(ctx, g))[1]),
    )
    return seen


@pytest.mark.parametrize("padding", [None, 7])
def test_the_gradient_is_that_of_autograd(padding, handed):
    found = step(made(padding=padding))
    assert handed == [True]
    close(found, step(made(handing=False, padding=padding)))


@pytest.mark.parametrize("scheme", ["blend:c=0.125", "hamiltonian"])
def test_of_a_converted_model(scheme, handed):
    def converted(handing):
        return hf.convert(made(handing), scheme, state="fixed64", calibration=ids(), say=None)

    found = step(converted(True))
    assert handed == [True]
    close(found, step(converted(False)))


def test_it_exists_once():
    def peak(model):
        step(model)
        model.zero_grad()
        return by_allocator(lambda between: (between(), step(model)))["peak"]

    matrix = VOCAB * WIDTH * 8
    assert peak(made()) < 1.9 * matrix
    assert peak(made(handing=False)) > 1.9 * matrix, "the check that fails without the hand-over"


def test_what_was_not_read_by_this_pass_gets_no_gradient_of_the_head(handed):
    """A lookup beside the pass, whose backward will not come: the head keeps its gradient."""
    model, whole = made(), made(handing=False)
    embedded = model.get_input_embeddings()(ids())
    found = step(model, inputs_embeds=embedded.detach())
    assert handed == [] and found[0] is not None
    close(found, step(whole, inputs_embeds=embedded.detach()))
    # where it comes, the embedding gets it
    model.zero_grad(), whole.zero_grad()
    found = step(model, inputs_embeds=model.get_input_embeddings()(ids()))
    assert handed == [True]
    close(found, step(whole, inputs_embeds=whole.get_input_embeddings()(ids())))


def test_mutant_that_does_not_look_whether_the_gradient_comes(monkeypatch, handed):
    monkeypatch.setattr(_loss, "reaches", lambda *_: True)
    with pytest.raises(AssertionError):
        test_what_was_not_read_by_this_pass_gets_no_gradient_of_the_head(handed)


def test_two_lookups_in_one_pass():
    def both(model):
        lookup = model.get_input_embeddings()
        return step(model, inputs_embeds=lookup(ids()) + lookup(ids().flip(0)))

    close(both(made()), both(made(handing=False)))


def test_twice_through_one_graph():
    def twice(loss):
        loss.backward(retain_graph=True)
        loss.backward()

    close(step(made(), twice), step(made(handing=False), twice))


def test_a_second_pass_without_the_graph_is_refused():
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        step(made(), lambda loss: (loss.backward(), loss.backward()))


def test_accumulated_over_passes():
    model, whole = made(), made(handing=False)
    for one in (model, whole):
        step(one)
    close(step(model), step(whole))


def test_a_loss_without_the_head():
    model, whole = made(), made(handing=False)
    for one in (model, whole):
        one.model(input_ids=ids()).last_hidden_state.square().sum().backward()
    close([p.grad for p in model.parameters()], [p.grad for p in whole.parameters()])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_their_own(copied, handed):
    model = made()
    step(model)
    model.zero_grad()
    found = step(copied(model))
    assert handed == [True, True] and model.get_input_embeddings().weight.grad is None
    close(found, step(made(handing=False)))


def test_undone():
    model = hf.unchunk_loss(made())
    assert "forward" not in vars(model.get_input_embeddings())


def test_a_head_of_its_own_is_left_alone(handed):
    close(step(made(tied=False)), step(made(handing=False, tied=False)))
    assert handed == []
