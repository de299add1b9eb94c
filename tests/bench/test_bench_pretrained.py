"""Fine-tuning over seeds: what is compared is what is said, runs are kept, and a goal that is
missed says so.
"""

import json
import shlex

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench.results import Runs
from revstep_lab.cases import pretrained
from revstep_lab.demo.pretrained import bases, trials
from revstep_lab.demo.pretrained.bases import METHODS, PretrainedCase
from revstep_lab.demo.pretrained.trials import run_pretrained

transformers = pytest.importorskip("transformers", reason="converts models of transformers")
pytest.importorskip("peft", reason="LoRA is peft's")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")

#: Without those that need one matrix for embedding and head.
COMPARED = [name for name, method in METHODS.items() if not method.head_last]
TINY = {
    "context": 16,
    "held_out": 2,
    "steps": 6,
    "distil_steps": 2,
    "rank": 2,
    "timed_batch": 1,
    "timed_context": 32,
    "lr": 1e-2,
    "seeds": (0, 1),
}


class Tokenizer:
    eos_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) % 96 for c in text]}


def load(name, **more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        initializer_range=0.2,
        **more,
    )
    return transformers.LlamaForCausalLM(config), Tokenizer()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(result, the folder its runs are in, what was said)."""
    folder, said = tmp_path_factory.mktemp("pretrained"), []
    case = PretrainedCase(model="some/where/tiny", **TINY)
    return run_pretrained(case, load, str(folder / "runs.json"), rounds=2, say=said.append), folder, said


def rows_of(result):
    return {row["name"]: row for row in result["losses"]}


def costs_of(result):
    return {row["name"]: row for row in result["costs"]}


def test_every_method_learns_and_is_deployed(found):
    result = found[0]
    rows = rows_of(result)
    assert list(rows) == list(COMPARED) and result["case"]["model"] == "tiny"
    for name, row in rows.items():
        if name == "checkpointing":
            continue
        each = row["deployed"]["each"]
        assert len(each) == 2 and each[0] != each[1], f"{name}: the seeds do not differ"
        assert row["as_trained"]["mean"] < row["before"]
        if METHODS[name].scheme is None:
            assert (
                row["deployed"]["mean"] == pytest.approx(row["as_trained"]["mean"], rel=1e-6)
                and not row["states_rebuilt"]
            )
        else:
            assert (
                row["states_rebuilt"] == row["states_bit_equal"] > 0
                and row["as_trained"]["mean"] != row["deployed"]["mean"]
            )
    assert rows["plain"]["to_plain"]["deployed"]["each"] == [1.0, 1.0]
    by_hand = [
        a / b for a, b in zip(rows["Blend, c = 1/8"]["deployed"]["each"], rows["plain"]["deployed"]["each"])
    ]
    assert rows["Blend, c = 1/8"]["to_plain"]["deployed"]["each"] == by_hand


def test_checkpointing_computes_what_plain_computes(found):
    row = rows_of(found[0])["checkpointing"]
    assert row["first_steps"] == trials.SAME_STEPS and row["training_losses_apart"] == 0.0


def test_mutant_other_rows_for_checkpointing(found):
    """Were its rows others, the losses would be apart."""
    _, folder, _ = found
    case = PretrainedCase(model="tiny", **TINY)
    runs = Runs(folder / "runs.json", case.of_a_run())
    run = runs.of("checkpointing", (1,), case.steps)[0]
    run["training_loss"] = runs.of("checkpointing", (0,), case.steps)[0]["training_loss"]
    assert trials.summary(runs, case, "checkpointing")["training_losses_apart"] > 0


def test_what_a_step_costs(found):
    costs = costs_of(found[0])
    for name, row in costs.items():
        assert row["peak"] >= row["kept"] > 0 and row["p50"] > 0
        assert set(row["ratios"]) == set(COMPARED) - {name}
    assert costs["Blend, c = 1/8"]["kept"] < costs["checkpointing"]["kept"] < costs["plain"]["kept"]


def test_what_a_step_costs_with_the_optimiser_inside_backward():
    """Ordinarily a step ends with all gradients, so its peak is at least their bytes. Stepped one by one,
    they never all exist, and here, where gradients are most of a step, not even the peak comes to them.
    """
    methods = ("plain", "checkpointing", "Blend, c = 1/16")
    about = {**TINY, "methods": methods, "adapting": "full", "timed_context": 8, "parts": ("costs",)}
    ordinary, fused = (
        run_pretrained(PretrainedCase(model="tiny", **about, optimizer=optimizer), load, rounds=1)
        for optimizer in ("left-out", "fused-step")
    )
    gradients = 4 * ordinary["parameters"]
    for name in methods:
        assert costs_of(fused)[name]["peak"] < gradients <= costs_of(ordinary)[name]["peak"], name
    title = pretrained.tables(fused)[0][0]
    assert "AdamW inside backward" in title and "AdamW" not in pretrained.tables(ordinary)[0][0]


def test_a_tied_head_comes_last():
    """With a row of its own and goals of its own; a model with two matrices says why it has none."""
    methods = ("plain", "checkpointing", bases.BY_TILES, bases.HEAD_LAST)
    about = {**TINY, "methods": methods, "adapting": "full", "parts": ("costs",)}
    case = PretrainedCase(model="tiny", optimizer="fused-step", **about)
    result = run_pretrained(case, lambda name: load(name, tie_word_embeddings=True), rounds=1)
    assert list(costs_of(result)) == list(methods)
    goals = {g["what"]: g["goal"] for g in result["goals"]}
    about = "c by layer, 4 bits, MLPs by large tiles, head's gradient last"
    assert goals[f"{about}: peak of the allocator / checkpointing's"] == 0.55
    with pytest.raises(ConfigError, match="head_last"):
        run_pretrained(case, load, rounds=1)


def test_costs_alone_distil_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "finetune", lambda *a, **k: pytest.fail("distilled"))
    monkeypatch.setattr(trials, "trial", lambda *a: pytest.fail("trained"))
    case = PretrainedCase(parts=("costs",), **{**TINY, "methods": ("plain", "Hamiltonian, distilled")})
    result = run_pretrained(case, load, rounds=1)
    assert (
        list(costs_of(result)) == ["plain", "Hamiltonian, distilled"]
        and not result["losses"]
        and not result["runs"]
    )


def test_distilled_models_begin_from_weights_of_their_own(found):
    folder = found[1] / "runs.json.models"
    weights = {
        p.name: transformers.AutoModelForCausalLM.from_pretrained(p).state_dict() for p in folder.iterdir()
    }
    assert len(weights) == 7
    for name, own in weights.items():
        same = all(torch.equal(own[k], v) for k, v in weights["plain"].items())
        assert same == ("distilled" not in name)


def test_runs_are_not_done_again(found, monkeypatch):
    result, folder, _ = found
    monkeypatch.setattr(trials, "trial", lambda *a: pytest.fail("was done again"))
    monkeypatch.setattr(bases.Bases, "_made", lambda *a: pytest.fail("was made again"))
    again = run_pretrained(
        PretrainedCase(model="tiny", parts=("losses",), **TINY), load, str(folder / "runs.json")
    )
    assert again["runs"] == result["runs"]
    fewer = PretrainedCase(
        model="tiny",
        **{**TINY, "seeds": (1,), "methods": ("plain", "Blend, c by layer"), "parts": ("losses",)},
    )
    one = run_pretrained(fewer, load, str(folder / "runs.json"))
    assert one["losses"][1]["deployed"]["sd"] is None and len(one["goals"]) == 1
    with pytest.raises(ConfigError, match=r"another case .*rank 2 there, 3 here"):
        run_pretrained(PretrainedCase(model="tiny", **{**TINY, "rank": 3}), load, str(folder / "runs.json"))


def test_full_fine_tuning_trains_all_weights(tmp_path):
    case = PretrainedCase(
        adapting="full",
        parts=("losses",),
        **{**TINY, "seeds": (0,), "methods": ("plain", "Blend, c = 1/16"), "lr": 1e-3},
    )
    made = []
    run_pretrained(case, lambda name: made.append(name) or load(name), str(tmp_path / "runs.json"))
    assert made == [""] and case.short_name == "SmolLM2-135M"
    kept = json.loads((tmp_path / "runs.json").read_text())
    assert kept["case"]["adapting"] == "full" and [run["variant"] for run in kept["runs"]] == [
        "plain",
        "Blend, c = 1/16",
    ]


def test_goals_are_those_of_c_by_layer(found):
    result = found[0]
    row, costs = rows_of(result)["Blend, c by layer"], costs_of(result)
    other, expected = costs["checkpointing"], [row["to_plain"]["deployed"]["mean"]]
    for name in ("Blend, c by layer", "Blend, c by layer, MLPs by tiles"):
        own = costs[name]
        expected += [own["ratios"]["checkpointing"], own["peak"] / other["peak"]]
    assert [g["value"] for g in result["goals"]] == expected
    assert [g["goal"] for g in result["goals"]] == [1.002, 1.0, 0.6, 1.0, 0.4]
    worse = [{**row, "to_plain": {"deployed": {"mean": 1.0021}}}]
    assert [g["met"] for g in trials.goals(worse, {}, PretrainedCase(model="tiny", **TINY))] == [False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapting": "half"}, "adapting is 'half', expected LoRA or full"),
        ({"methods": ("plain", "SGD")}, "method 'SGD' is not known"),
        ({"optimizer": "SGD"}, "optimizer is 'SGD', expected left-out or fused-step"),
        ({"parts": ("speed",)}, "parts are speed, expected some of losses, costs"),
        ({"methods": ("checkpointing",)}, "expected plain among them"),
        ({"seeds": (1, 1)}, "expected one or more, each once"),
        ({"seeds": ()}, "expected one or more"),
    ],
)
def test_cases_that_make_no_sense(changes, words):
    with pytest.raises(ConfigError, match=words):
        PretrainedCase(**changes)


def test_the_command(monkeypatch, capsys, tmp_path):
    from revstep_lab.cases import pretrained

    monkeypatch.setattr(pretrained, "load_pretrained", load)
    file, runs = tmp_path / "pretrained.json", tmp_path / "runs.json"
    asked = [
        "--methods",
        "plain",
        "checkpointing",
        "Blend, c by layer",
        "--seeds",
        "0",
        "1",
        "--tune-steps",
        "6",
        "--resume",
        str(runs),
    ]
    assert _cli.main(["bench", "pretrained", *asked, "--rounds", "1", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert (
        "LoRA of rank 8, 6 steps of 1 x 256 tokens" in said
        and "first 5 training losses: the same as plain's" in said
        and "/ checkpointing's" in said
    )
    record = json.loads(file.read_text())
    again = shlex.split(record["command"])
    assert again[again.index("--methods") + 3] == "Blend, c by layer", (
        "a name with spaces has to be one word of the command"
    )
    assert (
        record["bench"] == "pretrained"
        and record["case"]["lr"] == 2e-4
        and len(record["goals"]) == 3
        and len(record["runs"]) == 6
    )
