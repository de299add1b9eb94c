"""Hooks and torch's own tools on a converted model: equal, bit for bit, to the same model with everything
stored.
"""

import copy

import pytest
import torch
from models import LAYERS, converted, differing, gradients, tokens
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import revstep
from revstep import hf
from revstep._models.layers import decoder_layers
from revstep.stack import rebuilding
from revstep.stack._run import Pass


def make(keep=0, scheme="blend"):
    return converted("Llama", scheme, convert={"keep": keep}).train()


def layers(model):
    return decoder_layers(model)[1]


def rebuilt_and_stored(prepare, scheme="blend"):
    """(gradients, what ``prepare(model)`` returned) of both models, with equal gradients and an
    exact report.
    """
    out = []
    for keep in (0, LAYERS):
        model = make(keep, scheme)
        noted = prepare(model)
        out.append((gradients(model), noted))
        assert keep or hf.conversion(model).report.exact
    assert differing(out[0][0], out[1][0]) == []
    return out


SCHEMES = ["blend", "hamiltonian"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hooks_on_decoder_layers(scheme):
    """Forward hooks are called once: a layer's own call is the step, and only what is in it is evaluated
    again. Backward hooks change nothing by being there, and see the whole gradient of the state, which a hook
    on the tensor itself sees."""

    def prepare(model):
        seen = {"order": [], "whole": {}, "output": {}, "input": {}}
        for i, layer in enumerate(layers(model)):
            layer.register_forward_pre_hook(
                lambda m, args, kwargs, i=i: seen["order"].append((i, rebuilding())), with_kwargs=True
            )
            layer.register_forward_hook(
                lambda m, args, out, i=i: _hook(out, lambda g: seen["whole"].update({i: g.clone()}))
            )
            layer.register_full_backward_hook(
                lambda m, gi, go, i=i: (
                    seen["output"].update({i: go[0].clone()}) or seen["input"].update({i: gi[0].clone()})
                )
            )
            layer.register_full_backward_pre_hook(lambda m, go, i=i: seen["order"].append(("backward", i)))
        return seen

    (ours, seen), (_, expected) = rebuilt_and_stored(prepare, scheme)
    assert differing(ours, gradients(make(scheme=scheme))) == []
    assert (
        seen["order"]
        == expected["order"]
        == [(i, False) for i in range(LAYERS)] + [("backward", i) for i in reversed(range(LAYERS))]
    )
    for name in ("whole", "output", "input"):
        assert differing(seen[name], expected[name]) == [] and len(seen[name]) == LAYERS
    assert differing(seen["output"], seen["whole"]) == []
    assert all(torch.equal(seen["input"][i + 1], seen["whole"][i]) for i in range(LAYERS - 1))


def _hook(out, function):
    (out if isinstance(out, torch.Tensor) else out[0]).register_hook(function)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_step_that_goes_around_the_nodes_of_a_hook_is_told_apart(scheme, monkeypatch):
    """What the test above must reject: only the block reads the state behind the hook's node, so the hook
    sees a part of the gradient.
    """
    step = Pass.step

    def around(self, args, kwargs, at=None):
        view = self.view
        aux = step(self, args, kwargs, at)
        if at is not None:
            self.pair.views[self.done % 2] = view
        return aux

    monkeypatch.setattr(Pass, "step", around)
    with pytest.raises(AssertionError):
        test_hooks_on_decoder_layers(scheme)


def test_backward_hooks_that_change_gradients():
    def prepare(model):
        layers(model)[2].register_full_backward_hook(
            lambda m, gi, go: tuple(None if g is None else 0 * g for g in gi)
        )
        layers(model)[1].mlp.register_full_backward_hook(lambda m, gi, go: tuple(2 * g for g in gi))
        layers(model)[0].self_attn.o_proj.register_full_backward_pre_hook(
            lambda m, go: (go[0].clamp(-0.01, 0.01),)
        )

    (ours, _), _ = rebuilt_and_stored(prepare)
    plain = gradients(make())
    changed = {name.split(".")[2] for name in differing(ours, plain) if ".layers." in name}
    assert changed == {"0", "1"}  # none of the layers above


def test_forward_hooks_inside_a_layer_run_in_both_evaluations():
    def prepare(model):
        calls = []
        for i, layer in enumerate(layers(model)):
            layer.mlp.register_forward_hook(
                lambda m, args, out, i=i: calls.append((i, rebuilding())) or 0.5 * out
            )
        return calls

    (ours, calls), (_, expected) = rebuilt_and_stored(prepare)
    assert expected == [(i, False) for i in range(LAYERS)] and calls == expected + [
        (i, True) for i in reversed(range(LAYERS))
    ]
    assert differing(ours, gradients(make()))


def test_hooks_that_change_a_hidden_state_are_refused():
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model = make()
        getattr(layers(model)[2], register)(
            (lambda m, args, out: 2 * out)
            if register == "register_forward_hook"
            else (lambda m, args: (2 * args[0],))
        )
        with pytest.raises(revstep.UnsupportedError, match="changed the hidden state between decoder layers"):
            gradients(model)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_optimiser_in_backward(scheme):
    def prepare(model):
        def step(p):
            with torch.no_grad():
                p.sub_(0.05 * p.grad)
            p.grad = None

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        gradients(model)
        return {name: p.detach() for name, p in model.named_parameters()}

    (_, ours), (_, stored) = rebuilt_and_stored(prepare, scheme)
    assert differing(ours, stored) == [] and differing(ours, dict(make(scheme=scheme).named_parameters()))


def test_parametrised_weights():
    def prepare(model):
        for layer in layers(model):
            parametrizations.spectral_norm(layer.mlp.down_proj)
            parametrizations.weight_norm(layer.mlp.up_proj)
            parametrizations.orthogonal(layer.self_attn.o_proj)
        return model

    (_, a), (_, b) = rebuilt_and_stored(prepare)
    assert differing(dict(a.named_buffers()), dict(b.named_buffers())) == []


def test_checkpoint_and_offloading_around_the_model():
    ids = tokens()

    def loss(model, embedded):
        return model(inputs_embeds=embedded, labels=ids, use_cache=False).loss

    results = []
    for keep, way in (
        (LAYERS, None),
        (0, None),
        (0, {"use_reentrant": False}),
        (0, {"use_reentrant": True}),
        (0, "offload"),
    ):
        model = make(keep)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        if way == "offload":
            with save_on_cpu():
                value = loss(model, embedded)
        else:
            value = loss(model, embedded) if way is None else checkpoint(loss, model, embedded, **way)
        value.backward()
        results.append({"x": embedded.grad} | {name: p.grad for name, p in model.named_parameters()})
        assert keep or hf.conversion(model).report.exact
    assert all(differing(r, results[0]) == [] for r in results[1:]) and results[0]["x"].any()


def test_averaged_and_copied_models_are_conversions_of_their_own():
    model = make()
    expected = gradients(model)
    average = AveragedModel(model)
    average.update_parameters(model)
    for twin in (average.module, copy.deepcopy(model)):
        assert (
            hf.conversion(twin) is not hf.conversion(model)
            and hf.conversion(twin).layers[0] is layers(twin)[0]
        )
        hf.conversion(twin).stack.report = None
        assert differing(gradients(twin), expected) == [] and hf.conversion(twin).report.exact
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert differing(gradients(average.module), expected) == [] and differing(gradients(model), expected)


def test_weights_changed_before_backward_are_caught():
    model, ids = make(), tokens()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    with torch.no_grad():
        nn.init.ones_(layers(model)[1].post_attention_layernorm.weight).mul_(1.01)
    with pytest.raises(revstep.ReconstructionError, match="its weights") as caught:
        loss.backward()
    assert caught.value.layer == 1
