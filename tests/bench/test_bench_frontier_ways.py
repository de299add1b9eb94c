"""Ways of the frontier that take a compiler, another count of bytes, or all weights: they are what they are
called, and what cannot be had here is left out or refused.
"""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from revstep.errors import ConfigError
from revstep_lab.bench import packages
from revstep_lab.bench.front import Progress
from revstep_lab.cases import _frontier_measure, _frontier_trunk, frontier
from revstep_lab.cases._frontier_pretrained import TILE, Pretrained, name_of
from revstep_lab.cases._frontier_trunk import OFFLOADED, OURS
from revstep_lab.cases.frontier import FrontierCase, run_frontier
from revstep_lab.cases.trunk import TrunkCase

TINY = TrunkCase(layers=4, width=16, heads=2, batch=2, length=16)
NO_COMPILER = {"what": "torch's activation memory budget", "reason": "no compiler"}


# ---- other counts and times ----


@pytest.fixture
def calls(monkeypatch):
    """One way, ``plain``, that writes down its steps."""
    found = []

    def plain(between):
        found.append("step")
        between()

    monkeypatch.setattr(frontier, "ways", lambda case: ({"plain": plain}, []))
    return found


def test_bytes_of_the_process_and_seconds_of_the_same_step(monkeypatch, calls, tmp_path):
    def by_process(step, prompt):
        assert prompt  # a heap that keeps what is freed would hide a peak
        step(lambda: calls.append("between"))
        return 7_000_000

    monkeypatch.setattr(_frontier_measure, "by_process", by_process)
    monkeypatch.setattr(
        _frontier_measure, "by_allocator", lambda step: pytest.fail("the allocator was asked")
    )
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(_frontier_measure, "clock_of", lambda case: lambda: next(clock))
    case, file = FrontierCase(timing="once", counted="process"), tmp_path / "points.json"
    found = run_frontier(case, resume=str(file), rounds=3)
    assert calls == ["step", "step", "between"]  # one that warms up, and the one that is counted and timed
    (row,) = found["measurements"]
    assert row["memory"] == {"peak": 7_000_000} and row["p50"] == 0.25
    assert json.loads(file.read_text())["seconds"] == {"plain": [0.25]}
    assert "resident bytes of the process" in str(frontier.tables(found))


def test_a_process_that_does_not_tell_is_refused(monkeypatch, calls, tmp_path):
    monkeypatch.setattr(_frontier_measure, "by_process", lambda step, prompt: None)
    case, file = FrontierCase(counted="process"), tmp_path / "points.json"
    with pytest.raises(
        ConfigError, match=r"counted is 'process', which works on Linux .*MALLOC_MMAP_THRESHOLD_"
    ):
        run_frontier(case, resume=str(file), rounds=1)
    assert not file.exists()


def test_a_round_that_was_begun_is_ended(tmp_path):
    """One way was timed before the interrupt, the other was not: it alone is timed in that round."""
    ran = []
    found = SimpleNamespace(steps={n: lambda between, n=n: ran.append(n) for n in ("a", "b")}, small={})
    kept = Progress(tmp_path / "points.json", {})
    kept.seconds = {"a": [1.0], "b": []}
    said = []
    _frontier_measure.time_rounds(FrontierCase(), found, ["a", "b"], kept, 2, {"a", "b"}, said.append)
    assert ran == ["b", "b", "a"] and kept.seconds["a"][0] == 1.0
    assert [len(times) for times in kept.seconds.values()] == [2, 2]
    assert said == ["round 1 of 2", "round 2 of 2"]


# ---- compilers ----


def test_without_a_compiler_the_trunk_is_not_compiled(monkeypatch):
    monkeypatch.setattr(packages, "no_compiler", lambda: "no compiler")
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("something was compiled"))
    steps, skipped = _frontier_trunk.ways(TINY)
    assert NO_COMPILER in skipped and not any("compiled" in name for name in steps)
    assert {"plain", "checkpoint, every block", f"{OURS}, midpoint (0 bits), keep=0"} <= set(steps)


