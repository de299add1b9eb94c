"""``revstep finetune`` on a tiny Llama: four losses, adapters, runs that are finished, stopped and gone on
with.
"""

import contextlib
import itertools
import json
import re

import pytest
import torch
import transformers
from hub import TEXT, Stops, check_plain, equal, weights
from safetensors.torch import load_file

from revstep import hf
from revstep._models import layers
from revstep.hf import _calibrate, _convert, _finetune, _sources
from revstep.lm import _session

#: Half of the last decimal of a printed loss.
PRINTED = 5e-5
SHORT = "--data TEXT --batch 4 --context 32 --lr 1e-3 --device cpu --eval-batches 16 --loss-tolerance 9"
BLEND = f"--scheme blend:c=0.0625 {SHORT}"


def held_out(tokenizer, context=32):
    """The rows that ``revstep finetune`` holds out."""
    ids = [*tokenizer(TEXT, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rows = torch.tensor(ids[: len(ids) // context * context]).view(-1, context)
    return [{"input_ids": part} for part in rows[-max(1, int(len(rows) * 0.05)) :].split(4)]


def plain_loss(folder):
    """The held-out loss of a folder to transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return hf.mean_loss(model, held_out(_sources.load_tokenizer(folder)))


def printed(said):
    """The four losses: plain, converted, trained, deployed."""
    names = (
        "plain model, before",
        "converted, before training",
        "converted, as trained",
        "deployed, the plain model again",
    )
    return [float(re.search(rf"^  {name} +(\d+\.\d{{4}})", said, re.M)[1]) for name in names]


def check_losses(said, base, deployed):
    plain, converted, trained, plain_again = printed(said)
    assert abs(plain - plain_loss(base)) <= PRINTED and abs(plain_again - plain_loss(deployed)) <= PRINTED
    assert len({plain, converted, trained, plain_again}) == 4 and trained < converted
    return plain, converted, trained, plain_again


# ---- what it does ----


def test_by_tiles(revstep, hub, tmp_path):
    """The same losses, to the rounding of sums."""
    losses = []
    for name, more in (("whole", ""), ("tiles", "--tile 48")):
        code, said, _ = revstep(f"finetune MODEL --out OUT/{name} {BLEND} --steps 3 {more}")
        assert code == 0 and "states exact (9 of 9 states bit-equal in 3 passes)" in said
        losses.append(printed(said))
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    assert hf.conversion(hf.from_pretrained(tmp_path / "tiles")).stack.tile == 48


def test_all_four_losses_and_the_deployed_model(revstep, hub, tmp_path):
    """Midpoint is far from the plain model, so that no two of the four can be taken for each other."""
    code, said, _ = revstep(
        f"finetune MODEL --full --out OUT/run --scheme midpoint:h=1 --steps 4 {SHORT} --deploy OUT/plain"
    )
    steps = re.findall(
        r"^step (\d)/4  loss \d+\.\d{4}  [\d,]+ tokens/s  states exact \(3 states\)  \d+ s left$", said, re.M
    )
    assert (
        code == 0
        and steps == ["1", "2", "3", "4"]
        and "states exact (12 of 12 states bit-equal in 4 passes)" in said
    )
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4]
    trained = weights(tmp_path / "run")
    assert _sources.converted(tmp_path / "run") and not equal(trained, weights(hub / "model"))
    check_plain(tmp_path / "plain", trained)
    losses = check_losses(said, hub / "model", tmp_path / "plain")
    made = hf.from_pretrained(tmp_path / "run")
    assert abs(losses[2] - hf.mean_loss(made, held_out(_sources.load_tokenizer(tmp_path / "run")))) <= PRINTED
    record = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert record["finished"] and [round(v, 4) for v in record["losses"].values()] == list(losses)


@pytest.mark.parametrize("mutant", ["plain", "converted"])
def test_losses_of_the_wrong_model_are_noticed(revstep, hub, tmp_path, monkeypatch, mutant):
    """Broken on purpose: the plain losses are taken of the converted model; the plain one is printed as the
    converted.
    """
    if mutant == "plain":
        monkeypatch.setattr(_calibrate, "as_plain", lambda model: contextlib.nullcontext())
    else:
        right = hf.mean_loss
        monkeypatch.setattr(
            hf, "mean_loss", lambda model, batches: _as_plain(right, model, batches), raising=False
        )
    code, said, _ = revstep(
        f"finetune MODEL --full --out OUT/run --scheme midpoint:h=1 --steps 2 {SHORT} --deploy OUT/plain"
    )
    assert code == 0
    with pytest.raises(AssertionError):
        check_losses(said, hub / "model", tmp_path / "plain")


def _as_plain(loss, model, batches):
    with _calibrate.as_plain(model):
        return loss(model, batches)


def test_a_conversion_past_the_tolerance_warns_before_training(revstep):
    options = "--full --steps 1 --data TEXT --batch 4 --context 32 --device cpu"
    code, said, problem = revstep(
        f"finetune MODEL --out OUT/a --scheme midpoint:h=1 {options} --loss-tolerance 0.0001"
    )
    first, second = problem.splitlines()
    assert code == 0 and "the conversion alone changes the loss by" in first and "tolerance of 0.01%" in first
    assert (
        "deployed as the plain model the loss is" in second
        and "--scheme blend:c=" in first
        and "--scheme blend:c=" in second
    )
    code, said, problem = revstep(
        f"finetune MODEL --out OUT/b --scheme blend:c=0.00390625 {options} --loss-tolerance 0.05"
    )
    assert (code, problem) == (0, "") and "plain," in said


def test_lora_is_the_default_with_its_own_learning_rate(revstep, hub, tmp_path):
    code, said, problem = revstep(
        "finetune CONVERTED --out OUT/run --steps 3 --data TEXT --context 32 --lora 2 --accumulate 2 --dtype"
        " bfloat16 --loss-chunk 16 --device cpu --loss-tolerance 9"
    )
    assert code == 0, problem
    assert (
        "as it was saved" in said and said.count("exact (3 states)") == 3 and "learning rate 0.0002" in said
    )
    before, after = weights(hub / "model"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # All linear layers but the head, merged.
    assert changed == {name for name in before if re.search(r"_proj", name)}
    assert set(load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")) and _sources.converted(
        tmp_path / "run"
    )
    code, said, _ = revstep(
        "finetune MODEL --full --out OUT/full --steps 1 --data TEXT --context 32 --device cpu"
        " --loss-tolerance 9 --scheme bdia"
    )
    assert code == 0 and "all weights, learning rate 5e-05" in said


def test_generate_takes_the_run_it_made(revstep, tmp_path):
    assert revstep(f"finetune MODEL --out OUT/run --steps 1 {BLEND}")[0] == 0
    code, said, problem = revstep("generate OUT/run --prompt def --count 8 --temperature 0")
    assert (code, problem) == (0, "") and said == revstep(
        "generate --hf OUT/run --prompt def --count 8 --temperature 0"
    )[1]
    assert revstep("generate OUT/run --scheme plain")[0] == 2


def test_auto_is_the_default(revstep, tmp_path):
    code, said, problem = revstep(
        "finetune MODEL --out OUT/run --steps 1 --data TEXT --batch 4 --context 32 --device cpu"
        " --loss-tolerance 0.9"
    )
    assert code == 0, problem
    assert said.index("converted LlamaForCausalLM") < said.index("step 1/1") and _sources.converted(
        tmp_path / "run"
    )


def test_plain_checkpointed_and_distilled(revstep, tmp_path):
    for scheme in ("plain", "checkpoint"):
        code, said, _ = revstep(
            f"finetune CONVERTED --full --out OUT/{scheme} --scheme {scheme} --steps 2 {SHORT}"
        )
        assert code == 0 and said.count("states stored") == 2 and not _sources.converted(tmp_path / scheme)
        plain, converted, trained, deployed = printed(said)
        assert plain == converted > trained == deployed
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "checkpoint"))
    code, said, _ = revstep(
        f"finetune MODEL --full --out OUT/d --scheme plain --steps 1 {SHORT} --teacher MODEL"
    )
    assert code == 0 and re.search(r"loss -?0\.0000 ", said)  # it says already what its teacher says
    code, said, _ = revstep(
        f"finetune MODEL --full --out OUT/e --scheme midpoint:h=1 --steps 1 {SHORT} --teacher MODEL"
    )
    assert code == 0 and float(re.search(r"step 1/1  loss (\S+)", said)[1]) > 1e-3


def test_a_random_layer_ends_the_run(revstep, monkeypatch):
    """Noise from outside torch's generators, in training alone: the first backward pass must see it."""
    mlp, calls = transformers.models.llama.modeling_llama.LlamaMLP, itertools.count()
    right = mlp.forward
    monkeypatch.setattr(
        mlp, "forward", lambda self, x: right(self, x) * (1.0 + 1e-3 * (next(calls) % 7) * self.training)
    )
    code, _, problem = revstep(f"finetune CONVERTED --full --out OUT/run --steps 2 {SHORT}")
    assert code == 2 and "did not lead back" in problem


# ---- runs that are there already ----


def stopped(revstep, monkeypatch, options):
    with monkeypatch.context() as patch:
        patch.setattr(_session, "Interrupt", Stops)
        return revstep(f"finetune MODEL --out OUT/run {options}")


@pytest.mark.parametrize("adapting", ["--full", "--lora 2"])
def test_stopped_and_resumed_gives_the_weights_of_the_whole_run(revstep, tmp_path, monkeypatch, adapting):
    options = f"{adapting} --scheme bdia --steps 5 {SHORT}"
    code, whole, _ = revstep(f"finetune MODEL --out OUT/whole {options}")
    assert code == 0
    code, _, problem = stopped(revstep, monkeypatch, options)
    assert (
        code == 130
        and "stopped after step 2 of 5" in problem
        and (tmp_path / "run" / "checkpoint-2").is_dir()
    )
    code, said, _ = revstep("finetune MODEL --out OUT/run --resume")  # the options are those it began with
    assert code == 0 and "step 2/5" not in said and "step 3/5" in said and printed(said) == printed(whole)
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    logs = [
        [
            {k: json.loads(line)[k] for k in ("step", "loss")}
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        for name in ("run", "whole")
    ]
    assert logs[0] == logs[1]
    assert revstep(f"finetune MODEL --out OUT/other {options} --seed 1")[0] == 0
    assert not equal(weights(tmp_path / "other"), weights(tmp_path / "whole"))


def test_a_run_goes_on_with_the_conversion_it_began_with(revstep, monkeypatch, tmp_path):
    """Nothing is chosen again: another text could choose otherwise, and a calibration takes minutes."""
    code, _, _ = stopped(revstep, monkeypatch, f"--steps 4 {SHORT}")
    assert code == 130
    monkeypatch.setattr(_convert, "choose_scheme", lambda *a, **k: pytest.fail("chosen again"), raising=False)
    monkeypatch.setattr(_convert, "calibrate", lambda *a, **k: pytest.fail("calibrated again"))
    assert revstep("finetune MODEL --out OUT/run --resume")[0] == 0


def test_c_is_chosen_by_what_is_asked_for(revstep, tmp_path):
    """Other bits, or a narrower tolerance, and the conversion is another."""
    few = {}
    for words in ("--bits 2", "--tolerance 1e-5", ""):
        code, _, problem = revstep(f"finetune MODEL --out OUT/r{len(few)} --steps 1 {words} {SHORT}")
        assert code == 0, problem
        record = json.loads((tmp_path / f"r{len(few)}" / "finetune.json").read_text())
        assert record["options"].get("bits") == (2.0 if "bits" in words else None)
        few[words] = record["conversion"]["scheme"]
    assert len(set(few.values())) == 3, few


def test_what_is_there_is_not_written_over(revstep, hub, tmp_path, monkeypatch):
    assert stopped(revstep, monkeypatch, f"--steps 4 {BLEND}")[0] == 130
    for words, told in [
        (f"finetune MODEL --out OUT/run --steps 4 {BLEND}", ["unfinished run", "step 2", "--resume"]),
        ("finetune MODEL --out OUT/run --resume --steps 5", ["--steps is 5", "began with 4"]),
        ("finetune MODEL --out OUT/run --resume --lora 3", ["--lora is 3", "began with 8"]),
        ("finetune CONVERTED --out OUT/run --resume", ["is of", "model"]),
        ("generate OUT/run", ["has not ended", "--resume"]),
    ]:
        code, _, problem = revstep(words)
        assert code == 2 and problem.count("\n") == 1 and all(word in problem for word in told), problem
    # What it was, or is by default.
    assert revstep("finetune MODEL --out OUT/run --resume --steps 4 --lora 8")[0] == 0
    done = weights(tmp_path / "run")
    for words in (f"finetune MODEL --out OUT/run --steps 4 {BLEND}", "finetune MODEL --out OUT/run --resume"):
        code, _, problem = revstep(words)
        assert code == 2 and all(
            word in problem for word in ("finished run", "another --out", "revstep generate")
        ), problem
    code, said, _ = revstep("finetune MODEL --out OUT/run --resume auto")
    assert code == 0 and "nothing to do" in said and equal(done, weights(tmp_path / "run"))
    code, _, problem = revstep(f"finetune MODEL --out OUT/new --resume auto --steps 1 {BLEND}")
    assert code == 0, problem
    code, _, problem = revstep(f"finetune CONVERTED --out MODEL --steps 1 {BLEND}")
    assert code == 2 and "holds a model already" in problem
    (tmp_path / "run" / "finetune.json").unlink()
    code, _, problem = revstep(f"finetune MODEL --out OUT/run --steps 1 {BLEND}")
    assert code == 2 and "holds a model already" in problem  # also without its record
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "finetune.json").write_text('{"model": "x", "options": {}, "finished": false}')
    code, _, problem = revstep("finetune MODEL --out OUT/killed --resume")
    assert code == 2 and "no checkpoint-N" in problem and problem.count("\n") == 1
    code, _, problem = revstep(f"finetune MODEL --out OUT/killed --steps 1 {BLEND}")
    assert code == 0 and "ended before its first checkpoint" in problem
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "finetune.json").write_text("{")
    code, _, problem = revstep("finetune MODEL --out OUT/broken")
    assert code == 2 and "cannot read" in problem and problem.count("\n") == 1


# ---- what is refused before anything is computed ----


@pytest.mark.parametrize("words, told", [
    ("--lora-targets nothing", ["peft finds no place", "'nothing'", "q_proj", "all-linear"]),
    ("--lora-targets q_proj,vproj", ["'vproj'", "v_proj"]),
    ("--lora-targets input_layernorm", ["peft finds no place", "all-linear"]),
    ("--lora-targets lm_head", ["the head of", "leave lm_head out"]),
    ("--loss-chunk -3", ["chunk is -3"]),
    ("--lora-targets ,", ["targets are ','"]),
])  # fmt: skip
def test_wrong_targets_are_refused_before_a_calibration(revstep, monkeypatch, words, told, tmp_path):
    monkeypatch.setattr(hf, "mean_loss", lambda *a: pytest.fail("a loss was computed"), raising=False)
    monkeypatch.setattr(hf, "convert", lambda *a, **k: pytest.fail("converted"), raising=False)
    code, _, problem = revstep(f"finetune MODEL --out OUT/r --data TEXT --context 32 {words}")
    assert code == 2 and problem.startswith("revstep: ") and problem.count("\n") == 1, problem
    assert all(word in problem for word in told), problem
    assert not (tmp_path / "r").exists()


def test_that_check_is_one(revstep, monkeypatch):
    """Without it the same words are refused only after the conversion."""
    monkeypatch.setattr(layers, "check_lora", lambda *a, **k: None)
    code, said, problem = revstep(f"finetune MODEL --out OUT/r --lora-targets nothing {BLEND}")
    assert code == 2 and "converted LlamaForCausalLM" in said and "peft finds no place" in problem


def test_checking_leaves_the_model_alone(hub):
    model = _sources.load_model(hub / "model")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    layers.check_lora(model, 4, None, "all-linear", chunked=True)
    _finetune.check_loss(model, "auto")
    assert not hasattr(model, "peft_config") and equal(before, model.state_dict())
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


def test_calibration_reads_a_bounded_text(revstep, monkeypatch):
    seen, right = [], _calibrate.as_batches

    def spy(data, *rest):
        seen.append(data.numel())
        return right(data, *rest)

    monkeypatch.setattr(_convert, "as_batches", spy)
    assert revstep(f"finetune MODEL --out OUT/r --steps 1 {BLEND}")[0] == 0
    assert seen == [16 * 32]


def test_a_merge_that_changes_the_model_is_seen(revstep, monkeypatch):
    """Trained is what was trained: the loss before the merge."""
    right = layers.merge_lora

    def broken(model):
        merged = right(model)
        with torch.no_grad():
            merged.get_output_embeddings().weight.mul_(30)
        return merged

    monkeypatch.setattr(layers, "merge_lora", broken)
    short = BLEND.replace("--loss-tolerance 9", "--loss-tolerance 0.05")
    code, said, problem = revstep(f"finetune MODEL --out OUT/r --steps 1 {short}")
    *_, trained, deployed = printed(said)
    assert code == 0 and abs(deployed / trained - 1) > 0.05
    assert "deployed as the plain model the loss is" in said + problem
