"""Nothing of a forward pass that fails, or stops, survives it in a converted model."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from models import LAYERS, converted, differing, gradients, tokens

from revstep import StateOverflowError, UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf._layer_steps import Conversion
from revstep.stack._run import Pass

#: No graph is kept, two, all, as many as a budget holds; two streams.
KINDS = {
    "rebuilt": ("blend", {}),
    "two kept": ("blend", {"keep": 2}),
    "all kept": ("blend", {"keep": LAYERS}),
    "auto": ("blend", {"keep": "auto", "memory_budget": 200_000}),
    "hamiltonian": ("hamiltonian", {}),
}


class Stop(Exception):
    pass


def raising(error):
    """A hook; a new exception each time, for one that is kept keeps the frames it came through."""

    def hook(*_, **__):
        raise error("on purpose")

    return hook


def in_a_layer(made, error):
    return decoder_layers(made)[1][3].mlp.register_forward_pre_hook(raising(error))


def before_a_layer(made, error):
    return decoder_layers(made)[1][3].register_forward_pre_hook(raising(error))


def after_a_layer(made, error):
    return decoder_layers(made)[1][2].register_forward_hook(raising(error))


def behind_the_last(made, error):
    return decoder_layers(made)[1][3].register_forward_hook(raising(error))


def in_the_norm(made, error):
    return made.model.norm.register_forward_pre_hook(raising(error))


def changing_the_state(made, _):
    return decoder_layers(made)[1][2].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))


WAYS = {
    "in a layer": (in_a_layer, RuntimeError),
    "interrupted in a layer": (in_a_layer, KeyboardInterrupt),
    "before a layer": (before_a_layer, Stop),
    "interrupted before a layer": (before_a_layer, KeyboardInterrupt),
    "after a layer": (after_a_layer, Stop),
    "leaving after a layer": (after_a_layer, SystemExit),
    "behind the last layer": (behind_the_last, Stop),
    "in the norm": (in_the_norm, Stop),
    "state changed": (changing_the_state, UnsupportedError),
}


class Held:
    pass


class Mark(torch.autograd.Function):
    """Its node dies with the graph of the layer that it is in."""

    @staticmethod
    def forward(ctx, x, seen):
        ctx.held = Held()
        seen.append(weakref.ref(ctx.held))
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g, None


@pytest.fixture
def alive(monkeypatch):
    """How many passes, and graphs of marked layers, there still are."""
    seen, begin = [], Pass.__init__

    def noted(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        seen.append(weakref.ref(self))

    monkeypatch.setattr(Pass, "__init__", noted)

    def count():
        gc.collect()
        assert seen, "no pass was begun"
        return sum(ref() is not None for ref in seen)

    count.seen = seen
    return count


def fails(made, error=BaseException):
    """A training pass that is expected to fail; the exception is forgotten: it holds frames."""
    ids = tokens()
    try:
        made(input_ids=ids, labels=ids, use_cache=False)
    except error as found:
        return type(found), str(found)
    return None, ""


def marked(made, seen):
    layer = decoder_layers(made)[1][2].mlp
    return layer.register_forward_hook(lambda module, args, out: Mark.apply(out, seen))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left(alive, kind, way):
    scheme, options = KINDS[kind]
    made = converted("Llama", scheme, convert=options).train()
    expected = gradients(made)
    made.zero_grad(set_to_none=True)
    handles = [marked(made, alive.seen), WAYS[way][0](made, WAYS[way][1])]
    assert fails(made)[0] is WAYS[way][1] and alive() == 0 and not vars(hf.conversion(made)._local)
    for handle in handles:
        handle.remove()
    assert differing(gradients(made), expected) == [], "the next pass is as if nothing had happened"


@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "OPT", "GPTNeoX", "Gemma2"])
def test_other_loops(alive, family):
    made = converted(family).train()
    handle = before_a_layer(made, Stop)
    assert fails(made)[0] is Stop and alive() == 0
    handle.remove()
    assert differing(gradients(made), gradients(converted(family).train())) == []


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies(alive, duplicate):
    made = duplicate(converted("Llama", convert={"keep": 1})).train()
    before_a_layer(made, Stop)
    assert fails(made)[0] is Stop and alive() == 0


def test_under_peft_and_compile(alive):
    peft = pytest.importorskip("peft")
    made = peft.get_peft_model(converted("Llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).train()
    handle = before_a_layer(made, Stop)
    assert fails(made)[0] is Stop and alive() == 0
    handle.remove()
    # With padding both make a mask: without it, transformers makes one only while it is traced, and attention
    # takes another kernel.
    padded = {"attention_mask": (torch.arange(12) < 11).long().expand(2, 12)}
    expected = gradients(made, **padded)
    compiled = torch.compile(made, backend="eager")
    found = gradients(compiled, **padded)
    assert differing(expected, {name.removeprefix("_orig_mod."): g for name, g in found.items()}) == []
    before_a_layer(made, Stop)
    assert fails(compiled)[0] is Stop
    torch._dynamo.reset()
    assert alive() == 0


def test_an_overflow(alive):
    made = converted("Llama", convert={"state": "fixed32:20"}).train()
    with torch.no_grad():
        decoder_layers(made)[1][1].mlp.down_proj.weight.mul_(1e9)
    assert fails(made)[0] is StateOverflowError and alive() == 0


@pytest.mark.parametrize("grad", [True, False])
def test_an_early_exit_is_refused_and_leaves_nothing(alive, grad):
    made = converted("Llama").train()
    made.config.num_hidden_layers = 2
    with torch.set_grad_enabled(grad):
        kind, text = fails(made)
    assert kind is UnsupportedError and alive() == 0
    assert "LlamaModel stopped after 2 of its 4 decoder layers" in text
    assert "early exit" in text and "revert(model)" in text
    made.config.num_hidden_layers = LAYERS
    assert differing(gradients(made), gradients(converted("Llama").train())) == []


def test_another_threads_pass_goes_on(alive):
    """A pass that fails in one thread ends that one alone."""
    made = converted("Llama").train()
    expected, waiting, go = gradients(made), threading.Event(), threading.Event()

    def here(*_):
        if threading.current_thread().name == "slow":
            waiting.set()
            assert go.wait(60)
        else:
            raise Stop

    handle = decoder_layers(made)[1][2].register_forward_pre_hook(here)
    found = {}
    slow = threading.Thread(target=lambda: found.update(gradients(made)), name="slow")
    slow.start()
    assert waiting.wait(60) and fails(made)[0] is Stop
    go.set()
    slow.join()
    handle.remove()
    assert differing(found, expected) == []


# ---- the same check finds what is kept ----


@pytest.mark.parametrize("way", ["in a layer", "before a layer", "interrupted before a layer"])
@pytest.mark.parametrize("kind", ["rebuilt", "two kept"])
def test_a_pass_that_is_not_forgotten_is_found(alive, monkeypatch, kind, way):
    monkeypatch.setattr(Conversion, "_drop", lambda self: None)
    made = converted("Llama", KINDS[kind][0], convert=KINDS[kind][1]).train()
    marked(made, alive.seen)
    WAYS[way][0](made, WAYS[way][1])
    assert fails(made)[0] is WAYS[way][1] and alive() == 2, "the pass and the graph of layer 2"


def test_layers_alone_do_not_see_the_loop_fail(alive, monkeypatch):
    """The mutant: without the brackets around the loop, a hook that raises between layers leaves a pass."""
    made = converted("Llama").train()
    del made.model.forward
    before_a_layer(made, Stop)
    assert fails(made)[0] is Stop and alive() == 1
