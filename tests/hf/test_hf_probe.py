"""What ``convert`` tries a model on asks no more of it than training does.

Heads without a padding token, few positions, several dtypes.
"""

import contextlib

import pytest
import torch
import transformers
from models import LAYERS, VOCAB, WIDTH, bf16, differing, gradients, model, tokens
from recurrence import Recurrence

from revstep import UnsupportedError, hf
from revstep._models.layers import decoder_layers
from revstep.hf import _calibrate, _install, _probe
from revstep.hf._auto import UNMEASURED

LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DRY = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": WIDTH,
    "dropout": 0.0,
}


def llama(head, **options):
    return getattr(transformers, f"LlamaFor{head}")(transformers.LlamaConfig(**LLAMA | options))


def gpt2(**options):
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT2, **DRY, **options))


def opt(**options):
    return transformers.OPTForSequenceClassification(transformers.OPTConfig(**OPT, **options))


#: A model, and labels for one row of it; none has a padding token.
HEADS = {
    "classification": (lambda: llama("SequenceClassification", num_labels=3), {"labels": torch.tensor([1])}),
    "reward": (lambda: llama("SequenceClassification", num_labels=1), {"labels": torch.tensor([0.5])}),
    "tokens": (lambda: llama("TokenClassification", num_labels=3), {"labels": torch.tensor([[0, 1, 2, 1]])}),
    "answers": (
        lambda: llama("QuestionAnswering"),
        {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([2])},
    ),
    "GPT-2 classification": (lambda: gpt2(num_labels=3), {"labels": torch.tensor([1])}),
    "GPT-2 of four positions": (lambda: gpt2(n_positions=4), {"labels": torch.tensor([1])}),
    "OPT of four positions": (
        lambda: opt(max_position_embeddings=4, pad_token_id=None),
        {"labels": torch.tensor([1])},
    ),
    "Qwen3 classification": (
        lambda: transformers.Qwen3ForSequenceClassification(transformers.Qwen3Config(**LLAMA, head_dim=8)),
        {"labels": torch.tensor([1])},
    ),
}


def made(head, dtype=torch.float32):
    torch.manual_seed(0)
    return HEADS[head][0]().to(dtype).eval()


def trained(module, head):
    """Gradients of one pass on one row."""
    module.train().zero_grad(set_to_none=True)
    labels = {n: v.to(module.dtype) if v.is_floating_point() else v for n, v in HEADS[head][1].items()}
    loss = module(input_ids=tokens(1, 4), **labels).loss
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("head", HEADS)
def test_heads_without_a_padding_token(head):
    """Converted, with the stored recurrence's gradients to the bit, and the float64 oracle's to the grid."""
    rebuilt = trained(hf.convert(made(head), "blend:c=0.25", say=None), head)
    assert (
        differing(rebuilt, trained(hf.convert(made(head), "blend:c=0.25", keep=LAYERS, say=None), head)) == []
    )
    plain = made(head, torch.float64)
    Recurrence(decoder_layers(plain)[1], "blend:c=0.25")
    expected = trained(plain, head)
    # The grid is 2^-20; float32 rounds to 2^-24 of each of about a hundred terms.
    for name, g in expected.items():
        assert (rebuilt[name] - g).norm() <= 2e-3 * g.norm() + 1e-6, name


@pytest.mark.parametrize("head", HEADS)
def test_calibration_needs_no_padding_token_either(head):
    """Four rows of token ids at once, of which the head could do one."""
    converted = hf.convert(made(head), "blend:c=0.25", calibration=tokens(4, 4), say=None)
    assert hf.conversion(converted).state.frac_bits == 24
    trained(converted, head)
    said = []
    unmeasured = hf.convert(made(head), "auto", calibration=tokens(4, 4), say=said.append)
    assert "predicts no next token" in said[0] and hf.conversion(unmeasured).scheme == UNMEASURED


@pytest.mark.parametrize("head", ["classification", "GPT-2 classification", "reward"])
def test_saved_and_loaded_with_its_head(tmp_path, head):
    one = hf.convert(made(head), "blend:c=0.25", say=None)
    one.save_pretrained(tmp_path)
    two = hf.from_pretrained(tmp_path)
    assert type(two) is type(one) and differing(one.state_dict(), two.state_dict()) == []
    assert differing(trained(one, head), trained(two, head)) == []


# ---- precision ----


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize("family", ["Llama", "GPT2LMHeadModel", "Gemma2"])
def test_inside_autocast(family, scheme):
    with bf16():
        inside = hf.convert(model(family), scheme, say=None)
    outside = hf.convert(model(family), scheme, say=None)
    assert differing(gradients(inside.train(), context=bf16), gradients(outside.train(), context=bf16)) == []


def mixed(family, kinds):
    """A model in bfloat16 with these kinds of modules in float32."""
    one = model(family, dtype=torch.bfloat16)
    for module in one.modules():
        if any(kind in type(module).__name__ for kind in kinds):
            module.float()
    return one.train()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize("kinds", [("Norm",), ("Norm", "Embedding")], ids=["norms", "norms and embeddings"])
