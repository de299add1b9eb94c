"""The dial: which step is chosen, on what evidence, and that the weights are left alone."""

import dataclasses

import models
import pytest
import torch

import revstep
from revstep import hf
from revstep.hf import auto
from revstep.hf.calibrate import as_batches, mean_loss


@pytest.fixture(scope="module")
def learned():
    """A small Llama that has learned a text of repeated counting, so that its layers matter and a wrong step costs loss."""
    torch.manual_seed(0)
    model = models.model("Llama", scale=1.0).train()
    rows = (torch.arange(24)[None, :] * torch.arange(1, 9)[:, None]) % 96
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
        optimiser.step()
    return model.eval(), rows


def test_the_cheapest_point_that_keeps_the_loss(learned):
    model, rows = learned
    before = {name: p.clone() for name, p in model.state_dict().items()}
    original, said = mean_loss(model, as_batches(rows, None, model)), []
    losses = {
        c: min(auto.trial(model, revstep.Blend(c=c), s, as_batches(rows, None, model), original).loss for s in ("repeat", "euler")) for c in (1.0, 0.5, 0.25)
    }
    between = (losses[0.5] / original - 1 + losses[0.25] / original - 1) / 2
    assert losses[1.0] > losses[0.5] > losses[0.25] > original, "the dial tends to the original from above on this model"
    hf.convert(model, "auto", tolerance=between, calibration=rows, say=said.append)
    try:
        made = hf.conversion(model)
        assert isinstance(made.scheme, revstep.Blend) and made.scheme.c == 0.25
        (line,) = [line for line in said[0].splitlines() if line.endswith("<- chosen")]
        assert "c = 0.25" in line and made.stack.start in line and f"original loss {original:.4f}" in said[0]
        assert sum("Blend c =" in line for line in said[0].splitlines()) == 2 * auto.SHOWN
        assert abs(mean_loss(model, as_batches(rows, None, model)) / original - 1) <= between
    finally:
        hf.revert(model)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_a_smaller_tolerance_costs_more_bits(learned):
    model, rows = learned
    chosen = []
    for tolerance in (10.0, 1e-2, 1e-4):
        scheme, _ = auto.choose_scheme(model, as_batches(rows, None, model), tolerance, None, lambda line: None)
        chosen.append(revstep.ops.carry_bits(scheme.c))
    assert chosen[0] == 0 and chosen == sorted(chosen) and chosen[-1] > chosen[0]
    assert hf.conversion(model) is None


def test_a_start_narrows_the_search(learned):
    model, rows = learned
    said = []
    _, start = auto.choose_scheme(model, as_batches(rows, None, model), 10.0, "euler", said.append)
    assert start == "euler" and "repeat" not in said[0]


def test_nothing_that_keeps_the_loss_is_said_with_the_best(learned, monkeypatch):
    model, rows = learned
    monkeypatch.setattr(auto, "DIAL", (1.0, 0.5))
    with pytest.raises(revstep.ConfigError, match=r"no point of the dial keeps the loss.*the best is Blend"):
        hf.convert(model, "auto", tolerance=1e-12, calibration=rows, say=None)
    assert hf.conversion(model) is None


def test_refused(learned):
    model, rows = learned
    with pytest.raises(revstep.ConfigError, match="pass calibration="):
        hf.convert(model, "auto", say=None)
    with pytest.raises(revstep.ConfigError, match="tolerance is 0"):
        hf.convert(model, "auto", tolerance=0, calibration=rows, say=None)
    assert hf.conversion(model) is None


def test_mutant_dial_that_takes_losses_for_changes(learned, monkeypatch):
    """Choosing by the loss itself instead of its change finds nothing here: the choice does rest on the comparison with the original."""
    model, rows = learned
    original = auto.trial
    monkeypatch.setattr(auto, "trial", lambda *args: dataclasses.replace(original(*args), change=original(*args).loss))
    with pytest.raises(revstep.ConfigError, match="no point of the dial"):
        auto.choose_scheme(model, as_batches(rows, None, model), 1e-2, "repeat", lambda line: None)
