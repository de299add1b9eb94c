"""keep="auto": as many layers' graphs as a memory budget holds, the same gradients to the bit. What a layer
kept is let go once backward has passed it.
"""

import pytest
import torch
from stacks import EXACT, SCHEMES, batch, bf16, run, same, stack
from torch import nn

import revstep
from revstep.errors import ReconstructionError
from revstep.stack import _selection
from revstep.stack._tape import Tape

LAYERS = 5


def measured(name="blend", state="fixed32", **options):
    """Bytes that autograd keeps for one more kept layer, seen from outside: by a pack hook of our own."""

    def saved(keep):
        module, x = stack(name, LAYERS, state, keep=keep, **options), batch()
        leaves = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: found.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            y = module(x)
        assert y.requires_grad
        return sum(t.untyped_storage().nbytes() for p, t in found.items() if p not in leaves)

    return saved(3) - saved(2)


@pytest.mark.parametrize("state", EXACT)
@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_do_not_change_by_a_bit(name, state):
    x, expected = batch(), run(stack(name, LAYERS, state, keep=LAYERS), batch())
    each = measured(name, state)
    for layers in range(LAYERS + 1):
        module = stack(name, LAYERS, state, keep="auto", memory_budget=layers * each)
        assert same(run(module, x), expected), layers
        assert (
            module.report is None
            if layers == LAYERS
            else (module.report.exact and module.report.kept == layers)
        )


@pytest.mark.parametrize("name", ["blend", "hamiltonian"])
def test_a_byte_less_is_a_layer_less(name):
    each = measured(name)
    for bytes_, kept in ((each - 1, 0), (3 * each - 1, 2), (3 * each, 3)):
        module = stack(name, LAYERS, keep="auto", memory_budget=bytes_)
        run(module, batch())
        assert module.report.kept == kept


def test_decided_in_each_forward():
    module = stack("blend", LAYERS, keep="auto", memory_budget=2 * measured())
    x = batch()
    kept = []
    for rows in (x, torch.cat([x, x]).detach().requires_grad_(), x[:1].detach().requires_grad_()):
        run(module, rows)
        kept.append(None if module.report is None else module.report.kept)
    assert kept[:2] == [2, 1] and (kept[2] is None or kept[2] > 2)  # None: all of them, nothing was rebuilt


def test_weights_buffers_and_arguments_do_not_count():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32) / 32)
            self.register_buffer("scale", torch.ones(512, 1, 32))

        def forward(self, x, table):
            return ((x @ self.weight) * self.scale[: x.shape[0]] * table[: x.shape[0]]).tanh()

    x, table = torch.randn(4, 16, 32, requires_grad=True), torch.randn(999, 16, 32)
    blocks = [Wide() for _ in range(LAYERS)]
    whole = 4 * x.numel() * 2  # x for the weight, and what tanh returns
    for bytes_, kept in ((whole * 2 + 400, 2), (whole * 2 - 400, 1)):
        module = stack(blocks=blocks, keep="auto", memory_budget=bytes_)
        module(x, table).sum().backward()
        assert module.report.kept == kept


def test_autocast_and_frozen_first_layers():
    for context in (bf16, torch.enable_grad):
        reference, auto = (
            stack("blend", LAYERS, keep=LAYERS),
            stack("blend", LAYERS, keep="auto", memory_budget=60_000),
        )
        for module in (reference, auto):
            module.blocks[:2].requires_grad_(False)
        x = batch(grad=False)
        assert same(run(auto, x, context=context), run(reference, x, context=context))
        # Measured on layer 2, the first that has a graph.
        assert auto.report is not None and 0 < auto.report.kept < LAYERS - 2


def test_no_gradient_no_measurement(monkeypatch):
    def refuse(device):
        raise AssertionError("asked what is free")

    monkeypatch.setattr(_selection, "free_bytes", refuse)
    module = stack("blend", LAYERS, keep="auto", memory_budget=0.5)
    with torch.no_grad():
        module(batch())
    module.states(batch())
    with pytest.raises(AssertionError, match="asked"):
        module(batch())


def test_a_fraction_is_of_what_is_free(monkeypatch):
    each = measured()
    monkeypatch.setattr(_selection, "free_bytes", lambda device: 4 * each)
    module = stack("blend", LAYERS, keep="auto", memory_budget=0.5)
    run(module, batch())
    assert module.report.kept == 2


def test_an_earlier_verdict_is_not_this_ones():
    module = stack("blend", LAYERS, keep="auto", memory_budget=0)
    run(module, batch())
    assert module.report.exact
    module.memory_budget = 10**9
    run(module, batch())
    assert module.report is None


@pytest.mark.parametrize("change", ["all layers are kept", "a scheme that forgets in evaluation"])
def test_a_pass_that_rebuilds_nothing_has_no_report(change):
    module = stack("bdia" if change.startswith("a scheme") else "blend", LAYERS)
    run(module, batch())
    assert module.report.exact
    if module.scheme.name == "bdia":
        module.eval()
    else:
        module.keep = LAYERS
    with torch.no_grad():
        module(batch())
    assert module.report.exact, "a pass without a gradient says nothing about one with"
    run(module, batch())
    assert module.report is None


