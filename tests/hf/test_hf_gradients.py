"""Gradients of a converted model: those of the stored recurrence bit for bit, and those of the same
recurrence written out without the package.
"""

import contextlib

import pytest
import torch
from models import (
    FAMILIES,
    LAYERS,
    MODELS,
    SCHEMES,
    converted,
    differing,
    gradients,
    model,
    tokens,
    two_streams,
)
from recurrence import STEPS, Recurrence

from revstep import ReconstructionError, hf
from revstep._models.layers import decoder_layers
from revstep._recurrence.ambient import Generators
from revstep.hf.adapters.whole_layer import Branches, BranchesBlock
from revstep.schemes import Blend, Coefficients

#: All models with a scheme of one and (where the layer splits) of two streams, all schemes on two models.
CASES = sorted(
    {(f, s) for f in MODELS for s in ("blend", "hamiltonian") if (f, s) != ("OPT", "hamiltonian")}
    | {(f, s) for f in ("GPT2LMHeadModel", "Llama") for s in SCHEMES}
)


@pytest.mark.parametrize("family, scheme", CASES)
def test_equal_to_the_stored_recurrence(family, scheme):
    made = [converted(family, scheme, convert={"keep": keep}).train() for keep in (0, 2, LAYERS)]
    rebuilt, half, stored = (gradients(m) for m in made)
    assert differing(rebuilt, stored) == differing(half, stored) == []
    assert all(g is not None and g.any() for name, g in rebuilt.items() if not _silent(name)), (
        "every parameter should have a gradient"
    )
    assert hf.conversion(made[0]).report.exact and hf.conversion(made[2]).report is None
    assert all(p.requires_grad for p in made[0].parameters())


def _silent(name: str) -> bool:
    """Experts that no token chose, and key biases, whose true gradient is zero."""
    return "experts" in name or name.endswith(("k_proj.bias", "wpe.weight"))


# ---- against a loop without the package ----

HALVED = {"Llama", "GPT2LMHeadModel"}
ORACLES = [(f, s, {}) for f in sorted(HALVED) for s in [*STEPS, "hamiltonian", "bdia"]]
ORACLES += [(f, "blend:c=0.25", {}) for f in MODELS if f not in HALVED] + [
    (f, s, {"start": "euler"}) for f in ("Llama", "Gemma2") for s in ("blend:c=0.25", "bdia")
]


def against_the_loop(family, scheme, options, **changes):
    """(error, bound) of the parameter with the worst ratio of the two.

    Bound: in 64-bit states with 32 bits after the point a step rounds three times (two products, one
    increment), each by at most half a unit, 1.5 * 2^-32 in all. RMSNorm layers compute in float32 whatever
    they are given, and turn any difference of their input into one of a unit in the last place there: 2^-24
    of the largest value, once where they round their input and once their output. The loop with every state
    shifted by +-2^-16 of random sign shows what a shift of that size does to each gradient (the effect is
    linear: gradients are smooth and 2^-16 is small); a factor of 8 for signs that conspire more than those
    drawn. 64 sums in backward round once more each, where the largest gradient of the model may pass.
    """
    options = {"start": "repeat"} | options
    plain, shifted, ours = (model(family, dtype=torch.float64, experts="eager") for _ in range(3))
    for module, shift in ((plain, 0.0), (shifted, 2.0**-16)):
        Recurrence(decoder_layers(module)[1], scheme, options["start"], shift)
    hf.convert(ours, scheme, state="fixed64:32", say=None, **options, **changes)
    true, moved, got = (gradients(m.train()) for m in (plain, shifted, ours))
    single = any("RMSNorm" in type(m).__name__ for m in ours.modules())
    rounding = 1.5 * 2.0**-32 + (2 * 2.0**-24 * max(hf.conversion(ours).seen) if single else 0.0)
    eps = torch.finfo(torch.float32 if single else torch.float64).eps
    largest = max(float(g.abs().max()) for name, g in true.items() if name != "loss")
    worst = (0.0, 1.0)
    for name, g in true.items():
        bound = 8 * rounding * 2.0**16 * float((moved[name] - g).abs().max()) + 64 * eps * largest
        error = float((got[name] - g).abs().max())
        worst = max(
            worst, (error, bound), key=lambda pair: pair[0] / pair[1] if pair[1] else float(pair[0] > 0)
        )
    return worst


@pytest.mark.parametrize("family, scheme, options", ORACLES)
def test_equal_to_a_loop_without_the_package(family, scheme, options):
    error, bound = against_the_loop(family, scheme, options)
    assert error <= bound


def test_a_wrong_coefficient_is_seen(monkeypatch):
    monkeypatch.setattr(Blend, "coefficients", lambda self, layer: Coefficients(self.c, 1.0 - self.c, self.h))
    error, bound = against_the_loop("Llama", "blend:c=0.25", {})
    assert error > 1000 * bound


def test_a_dropped_branch_is_seen(monkeypatch):
    class FirstOnly(BranchesBlock):
        def forward(self, x, *args, **kwargs):
            return 0.5 * super().forward(x, *args, **kwargs)

    monkeypatch.setattr(Branches, "block", lambda self, layer, forward: FirstOnly(layer, forward))
    monkeypatch.setattr("revstep.hf._install.probe", lambda model, loop, layers, *_: [0] * len(layers))
    error, bound = against_the_loop("GPT2LMHeadModel", "blend:c=0.25", {})
    assert error > 1000 * bound


# ---- randomness ----

DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dropout_is_the_same_in_the_second_evaluation(scheme):
    made = [
        converted("GPT2LMHeadModel", scheme, convert={"keep": keep}, **DROPOUT).train()
        for keep in (0, LAYERS)
    ]
    rebuilt, stored = (gradients(m) for m in made)
    assert differing(rebuilt, stored) == [] and hf.conversion(made[0]).report.exact
    assert differing(rebuilt, gradients(made[0], seed=4)) != [], "another seed draws other masks"


@pytest.mark.parametrize("checks", [True, False])
def test_a_mask_drawn_anew_is_seen(monkeypatch, checks):
    made = [
        converted("GPT2LMHeadModel", convert={"keep": keep, "checks": checks}, **DROPOUT).train()
        for keep in (0, LAYERS)
    ]
    stored = gradients(made[1])
    monkeypatch.setattr(Generators, "at", lambda self, states: contextlib.nullcontext())
    with pytest.raises(ReconstructionError, match="layer") if checks else contextlib.nullcontext():
        assert differing(gradients(made[0]), stored) != []


def test_two_passes_alive_at_once():
    made = converted("Llama").train()
    one, two = gradients(made, ids=tokens(seed=1)), gradients(made, ids=tokens(seed=2))
    made.zero_grad(set_to_none=True)
    losses = [
        made(input_ids=ids, labels=ids, use_cache=False).loss for ids in (tokens(seed=1), tokens(seed=2))
    ]
    for loss in losses:
        loss.backward()
    for name, p in made.named_parameters():
        assert torch.equal(p.grad, one[name] + two[name]), name


def test_the_matrix_is_whole():
    assert {f for f, _ in CASES} == set(FAMILIES) and {s for _, s in CASES} == set(SCHEMES)
    assert any(two_streams(**SCHEMES[s]) for _, s in CASES)
