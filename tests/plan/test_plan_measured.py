"""Predicted bytes against those of real training steps."""

import dataclasses
from functools import cache, lru_cache

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
import torch
from plan_step import BATCH, SEQUENCE, configs
from plan_step import measure as measure_config

import revstep.hf._loss  # noqa: F401
from revstep.plan import _meter, _modes, plan

SIX = configs()
# bfloat16 products are slow on a CPU.
CONFIGS = SIX | {f"narrow {name}": config for name, config in configs(hidden=64).items()}
#: The issue's bound, on the whole and on what the step adds to weights and optimiser.
BOUND = 0.10


@cache
def measure(name, mode, **options):
    return measure_config(CONFIGS[name], mode, **options)


def predict(name, mode, *, chunked=False, make=None, **options):
    """(bytes before the step, peak above them)."""
    row = (make or remembered)(name, **options).row(mode, chunked)
    before = row.parameters + row.optimizer + row.engine
    return before, row.peak - before


def fresh(name, *, weights="float32", dtype="float32", trainable="all"):
    return plan(
        CONFIGS[name],
        sequence=SEQUENCE,
        batch=BATCH,
        dtype=dtype,
        weights=weights,
        trainable=trainable,
        chunk=64,
    )


remembered = lru_cache(maxsize=None)(fresh)


def close(predicted, measured) -> bool:
    before, above = predicted
    return abs(above / measured.above - 1) <= BOUND and abs((before + above) / measured.peak - 1) <= BOUND


@pytest.mark.parametrize("mode", _modes.MODES)
@pytest.mark.parametrize("name", SIX)
def test_peak_of_a_real_step(name, mode):
    predicted, measured = predict(name, mode), measure(name, mode)
    # The optimiser's step counters are scalars.
    assert predicted[0] == pytest.approx(measured.before, rel=1e-3)
    assert close(predicted, measured), (predicted, measured)


