"""What a plan says last: the sentence with the command, lengths such as 8k, packed weights, models known by
name.
"""

import dataclasses
import re

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
import torch
from plan_step import configs

from revstep import ConfigError, _cli, _values
from revstep.plan import PUBLIC, _modes, _planner, _source, _text, plan
from revstep.plan._modes import packed_bytes
from revstep.plan._probe import Linear

LLAMA = configs(hidden=64)["llama"]
#: Small sizes at which checkpoints cost more than states: deep, many tokens, few gradients.
DEEP = {"sequence": 256, "trainable": "lora:r=2", "scheme": "blend:c=0.0625", "dtype": "float32"}


@pytest.fixture(scope="module")
def deep():
    return configs(hidden=64, layers=32)["llama"]


# ---- the sentence ----


def test_the_sentence_says_what_the_rows_say(deep):
    made = plan(deep, **DEEP, memory="80MB", headroom=0.0)
    plain, check, rev = (made.row(mode, True) for mode in ("plain", "checkpointed", "reversible"))
    said = made.advice("some/model")
    assert said.startswith(
        f"Reversible training saves {_values.size(check.peak - rev.peak)} beside checkpointing"
    )
    assert f"and {_values.size(plain.peak - rev.peak)} beside plain training at batch 1" in said
    assert rev.largest_batch > check.largest_batch > 0
    assert f"fits batch {rev.largest_batch} instead of {check.largest_batch} at the same speed" in said
    assert said.endswith(
        f"run: revstep finetune some/model --data PATH --context 256 --batch {rev.largest_batch} --lora 2"
        " --lora-targets auto --scheme blend:c=0.0625"
    )
    assert said.count("\n") == 0 and "--keep" not in said  # plain training fits as well


def test_the_command_of_the_sentence_is_one(deep, capsys, tmp_path):
    """revstep finetune takes every word of it: only the model and the text are missing."""
    for options in (
        {},
        {"trainable": "all"},
        {"trainable": "lora:r=2,targets=all-linear", "dtype": "bfloat16"},
    ):
        said = plan(deep, **DEEP | options).advice(str(tmp_path / "none there"))
        words = re.search(r"run: revstep (finetune .*)", said)[1]
        parts = __import__("shlex").split(words)
        _cli.make_parser().parse_args(parts)
        assert parts[1] == str(tmp_path / "none there") and ("--full" in parts) == (
            options.get("trainable") == "all"
        )
        with pytest.raises(SystemExit):
            _cli.make_parser().parse_args([*parts, "--no-such-option"])
    capsys.readouterr()


def test_where_checkpointing_is_as_good_the_sentence_says_so():
    """Full training of a small model: gradients decide, and two states are two states more."""
    made = plan(LLAMA, sequence=32, dtype="float32")
    rev, check = made.row("reversible", True), made.row("checkpointed", True)
    assert rev.peak > check.peak
    said = made.advice()
    assert said.startswith(
        f"Reversible training holds {_values.size(rev.peak - check.peak)} more than checkpointing at batch 1"
    )
    assert rev.moment in said and said.endswith("--full --scheme checkpoint")


def test_a_sentence_that_praises_anyway_is_noticed(monkeypatch):
    """Broken on purpose: the difference loses its sign."""
    monkeypatch.setattr(_text, "_saving", lambda plan, plain, saved, rev: f"saves {_values.size(abs(saved))}")
    with pytest.raises(AssertionError):
        test_where_checkpointing_is_as_good_the_sentence_says_so()


def test_plain_training_that_fits_is_named(deep):
    assert (
        "plain training fits at batch 1 as well and is the fastest"
        in plan(deep, **DEEP, memory="1GB").advice()
    )
    between = (
        plan(deep, **DEEP).row("plain", True).peak + plan(deep, **DEEP).row("reversible", True).peak
    ) / 2
    made = plan(deep, **DEEP, memory=int(between), headroom=0.0)
    rev = made.row("reversible", True)
    assert "fastest" not in made.advice() and rev.keep > 0
    kept = (
        f"takes {rev.keep_step_time:.2f} instead of {rev.step_time:.2f} times plain's time with --keep"
        f" {rev.keep} at batch 1"
    )
    assert kept in made.advice()