@pytest.mark.parametrize("family", ["Llama", "GPT2LMHeadModel", "Gemma2", "Qwen3"])
def test_parts_in_float32(family, kinds, scheme, inside):
    """Such a model trains under autocast only, and is converted inside it or outside."""
    with bf16() if inside else contextlib.nullcontext():
        one = hf.convert(mixed(family, kinds), scheme, say=None)
        all_kept = hf.convert(mixed(family, kinds), scheme, keep=LAYERS, say=None)
    assert differing(gradients(one, context=bf16), gradients(all_kept, context=bf16)) == []
    assert hf.conversion(one).report.exact


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kinds", [("Norm",), ("Norm", "Embedding")], ids=" and ".join)
@pytest.mark.parametrize("family", ["Llama", "GPT2LMHeadModel", "Gemma2", "Mixtral"])
def test_parts_in_float32_are_calibrated(family, kinds, inside):
    """Calibration and the loss on the user's text run as training does: under the autocast that is needed."""
    rows = [{"input_ids": tokens()}]
    with bf16() if inside else contextlib.nullcontext():
        one = hf.convert(mixed(family, kinds), "blend", calibration=tokens(), say=None)
        loss = hf.mean_loss(one, rows)
    with bf16():
        two = hf.convert(mixed(family, kinds), "blend", calibration=tokens(), say=None)
        assert loss == hf.mean_loss(two, rows)
    assert hf.conversion(one).state == hf.conversion(two).state
    assert not torch.is_autocast_enabled("cpu")


def test_a_model_that_runs_as_it_is_gets_no_autocast():
    """One dtype, or several that go together: nothing is rounded that the model does not round itself."""
    head = model("Llama", dtype=torch.bfloat16)
    head.model.norm.float()  # transformers' Llama norm rounds to its input's dtype before it multiplies
    head.lm_head.float()
    for one in (model("Llama"), model("Llama", dtype=torch.bfloat16), head):
        with _probe.as_it_was(one):
            assert not torch.is_autocast_enabled("cpu")
    with _probe.as_it_was(mixed("Llama", ("Norm",))):
        assert torch.is_autocast_enabled("cpu")


def test_a_calibration_without_the_autocast_that_the_model_needs(monkeypatch):
    monkeypatch.setattr(_probe, "_autocast_needed", lambda model: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="dtype"):
        hf.convert(mixed("Llama", ("Norm",)), "blend", calibration=tokens(), say=None)


def prepared(family, precision, converted_first):
    """(model, accelerator) as accelerate's loop has them, converted before or after ``prepare``."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    one, options = model(family).train(), {"calibration": tokens(), "say": None}
    if converted_first:
        hf.convert(one, "blend", **options)
    one = accelerator.prepare(one)
    if not converted_first:
        hf.convert(one, "blend", **options)
    return one, accelerator


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("family", ["Llama", "GPT2LMHeadModel", "Gemma2"])
def test_after_prepare(family, precision):
    """accelerate puts autocast and a cast of the outputs around the model's own forward."""
    (one, accelerator), (two, _) = (prepared(family, precision, first) for first in (False, True))
    assert differing(gradients(one), gradients(two)) == [] and hf.conversion(one).report.exact
    assert hf.conversion(one).state == hf.conversion(two).state
    hf.revert(one)
    plain = model(family).train()
    expected = gradients(accelerator.prepare(plain))
    assert differing(gradients(one), expected) == []


def test_a_layer_that_halves_its_stream_is_refused_in_any_precision():
    for inside in (False, True):
        one = mixed("Llama", ("Norm",)) if inside else model("Llama")
        own = one.model.layers[1].forward
        one.model.layers[1].forward = lambda x, *args, _own=own, **kwargs: 0.5 * _own(x, *args, **kwargs)
        with (
            bf16() if inside else contextlib.nullcontext(),
            pytest.raises(UnsupportedError, match="LlamaDecoderLayer does not return"),
        ):
            hf.convert(one, "blend:c=0.25", say=None)


# ---- mutants ----


@pytest.mark.parametrize("head", ["classification", "reward", "GPT-2 classification", "Qwen3 classification"])
def test_a_probe_that_runs_the_head_asks_for_a_padding_token(monkeypatch, head):
    monkeypatch.setattr(_probe, "until_returned", lambda loop: contextlib.nullcontext())
    with pytest.raises(UnsupportedError, match="padding token"):
        hf.convert(made(head), "blend:c=0.25", say=None)


def test_a_calibration_that_runs_the_head_asks_for_a_padding_token(monkeypatch):
    monkeypatch.setattr(_calibrate, "until_returned", lambda loop: contextlib.nullcontext())
    with pytest.raises(ValueError, match="padding token"):
        hf.convert(made("classification"), "blend:c=0.25", calibration=tokens(4, 4), say=None)


def test_a_probe_without_the_precision_that_the_model_needs(monkeypatch):
    monkeypatch.setattr(_probe, "_precisions", lambda inner: iter([torch.autocast("cpu", enabled=False)]))
    with pytest.raises(UnsupportedError, match="does not run on token ids alone"):
        hf.convert(mixed("Llama", ("Norm",)), "blend:c=0.25", say=None)


def test_a_probe_in_the_precision_of_the_caller_would_compare_bfloat16(monkeypatch):
    """Inside autocast the comparison is made in float32 all the same: one part in 500 is seen."""

    def nearly(one):
        made = _install.choose(decoder_layers(one)[1], 1)
        block = made.block

        class Off(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, *args, **kwargs):
                return self.inner(*args, **kwargs) * 1.002

        made.block = lambda layer, forward: Off(block(layer, forward))
        return made

    one = model("Llama")
    with bf16(), pytest.raises(UnsupportedError, match="differ"):
        hf.convert(one, "blend:c=0.25", adapter=nearly(one), say=None)
    monkeypatch.setattr(_probe, "_precisions", lambda inner: iter([contextlib.nullcontext()]))
    with bf16():
        hf.convert(one, "blend:c=0.25", adapter=nearly(one), say=None)
