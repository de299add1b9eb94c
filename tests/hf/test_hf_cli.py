"""``revstep convert``, ``train --hf`` and ``generate --hf`` on a tiny Llama saved as a hub would have it, with a tokenizer trained here."""

import contextlib
import itertools
import json
import re
import shutil
import sys

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from revstep import cli, hf
from revstep.hf import finetune, folders
from revstep.lm import session

END = "<|endoftext|>"
TEXT = "".join(f"def f{i}(x):\n    return x + {i % 7}  # the state can be rebuilt\n\n" for i in range(120))
#: Half of the last decimal of a printed loss.
PRINTED = 5e-5


def make_tokenizer():
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator([TEXT], tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=[END], show_progress=False, initial_alphabet=alphabet))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """``model`` (plain, weights large enough that layers matter), ``converted``, ``bare`` (no tokenizer), ``empty``, and ``text.py``."""
    root = tmp_path_factory.mktemp("hub")
    tokenizer = make_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    model.save_pretrained(root / "bare")
    (root / "empty").mkdir()
    (root / "text.py").write_text(TEXT, encoding="utf-8")
    hf.convert(model, "blend:c=0.25", say=None)
    model.save_pretrained(root / "converted")
    tokenizer.save_pretrained(root / "converted")
    return root


@pytest.fixture
def revstep(hub, tmp_path, capsys):
    """``revstep(words)`` -> (exit code, stdout, stderr); MODEL, TEXT and OUT stand for paths."""

    def call(words):
        names = {"MODEL": hub / "model", "CONVERTED": hub / "converted", "BARE": hub / "bare", "EMPTY": hub / "empty", "TEXT": hub / "text.py", "OUT": tmp_path}
        capsys.readouterr()  # of what the test itself loaded
        parts = [re.sub(r"^[A-Z]+", lambda m: str(names.get(m[0], m[0])), word) for word in words.split()]
        code = cli.main(parts)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_plain(folder, wanted):
    """The folder holds the plain model with these weights, to transformers and to us."""
    assert not folders.converted(folder) and "revstep" not in json.loads((folder / "config.json").read_text())
    assert equal(weights(folder), wanted)
    assert hf.conversion(transformers.AutoModelForCausalLM.from_pretrained(folder)) is None


