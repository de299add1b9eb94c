"""Calibration: the finest format that keeps the headroom over the user's text, whatever form the text has;
outliers choose a wider one.
"""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import LAYERS, VOCAB, converted, gradients, model, tokens

from revstep import ConfigError, FixedPoint, StateOverflowError, hf
from revstep._models.layers import decoder_layers
from revstep.hf._calibrate import COARSEST, FINEST, ROWS, as_batches, choose_format, mean_loss


def calibrated(module=None, **options):
    """(model, what was said)."""
    lines = []
    made = hf.convert(
        model("Llama") if module is None else module,
        say=lines.append,
        **{"scheme": "blend:c=0.25", "calibration": tokens()} | options,
    )
    return made, "\n".join(lines)


def outliers(size=3000.0):
    """A model whose second layer writes one value of thousands, as trained decoders do, into one channel."""
    made = model("Llama")
    layer = decoder_layers(made)[1][1]
    with torch.no_grad():
        layer.mlp.down_proj.weight[7] = 0.0
        out = []
        handle = layer.mlp.down_proj.register_forward_hook(lambda _, args, y: out.append(args[0]))
        made(input_ids=tokens())
        handle.remove()
        hidden = out[0].flatten(0, 1)
        row = hidden[hidden.norm(dim=1).argmax()]
        layer.mlp.down_proj.weight[7] = size / 1.25 * row / row.square().sum()  # 1.25 = (1 + c) of Blend
    return made


# ---- the rule ----


@settings(max_examples=300, deadline=None)
@given(largest=st.floats(1e-6, 1e12), headroom=st.floats(1.0, 64.0))
def test_headroom_is_kept_and_the_grid_is_the_finest(largest, headroom):
    fmt, needed = choose_format(largest, headroom), headroom * largest
    assert fmt.limit * (1 + 2.0**-30) > needed
    finest = FINEST if fmt.bits == 32 else 32
    assert fmt.frac_bits == finest or FixedPoint(fmt.bits, fmt.frac_bits + 1).limit < needed * (
        1 + 2.0**-30
    ), "one bit more would have held too"
    assert (fmt.bits == 32 and fmt.frac_bits >= COARSEST) or FixedPoint(32, COARSEST).limit < needed * (
        1 + 2.0**-30
    ), "64 bits where 32 would have done"


@pytest.mark.parametrize("exponent", range(-3, 40))
def test_a_power_of_two_fits_even_without_headroom(exponent):
    """The range ends one grid point below the power: the value itself needs the next format."""
    fmt = choose_format(2.0**exponent, 1.0)
    assert float(fmt.encode(torch.tensor([2.0**exponent], dtype=torch.float64))[0]) == 2.0**exponent


def test_a_rule_without_headroom_is_seen():
    """The property rejects the format that just holds the largest value."""
    assert not choose_format(100.0, 1.0).limit >= 8 * 100.0 and choose_format(100.0, 8.0).limit >= 800.0


@pytest.mark.parametrize(
    "largest, expected",
    [
        (0.0, (32, 24)),
        (1.0, (32, 24)),
        (17.0, (32, 23)),
        (3000.0, (32, 16)),
        (60000.0, (32, 12)),
        (70000.0, (64, 32)),
        (1e9, (64, 29)),
    ],
)
def test_some_formats(largest, expected):
    fmt = choose_format(largest, on_nonfinite="propagate")
    assert (fmt.bits, fmt.frac_bits) == expected and fmt.on_nonfinite == "propagate"


# ---- on models ----


def test_an_ordinary_model_gets_the_finest():
    made, said = calibrated()
    conversion = hf.conversion(made)
    assert conversion.state == FixedPoint(32, FINEST)
    largest = float(re.search(r"largest state value is ([\d.e+]+), after layer (\d)", said)[1])
    assert (
        24 == tokens().numel() and "calibrated on 24 tokens" in said and 8 * largest <= conversion.state.limit
    )
    made.eval()
    with torch.no_grad():
        made(input_ids=tokens())
    assert math.isclose(max(conversion.seen), largest, rel_tol=1e-3), "what was seen is what the model does"
    gradients(made.train())
    assert conversion.report.headroom >= 8.0 and conversion.report.exact


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian", "midpoint"])
def test_outliers_choose_another_format(scheme):
    ordinary, wide = (hf.conversion(calibrated(m, scheme=scheme)[0]) for m in (model("Llama"), outliers()))
    assert ordinary.state.frac_bits == FINEST and wide.state.bits == 32 and wide.state.frac_bits <= 17
    made, said = calibrated(outliers(), scheme="blend")
    assert "after layer 1" in said or "after layer 2" in said or "after layer 3" in said
    gradients(made.train())
    assert hf.conversion(made).report.exact and hf.conversion(made).report.headroom >= 8.0


def test_huge_outliers_choose_64_bits():
    made, _ = calibrated(outliers(3e5))
    assert hf.conversion(made).state.bits == 64
    gradients(made.train())
    assert hf.conversion(made).report.exact


def test_headroom_is_the_users():
    ordinary, more = (hf.conversion(calibrated(outliers(), headroom=h)[0]).state for h in (1.0, 64.0))
    assert ordinary.frac_bits - more.frac_bits == 6 or more.bits == 64
    with pytest.raises(ConfigError, match=r"headroom is 0\.9, expected a factor of at least 1"):
        calibrated(headroom=0.9)


