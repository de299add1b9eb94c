"""Siblings of the cases in which something around the pass was another one in backward: each trains as the
recurrence by hand does (see ``siblings.py``), or is named; and nothing around it has changed afterwards."""

import contextlib
import threading

import pytest
import torch
from siblings import TOLERANCE, Plain, built, distance, example, results, reversible
from torch import nn
from torch.nn.modules import module as globally
from torch.overrides import TorchFunctionMode

import revstep
from revstep._recurrence import ambient
from revstep.stack import _surroundings
from revstep.stack._run import Pass


class Block(nn.Module):
    """With dropout, and a gate that may be zero: what then differs is in no state."""

    def __init__(self, gate=1.0):
        super().__init__()
        self.inner, self.drop, self.outer = nn.Linear(6, 6), nn.Dropout(0.3), nn.Linear(6, 6)
        self.gate = nn.Parameter(torch.tensor(gate))

    def forward(self, x):
        return 0.3 * self.gate * self.outer(self.drop(torch.tanh(self.inner(x))))


def reading():
    others = [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), threading.active_count()]
    return [switch.read() for switch in ambient.SWITCHES] + others


def compare(before, between, gate, **options):
    """The distance from the recurrence; ``before`` and ``between`` are called before forward and backward."""
    found = []
    for wrap in (reversible, Plain):
        net = built(wrap, lambda: Block(gate), **(options if wrap is reversible else {}))
        undo = before(net) if before is not None else None
        around = reading()
        try:
            found.append(results(net, example(4, 6), between))
            if between is None:
                assert reading() == around
            if wrap is reversible:
                assert net.report.exact
        finally:
            if callable(undo):
                undo()
    return distance(*found)


# ---- what is done before forward (None: nothing), and between forward and backward ----


def eval_before(net):
    net.eval()


def train(net):
    net.train()


def eval_one(net):
    net.blocks[1].drop.eval()


def freeze(net):
    net.blocks[1].inner.requires_grad_(False)


def freeze_all(net):
    net.requires_grad_(False)


def unfreeze(net):
    net.requires_grad_(True)


def less_dropout(net):
    for block in net.blocks:
        block.drop.p = 0.0


def more_dropout(net):
    net.blocks[2].drop.p = 0.9


def hook(net):
    net.handles = [b.inner.register_forward_hook(lambda m, a, out: 2 * out) for b in net.blocks]


def prehook(net):
    net.handles = [b.inner.register_forward_pre_hook(lambda m, a: (2 * a[0],)) for b in net.blocks]


def prehook_with_keywords(net):
    def more(module, args, kwargs):
        return (1.5 * args[0],), kwargs

    net.handles = [b.register_forward_pre_hook(more, with_kwargs=True) for b in net.blocks]


def hook_always(net):
    net.handles = [b.register_forward_hook(lambda m, a, out: 1.5 * out, always_call=True) for b in net.blocks]


def backward_hook(net):
    net.handles = [b.inner.register_full_backward_hook(lambda m, gi, go: (2 * gi[0],)) for b in net.blocks]


def remove(net):
    for handle in net.handles:
        handle.remove()


def global_hook(net):
    def more(module, args, out):
        return 1.2 * out if isinstance(module, nn.Linear) else None

    handle = globally.register_module_forward_hook(more)
    net.handles = [handle]
    return handle.remove


def draws(net):
    net.handles = [b.register_forward_pre_hook(lambda m, a: torch.rand(1) and None) for b in net.blocks]


def reseed(net):
    torch.manual_seed(99)


def threads(net):
    torch.set_num_threads(2)
    return lambda: torch.set_num_threads(1)


def default_dtype(net):
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def default_device(net):
    torch.set_default_device("meta")

    def undo():
        torch.set_default_device(None)
        # torch 2.9 keeps the None, and torch.get_default_device raises from then on.
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)

    return undo


def autocast(net):
    region = torch.autocast("cpu", torch.bfloat16)
    region.__enter__()
    return lambda: region.__exit__(None, None, None)


