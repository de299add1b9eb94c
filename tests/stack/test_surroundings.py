"""What surrounds a forward pass is entered again where a block is evaluated again, and
what was in force is put back.
"""

import contextlib

import pytest
import torch
from stacks import batch, run, same, stack
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import revstep
from revstep._recurrence.ambient import SWITCHES, Switches
from revstep.stack import _surroundings

OTHER = {
    "attention kernels": lambda: sdpa_kernel(SDPBackend.MATH),
    "precision of float32 kernels": lambda: precision(),
    "reduced precision in 16-bit products": lambda: attribute(
        torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False
    ),
    "deterministic algorithms": lambda: set_to("deterministic algorithms", (True, True)),
    "kernel libraries": lambda: torch.backends.mkldnn.flags(enabled=False),
    "number of threads": lambda: set_to("number of threads", torch.get_num_threads() + 1),
    "default dtype": lambda: set_to("default dtype", torch.float64),
    "default device, modes of torch functions": lambda: torch.device("cpu"),
    "global forward hooks": lambda: global_hook(),
}


def switch(name):
    return next(s for s in SWITCHES if s.name == name)


@contextlib.contextmanager
def set_to(name, value):
    before = switch(name).read()
    switch(name).write(value)
    try:
        yield
    finally:
        switch(name).write(before)


@contextlib.contextmanager
def precision():
    """Both ways of setting it. Torch's own way back leaves the libraries' settings other than they
    were, so the switch writes them.
    """
    before = switch("precision of float32 kernels").read()
    torch.set_float32_matmul_precision("high")
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch("precision of float32 kernels").write(before)


@contextlib.contextmanager
def attribute(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def global_hook():
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, args: None)
    try:
        yield
    finally:
        handle.remove()


def values():
    return [s.read() for s in SWITCHES]


def passes(name, around):
    """What every evaluation found, forward pass and re-evaluations, with the other setting
    around ``around`` of the two passes.
    """
    found = []
    module = stack("blend", 3, dropout=0.0)
    for b in module.blocks:
        b.register_forward_hook(lambda *_: found.append(switch(name).read()))
    before = values()
    with OTHER[name]() if around == "forward" else contextlib.nullcontext():
        y = module(batch())
    with OTHER[name]() if around == "backward" else contextlib.nullcontext():
        inside = values()
        y.square().sum().backward()
        assert values() == inside  # put back
    assert values() == before and module.report.exact
    return found


@pytest.mark.parametrize("around", ["forward", "backward"])
@pytest.mark.parametrize("name", [s.name for s in SWITCHES])
def test_a_switch_is_entered_again(name, around):
    usual = switch(name).read()
    found = passes(name, around)
    assert len(found) == 6 and all(value == found[0] for value in found)
    assert (found[0] != usual) == (around == "forward")


def test_every_switch_has_another_setting_here():
    assert set(OTHER) == {s.name for s in SWITCHES}


@pytest.mark.parametrize("name", [s.name for s in SWITCHES])
def test_a_switch_that_is_left_is_told_apart(name, monkeypatch):
    """The mutant: nothing is entered again. Either the block's bits differ, or what its hook finds does."""
    monkeypatch.setattr(Switches, "enter", lambda self, stack: None)
    try:
        found = passes(name, "forward")
    except revstep.ReconstructionError:
        return
    assert any(value != found[0] for value in found)


# ---- modules ----


class Moody(nn.Module):
    """Another function in each mode, behind a gate that is zero."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.gate * torch.tanh(self.inner(x) * (2.0 if self.training else 1.0))


def moody(keep):
    torch.manual_seed(0)
    return revstep.ReversibleStack([Moody() for _ in range(3)], revstep.Blend(), keep=keep)


def removed_hooks(module):
    handles = [b.inner.register_forward_hook(lambda m, args, out: 3 * out) for b in module.blocks]

    def moved(m, args, kwargs):
        return (args[0] + 1,), kwargs

    handles += [b.register_forward_pre_hook(moved, with_kwargs=True) for b in module.blocks]
    return lambda: [h.remove() for h in handles]


def added_hooks(module):
    return lambda: [b.inner.register_forward_hook(lambda m, args, out: 3 * out) for b in module.blocks]


CHANGES = {
    "eval before backward": lambda m: m.eval,
    "train before backward": lambda m: (m.eval(), m.train)[1],
    "one submodule": lambda m: lambda: m.blocks[1].inner[1].eval(),
    "hooks removed": removed_hooks,
    "hooks added": added_hooks,
    "requires_grad off": lambda m: lambda: m.blocks[1].requires_grad_(False),
    "requires_grad on": lambda m: (
        m.blocks[1].inner.requires_grad_(False),
        lambda: m.blocks[1].requires_grad_(True),
    )[1],
}


def condition(module):
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in module.modules()]
    return modes, [p.requires_grad for p in module.parameters()]


def changed(change, keep):
    module = moody(keep)
    between = CHANGES[change](module)
    x = batch()
    torch.manual_seed(5)
    y = module(x)
    between()
    state = condition(module)
    y.square().sum().backward()
    assert state == condition(module)
    assert keep or module.report.exact
    return [x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("change", CHANGES)
def test_modules_are_as_they_were(change):
    """The gradients are those of the stored pass, which is evaluated once."""
    assert same(changed(change, 0), changed(change, 3))


@pytest.mark.parametrize("change", CHANGES)
def test_modules_left_as_they_are_now_are_an_error(change, monkeypatch):
    members = revstep.stack._members.Members
    monkeypatch.setattr(members, "as_recorded", lambda self, *records: contextlib.nullcontext())
    with pytest.raises(revstep.ReconstructionError):
        changed(change, 0)


def test_all_is_put_back_after_an_error():
    module = moody(0)
    y = module(batch())
    module.eval()
    with torch.no_grad():
        module.blocks[2].inner[0].weight.mul_(2)
    before = values()
    with pytest.raises(revstep.ReconstructionError):
        y.sum().backward()
    assert not any(m.training for m in module.modules()) and values() == before


def test_a_replaced_submodule_is_named_before_anything_is_computed():
    module, calls = moody(0), []
    y = module(batch())
    module.blocks[0].inner = nn.Sequential(nn.Linear(32, 32))
    for b in module.blocks:
        b.register_forward_hook(lambda *_: calls.append(1))
    text = r"layer 0: its submodule 'inner' was Sequential .* is Sequential now.*merged"
    with pytest.raises(revstep.ReconstructionError, match=text) as caught:
        y.sum().backward()
    assert caught.value.layer == 0 and not calls
    module.blocks[0].inner.add_module("more", nn.Tanh())
    run(module, batch())
    y = module(batch())
    del module.blocks[0].inner.more
    text = "'number 1' was Tanh in the forward pass and is not there now"
    with pytest.raises(revstep.ReconstructionError, match=text):
        y.sum().backward()


def test_a_hook_that_removes_itself_is_not_called_again():
    """It is gone when the block has been evaluated, and belongs to that evaluation alone; where it changes
    values, they are found to differ.
    """
    refused = pytest.raises(revstep.ReconstructionError)
    for factor, outcome in ((1.0, contextlib.nullcontext()), (2.0, refused)):
        module, calls, handles = moody(0), [], []

        def once(m, args, out, factor=factor, calls=calls, handles=handles):
            calls.append(1)
            handles[0].remove()
            return factor * out

        handles.append(module.blocks[1].inner.register_forward_hook(once))
        with outcome:
            run(module, batch())
        assert calls == [1]


def test_the_table_lists_every_switch():
    assert {s.name for s in SWITCHES} <= {what for what, _, _ in _surroundings.TABLE}