def test_no_single_command_for_many_gpus(deep):
    said = plan(deep, **DEEP, world=4).advice()
    assert "run:" not in said and "on the 4 GPUs" in said


def test_the_command_line_ends_with_it(deep, tmp_path, capsys):
    deep.save_pretrained(tmp_path)
    assert _cli.main(["plan", str(tmp_path), "--seq", "256", "--lora", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Reversible training saves") and f"revstep finetune {tmp_path} " in last
    assert _cli.main(["plan", str(tmp_path), "--seq", "256", "--memory", "1MB"]) == 2
    said = capsys.readouterr()
    assert "finetune" not in said.out and "does not fit" in said.err


# ---- lengths ----


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("8k", 8192),
        ("8K", 8192),
        ("4096", 4096),
        (4096, 4096),
        ("0.5k", 512),
        ("1m", 1 << 20),
        (" 2k ", 2048),
        (1, 1),
    ],
)
def test_lengths(text, tokens):
    assert _values.parse_length(text) == tokens


@pytest.mark.parametrize("text", ["0", "-1", "8kb", "k", "", "0.3k", "1.5", True, None, 2.5, "8 k k", "nan"])
def test_no_lengths(text):
    with pytest.raises(ConfigError, match="whole number"):
        _values.parse_length(text)


def test_a_plan_takes_them(tmp_path, capsys):
    assert plan(LLAMA, sequence="0.25k").to_dict() == plan(LLAMA, sequence=256).to_dict()
    LLAMA.save_pretrained(tmp_path)
    assert _cli.main(["plan", str(tmp_path), "--seq", "0.25k"]) == 0
    assert "batch 1 x 256 tokens" in capsys.readouterr().out
    assert _cli.main(["plan", str(tmp_path), "--seq", "8kk"]) == 2
    assert "8k (8 x 1024)" in capsys.readouterr().err


# ---- packed weights ----

LORA = {"sequence": 64, "trainable": "lora:r=2", "dtype": "bfloat16"}


def by_hand(bits, per_scale):
    """Bytes of the linear weights of LLAMA's layers: its four attention projections and three of the MLP."""
    width, kv, inner = 64, 32, 128
    shapes = [
        (width, width),
        (kv, width),
        (kv, width),
        (width, width),
        (inner, width),
        (inner, width),
        (width, inner),
    ]
    elements = sum(a * b for a, b in shapes)
    scales = sum(a for a, _ in shapes) if per_scale is None else elements / per_scale
    return 4 * elements, 4 * (elements * bits / 8 + 4 * scales), max(a * b for a, b in shapes)


@pytest.mark.parametrize("name, bits, per_scale", [("int8", 8, None), ("int4", 4, 64)])
def test_packed_weights_are_counted(name, bits, per_scale):
    elements, packed, largest = by_hand(bits, per_scale)
    wide, narrow = plan(LLAMA, **LORA), plan(LLAMA, **LORA, weights=name)
    for mode in ("plain", "checkpointed", "reversible"):
        a, b = wide.row(mode), narrow.row(mode)
        assert a.parameters - b.parameters == pytest.approx(2 * elements - packed, abs=1)
        assert (a.gradients, a.optimizer, a.activations, a.states) == (
            b.gradients,
            b.optimizer,
            b.activations,
            b.states,
        )
        less = a.peak - b.peak  # all of that, but for one weight unpacked where a layer is the peak
        assert 2 * elements - packed - 2 * largest - 1 <= less <= 2 * elements - packed + 1
    assert f"bfloat16 on {name} weights" in narrow.table() and "autocast" not in narrow.table()
    assert f"in {bits} bits" in narrow.advice() and "revstep.hf.convert" in narrow.advice()


