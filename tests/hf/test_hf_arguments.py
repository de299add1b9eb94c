"""What the model gives its layers reaches them as before (masks, position embeddings, windows), and what it
returns is what it says.
"""

import concurrent.futures
import itertools

import pytest
import torch
from models import LAYERS, MODELS, SCHEMES, converted, differing, gradients, model, tokens

from revstep import hf
from revstep._models.layers import decoder_layers
from revstep.hf._layer_steps import Conversion

ATTENTION = ("self_attn", "attn", "attention")


def attention(layer):
    return next(getattr(layer, name) for name in ATTENTION if hasattr(layer, name))


def given(module, **inputs):
    """What each layer's attention is given by the model beside the hidden state: {(layer, name): value}."""
    seen, handles = {}, []

    def looking(i):
        def hook(_, args, kwargs):
            for name, value in [*enumerate(args[1:]), *kwargs.items()]:
                if name != "hidden_states":
                    seen[i, name] = value

        return hook

    for i, layer in enumerate(decoder_layers(module)[1]):
        handles.append(attention(layer).register_forward_pre_hook(looking(i), with_kwargs=True))
    with torch.no_grad():
        module(use_cache=False, **inputs)
    for handle in handles:
        handle.remove()
    return seen


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def padded():
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, :5] = 0
    return {"input_ids": tokens(), "attention_mask": mask}


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize("family", MODELS)
def test_masks_and_positions_reach_every_layer(family, scheme):
    if (family, scheme) == ("OPT", "hamiltonian"):
        pytest.skip("OPT does not split")
    plain, made = (
        given(model(family, attn="eager"), **padded()),
        given(converted(family, scheme, attn="eager"), **padded()),
    )
    assert plain.keys() == made.keys() and {i for i, _ in plain} == set(range(LAYERS))
    assert all(equal(plain[key], made[key]) for key in plain if key[1] != "past_key_values")
    masks = [made[i, "attention_mask"] for i in range(LAYERS)]
    assert all(m is not None for m in masks)
    if family in ("Qwen2", "Gemma2", "Gemma3"):  # sliding and full layers in turn
        assert (
            torch.equal(masks[0], masks[2])
            and torch.equal(masks[1], masks[3])
            and not torch.equal(masks[0], masks[1])
        )
    if family == "Gemma3":
        assert not equal(made[0, "position_embeddings"], made[1, "position_embeddings"]), (
            "local and global rotary tables"
        )


def test_a_layer_given_anothers_mask_is_seen(monkeypatch):
    own, first = Conversion.run_layer, {}

    def run_layer(self, index, x, args, kwargs):
        first.setdefault("kwargs", kwargs)
        return own(self, index, x, args, kwargs | {"attention_mask": first["kwargs"]["attention_mask"]})

    monkeypatch.setattr(Conversion, "run_layer", run_layer)
    plain, made = (
        given(model("Gemma2", attn="eager"), **padded()),
        given(converted("Gemma2", attn="eager"), **padded()),
    )
    assert not all(equal(plain[key], made[key]) for key in plain)


@pytest.mark.parametrize("family", ["Qwen2", "Gemma3", "Mistral"])
def test_masked_training_equals_the_stored_one(family):
    """Backward evaluates each layer with its own mask and tables again."""
    mask = padded()["attention_mask"]
    made = [converted(family, convert={"keep": keep}).train() for keep in (0, LAYERS)]
    grads = [gradients(m, attention_mask=mask) for m in made]
    assert (
        differing(*grads) == []
        and differing(grads[0], gradients(made[0])) != []
        and hf.conversion(made[0]).report is not None
    )


# ---- what comes out ----


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "Gemma2"])
def test_hidden_states(family, scheme, train):
    made = converted(family, scheme).train(train)
    layers, inputs, outputs, normed = decoder_layers(made)[1], [], [], []

    def looking(_, args, out):
        inputs.append(args[0].detach())
        outputs.append(out.detach())

    for layer in layers:
        layer.register_forward_hook(looking)
    norm = made.transformer.ln_f if family == "GPT2LMHeadModel" else made.model.norm
    norm.register_forward_hook(lambda _, args, out: normed.append((args[0].detach(), out.detach())))
    out = made(input_ids=tokens(), labels=tokens(), output_hidden_states=True, use_cache=False)
    got = out.hidden_states
    assert len(got) == LAYERS + 1 and torch.equal(got[0], inputs[0])
    assert all(torch.equal(got[i], outputs[i - 1]) for i in range(1, LAYERS)), "one layer's state each"
    assert torch.equal(outputs[-1], normed[0][0]) and torch.equal(got[-1], normed[0][1])
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(got))
    if train:
        kept = [t.clone() for t in got]
        out.loss.backward()
        assert len(out.hidden_states) == LAYERS + 1 and all(
            torch.equal(a, b) for a, b in zip(kept, out.hidden_states)
        )


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "Llama", "Gemma2"])
def test_attentions(family, scheme):
    """One matrix a layer, its rows sum to one, under the mask; and the gradient of a loss on them is the
    stored one.
    """
    grads = []
    for keep in (0, LAYERS):
        made = converted(family, scheme, attn="eager", convert={"keep": keep}).train()
        out = made(**padded(), output_attentions=True, use_cache=False)
        assert len(out.attentions) == LAYERS and all(a.shape == (2, 4, 12, 12) for a in out.attentions)
        assert all(
            torch.allclose(a[0].sum(-1), torch.ones(4, 12)) and not a[0].triu(1).any() for a in out.attentions
        )
        assert not out.attentions[1][1, :, 6:, :5].any(), "padding is not looked at"
        sum(a.square().sum() for a in out.attentions[1:3]).backward()
        grads.append({name: p.grad for name, p in made.named_parameters()})
    assert differing(*grads) == [] and any(g is not None and g.any() for g in grads[0].values())


@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "Llama"])
def test_gradients_through_hidden_states(family):
    """A loss that reads inner states (distillation) differentiates as the stored recurrence."""
    grads = []
    for keep in (0, LAYERS):
        made = converted(family, convert={"keep": keep}).train()
        out = made(input_ids=tokens(), output_hidden_states=True, use_cache=False)
        (out.hidden_states[2].square().sum() + out.logits.square().sum()).backward()
        grads.append({name: p.grad for name, p in made.named_parameters()})
    assert differing(*grads) == []


@pytest.mark.parametrize("family", MODELS)
def test_labels_tuples_and_embeddings_as_input(family):
    made, ids = converted(family).train(), tokens()
    out = made(input_ids=ids, labels=ids, use_cache=False)
    logits = out.logits[:, :-1].reshape(-1, out.logits.shape[-1])
    loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:].reshape(-1))
    aux = getattr(out, "aux_loss", None)
    expected = loss if aux is None else loss + made.config.router_aux_loss_coef * aux
    assert abs(float(out.loss - expected)) <= 8 * torch.finfo(torch.float32).eps * float(expected)
    assert torch.equal(made(input_ids=ids, labels=ids, use_cache=False, return_dict=False)[0], out.loss)
    inputs = made.get_input_embeddings()(ids)
    assert torch.equal(made(inputs_embeds=inputs, use_cache=False).logits, out.logits)


def test_two_threads_at_once():
    """Each thread has its own pass: the layers' calls of one do not end up in the other's."""
    made = converted("Llama")
    rows = [tokens(seed=s) for s in range(4)]
    expected = [logits_of(made, ids) for ids in rows]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(logits_of, [made] * 4, rows), expected))


def logits_of(module, ids):
    with torch.no_grad():
        return module(input_ids=ids, use_cache=False).logits
