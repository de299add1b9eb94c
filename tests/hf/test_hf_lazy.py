"""Lazy logits: not computed until touched, then real and with the right gradient."""

import copy

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
from loss_models import TOLERANCE, V, batch, build

from revstep.errors import UnsupportedError
from revstep.hf._lazy import LazyLogits
from revstep.hf._loss import chunk_loss

pytestmark = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch without linear_cross_entropy"
)


def lazy(**extra):
    model = chunk_loss(build(**extra), 4)
    return model, model(**batch())


def test_questions_casts_and_detach_stay_lazy():
    _, outputs = lazy()
    logits = outputs.logits
    assert (
        isinstance(logits, LazyLogits)
        and logits.shape == (2, 9, V)
        and logits.size(-1) == V
        and logits.ndim == 3
        and len(logits) == 2
    )
    assert (
        logits.dtype == torch.float32
        and logits.device.type == "cpu"
        and logits.requires_grad
        and logits.numel() == 18 * V
        and "LazyLogits" in repr(logits)
    )
    assert (
        isinstance(logits.double(), LazyLogits)
        and logits.float() is logits
        and logits.to(torch.float64).dtype == torch.float64
        and logits.to("cpu") is logits
    )
    assert isinstance(logits.detach(), LazyLogits) and not logits.detach().requires_grad
    assert logits.source.computed is None
    assert not isinstance(logits.half(), LazyLogits) and logits.source.computed is not None


TOUCHES = {
    "a method": lambda z: (z.float() ** 2).sum(),
    "an index": lambda z: z[0, 1:].sum() + z[..., 3].mean(),
    "a function": lambda z: torch.logsumexp(z, -1).sum(),
    "an operator": lambda z: (2 * z + 1).square().mean(),
    "inside a list": lambda z: torch.cat([z, z]).square().sum(),
    "an autograd.Function": lambda z: Square.apply(z).sum(),
    "a cast, then an autograd.Function": lambda z: Square.apply(z.double()).sum().float(),
    "in place": lambda z: z.div_(2).square().sum(),
}


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad * ctx.saved_tensors[0]


@pytest.mark.parametrize("touch", TOUCHES)
def test_touched_logits_are_real_and_give_the_right_gradient(touch):
    plain, inputs = build("Phi"), batch()
    model = chunk_loss(copy.deepcopy(plain), 4)
    for m in (plain, model):
        outputs = m(**inputs)
        (outputs.loss + TOUCHES[touch](outputs.logits)).backward()
    for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= TOLERANCE * torch.finfo(torch.float32).eps * (
            p.grad.abs().max() + 1e-3
        ), name


@pytest.mark.parametrize("broken", ["to_hidden", "to_weight"])
def test_a_node_with_a_wrong_gradient_is_rejected(broken, monkeypatch):
    from revstep.hf import _lazy as module

    true = module._Head.backward

    def wrong(ctx, g):
        return tuple(x * 2 if i == (broken == "to_weight") else x for i, x in enumerate(true(ctx, g)))

    monkeypatch.setattr(module._Head, "backward", staticmethod(wrong))
    with pytest.raises(AssertionError):
        test_touched_logits_are_real_and_give_the_right_gradient("an autograd.Function")


def test_logits_first_read_under_no_grad_keep_their_graph():
    _, outputs = lazy()
    with torch.no_grad():
        assert outputs.logits.argmax(-1).shape == (2, 9)
    assert outputs.logits.sum().requires_grad and not outputs.logits.detach().sum().requires_grad


def test_logits_read_before_the_loss_go_through_the_original():
    model, outputs = lazy()
    logits = outputs.logits
    logits.mul_(0.5)
    want = F.cross_entropy(logits[:, :-1].reshape(-1, V), batch()["labels"][:, 1:].reshape(-1))
    assert torch.equal(model.loss_function(logits, batch()["labels"], V), want)


def test_a_detached_loss_has_no_gradient():
    model, outputs = lazy()
    assert not model.loss_function(outputs.logits.detach(), batch()["labels"], V).requires_grad


def test_logits_read_after_the_step_are_refused():
    model, outputs = lazy()
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    with pytest.raises(UnsupportedError, match="before optimizer"):
        outputs.logits.sum()


def test_without_gradients_the_head_is_as_always():
    plain = build().eval()
    model = chunk_loss(copy.deepcopy(plain))
    with torch.no_grad():
        a, b = plain(**batch()), model(**batch())
    assert type(b.logits) is torch.Tensor and torch.equal(a.logits, b.logits) and torch.equal(a.loss, b.loss)
    x = batch()["input_ids"]
    assert torch.equal(
        plain.generate(x, max_new_tokens=4, do_sample=False),
        model.generate(x, max_new_tokens=4, do_sample=False),
    )