def test_a_wrong_packing_is_noticed(monkeypatch):
    """Broken on purpose: half a byte an element and no scales."""
    monkeypatch.setattr(_modes, "packed_bytes", lambda weights, packed: weights.linear.elements / 2)
    with pytest.raises(AssertionError):
        test_packed_weights_are_counted("int4", 4, 64)


def test_the_unpacked_weight_is_there_for_a_moment():
    """In a layer's own forward and backward pass, and only there."""
    found = _planner.find_source(LLAMA)
    make = lambda packed: _planner.Probe(found, 64, torch.bfloat16, None, "lora:r=2", 64, packed).at(1)  # noqa: E731
    wide, packed = make(False), make(True)
    more = 2 * by_hand(4, 64)[2]
    for a, b in zip(wide.layers, packed.layers):
        assert dataclasses.replace(a, forward=a.forward + more, backward=a.backward + more) == b
    assert dataclasses.replace(packed, layers=wide.layers) == wide


def test_scales():
    weights = _planner.Probe(_planner.find_source(LLAMA), 8, torch.float32, None, "lora:r=2", 8).weights
    weights = dataclasses.replace(weights, linear=Linear(6400, 10, 640))
    assert packed_bytes(weights, "int8") == 6400 + 40 and packed_bytes(weights, "int4") == 3200 + 400


@pytest.mark.parametrize(
    "options, words",
    [
        ({"trainable": "all"}, "plan LoRA"),
        ({"world": 2, "engine": "fsdp"}, "plan ddp"),
        ({"fused_step": True, "accumulate": True}, "fused_step and accumulate"),
        ({"fused_step": True, "world": 2}, "fused_step and world = 2"),
        ({"weights": "int3"}, "int8, int4"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_what_packed_weights_do_not_go_with(options, words):
    with pytest.raises(ConfigError, match=words):
        plan(LLAMA, **{**LORA, "weights": "int4"} | options)


def test_llama_8b_fits_a_small_gpu_in_four_bits():
    made = plan(PUBLIC["llama3-8b"], sequence="2k", memory="16GB", trainable="lora:r=16", weights="int4")
    assert made.row("reversible", True).largest_batch >= 1 and 4e9 < made.row("plain").parameters < 6.5e9
    assert (
        not plan(PUBLIC["llama3-8b"], sequence="2k", memory="16GB", trainable="lora:r=16")
        .row("reversible", True)
        .largest_batch
    )


# ---- names ----

#: Parameters in millions, as published with each model.
PUBLISHED = {
    "gpt2": 124.4,
    "llama3-8b": 8030,
    "llama3-70b": 70554,
    "llama3-405b": 405853,
    "llama3.2-1b": 1236,
    "llama3.2-3b": 3213,
    "mistral-7b": 7242,
    "qwen2.5-0.5b": 494,
    "qwen2.5-7b": 7616,
    "smollm2-135m": 134.5,
    "smollm2-1.7b": 1711,
    "tinyllama-1.1b": 1100,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_models_have_their_published_size(name):
    found = _source.find_source(PUBLIC[name])
    model = _source.build(found.config, found.layers, torch.bfloat16, "all", frozenset())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], rel=2e-3)


def test_they_are_listed(capsys, tmp_path):
    assert _cli.main(["plan", "--models"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)} ", said, re.M) for name in PUBLIC) and "smollm2-135m" in said
    for words in (["plan", "lama3-8b", "--seq", "8"], ["plan"], ["plan", "llama3-8b"]):
        assert _cli.main(words) == 2
        problem = capsys.readouterr().err
        assert problem.count("\n") == 1 and all(name in problem for name in PUBLIC)


def test_a_gguf_file_is_planned(tmp_path, capsys):
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF nothing more")
    assert _cli.main(["plan", str(tmp_path / "x.gguf"), "--seq", "8"]) == 2
    problem = capsys.readouterr().err
    assert "cannot be read" in problem and problem.count("\n") == 1