def test_compiled_trunks_are_the_trunk_within_their_budgets(monkeypatch):
    """A graph each, which is run as it is: inductor's code takes a while to make."""
    from torch._functorch import config
    from torch._inductor import compile_fx

    torch._dynamo.reset()  # of other tests' graphs, of which it makes so many and no more
    budgets = []

    def made(graph, inputs):
        budgets.append(config.activation_memory_budget)
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", made)
    blocks = [nn.Linear(4, 4) for _ in range(3)]
    x = torch.randn(2, 4)
    plain = _frontier_trunk._run(blocks, x)
    before = config.activation_memory_budget
    for name, trunk in _frontier_trunk.compiled(blocks).items():
        budgets.clear()
        assert torch.equal(trunk(x), plain), name
        graphs = 1 if "block by block" not in name else len(set(map(type, blocks)))
        assert len(budgets) >= graphs and set(budgets) == {float(name.rsplit(" ", 1)[1])}, name
    assert config.activation_memory_budget == before


class Layer(nn.Module):
    """torch's own modules are not compiled by themselves."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return torch.tanh(self.inner(x))


def test_layers_are_compiled_for_one_step():
    torch._dynamo.reset()
    layers = [Layer() for _ in range(2)]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x = torch.randn(3, 2)
    wanted = [layer(x) for layer in layers]
    with pytest.raises(KeyError), Pretrained._compiled(SimpleNamespace(layers=layers), backend):
        assert all(torch.equal(layer(x), y) for layer, y in zip(layers, wanted)) and graphs
        raise KeyError  # a step that fails leaves the layers as they were, too
    graphs.clear()
    assert all(torch.equal(layer(x), y) for layer, y in zip(layers, wanted)) and not graphs
    assert all(layer._compiled_call_impl is None for layer in layers)


# ---- a pretrained model ----


def load():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def pretrained(**more):
    rows = torch.randint(0, 96, (1, 64), generator=torch.Generator().manual_seed(0))
    return Pretrained(FrontierCase(model="m", tokens=64, **more), load(), rows)


def test_without_a_compiler_no_layer_is_compiled(monkeypatch):
    with_one = pretrained()
    monkeypatch.setattr(packages, "no_compiler", lambda: "no compiler")
    made = pretrained()
    assert made.skipped == [*with_one.skipped, NO_COMPILER]
    compiled = {name for name in with_one.ways if name.startswith("compiled")}
    assert len(compiled) == 3 and set(with_one.ways) - set(made.ways) == compiled


def test_all_weights_may_be_stepped_inside_backward():
    """What is left of a step is then the same as of one that steps behind it."""
    fused = {
        "plain", "checkpoint, every layer", name_of(4, 0, None), name_of(4, 0, TILE),
        name_of(4, 2, None), name_of(4, 0, 2 * TILE),
    }  # fmt: skip
    lora, full = pretrained(), pretrained(adapting="full")
    assert not any("fused" in name for name in lora.ways)
    assert {name.removesuffix(", fused step") for name in full.ways if "fused" in name} == fused
    assert set(full.ways) - set(lora.ways) == {f"{n}, fused step" for n in fused} | {name_of(4, 0, 2 * TILE)}
    for name in ("plain", name_of(4, 0, None)):
        left = []
        for way in (name, f"{name}, fused step"):
            made = pretrained(adapting="full")
            before = [p.detach().clone() for p in made.model.parameters()]
            made.steps()[way](lambda: None)
            left.append([p.detach() for p in made.model.parameters()])
            assert all(p.grad is None for p in made.model.parameters())
            assert not any(torch.equal(a, b) for a, b in zip(before, left[-1]))
        for a, b in zip(*left):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


# ---- goals ----


def test_carries_in_host_memory_have_a_goal_of_their_own():
    def row(name, peak, predicted=False):
        return {"name": name, "peak": peak, "predicted": predicted, "plan": None}

    case = FrontierCase(model="m", tokens=frontier.TOKENS)
    rows = [
        row("plain", 900),
        row(name_of(4, 0, None), 40),
        row(f"{name_of(2, 0, TILE)}{OFFLOADED}", 1, True),
    ]
    (least,) = frontier.goals(case, rows)
    assert least["value"] == 40 / 900
    rows += [
        row(f"{name_of(4, 0, TILE)}{OFFLOADED}", 9, True),
        row(f"{name_of(4, 2, None)}{OFFLOADED}", 12, True),
    ]
    again, away = frontier.goals(case, rows)
    assert again == least and away["value"] == 9 / 900 and away["met"] and away["goal"] == least["goal"]
    assert away["what"] == "the same with carries in host memory, by plan / plain's"