def held_out_loss(folder, context=32, batch=4):
    """The loss of the plain model in ``folder`` on the rows that ``revstep train --hf`` holds out."""
    tokenizer, model = folders.load_tokenizer(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = [*tokenizer(TEXT, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    rows = torch.tensor(ids[: len(ids) // context * context]).view(-1, context)
    return hf.mean_loss(model, [{"input_ids": part} for part in rows[-max(1, int(len(rows) * 0.05)) :].split(batch)])


# ---- convert ----


def test_convert_and_back(revstep, hub, tmp_path):
    code, said, _ = revstep("convert MODEL OUT/c --calibration TEXT --scheme blend:c=0.5 --start euler --keep 1")
    assert code == 0 and re.search(r"loss on [\d,]+ tokens: \d\.\d{4} before, \d\.\d{4} converted \([+-]\d+\.\d\d%\)", said)
    assert "calibrated on" in said and "FixedPoint(bits=32" in said and said.splitlines()[-1] == f"saved in {tmp_path}/c"
    made = hf.conversion(hf.from_pretrained(tmp_path / "c"))
    assert (made.scheme.c, made.stack.start, made.stack.keep) == (0.5, "euler", 1) and equal(weights(tmp_path / "c"), weights(hub / "model"))
    code, said, _ = revstep("convert OUT/c OUT/p --revert")
    assert code == 0 and "a plain LlamaForCausalLM" in said
    check_plain(tmp_path / "p", weights(hub / "model"))
    with pytest.raises(AssertionError):  # the check sees a folder that is still converted, and other weights
        check_plain(tmp_path / "c", weights(hub / "model"))
    with pytest.raises(AssertionError):
        check_plain(tmp_path / "p", {name: w + 1 for name, w in weights(hub / "model").items()})


def test_auto_prints_the_table_it_chose_from(revstep, tmp_path):
    code, said, _ = revstep("convert MODEL OUT/c --calibration TEXT --tolerance 0.5 --tokens 256")
    assert code == 0 and said.startswith("original loss") and "<- chosen" in said and folders.converted(tmp_path / "c")
    code, _, problem = revstep("convert MODEL OUT/d --calibration TEXT --scheme auto --tolerance 0 --tokens 256")
    assert code == 2 and "tolerance is 0.0" in problem and not (tmp_path / "d").exists()
    code, said, _ = revstep("convert MODEL OUT/e --calibration TEXT --bits 2 --tokens 256")
    assert code == 0 and folders.load_model(tmp_path / "e").config.revstep["scheme"].startswith("blend:c=0.5/")


def test_the_other_schemes_convert(revstep, tmp_path):
    for options in ("midpoint:h=1 --retrofit", "hamiltonian", "bdia", "midpoint_blend:a=paper --state fixed64"):
        code, _, problem = revstep(f"convert MODEL OUT/c --calibration TEXT --tokens 128 --scheme {options}")
        assert (code, problem) == (0, ""), problem
        assert hf.conversion(folders.load_model(tmp_path / "c")).scheme.name == options.split()[0].split(":")[0]
        shutil.rmtree(tmp_path / "c")


# ---- generate ----


def test_generate(revstep, hub):
    code, plain, _ = revstep("generate --hf MODEL --prompt def --max-tokens 8 --temperature 0")
    model, tokenizer = folders.load_model(hub / "model"), folders.load_tokenizer(hub / "model")
    ids = tokenizer("def", return_tensors="pt")["input_ids"]
    for _ in range(8):  # greedy, by hand, without a cache
        if ids[0, -1] == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert code == 0 and plain == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"
    texts = [revstep(f"generate --hf CONVERTED --count 8 --seed {seed}") for seed in (1, 1, 2)]
    assert [code for code, _, _ in texts] == [0, 0, 0] and texts[0] == texts[1] != texts[2]


# ---- train ----

SHORT = "--data TEXT --batch 4 --context 32 --lr 1e-3 --device cpu"


def test_train_deploys_the_model_whose_loss_it_reports(revstep, hub, tmp_path):
    """Steps with losses and states; the folder holds the converted model, --deploy the plain one with the loss that was printed."""
    code, said, _ = revstep(f"train --hf MODEL --out OUT/run --scheme midpoint:h=1 --steps 4 {SHORT} --deploy OUT/plain")
    steps = re.findall(r"^step (\d)/4  loss \d+\.\d{4}  [\d,]+ tokens/s  states exact \(3 states\)$", said, re.M)
    assert code == 0 and steps == ["1", "2", "3", "4"] and "states exact (12 of 12 states bit-equal in 4 passes)" in said
    assert [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    trained = weights(tmp_path / "run")
    assert folders.converted(tmp_path / "run") and not equal(trained, weights(hub / "model"))
    check_plain(tmp_path / "plain", trained)
    check_reported(said, tmp_path / "plain")


def check_reported(said, folder):
    before, as_trained, reverted = map(float, re.search(r"validation loss (\S+) before, (\S+) as trained, (\S+) reverted", said).groups())
    assert as_trained < before and as_trained != reverted and abs(reverted - held_out_loss(folder)) <= PRINTED


def test_a_reverted_loss_of_the_converted_model_is_noticed(revstep, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "as_plain", lambda model: contextlib.nullcontext())
    code, said, _ = revstep(f"train --hf MODEL --out OUT/run --scheme midpoint:h=1 --steps 2 {SHORT} --deploy OUT/plain")
    assert code == 0
    with pytest.raises(AssertionError):
        check_reported(said, tmp_path / "plain")


def test_lora_trains_adapters_alone(revstep, hub, tmp_path):
    code, said, problem = revstep(f"train --hf CONVERTED --out OUT/run --steps 3 {SHORT} --lora 2 --accumulate 2 --dtype bfloat16 --loss-chunk 16")
    assert code == 0, problem
    assert "as it was saved" in said and said.count("exact (3 states)") == 3
    before, after = weights(hub / "model"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if re.search(r"[qv]_proj", name)}  # peft's own targets for Llama, merged
    assert set(load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")) and folders.converted(tmp_path / "run")


class Stops:
    """Ctrl-C after the second step."""

    asked, signal = 0, 2

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    @property
    def requested(self):
        self.asked += 1
        return self.asked == 2


def test_stopped_and_resumed_gives_the_weights_of_the_whole_run(revstep, tmp_path, monkeypatch):
    options = f"--scheme bdia --steps 5 {SHORT}"
    assert revstep(f"train --hf MODEL --out OUT/whole {options}")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(session, "Interrupt", Stops)
        code, _, problem = revstep(f"train --hf MODEL --out OUT/run {options}")
    assert code == 130 and "stopped after step 2 of 5" in problem and (tmp_path / "run" / "checkpoint-2").is_dir()
    code, said, _ = revstep(f"train --hf MODEL --out OUT/run {options} --resume")
    assert code == 0 and "step 2/5" not in said and "step 3/5" in said
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    logs = [
        [{k: json.loads(line)[k] for k in ("step", "loss")} for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("run", "whole")
    ]
    assert logs[0] == logs[1]
    assert revstep(f"train --hf MODEL --out OUT/other {options} --seed 1")[0] == 0 and not equal(weights(tmp_path / "other"), weights(tmp_path / "whole"))


def test_plain_checkpointed_and_distilled(revstep, tmp_path):
    for scheme in ("plain", "checkpoint"):
        code, said, _ = revstep(f"train --hf CONVERTED --out OUT/{scheme} --scheme {scheme} --steps 2 {SHORT}")
        assert code == 0 and said.count("states stored") == 2 and not folders.converted(tmp_path / scheme)
    assert equal(weights(tmp_path / "plain"), weights(tmp_path / "checkpoint"))
    code, said, _ = revstep(f"train --hf MODEL --out OUT/d --scheme plain --steps 1 {SHORT} --teacher MODEL")
    assert code == 0 and re.search(r"loss -?0\.0000 ", said)  # it says already what its teacher says
    code, said, _ = revstep(f"train --hf MODEL --out OUT/e --scheme midpoint:h=1 --steps 1 {SHORT} --teacher MODEL")
    assert code == 0 and float(re.search(r"step 1/1  loss (\S+)", said)[1]) > 1e-3


def test_a_random_layer_ends_the_run(revstep, monkeypatch):
    """Noise from outside torch's generators, in training alone: the first backward pass must see it."""
    mlp, calls = transformers.models.llama.modeling_llama.LlamaMLP, itertools.count()
    right = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, x: right(self, x) * (1.0 + 1e-3 * (next(calls) % 7) * self.training))
    code, _, problem = revstep(f"train --hf CONVERTED --out OUT/run --steps 2 {SHORT}")
    assert code == 2 and "did not lead back" in problem


# ---- errors ----


@pytest.mark.parametrize("command, words", [
    ("convert nowhere OUT/c", ["no folder nowhere", "save_pretrained"]),
    ("convert EMPTY OUT/c", ["no tokenizer"]),
    ("convert BARE OUT/c", ["no tokenizer"]),
    ("convert MODEL OUT/c --scheme blnd", ["unknown scheme 'blnd'", "did you mean 'blend'"]),
    ("convert MODEL OUT/c --state fixed16", ["unknown state"]),
    ("convert MODEL OUT/c --scheme blend --tolerance 0.1", ["--tolerance goes with --scheme auto", "got --scheme blend"]),
    ("convert MODEL OUT/c --scheme blend --bits 3", ["--bits goes with --scheme auto"]),
    ("convert MODEL OUT/c --bits 9", ["bits is 9.0"]),
    ("convert MODEL OUT/c --retrofit", ["retrofit goes with Midpoint(h=1.0)"]),
    ("convert MODEL OUT/c --calibration OUT/none", ["no file or folder"]),
    ("convert MODEL MODEL", ["name another one"]),
    ("convert CONVERTED OUT/c", ["converted already", "--revert"]),
    ("convert MODEL OUT/c --revert", ["plain model"]),
    ("convert CONVERTED OUT/c --revert --keep 1", ["drop --keep"]),
    ("train --hf nowhere --out OUT/r", ["no folder nowhere"]),
    ("train --hf MODEL --out OUT/r --layers 3", ["--layers", "does not go with --hf"]),
    ("train --hf MODEL --out OUT/r --stop-at 3", ["--stop-at"]),
    ("train --lora 4 --out OUT/r", ["--lora goes with --hf"]),
    ("train --hf MODEL --out OUT/r --lora-alpha 4", ["--lora R"]),
    ("train --hf MODEL --out OUT/r --lora 0", ["--lora is 0", "rank"]),
    ("train --hf MODEL --out OUT/r --data TEXT --lora 2 --lora-targets nothing --context 32", ["peft finds no place", "all-linear"]),
    ("train --hf MODEL --out OUT/r --teacher-weight 0.5", ["--teacher MODEL_DIR"]),
    ("train --hf MODEL --out OUT/r --data TEXT --context 128", ["the model has 64 positions"]),
    ("train --hf MODEL --out OUT/r --data TEXT --steps 0", ["steps is 0"]),
    ("train --hf MODEL --out OUT/r --data TEXT --context 32 --resume", ["no checkpoint-N"]),
    ("train --hf CONVERTED --out OUT/r --data TEXT --context 32 --keep 1", ["--keep goes with --scheme"]),
    ("generate", ["--hf MODEL_DIR"]),
    ("generate run --hf MODEL", ["drop run"]),
    ("generate --hf EMPTY", ["no tokenizer"]),
    ("generate --hf MODEL --count 100", ["64 positions"]),
    ("generate --hf MODEL --device warp", ["warp", "try cpu"]),
])  # fmt: skip
def test_errors_are_one_sentence(revstep, command, words, tmp_path):
    code, _, problem = revstep(command)
    assert code == 2 and problem.startswith("revstep: ") and problem.count("\n") == 1, problem
    assert all(word in problem for word in words), problem


def test_a_model_that_is_none(revstep, hub, tmp_path):
    shutil.copytree(hub / "model", tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "nothing"}')
    code, _, problem = revstep("generate --hf OUT/m")
    assert code == 2 and "is not a model's" in problem and problem.count("\n") == 1
    shutil.copy(hub / "model" / "config.json", tmp_path / "m" / "config.json")
    (tmp_path / "m" / "model.safetensors").unlink()
    code, _, problem = revstep("generate --hf OUT/m")
    assert code == 2 and "cannot load a causal language model" in problem


def test_missing_transformers_is_named(revstep, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for command in ("convert MODEL OUT/c", "train --hf MODEL --out OUT/r", "generate --hf MODEL"):
        code, _, problem = revstep(command)
        assert code == 2 and "pip install 'revstep[hf]'" in problem