def test_a_given_format_that_is_too_narrow():
    """The error names the layer, the value and the format to take; taking it works."""
    plain = outliers()
    with pytest.raises(
        StateOverflowError,
        match=(
            r"layer 1: .*outside FixedPoint\(bits=32, frac_bits=20\).*use FixedPoint\(bits=32, frac_bits=18\)"
        ),
    ) as caught:
        calibrated(plain, state="fixed32:20")
    assert caught.value.layer == 1 and caught.value.largest > 2048 and hf.conversion(plain) is None
    named = re.search(r"use FixedPoint\(bits=(\d+), frac_bits=(\d+)\)", str(caught.value))
    made, said = calibrated(plain, state=FixedPoint(int(named[1]), int(named[2])))
    assert hf.conversion(made).state == FixedPoint(int(named[1]), int(named[2])) and "times that" in said
    narrow = hf.convert(outliers(), "blend:c=0.25", state="fixed32:20", say=None)
    with pytest.raises(StateOverflowError, match="layer 1"):
        gradients(narrow.train())


def test_without_calibration():
    made = hf.convert(outliers(), "blend:c=0.25", say=None)
    assert hf.conversion(made).state == FixedPoint()
    with pytest.raises(StateOverflowError, match=r"layer 1: .*outside .*FixedPoint\("):
        gradients(made.train())


def test_the_default_makes_up_a_text_and_overflows_on_none_of_it():
    made, said = outliers(), []
    hf.convert(made, say=said.append)
    assert "calibrated on 256 tokens" in said[-2] and hf.conversion(made).state.limit >= 8 * 2900
    gradients(made.train())
    assert hf.conversion(made).report.exact


def test_calibration_leaves_the_model_as_it_was():
    made = model("GPT2LMHeadModel", resid_pdrop=0.2).train()
    made.transformer.h[1].eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    hf.convert(made, calibration=tokens(), say=None)
    assert (
        torch.equal(torch.rand(3), expected)
        and made.training
        and not made.transformer.h[1].training
        and made.transformer.h[2].training
    )
    assert all(p.grad is None for p in made.parameters())


# ---- the forms of a text ----


def tokenizer(text):
    return {"input_ids": [3 + ord(c) % (VOCAB - 3) for c in text], "attention_mask": [1] * len(text)}


def total(batches):
    return sum(b["input_ids"].numel() for b in batches)


FORMS = {
    "ids": (lambda: tokens(5, 7), 35),
    "list of ids": (lambda: [tokens(2, 7), tokens(1, 4)], 18),
    "batch": (
        lambda: {
            "input_ids": tokens(2, 7),
            "attention_mask": torch.ones(2, 7, dtype=torch.int64),
            "labels": tokens(2, 7),
        },
        14,
    ),
    "batches": (lambda: [{"input_ids": tokens(2, 7)}, {"input_ids": tokens(2, 3)}], 20),
    "generator": (lambda: ({"input_ids": tokens(1, 5, seed=s)} for s in range(3)), 15),
    "loader": (
        lambda: torch.utils.data.DataLoader([{"input_ids": row} for row in tokens(6, 5)], batch_size=4),
        30,
    ),
    "string": (lambda: "the state is an integer", 23),
    "strings": (lambda: ["the state is an integer", "and the step can be undone"], 49),
    "long string": (lambda: "x" * 1000, 960),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    make, count = FORMS[form]
    batches = as_batches(make(), tokenizer, model("Llama"))
    assert total(batches) == count and all(
        "labels" not in b and b["input_ids"].shape[0] <= max(ROWS, 15) for b in batches
    )
    assert all(b["input_ids"].shape[1] <= 64 for b in batches), "no longer than the model's context"
    assert f"calibrated on {count:,} tokens" in calibrated(calibration=make(), tokenizer=tokenizer)[1]


WRONG = {
    "text without a tokenizer": ("text", r"is text: pass tokenizer="),
    "texts without a tokenizer": (["a", "b"], r"is text: pass tokenizer="),
    "nothing": ([], r"holds no token"),
    "no tokens": (torch.zeros(2, 0, dtype=torch.int64), r"holds no token"),
    "floats": (torch.zeros(2, 3), r"calibration data is Tensor, expected token ids \(B, T\)"),
    "one row without a batch": (torch.zeros(3, dtype=torch.int64), r"expected token ids \(B, T\)"),
    "a number": (3, r"calibration data is int"),
    "a dict of something else": ({"ids": tokens()}, r"expected token ids \(B, T\), batches with input_ids"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_text(case):
    data, message = WRONG[case]
    plain = model("Llama")
    with pytest.raises(ConfigError, match=message):
        hf.convert(plain, calibration=data, say=None)
    assert hf.conversion(plain) is None


def test_the_mean_loss_is_weighted_by_tokens():
    made, ids = model("Llama"), tokens(2, 9)
    batches = [{"input_ids": ids[:1, :4]}, {"input_ids": ids[1:]}]
    with torch.no_grad():
        short, long = (float(made(input_ids=b["input_ids"], labels=b["input_ids"]).loss) for b in batches)
    assert math.isclose(mean_loss(made, batches), (3 * short + 8 * long) / 11, rel_tol=1e-6)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    padded = [{"input_ids": ids, "attention_mask": mask}]
    assert not math.isclose(mean_loss(made, padded), mean_loss(made, [{"input_ids": ids}]), rel_tol=1e-6)
    with pytest.raises(ConfigError, match="at least two tokens"):
        mean_loss(made, [{"input_ids": ids[:, :1]}])


def test_a_conversion_is_said():
    _, said = calibrated()
    assert "converted LlamaForCausalLM: 4 layers as Blend(c=0.25" in said and LAYERS == 4
    assert hf.conversion(converted("Llama")).state == FixedPoint()
