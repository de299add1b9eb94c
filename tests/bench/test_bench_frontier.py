"""The frontier: which points are dominated, that nothing measured is lost, that every way leaves the model as
it was and computes what it says.
"""

import json

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench import front
from revstep_lab.bench.front import Progress, dominated
from revstep_lab.cases import _frontier_measure, _frontier_trunk, frontier
from revstep_lab.cases._frontier_pretrained import Pretrained, name_of
from revstep_lab.cases.frontier import FrontierCase, run_frontier
from revstep_lab.cases.trunk import TrunkCase

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

TINY = TrunkCase(layers=4, width=16, heads=2, batch=2, length=16)
TRUNK = dict(layers=4, width=16, heads=2, batch=2, length=16)
KEEP0 = "ours, midpoint (0 bits), keep=0"


class Tokenizer:
    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) % 96 for c in text]}


def load(name):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=256, max_position_embeddings=4096,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), Tokenizer()


# ---- dominance ----


def rows(**points):
    """name -> (seconds, peak)."""
    return [
        {"name": n, "peak": peak, "ratios": {m: s / other for m, (other, _) in points.items() if m != n}}
        for n, (s, peak) in points.items()
    ]


def test_who_dominates_whom():
    found = dominated(rows(fast=(1.0, 100), small=(2.0, 10), middle=(1.5, 50), worse=(2.1, 60)))
    assert found == {"fast": [], "small": [], "middle": [], "worse": ["small", "middle"]}
    assert dominated(rows(a=(1.0, 100), b=(1.0, 90)))["a"] == ["b"]
    assert dominated(rows(a=(1.0, 100), b=(1.0, 100))) == {"a": [], "b": []}


def test_times_within_the_noise_are_equal():
    assert dominated(rows(a=(1.0, 100), b=(1.019, 90))) == {"a": ["b"], "b": []}
    assert dominated(rows(a=(1.0, 100), b=(1.021, 90))) == {"a": [], "b": []}
    assert dominated(rows(a=(1.0, 100), b=(1.015, 100))) == {"a": [], "b": []}
    assert dominated(rows(a=(1.0, 100), b=(1.03, 100)))["b"] == ["a"]


@pytest.mark.parametrize("broken", ["one is enough", "nothing"])
def test_another_rule_is_noticed(monkeypatch, broken):
    rules = {
        "one is enough": lambda a, b, noise: a["peak"] < b["peak"] or a["ratios"][b["name"]] < 1,
        "nothing": lambda a, b, noise: False,
    }
    monkeypatch.setattr(front, "_dominates", rules[broken])
    with pytest.raises(AssertionError):
        test_who_dominates_whom()


# ---- the trunk ----


def test_every_way_of_the_trunk_has_plains_gradient_or_is_another_network(monkeypatch):
    """What a step leaves in the weights' gradients, before AdamW: the same as plain's under checkpointing;
    with any number of kept layers and by tiles the same as with none."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, set_to_none=True: None)
    seen = {}
    steps, _ = _frontier_trunk.ways(TINY)
    optimizer = next(c.cell_contents for c in steps["plain"].func.__closure__[0].cell_contents.__closure__
                     if isinstance(c.cell_contents, torch.optim.Optimizer))  # fmt: skip
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for name, step in steps.items():
        if "compiled" in name or "fused" in name:
            continue
        for p in weights:
            p.grad = None
        step(lambda: None)
        seen[name] = torch.cat([p.grad.flatten() for p in weights])
    for name, found in seen.items():
        if name.startswith("checkpoint"):
            assert torch.equal(found, seen["plain"]), name
        elif name.startswith("ours, midpoint"):
            torch.testing.assert_close(found, seen[KEEP0], rtol=1e-5, atol=1e-8)
        elif name != "plain":
            assert not torch.allclose(found, seen["plain"], rtol=1e-3)


def test_products_are_kept():
    """Each product is computed once, every other one twice, or all twice; the others are the backward's."""
    from torch.utils.checkpoint import checkpoint
    from torch.utils.flop_counter import FlopCounterMode

    m = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    flops = {}
    for name, options in (
        ("all", {"context_fn": _frontier_trunk.products_kept()}),
        ("half", {"context_fn": _frontier_trunk.products_kept(2)}),
        ("none", {}),
    ):
        x = torch.randn(4, 8, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            # All of it is evaluated again, so that the last product counts as well.
            checkpoint(m, x, use_reentrant=False, early_stop=False, **options).sum().backward()
        flops[name] = counter.get_total_flops()
    one = 2 * 4 * 8 * 8
    assert flops == {"all": 12 * one, "half": 14 * one, "none": 16 * one}


def test_a_run_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    case = FrontierCase(trunk=TRUNK, methods=("plain", "checkpoint, every block", KEEP0))
    file = str(tmp_path / "points.json")
    honest, calls = _frontier_measure.by_allocator, []

    def breaks(step):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(step)

    monkeypatch.setattr(_frontier_measure, "by_allocator", breaks)
    with pytest.raises(KeyboardInterrupt):
        run_frontier(case, resume=file, rounds=2)
    assert list(json.loads((tmp_path / "points.json").read_text())["memory"]) == list(case.methods[:2])
    result = run_frontier(case, resume=file, rounds=2)
    assert len(calls) == 4 and [r["name"] for r in result["measurements"]] == list(case.methods)
    monkeypatch.setattr(_frontier_measure, "by_allocator", lambda step: pytest.fail("counted again"))
    again = run_frontier(case, resume=file, rounds=2)
    assert [r["p50"] for r in again["measurements"]] == [r["p50"] for r in result["measurements"]]
    with pytest.raises(ConfigError, match="another case"):
        Progress(tmp_path / "points.json", {"model": "other"})


def test_a_compiler_that_refuses_is_named(monkeypatch):
    def refuses(between):
        raise RuntimeError("no such compiler\nmore")

    ways = {"plain": lambda between: between(), "compiled, memory budget 1": refuses}
    monkeypatch.setattr(frontier, "ways", lambda case: (ways, []))
    found = run_frontier(FrontierCase(), rounds=1)
    assert found["skipped"] == [
        {"what": "compiled, memory budget 1", "reason": "RuntimeError: no such compiler"}
    ]
    ways["plain"] = refuses  # any other way that fails is a failure
    with pytest.raises(RuntimeError, match="no such compiler"):
        run_frontier(FrontierCase(methods=("plain",)), rounds=1)


def test_the_command_and_its_picture(tmp_path, capsys):
    words = [w for k, v in TRUNK.items() for w in (f"--{k}", str(v))]
    file = tmp_path / "frontier.json"
    methods = ["plain", "checkpoint, every block", f"{KEEP0}", f"{KEEP0}, fused step", "coupling, revlib"]
    methods = [m for m in methods if m in _frontier_trunk.ways(TINY)[0]]
    asked = ["bench", "frontier", *words, "--methods", *methods, "--rounds", "1", "--json", str(file)]
    assert _cli.main(asked) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in methods) and "dominated by" in said
    assert _cli.main(["bench", "--report", str(tmp_path)]) == 0
    assert (tmp_path / "frontier-time.png").stat().st_size > 10_000
    assert "peak against time" in (tmp_path / "report.md").read_text()
    assert _cli.main(["bench", "frontier", "--model", "x", "--layers", "2"]) == 2


