"""Fine-tuning beside its cost: figures are those of the trials, the deployed model is the ordinary one, and
checkpointing changes nothing but time and memory.
"""

import json
import statistics

import pytest
import torch

from revstep import _cli, hf
from revstep.errors import ConfigError
from revstep_lab.bench import peaks
from revstep_lab.demo.finetune import trials
from revstep_lab.demo.finetune.trials import METHODS, FinetuneCase, run_finetune, summary, trial

pytest.importorskip("transformers", reason="fine-tunes models of transformers")
pytest.importorskip("peft", reason="LoRA")

SIZES = {
    "methods": ("ordinary", "Blend, c = 1/4"),
    "seeds": (0, 1),
    "steps": 3,
    "tune_steps": 2,
    "layers": 2,
    "width": 32,
    "heads": 2,
    "vocab": 320,
    "context": 32,
    "batch": 2,
    "batches": 1,
    "lora": 2,
    "text": 60_000,
}
CASE = FinetuneCase(**SIZES)


@pytest.fixture(scope="module")
def result():
    """Memory is counted here, not in a process a row."""

    def here(steps, case, names):
        return {name: peaks.measured(*steps(case, name), case.device) for name in names}

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "in_children", here)
        return run_finetune(CASE, 1)


def of(result: dict, method: str, adapting: str) -> list[dict]:
    return [t for t in result["trials"] if (t["method"], t["adapting"]) == (method, adapting)]


def test_rows_are_the_trials(result):
    assert [m["name"] for m in result["measurements"]] == [
        f"{method}, {adapting}" for adapting in ("full", "LoRA") for method in CASE.methods
    ]
    for m in result["measurements"]:
        method, adapting = m["name"].rsplit(", ", 1)
        own, ordinary = of(result, method, adapting), of(result, "ordinary", adapting)
        assert [t["seed"] for t in own] == [0, 1]
        for what in ("as_trained", "deployed", "old"):
            values = [t[what] for t in own]
            assert (
                m[what] == {"mean": statistics.mean(values), "sd": statistics.stdev(values), "each": values}
                and len(set(values)) == 2
            )
        apart = [a["deployed"] - b["deployed"] for a, b in zip(own, ordinary)]
        # Two seeds: the standard error of a mean is half the distance of the two.
        assert m["difference"] == {
            "mean": statistics.mean(apart),
            "standard_error": pytest.approx(abs(apart[0] - apart[1]) / 2, rel=1e-9, abs=1e-12),
        }
        assert list(m["ratios"]) == ([] if method == "ordinary" else [f"ordinary, {adapting}"])


def test_states_are_rebuilt_and_the_reversible_form_is_another_than_the_deployed_one(result):
    for adapting in ("full", "LoRA"):
        for t in of(result, "Blend, c = 1/4", adapting):
            assert t["states_rebuilt"] == t["states_bit_equal"] == CASE.layers * CASE.tune_steps
            assert t["as_trained"] != t["deployed"]
        for t in of(result, "ordinary", adapting):
            assert t["states_rebuilt"] == 0 and t["as_trained"] == t["unmerged"]
    # In full there is nothing to merge: the saved and loaded model is bit for bit what was trained, run by
    # its own forward.
    assert all(t["deployed"] == t["unmerged"] for method in CASE.methods for t in of(result, method, "full"))


def test_what_a_step_keeps(result):
    """The reversible form less than the ordinary one, and adapters no gradients of what they adapt."""
    memory = {m["name"]: m["memory"] for m in result["measurements"]}
    for adapting in ("full", "LoRA"):
        ordinary, ours = (memory[f"{method}, {adapting}"] for method in CASE.methods)
        assert ours["kept"] < ordinary["kept"] <= ordinary["peak"] and ours["kept"] <= ours["peak"]
    for method in CASE.methods:
        full, lora = (memory[f"{method}, {adapting}"]["peak"] for adapting in ("full", "LoRA"))
        assert full > lora


def test_a_deployed_model_that_is_still_converted_is_told_apart(result, monkeypatch, tmp_path):
    """Mutant: what is deployed runs as the reversible model it was trained as."""
    texts, base = prepared(tmp_path)
    right = trial(CASE, base, texts, "Blend, c = 1/4", "full", 0)
    load, calls = trials.load_model, []

    def still_converted(folder):
        model = load(folder)
        calls.append(folder)
        return (
            model
            if len(calls) == 1
            else hf.convert(model, METHODS["Blend, c = 1/4"], calibration=texts[1].train[:8], say=None)
        )

    monkeypatch.setattr(trials, "load_model", still_converted)
    wrong = trial(CASE, base, texts, "Blend, c = 1/4", "full", 0)
    assert (
        right["deployed"] == right["unmerged"] == wrong["unmerged"]
        and wrong["deployed"] == wrong["as_trained"] != wrong["unmerged"]
    )


def test_checkpointing_trains_the_ordinary_model_to_the_bit(tmp_path):
    texts, base = prepared(tmp_path)
    stored, again = (trial(CASE, base, texts, method, "full", 0) for method in ("ordinary", "checkpointing"))
    assert {**stored, "method": ""} == {**again, "method": ""}
    # Another order.
    assert trial(CASE, base, texts, "ordinary", "full", 1)["training_loss"] != stored["training_loss"]


def prepared(folder):
    settings = CASE.settings(0)
    code = trials.library(CASE.text)
    tokenizer = trials.make_tokenizer(code, CASE.vocab, 4 * CASE.context)
    texts = (
        trials.as_rows(code, tokenizer, settings),
        trials.as_rows(trials.documentation(), tokenizer, settings),
    )
    trials.make(CASE.family, settings, texts[0], tokenizer, folder / "base")
    return texts, folder / "base"


def test_paired_difference_wants_a_partner(result):
    with pytest.raises(ValueError, match="shorter"):
        summary(
            CASE,
            [t for t in result["trials"] if (t["method"], t["seed"]) != ("ordinary", 1)],
            "Blend, c = 1/4",
            "full",
        )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"methods": ("BDIA",)}, "expected ordinary"),
        ({"methods": ("ordinary", "blend")}, "'blend' is not known"),
        ({"seeds": (0,)}, "two or more"),
        ({"device": "tpu"}, "cpu or cuda"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_cases_that_say_nothing_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        FinetuneCase(**{**SIZES, **changes})


def test_command_line_says_what_the_file_has(result, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        trials,
        "run_finetune",
        lambda case, rounds, memory, say: {
            **result,
            "case": {**result["case"], "tune_steps": case.tune_steps},
        },
    )
    assert _cli.main(["bench", "finetune", "--tune-steps", "7", "--json", str(tmp_path / "f.json")]) == 0
    said, data = capsys.readouterr().out, json.loads((tmp_path / "f.json").read_text())
    assert "fine-tuned for 7 steps" in said and data["command"] == "revstep bench finetune --tune-steps 7"
    for m in data["measurements"]:
        assert m["name"] in said and all(
            f"{m[what]['mean']:.4f} ({m[what]['sd']:.4f})" in said
            for what in ("as_trained", "deployed", "old")
        )
    assert _cli.main(["bench", "--report", str(tmp_path)]) == 0
    assert (tmp_path / "f-measurements.png").stat().st_size > 5_000 and "Blend, c = 1/4, LoRA" in (
        tmp_path / "report.md"
    ).read_text()