def test_a_measured_block_that_writes_to_what_was_saved_is_noticed():
    class Spoils(nn.Module):
        def forward(self, x):
            y = x.exp()
            y.detach().mul_(2)  # exp saves y
            return y

    for bytes_ in (0, 10**9):
        module = stack(blocks=[Spoils()] * 2, keep="auto", memory_budget=bytes_)
        with pytest.raises(RuntimeError, match=r"in place after autograd|modified by an inplace"):
            module(0.1 * batch()).sum().backward()


@pytest.mark.parametrize("options, words", [
    ({"keep": "auto"}, "memory_budget is None, expected bytes"),
    ({"keep": "auto", "memory_budget": True}, "memory_budget is True"),
    ({"keep": "auto", "memory_budget": -1}, "memory_budget is -1"),
    ({"keep": "auto", "memory_budget": 1.5}, "a fraction of what is free"),
    ({"keep": 2, "memory_budget": 10}, "use keep='auto' with it"),
    ({"keep": "all"}, "or 'auto'"),
])  # fmt: skip
def test_refusals(options, words):
    with pytest.raises(revstep.ConfigError, match=words):
        stack("blend", LAYERS, **options)


def test_free_bytes(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:  40 kB\n")
    assert (
        _selection._available(tmp_path / "meminfo") == 40960
        and _selection._available(tmp_path / "none") is None
    )
    for limit, expected in (("max", None), ("5000", 3000), ("1000", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("2000\n")
        assert _selection._below_cgroup_limit(tmp_path) == expected
    assert _selection.free_bytes(torch.device("cpu")) > 0
    with pytest.raises(revstep.ConfigError, match="give it in bytes"):
        _selection.free_bytes(torch.device("meta"))


# ---- what a layer keeps is let go ----


def carries_left(module, x, **options):
    """Layers that still hold their carry at the moment when the gradient of each layer's first weight
    arrives, from the last layer to the first.
    """
    tapes, left = [], []
    made = Tape.finish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "finish", lambda self: (tapes.append(self), made(self))[1])
        y = module(x)
    handles = [
        next(block.parameters()).register_hook(
            lambda g: left.append(sum(r.carry is not None and r.carry.numel() > 0 for r in tapes[0].records))
        )
        for block in module.blocks
    ]
    y.sum().backward(**options)
    for handle in handles:
        handle.remove()
    return left


def test_carries_are_let_go_layer_by_layer():
    module = stack("blend", LAYERS, dropout=0.0)
    assert carries_left(module, batch()) == [4, 3, 2, 1, 0]
    assert carries_left(module, batch(), retain_graph=True) == [5] * LAYERS


def test_carries_stay_for_a_second_backward_beside_the_gate():
    """Tensors that a hook recorded: the first backward does not pass the gate, the second one does and needs
    every carry.
    """
    module, seen = stack("blend", LAYERS, dropout=0.0), []
    handle = module.blocks[1].register_forward_hook(lambda m, a, y: seen.append(y) if not seen else None)
    x = batch()
    y = module(x)
    handle.remove()
    last = list(module.blocks[1].parameters())[-1]
    torch.autograd.grad(seen[0].sum(), last)
    others = [p for b in module.blocks[2:] for p in b.parameters()]
    got = torch.autograd.grad(y.sum(), others)
    reference = stack("blend", LAYERS, dropout=0.0, keep=LAYERS)
    expected = torch.autograd.grad(
        reference(x).sum(), [p for b in reference.blocks[2:] for p in b.parameters()]
    )
    assert same(got, expected)


# ---- broken variants that the tests above reject ----


def test_mutant_counts_weights(monkeypatch):
    monkeypatch.setattr(
        Tape, "measured", lambda self: sum(_selection.storages(s.held for s in self._measured).values())
    )
    with pytest.raises(AssertionError):
        test_a_byte_less_is_a_layer_less("blend")


def test_mutant_forgets_what_it_stored(monkeypatch):
    settle = Tape.settle
    monkeypatch.setattr(Tape, "settle", lambda self, stored: settle(self, False))
    # The states of a pass without a tape are nowhere.
    with pytest.raises(revstep.UnsupportedError, match="must be stored"):
        test_gradients_do_not_change_by_a_bit("blend", "fixed32")


def test_mutant_lets_go_although_the_gate_was_not_passed(monkeypatch):
    wind = Tape.wind
    monkeypatch.setattr(
        Tape, "wind", lambda self, last, pin=False, release=False: wind(self, last, pin, True)
    )
    # The states that it took for its own were written over.
    with pytest.raises(ReconstructionError, match="was changed since the forward pass"):
        test_carries_stay_for_a_second_backward_beside_the_gate()
