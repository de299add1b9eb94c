"""The parts of a plan: sources, probe, machines, search, text; and what each refuses."""

import copy
import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
import torch
import transformers
from plan_step import SEQUENCE, configs

from revstep import BDIA, Blend, FixedPoint
from revstep._models.layers import decoder_layers
from revstep._values import size
from revstep.errors import ConfigError
from revstep.plan import PUBLIC, _meter, _modes, _probe, _source, plan
from revstep.plan._modes import Reversible
from revstep.plan._planner import _states
from revstep.plan._rows import largest_batch, step_time

CONFIGS = configs(hidden=64)
LLAMA = CONFIGS["llama"]


def probed(config, sequence=SEQUENCE, trainable="all", dtype=torch.float32):
    return _probe.Probe(_source.find_source(config), sequence, dtype, None, trainable, 64)


# ---- sources ----


def test_a_folder_a_file_a_dict_a_config_and_a_model_give_one_plan(tmp_path):
    LLAMA.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(LLAMA)
    plans = [
        plan(x, sequence=32, dtype="float32")
        for x in (tmp_path, str(tmp_path / "config.json"), LLAMA.to_dict(), LLAMA, model)
    ]
    assert len({p.rows for p in plans}) == 1
    assert plans[0].parameters == sum(p.numel() for p in model.parameters())


def test_a_name_known_here_is_taken(monkeypatch):
    small = {**LLAMA.to_dict(), "name": "A small one"}
    monkeypatch.setitem(PUBLIC, "small", small)
    named, given = (plan(x, sequence=32, dtype="float32") for x in ("small", small))
    assert named.rows == given.rows and named.model == "A small one"
    with pytest.raises(ConfigError, match="or a name known here: gpt2, llama3-8b"):
        plan("llama3-9b", sequence=32)


def test_a_model_brings_its_dtype_and_what_is_frozen():
    model = transformers.AutoModelForCausalLM.from_config(LLAMA, dtype=torch.bfloat16)
    for layer in model.model.layers:
        layer.mlp.requires_grad_(False)
    made = plan(model, sequence=32)
    assert made.settings["weights"] == "bfloat16"
    assert made.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad) < made.parameters
    assert made.row("plain").peak < plan(LLAMA, sequence=32).row("plain").peak


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is not there; give a config.json"),
        ("{", "is not JSON"),
        ("[]", "no model_type"),
        ("{}", "no model_type"),
        ('{"model_type": "martian"}', "architecture 'martian' is unknown to transformers"),
        ('{"model_type": "vit"}', "no causal language model"),
    ],
)
def test_files_that_are_no_model(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, sequence=8)


def test_a_peft_model_says_what_to_give():
    with pytest.raises(ConfigError, match=r"get_base_model\(\)"):
        plan(_source.adapted(transformers.AutoModelForCausalLM.from_config(LLAMA), "lora:r=2"), sequence=8)


def test_everything_frozen_is_refused():
    model = transformers.AutoModelForCausalLM.from_config(LLAMA).requires_grad_(False)
    with pytest.raises(ConfigError, match="something to train"):
        plan(model, sequence=8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sequence": 0}, "sequence is 0"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"weights": "bfloat16", "dtype": "float32"}, "autocast"),
        ({"optimizer": "adamw8bit"}, "expected one of adamw, momentum, sgd"),
        ({"engine": "zero9"}, "ddp, fsdp"),
        ({"world": 0}, "world is 0"),
        ({"headroom": 1}, "headroom is 1"),
        ({"trainable": "lora:rank=8"}, "lora:r=8"),
        ({"trainable": "some"}, "lora:r=8"),
        ({"scheme": "plain"}, "expected a reversible one"),
        ({"scheme": "blnd"}, "did you mean 'blend'"),
        ({"state": "fixed8"}, "unknown state"),
        ({"memory": "much"}, "memory is 'much'"),
        ({"chunk": 0}, "chunk is 0"),
        ({"model": 7}, "expected a path"),
    ],
)
def test_arguments_that_cannot_be_used(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(**({"model": LLAMA, "sequence": 8} | options))


def test_a_model_that_needs_another_dtype_says_so():
    config = transformers.MixtralConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=64,
        num_local_experts=2,
    )
    with pytest.raises(
        ConfigError, match=r"MixtralForCausalLM cannot be run on shapes alone in torch\.float32"
    ):
        plan(config, sequence=8, dtype="float32")
    assert plan(config, sequence=8).row("reversible").peak > 0


def test_more_positions_than_learned():
    with pytest.raises(ConfigError, match="512 learned positions"):
        plan(CONFIGS["gpt2"], sequence=513)


# ---- the probe ----


