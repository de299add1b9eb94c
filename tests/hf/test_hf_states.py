"""States of a converted model come back bit for bit: looked at themselves, not only by their checksums, in
the precisions people train in.
"""

import contextlib

import pytest
import torch
from models import LAYERS, MODELS, SCHEMES, bf16, converted, differing, gradients

from revstep import ReconstructionError, hf
from revstep._recurrence import walk
from revstep.stack import _tape as tapes
from revstep.stack._run import Pass

PRECISIONS = {
    "bf16 autocast": (torch.float32, bf16),
    "bf16 weights": (torch.bfloat16, contextlib.nullcontext),
    "fp16 weights": (torch.float16, contextlib.nullcontext),
}
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
CASES = (
    [(f, "blend") for f in MODELS]
    + [("Llama", s) for s in SCHEMES]
    + [("GPT2LMHeadModel", s) for s in SCHEMES]
)


@pytest.fixture
def watched(monkeypatch):
    """Every state as it was written by the forward pass, and as the backward pass rebuilt it, by the number
    of its step.
    """
    written, rebuilt = {}, {}
    step, rebuild = Pass.step, tapes.Tape.rebuild

    def stepping(self, *arguments, **options):
        written[self.done], written[self.done + 1] = self.prev.clone(), self.cur.clone()
        return step(self, *arguments, **options)

    def rebuilding(self):
        prev, cur = rebuild(self)
        rebuilt[self._at] = prev.clone()
        return prev, cur

    monkeypatch.setattr(Pass, "step", stepping)
    monkeypatch.setattr(tapes.Tape, "rebuild", rebuilding)
    return written, rebuilt


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family, scheme", sorted(set(CASES)))
def test_rebuilt_bit_for_bit(watched, family, scheme, precision):
    dtype, context = PRECISIONS[precision]
    made = converted(family, scheme, dtype=dtype, **(DROPOUT if family == "GPT2LMHeadModel" else {})).train()
    got = gradients(made, context=context)
    written, rebuilt = watched
    report, steps = hf.conversion(made).report, LAYERS * hf.conversion(made).scheme.halves
    assert report.exact and report.matched == report.layers == steps and report.max_error == 0.0
    assert sorted(rebuilt) == list(range(steps)) and all(torch.equal(rebuilt[k], written[k]) for k in rebuilt)
    assert len({rebuilt[k].flatten()[0].item() for k in range(1, steps)}) > 1, (
        "the layers should move the state"
    )
    assert all(g is None or g.isfinite().all() for g in got.values())


@pytest.mark.parametrize("family", ["GPT2LMHeadModel", "Llama", "Gemma2"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_the_stored_ones(family, precision):
    dtype, context = PRECISIONS[precision]
    made = [converted(family, dtype=dtype, convert={"keep": keep}).train() for keep in (0, LAYERS)]
    assert differing(*(gradients(m, context=context) for m in made)) == []


@pytest.mark.parametrize("checks", [True, False])
def test_a_carry_that_is_one_bit_off_is_seen(watched, monkeypatch, checks):
    undo = walk.undo
    monkeypatch.setattr(
        walk, "undo", lambda c, nxt, cur, f, carry, *rest: undo(c, nxt, cur, f, carry ^ 1, *rest)
    )
    made = converted("Llama", convert={"checks": checks}).train()
    with pytest.raises(ReconstructionError, match="layer 3") if checks else contextlib.nullcontext():
        gradients(made)
    written, rebuilt = watched
    assert checks or not all(torch.equal(rebuilt[k], written[k]) for k in rebuilt)


def test_a_second_evaluation_in_another_precision_is_seen(monkeypatch):
    """The autocast state is recorded and entered again: without that the states come out differently."""
    made = converted("Llama").train()
    monkeypatch.setattr(
        "revstep._recurrence.ambient.Autocast.enter",
        lambda self, stack: stack.enter_context(torch.autocast("cpu", enabled=False)),
    )
    with pytest.raises((ReconstructionError, RuntimeError), match="layer 3"):
        gradients(made, context=bf16)


@pytest.mark.filterwarnings("ignore::revstep.AmplificationWarning")
def test_a_float_state_reports_its_drift():
    """Not exact, and says so: the property above is one of fixed point, not of the measurement."""
    made = converted("Llama", convert={"state": "float32"}).train()
    gradients(made)
    report = hf.conversion(made).report
    assert not report.exact and report.max_error > 0 and report.matched < report.layers