class Doubling(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return 2 * out if function is torch.tanh else out


def mode(net):
    doubling = Doubling()
    doubling.__enter__()
    return lambda: doubling.__exit__(None, None, None)


PAIRS = {
    "in eval mode, backward in training mode": (eval_before, train),
    "one dropout to eval": (None, eval_one),
    "frozen after": (None, freeze),
    "all frozen after": (None, freeze_all),
    "frozen, unfrozen after": (freeze, unfreeze),
    "dropout switched off": (None, less_dropout),
    "another rate of dropout": (None, more_dropout),
    "hook added": (None, hook),
    "hook removed": (hook, remove),
    "pre-hook removed": (prehook, remove),
    "pre-hook with keywords removed": (prehook_with_keywords, remove),
    "hook that is always called removed": (hook_always, remove),
    "backward hooks": (backward_hook, None),
    "backward hooks removed": (backward_hook, remove),
    "global hook": (global_hook, None),
    "global hook removed": (global_hook, remove),
    "draws between the layers": (draws, None),
    "seeded again": (None, reseed),
    "threads": (None, threads),
    "default dtype": (None, default_dtype),
    "default device": (None, default_device),
    "autocast around backward": (None, autocast),
    "a mode of torch functions around both": (mode, None),
    "a mode of torch functions around backward": (None, mode),
}


@pytest.mark.parametrize("options", [{}, {"checks": "all"}, {"keep": 1}], ids=str)
@pytest.mark.parametrize("gate", [1.0, 0.0])
@pytest.mark.parametrize("name", PAIRS)
def test_trains_as_autograd_does(name, gate, options):
    assert compare(*PAIRS[name], gate, **options) < TOLERANCE


#: What must tell the difference when a mechanism is taken away: pairs that need it.
MODULES_NOT_ENTERED = (
    "in eval mode, backward in training mode", "one dropout to eval", "dropout switched off",
    "another rate of dropout", "hook added", "hook removed", "pre-hook removed",
    "pre-hook with keywords removed",
    "hook that is always called removed",
)  # fmt: skip
SWITCHES_NOT_ENTERED = ("global hook removed", "a mode of torch functions around both")


def wrong(name, gate):
    """Whether the pair is reported, or comes out as another gradient."""
    try:
        return compare(*PAIRS[name], gate) > TOLERANCE
    except revstep.ReconstructionError:
        return True


@pytest.mark.parametrize("name", MODULES_NOT_ENTERED)
def test_modules_not_entered_again_are_told_apart(name, monkeypatch):
    monkeypatch.setattr(_surroundings, "entered", lambda modules, before, after: contextlib.nullcontext())
    assert any(wrong(name, gate) for gate in (0.0, 1.0))  # a hook on the whole block acts behind the gate


@pytest.mark.parametrize("name", SWITCHES_NOT_ENTERED)
def test_switches_not_entered_again_are_told_apart(name, monkeypatch):
    monkeypatch.setattr(ambient.Switches, "enter", lambda self, stack: None)
    assert wrong(name, 0.0)


def test_generators_of_the_previous_layer_are_told_apart(monkeypatch):
    """The mutant: a layer's record is taken where the one before it ended, before draws in between."""
    get = ambient.Generators.get

    def late(generators):  # asked where each layer starts and where it ends
        calls = generators.__dict__["calls"] = generators.__dict__.get("calls", 0) + 1
        if 1 < calls < 6 and calls % 2:
            return generators.ended
        generators.ended = get(generators)
        return generators.ended

    monkeypatch.setattr(ambient.Generators, "get", late)
    with pytest.raises(revstep.ReconstructionError):
        compare(_drawing, None, 0.0)


def _drawing(net):
    """Random numbers between the layers, as a model's own loop draws them."""
    if isinstance(net, Plain):
        handles = [b.register_forward_pre_hook(lambda m, a: torch.rand(1) and None) for b in net.blocks]
        return lambda: [h.remove() for h in handles]
    step = Pass.step

    def drawing(run, *args, **kwargs):
        torch.rand(1)
        return step(run, *args, **kwargs)

    Pass.step = drawing
    return lambda: setattr(Pass, "step", step)


def test_draws_between_the_layers_of_a_loop():
    assert compare(_drawing, None, 0.0) < TOLERANCE


# ---- after an error ----


class Failing(Block):
    def forward(self, x):
        if revstep.stack.rebuilding():
            raise ValueError("only in backward")
        return super().forward(x)


def test_nothing_stays_changed_after_an_error():
    torch.manual_seed(1)
    net = reversible([Block(), Failing(), Block()])
    remove_hooks = [b.inner.register_forward_hook(lambda m, a, out: 2 * out) for b in net.blocks]
    x = example(4, 6)
    loss = net(x).square().sum()
    for h in remove_hooks:
        h.remove()
    net.eval()
    net.requires_grad_(False)
    for block in net.blocks:
        block.drop.p = 0.7
    before, generator = reading(), torch.get_rng_state()
    with pytest.raises(revstep.NonDeterministicBlockError, match=r"layer 1.*only in backward"):
        loss.backward()
    assert reading() == before and torch.equal(torch.get_rng_state(), generator)
    assert not any(m.training for m in net.blocks.modules())
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules()) and {b.drop.p for b in net.blocks} == {0.7}
    assert net.report is None