@pytest.mark.parametrize("trainable", ["all", "lora:r=4"])
def test_a_few_layers_tell_what_all_would(trainable, monkeypatch):
    config = configs(hidden=64, layers=9)["qwen3"]
    few = probed(config, trainable=trainable)
    monkeypatch.setattr(_probe, "min", lambda *depths: depths[0], raising=False)  # all layers are measured
    every = probed(config, trainable=trainable)
    assert len(decoder_layers(few.model)[1]) == 3 and len(decoder_layers(every.model)[1]) == 9
    a, b = few.at(2), every.at(2)
    assert sum(x.saved for x in a.layers) + a.edge + a.outside == sum(x.saved for x in b.layers) + b.outside
    assert a.layers[4] == b.layers[4] and (a.head, a.embed, a.operations) == (b.head, b.embed, b.operations)


# Attention with a mask goes by repeated keys and values.
def test_layers_of_several_kinds_are_measured_each():
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    config = transformers.Qwen2Config(
        **{
            **CONFIGS["qwen2"].to_dict(),
            "layer_types": kinds,
            "use_sliding_window": True,
            "sliding_window": 16,
        }
    )
    sample = probed(config).at(2)
    assert sample.layers[2].saved > sample.layers[1].saved == sample.layers[3].saved


def test_nothing_is_allocated():
    """405 billion parameters in a process that has no room for one of their layers."""
    made = plan(PUBLIC["llama3-405b"], sequence=8192)
    assert made.parameters == 405_853_388_800