# ---- a pretrained model ----


@pytest.fixture(scope="module")
def found():
    methods = (
        "plain", "checkpoint, every layer", "checkpoint, every 2nd layer", "checkpoint, attention kept",
        name_of(4, 0, None), name_of(4, 2, None), name_of(4, 0, 256),
    )  # fmt: skip
    case = FrontierCase(model="some/tiny", tokens=1024, methods=methods, predicted=(name_of(2, 0, None),))
    return run_frontier(case, load, rounds=1)


def test_plan_knows_the_peaks(found):
    """Within a tenth, as the tests of plan allow."""
    for row in found["measurements"]:
        if row["plan"] and not row["predicted"]:
            assert row["plan"]["peak"] == pytest.approx(row["peak"], rel=0.1), row["name"]
    (predicted,) = [r for r in found["measurements"] if r["predicted"]]
    assert predicted["name"] == name_of(2, 0, None) and predicted["p50"] > 0
    assert [s["what"] for s in found["skipped"]][:1] == ["revlib-style coupling"]


def test_more_checkpoints_and_tiles_hold_less(found):
    peaks = {r["name"]: r["peak"] for r in found["measurements"]}
    assert peaks["plain"] > peaks["checkpoint, every 2nd layer"] > peaks["checkpoint, every layer"]
    assert peaks[name_of(4, 2, None)] > peaks[name_of(4, 0, None)] > peaks[name_of(4, 0, 256)]


def test_every_way_leaves_the_model_as_it_was():
    model, _ = load("")
    made = Pretrained(FrontierCase(model="m", tokens=64), model, torch.randint(0, 96, (1, 64)))
    losses = {}
    made.optimizer.step = lambda: None

    def read(name):
        loss = made.model(input_ids=made.rows, labels=made.rows, use_cache=False).loss
        losses[name] = loss.item()

    for name, step in made.steps().items():
        if "compiled" not in name:
            step(lambda: None)
            read(name)
    assert len(set(losses.values())) == 1, losses
    assert not any(layer.gradient_checkpointing for layer in made.layers)


def test_plan_alone():
    """Nothing is measured: times are in plain steps, and the goal says that both are plan's."""
    case = FrontierCase(model="m", tokens=frontier.TOKENS, predicted=("plain", name_of(4, 0, 256)))
    model = lambda name: load(name)  # noqa: E731
    result = run_frontier(case, model)
    (goal,) = result["goals"]
    assert "both by plan" in goal["what"] and goal["goal"] == pytest.approx(1 / 30)
    peaks = {r["name"]: r["peak"] for r in result["measurements"]}
    assert goal["value"] == peaks[name_of(4, 0, 256)] / peaks["plain"]
    assert frontier.tables(result)[0][1][1] == "plain steps"


def test_a_wrong_plan_misses_the_goal(found):
    case = FrontierCase(model="m")
    (goal,) = [g for g in frontier.goals(case, found["measurements"]) if "off by" in g["what"]]
    assert goal["met"] == (goal["value"] <= 0.05)
    worse = [{**r, "peak": 2 * r["peak"]} for r in found["measurements"]]
    assert not frontier.goals(case, worse)[0]["met"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapting": "half"}, "adapting is 'half'"),
        ({"timing": "twice"}, "timing is 'twice'"),
        ({"tokens": 1}, "tokens is 1"),
        ({"predicted": ("plain",)}, "expected --model beside it"),
    ],
)
def test_cases_that_make_no_sense(changes, words):
    with pytest.raises(ConfigError, match=words):
        FrontierCase(**changes)


def test_unknown_ways():
    with pytest.raises(ConfigError, match="method 'SGD' is not known"):
        run_frontier(FrontierCase(trunk=TRUNK, methods=("SGD",)))
    case = FrontierCase(model="m", tokens=64, predicted=("checkpoint, every 2nd layer",))
    with pytest.raises(ConfigError, match="plan does not know"):
        run_frontier(case, load)