@pytest.mark.parametrize("name, mode", [("gpt2", "reversible"), *(("llama", mode) for mode in _modes.MODES)])
def test_peak_with_lora(name, mode):
    assert close(predict(name, mode, trainable="lora:r=4"), measure(name, mode, trainable="lora:r=4"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peak_with_mlps_by_tiles(name):
    """A small vocabulary and long rows, so that a layer's graph is most of a step."""
    config = configs(hidden=64)[name]
    config.vocab_size = 64
    shape = {"batch": 1, "sequence": 512}
    made = {
        tile: plan(config, **shape, dtype="float32", weights="float32", chunk=64, tile=tile).row("reversible")
        for tile in (None, 32)
    }
    above = {tile: row.peak - row.parameters - row.optimizer for tile, row in made.items()}
    measured = measure_config(config, "reversible", **shape, tile=32).above
    assert abs(above[32] / measured - 1) <= BOUND
    assert abs(above[None] / measured - 1) > BOUND, "whole MLPs would not fit"


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # a head of its own, and the embedding's matrix
@pytest.mark.parametrize("mode", _modes.MODES)
def test_peak_with_the_optimiser_inside_backward(name, mode):
    """Few tokens, so that gradients are most of a step: the ordinary plan does not fit."""
    few = {"batch": 1, "sequence": 16}
    above = {}
    for fused in (False, True):
        row = plan(CONFIGS[name], **few, dtype="float32", weights="float32", chunk=64, fused_step=fused).row(
            mode
        )
        above[fused] = (row.parameters + row.optimizer, row.peak - row.parameters - row.optimizer)
    measured = measure(name, mode, **few, fused_step=True)
    assert close(above[True], measured), (above, measured)
    assert not close(above[False], measured) and above[True][1] < 0.7 * above[False][1]


@pytest.mark.parametrize("mode", _modes.MODES)
def test_peak_under_autocast(mode):
    assert close(
        predict("narrow llama", mode, dtype="bfloat16"),
        measure("narrow llama", mode, autocast=torch.bfloat16),
    )


@pytest.mark.parametrize("mode", ["plain", "reversible"])
def test_peak_of_bfloat16_weights(mode):
    options = {"dtype": "bfloat16", "weights": "bfloat16"}
    assert close(
        predict("narrow qwen3", mode, **options), measure("narrow qwen3", mode, weights=torch.bfloat16)
    )


@pytest.mark.parametrize("mode", _modes.MODES)
def test_peak_with_a_chunked_loss(mode):
    assert close(predict("llama", mode, chunked=True), measure("llama", mode, chunk=64))


def test_the_chunked_loss_saves_what_the_plan_says():
    saved = [measure("llama", "reversible", **options).above for options in ({}, {"chunk": 64})]
    told = [predict("llama", "reversible", chunked=chunked)[1] for chunked in (False, True)]
    assert told[0] - told[1] == pytest.approx(saved[0] - saved[1], rel=BOUND)


def reversible_peak(keep: int) -> float:
    from revstep.plan._planner import _states
    from revstep.plan._probe import Probe
    from revstep.plan._source import find_source

    probe = Probe(find_source(CONFIGS["llama"]), SEQUENCE, torch.float32, None, "all", 64)
    bits, width = _states("blend:c=0.25", "fixed32", 4)
    fixed = _modes.static(probe.weights, "adamw", 1, "ddp")
    return (
        _modes.peak(
            "reversible", probe.at(BATCH), fixed, _modes.Reversible(width, bits, keep), False, False
        ).peak
        - fixed.total
    )


#: Half of one state: whoever forgets a state, or counts one too many, is further off.
HALF_A_STATE = 0.5 * 4 * BATCH * SEQUENCE * 128


@pytest.mark.parametrize("keep", [1, 4])
def test_peak_with_kept_layers(keep):
    assert abs(reversible_peak(keep) - measure("llama", "reversible", keep=keep).above) < HALF_A_STATE


# ---- plans that are wrong, and seen to be ----


def test_a_plan_without_the_optimiser_is_rejected(monkeypatch):
    monkeypatch.setitem(_modes.OPTIMIZERS, "adamw", 0)
    assert not close(predict("llama", "reversible", make=fresh), measure("llama", "reversible"))


def test_a_plan_that_counts_views_again_is_rejected(monkeypatch):
    def hold(self, tensor):
        key, size = id(tensor), tensor.numel() * tensor.element_size()

        def gone(_):
            self.live -= size
            self._alive.pop(key, None)

        if key not in self._alive:
            self._alive[key] = _meter.weakref.ref(tensor, gone)
            self.live += size
            self.peak = max(self.peak, self.live)

    monkeypatch.setattr(_meter.Meter, "hold", hold)
    assert not close(predict("llama", "plain", make=fresh), measure("llama", "plain"))


def test_a_plan_that_forgets_a_state_is_rejected(monkeypatch):
    honest = _modes.Reversible.states
    monkeypatch.setattr(
        _modes.Reversible,
        "states",
        lambda self, elements, layers: honest(self, elements, layers) - self.state_bytes * elements,
    )
    assert abs(reversible_peak(0) - measure("llama", "reversible").above) > HALF_A_STATE


def test_a_plan_without_gradients_is_rejected(monkeypatch):
    # A deep model of few tokens, where the end of backward is the peak.
    config = configs(layers=8)["llama"]
    from revstep.plan import _planner

    honest = _planner.static
    without = lambda *args: dataclasses.replace(honest(*args), gradients=0.0, layer_gradients=(0.0,) * 8)  # noqa: E731
    monkeypatch.setattr(_planner, "static", without)
    row = plan(config, sequence=16, batch=1, dtype="float32").row("reversible")
    measured = measure_config(config, "reversible", batch=1, sequence=16)
    assert row.peak < (1 - BOUND) * measured.peak
    monkeypatch.setattr(_planner, "static", honest)
    assert plan(config, sequence=16, batch=1, dtype="float32").row("reversible").peak == pytest.approx(
        measured.peak, rel=BOUND
    )