def test_parameters_of_the_public_rows():
    # safetensors metadata of the published weights.
    known = {"llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496}
    assert {
        name: probed(PUBLIC[name], 16, dtype=torch.bfloat16).weights.total(False) for name in known
    } == known


def test_many_chunks_are_the_line_of_a_few(monkeypatch):
    few = probed(LLAMA).at(8).chunked  # 16 chunks of 64 rows, four of them measured
    # All sixteen.
    monkeypatch.setattr(
        _probe,
        "chunked_head",
        lambda model, tokens, chunk, device, known: _meter._measure(model, tokens, chunk, device),
    )
    assert probed(LLAMA).at(8).chunked == few


def test_operations_are_those_of_the_matrices():
    """6 N a token for the products with parameters, and attention: causal, 2 products of T x T x D forwards
    and 5 backwards, halved.
    """
    sample = probed(LLAMA).at(2)
    layer, tokens = sample.layers[1], 2 * SEQUENCE
    weights = sum(
        p.numel()
        for n, p in transformers.AutoModelForCausalLM.from_config(LLAMA).model.layers[0].named_parameters()
        if p.ndim == 2
    )
    attention = 2 * tokens * SEQUENCE * 64 / 2
    assert layer.operations == (2 * tokens * weights + 2 * attention, 4 * tokens * weights + 5 * attention)
    assert sample.operations == (2 * tokens * 64 * 2048, 4 * tokens * 64 * 2048)
    everything = 3 * (4 * 2 * tokens * weights + sample.operations[0]) + 4 * 7 * attention
    assert step_time(sample, 4) == pytest.approx(1 + 4 * layer.operations[0] / everything)
    assert step_time(sample, 0) == 1.0


# ---- machines, states, search ----


@pytest.mark.parametrize("optimizer, moments", [("adamw", 2), ("momentum", 1), ("sgd", 0)])
def test_one_gpu_holds_everything(optimizer, moments):
    weights = probed(LLAMA).weights
    fixed, n = _modes.static(weights, optimizer, 1, "fsdp"), weights.total(True)
    assert (fixed.parameters, fixed.gradients, fixed.optimizer, fixed.engine) == (
        4 * n,
        4 * n,
        4 * moments * n,
        0,
    )
    assert sum(fixed.layer_gradients) + fixed.outside_gradients == fixed.gradients


def test_many_gpus():
    weights = probed(LLAMA).weights
    n, (layer, _), outside = weights.total(True), weights.layers[0], weights.outside[0]
    ddp, fsdp = _modes.static(weights, "adamw", 8, "ddp"), _modes.static(weights, "adamw", 8, "fsdp")
    assert ddp.total == 4 * 4 * n + ddp.buffers  # parameters, two moments, buckets
    assert (fsdp.parameters, fsdp.gradients, fsdp.optimizer) == (4 * n / 8, 4 * n / 8, 8 * n / 8)
    assert fsdp.engine == 4 * (outside + 3 * layer + layer)


def test_what_fsdp_divides_is_less_with_more_gpus_and_never_less_than_gathered():
    peaks = [plan(LLAMA, sequence=8, world=n, engine="fsdp").row("reversible").peak for n in (2, 4, 64)]
    assert (
        peaks[0]
        > peaks[1]
        > peaks[2]
        > _modes.static(probed(LLAMA, 8, dtype=torch.bfloat16).weights, "adamw", 64, "fsdp").engine
    )


@pytest.mark.parametrize(
    "scheme, state, bits, width",
    [
        ("blend:c=0.25", "fixed32", 2, 4),
        ("blend:c=0.125", "fixed64", 3, 8),
        ("midpoint", "fixed32", 0, 4),
        ("blend:c=0.25", "float32", 0, 4),
        (Blend(0.5), "fixed32", 1, 4),
        (BDIA(0.5), "fixed32", 1, 4),
        ("hamiltonian", "fixed32", 0, 4),
    ],
)
def test_bits_of_a_scheme(scheme, state, bits, width):
    carried, found = _states(scheme, state, 6)
    assert found == width and set(carried) <= {0, bits} and carried[-1] == bits and len(carried) in (6, 12)


# One layer's carry forgotten.
def test_states_are_those_a_stack_reports():
    """R of the formulas beside what a ReversibleStack says it kept."""
    from revstep import ReversibleStack

    stack = ReversibleStack([torch.nn.Linear(32, 32) for _ in range(5)], Blend(0.25), FixedPoint())
    stack(torch.randn(4, 32, requires_grad=True)).sum().backward()
    rev = Reversible(4, (2,) * 5)
    assert rev.states(4 * 32, 5) + rev.carries(4 * 32, 5, 5) == stack.report.bytes_saved
    assert rev.states(4 * 32, 5) + rev.carries(4 * 32, 5, 4) != stack.report.bytes_saved


@pytest.mark.parametrize("seed", range(40))
def test_the_largest_batch_is_the_largest(seed):
    a, b, c, memory = (
        torch.rand(4, generator=torch.Generator().manual_seed(seed))
        * torch.tensor([100.0, 10.0, 200.0, 3000.0])
    ).tolist()
    needed = lambda batch: max(a + b * batch, c + 0.9 * b * batch)  # noqa: E731
    found = largest_batch(needed, memory)
    assert (found == 0 or needed(found) <= memory) and needed(found + 1) > memory


def test_largest_batch_and_keep_fill_the_memory():
    options = {"sequence": 64, "dtype": "float32", "chunk": 256}
    made = plan(LLAMA, batch=4, memory="15MB", headroom=0.0, **options)
    some = [made.row("plain"), made.row("reversible"), made.row("reversible", True)]
    peaks = {
        b: plan(LLAMA, batch=b, **options)
        for b in sorted({row.largest_batch + more for row in some for more in (0, 1)})
    }
    for row in some:
        assert (
            peaks[row.largest_batch].row(row.mode, row.chunked).peak
            <= 15e6
            < peaks[row.largest_batch + 1].row(row.mode, row.chunked).peak
        )
    row = made.row("reversible")
    assert 0 < row.keep < 4 and 1 < row.keep_step_time < row.step_time


def test_between_powers_of_two_the_line_is_never_below():
    found = probed(CONFIGS["gemma"])
    for batch in (6,):
        near, at = found.near(batch), found.at(batch)
        assert [(x.saved, x.operations) for x in near.layers] == [(x.saved, x.operations) for x in at.layers]
        assert (
            near.head.forward >= at.head.forward
            and near.head.backward >= at.head.backward
            and near.layers[1].backward >= at.layers[1].backward
        )
        assert near.head.peak == pytest.approx(at.head.peak, rel=0.05)


def test_gradients_that_wait_for_another_micro_batch_are_counted():
    first, later = (
        plan(LLAMA, sequence=512, batch=4, dtype="float32", accumulate=a).row("plain") for a in (False, True)
    )
    assert first.moment == later.moment == "loss" and later.peak - first.peak == first.gradients


def test_bdia_and_deepcopy_leave_the_given_config_alone():
    before = copy.deepcopy(LLAMA.to_dict())
    plan(LLAMA, sequence=8, scheme=BDIA(0.5))
    assert LLAMA.to_dict() == before


# ---- text ----


def test_a_plan_is_json_and_text():
    made = plan(LLAMA, sequence=64, memory="6MB")
    assert json.loads(json.dumps(made.to_dict()))["rows"][0]["mode"] == "plain"
    text = made.table()
    assert (
        "4 layers" in text
        and all(mode in text for mode in ("plain", "checkpointed", "reversible", "largest batch"))
        and made.shortage() is None
    )
    with pytest.raises(ConfigError, match="no row 'sideways'"):
        made.row("sideways")


def test_a_shortage_says_what_is_short_and_by_how_much():
    made = plan(PUBLIC["llama3-8b"], sequence=2048, memory="24GB", headroom=0.0)
    least = min(row.peak for row in made.rows)
    assert (
        f"short of {size(least - 24e9)}" in made.shortage()
        and "LoRA" in made.shortage()
        and "FSDP" in made.shortage()
    )


def test_capped_logits_cannot_be_chunked():
    base = {
        k: v
        for k, v in CONFIGS["gemma"].to_dict().items()
        if k not in ("model_type", "architectures", "layer_types")
    }
    made = plan(
        transformers.Gemma2Config(
            **base, final_logit_softcapping=30.0, attn_logit_softcapping=None, query_pre_attn_scalar=16
        ),
        sequence=32,
    )
    assert len(made.rows) == 3 and "caps its logits" in made.no_chunk
