"""``head_last``: the gradient of a matrix that is head and embedding comes at the end of backward, with the
same bits, and no gradient of the matrix exists while the layers are differentiated.
"""

import copy

import pytest

pytest.importorskip("transformers")
import torch
import transformers

from revstep import fused_step, hf
from revstep._models import training
from revstep.errors import ConfigError
from revstep_lab.bench.peaks import by_allocator

VOCAB, WIDTH = 4000, 16
TOKENS = torch.randint(VOCAB, (2, 20), generator=torch.Generator().manual_seed(1))
MATRIX = VOCAB * WIDTH * 4


def made(last, scheme=None, width=WIDTH, tied=True, bias=False):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).train()
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCAB))
    hf.chunk_loss(model, 8, head_last=last)
    if scheme:
        hf.convert(model, scheme, state="fixed32:16", calibration=TOKENS, say=None)
    return model


def loss_of(model, ids=TOKENS):
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def step(model, backward=lambda loss: loss.backward(), ids=TOKENS):
    loss = loss_of(model, ids)
    backward(loss)
    return [loss.detach(), *(p.grad for p in model.parameters())]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def late(monkeypatch):
    """How often the head's gradient was computed by itself."""
    seen, original = [], training._of_the_matrix
    monkeypatch.setattr(training, "_of_the_matrix", lambda *a: (seen.append(1), original(*a))[1])
    return seen


@pytest.mark.parametrize("scheme", [None, "blend:c=0.125", "hamiltonian"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_bits_are_those_of_the_other_order(scheme, bias, late):
    found = step(made(True, scheme, bias=bias))
    assert len(late) == 1
    assert same(found, step(made(False, scheme, bias=bias)))
    assert len(late) == 1


def test_mutant_that_takes_other_rows(monkeypatch):
    original = training._of_the_matrix
    mutant = lambda g, v, rows, *rest: original(g, v, rows.roll(1, 0), *rest)  # noqa: E731
    monkeypatch.setattr(training, "_of_the_matrix", mutant)
    assert not same(step(made(True)), step(made(False)))


@pytest.mark.parametrize(
    "backward",
    [lambda loss: (loss.backward(retain_graph=True), loss.backward()), lambda loss: (2.5 * loss).backward()],
    ids=["twice", "scaled"],
)
def test_graphs_kept_and_scaled(backward, late):
    assert same(step(made(True), backward), step(made(False), backward))
    assert late


def test_accumulated_over_passes():
    one, other = made(True), made(False)
    for ids in (TOKENS, TOKENS.flip(0, 1), TOKENS[:1]):
        found, expected = step(one, ids=ids), step(other, ids=ids)
    assert same(found, expected)


@pytest.mark.parametrize("inside", [False, True])
def test_backward_under_autocast(inside, late):
    """The loss leaves autocast, wherever its parts are computed."""

    def run(last):
        def backward(loss):
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                loss.backward()

        model = made(last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        backward(loss)
        return [loss.detach(), model.lm_head.weight.grad]

    assert same(run(True), run(False))


def alive_before_the_embedding(last):
    """Bytes above those before the step when backward has come to the embedding, in matrices."""
    model = made(last)
    step(model)
    model.zero_grad()

    def run(between):
        looks = lambda *seen: seen[-1].register_hook(lambda g: between()) and None  # noqa: E731
        handle = model.get_input_embeddings().register_forward_hook(looks)
        loss_of(model).backward()
        handle.remove()

    return by_allocator(run)["kept"] / MATRIX


def test_the_gradient_does_not_exist_while_layers_are_differentiated():
    assert alive_before_the_embedding(True) < 0.7
    assert alive_before_the_embedding(False) > 1.0, "the check that fails where it comes first"


def test_with_the_optimiser_inside_backward(late):
    def trained(last):
        model = made(last, "blend:c=0.125")
        fused_step(torch.optim.AdamW(model.parameters(), lr=1e-2))
        for _ in range(3):
            loss_of(model).backward()
        return list(model.parameters())

    assert same(trained(True), trained(False)) and len(late) == 3


def test_frozen_matrices_have_none(late):
    model = made(True)
    model.lm_head.weight.requires_grad_(False)
    loss_of(model).backward()
    assert not late and model.lm_head.weight.grad is None


def test_a_lookup_beside_the_pass(late):
    """Its backward will not come: the gradient is computed at once."""
    model, other = made(True), made(False)
    for one in (model, other):
        embedded = one.get_input_embeddings()(TOKENS).detach()
        one(inputs_embeds=embedded, labels=TOKENS, use_cache=False).loss.backward()
    assert not late and torch.equal(model.lm_head.weight.grad, other.lm_head.weight.grad)


def test_a_matrix_that_is_stepped_too_soon():
    model = made(True)

    def halve(g):
        with torch.no_grad():
            model.lm_head.weight.mul_(0.5)

    model.model.layers[0].mlp.up_proj.weight.register_hook(halve)
    with pytest.raises(RuntimeError, match="was changed while backward ran"):
        loss_of(model).backward()


def test_copies():
    model = copy.deepcopy(made(True))
    assert same(step(model), step(made(False)))


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: made(True, tied=False), "the head's matrix is not that of a plain embedding"),
        (lambda: hf.chunk_loss(hf.unchunk_loss(made(False)).bfloat16(), 8, head_last=True), "torch.bfloat16"),
    ],
)
def test_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        model()


def test_a_refusal_leaves_the_model_as_it_was():
    model = hf.unchunk_loss(made(False)).bfloat16()
    with pytest.raises(ConfigError):
        hf.chunk_loss(model, 8, head_last=True)
    assert "forward" not in vars(model.get_input_embeddings()) and "_loss_function" not in vars(model)


def test_fine_tuning(tmp_path, late):
    def tuned(last):
        model = hf.unchunk_loss(made(last))
        how = hf.FineTune(out=str(tmp_path / str(last)), steps=2, batch=2, device="cpu", head_last=last)
        return hf.finetune(model, TOKENS, how, say=None), list(model.parameters())

    (a, weights), (b, others) = tuned(True), tuned(False)
    assert a.losses == b.losses and same(weights, others) and len(late) == 2


def test_fine_tuning_refuses_what_has_no_chunks(tmp_path):
    with pytest.raises(ConfigError, match="loss_chunk=0"):
        hf.FineTune(out="x", head_last=True, loss_chunk=0)
    model = hf.unchunk_loss(made(False))
    how = hf.FineTune(out=str(tmp_path), steps=1, batch=2, device="cpu", head_last=True)
    with pytest.raises(ConfigError, match="teacher"):
        hf.finetune(model, TOKENS, how, teacher=copy.deepcopy(model), say=None)
