"""Mixture of experts: the router's auxiliary loss reaches the router, as on the stored recurrence."""

import contextlib

import pytest
import torch
from models import LAYERS, SCHEMES, bf16, converted, differing, gradients, model, tokens

from revstep import hf
from revstep._models.layers import decoder_layers


def router_gradients(made):
    return [layer.mlp.gate.weight.grad for layer in decoder_layers(made)[1]]


def aux_alone(made, context):
    torch.manual_seed(3)
    made.zero_grad(set_to_none=True)
    with context():
        out = made(input_ids=tokens(), labels=tokens(), use_cache=False)
    out.aux_loss.backward()
    return {"loss": out.aux_loss.detach()} | {name: p.grad for name, p in made.named_parameters()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_router_loss_is_the_stored_one(scheme):
    made = [
        converted("Mixtral", scheme, convert={"keep": keep}, router_aux_loss_coef=0.5).train()
        for keep in (0, 1, LAYERS)
    ]
    grads = [gradients(m) for m in made]
    assert differing(grads[0], grads[2]) == differing(grads[1], grads[2]) == []
    assert hf.conversion(made[0]).report.exact and all(
        g is not None and g.any() for g in router_gradients(made[0])
    )
    without = converted("Mixtral", scheme, output_router_logits=False).train()
    assert all(not torch.equal(a, b) for a, b in zip(router_gradients(made[0]), _run(without))), (
        "the router loss should matter"
    )


def _run(made):
    gradients(made)
    return router_gradients(made)


@pytest.mark.parametrize("context", [contextlib.nullcontext, bf16], ids=["float32", "bf16 autocast"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_router_loss_alone(scheme, context):
    made = [converted("Mixtral", scheme, convert={"keep": keep}).train() for keep in (0, 2, LAYERS)]
    grads = [aux_alone(m, context) for m in made]
    assert differing(grads[0], grads[2]) == differing(grads[1], grads[2]) == []
    assert all(g.any() for g in router_gradients(made[0])) and grads[0]["model.embed_tokens.weight"].any()


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_one_router_a_layer(scheme):
    """The loss is the mean over the layers' own evaluations; on the plain model's small-c neighbour it is the
    plain model's.
    """
    out = converted("Mixtral", scheme).train()(input_ids=tokens(), labels=tokens(), use_cache=False)
    assert len(out.router_logits) == LAYERS
    near = hf.convert(model("Mixtral"), f"blend:c={2.0**-8}", say=None)(input_ids=tokens(), use_cache=False)
    plain = model("Mixtral")(input_ids=tokens(), use_cache=False)
    assert float((near.router_logits[0] - plain.router_logits[0]).abs().max()) < 1e-5, (
        "the first router sees the input, rounded to the grid"
    )
    assert abs(float(near.aux_loss - plain.aux_loss)) < 0.05 * float(plain.aux_loss)


def test_a_detached_router_loss_is_seen():
    """A router whose logits leave the layer without their graph."""

    def detached(_, args, out):
        return (out[0].detach(), *out[1:])

    made = [
        converted("Mixtral", convert={"keep": keep}, router_aux_loss_coef=0.5).train() for keep in (0, LAYERS)
    ]
    for layer in decoder_layers(made[0])[1]:
        layer.mlp.gate.register_forward_hook(detached, prepend=True)  # before transformers records it
    grads = [gradients(m) for m in made]
    assert any(name.endswith("gate.weight") for name in differing(*grads)) and torch.equal(
        grads[0]["loss"], grads[1]["loss"]
    )
