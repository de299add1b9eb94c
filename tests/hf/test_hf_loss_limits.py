"""Where the chunked loss of transformers' models ends: second derivatives, and rows without a target."""

import copy

import pytest
import torch

pytest.importorskip("transformers")
from loss_models import batch, build

from revstep._models import training
from revstep.errors import UnsupportedError
from revstep.hf._loss import chunk_loss


def test_second_derivatives_are_refused_in_chunks_and_right_without():
    """Also through an embedding that takes the head's gradient along, where the loss is another one."""
    plain = build("Llama", torch.float64, tie_word_embeddings=True)
    model = chunk_loss(copy.deepcopy(plain), 4)
    with pytest.raises(UnsupportedError, match=r"second derivatives.*unchunk_loss"):
        run_twice(model, lambda m: m(**batch()).loss)
    given = {n: v for n, v in batch().items() if n != "labels"}

    def other(m):
        return m(**given).logits.logsumexp(-1).mean()

    want, got = run_twice(plain, other), run_twice(model, other)
    assert want and all((got[n] - g).norm() <= 1e-9 * g.norm() + 1e-12 for n, g in want.items())


def run_twice(model, loss):
    """The gradient of the squared norm of the gradient."""
    model.zero_grad(set_to_none=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = torch.autograd.grad(loss(model), list(model.parameters()), create_graph=True)
        sum(g.square().sum() for g in found).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def zeros(model):
    """Every parameter has a gradient, of zeros; NaN is not one."""
    return all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("head_last", [False, True])
def test_rows_without_a_target_have_gradients_of_zero(head_last):
    """As transformers' own loss has, whose value is NaN then."""
    plain = build("Llama", torch.float32, tie_word_embeddings=True)
    model = chunk_loss(copy.deepcopy(plain), 4, head_last=head_last)
    ids = batch()["input_ids"]
    for made in (plain, model):
        loss = made(input_ids=ids, labels=torch.full_like(ids, -100)).loss
        loss.backward()
        assert loss.isnan() and zeros(made)


@pytest.mark.skipif(not training.has_operator(), reason="torch without linear_cross_entropy")
def test_rows_without_a_target_by_torchs_operator(monkeypatch):
    monkeypatch.setattr(training, "_ours", lambda *_: False)
    model = chunk_loss(build("Llama", torch.float32), 4)
    ids = batch()["input_ids"]
    loss = model(input_ids=ids, labels=torch.full_like(ids, -100)).loss
    loss.backward()
    assert loss.isnan() and zeros(model)
