"""10,000 bits flipped between a forward pass and the end of its backward: reported, or the same gradients."""

import dataclasses
import random
from collections import Counter

import pytest
import torch
from bitflips import CALLERS, MM, REBUILT, Case, Subject, draws, watching
from flip_victims import flip

from revstep.stack import _selection
from revstep.stack._audit import Audit
from revstep.stack._saved import Looker

STATES = ("state", "checksum", *REBUILT)
#: What the library keeps or rebuilds: name -> the stack, and what of it is flipped.
OWN = {
    "midpoint": (Case(), STATES),
    "midpoint, zero gate, attention": (
        Case(gate=0.0, dropout=0.1, aux=True, attend=True, mask=True), (*STATES, "generator"),
    ),
    "midpoint, 64 bits, a loss from inside": (Case(state="fixed64", beside=True, twice=True), STATES),
    "blend": (Case("blend", start="euler"), (*STATES, "carry")),
    "blend, bf16, twice": (Case("blend", autocast=True, twice=True, aux=True), (*STATES, "carry")),
    "blend, 64 bits, attention kept": (
        Case("blend", state="fixed64", attend=True, mask=True, save_ops="attention"),
        (*STATES, "carry", "output"),
    ),
    "hamiltonian, products kept, twice": (
        Case("hamiltonian", layers=2, gate=0.0, twice=True, save_ops=MM), (*STATES, "output"),
    ),
    "hamiltonian, bf16": (Case("hamiltonian", layers=2, dropout=0.1, autocast=True), (*STATES, "generator")),
    "hamiltonian, 64 bits": (Case("hamiltonian", state="fixed64", layers=2), STATES),
    "bdia, twice": (
        Case("bdia", dropout=0.1, start="euler", twice=True, aux=True),
        (*STATES, "carry", "generator", "choice"),
    ),
    "bdia, zero gate, padding": (
        Case("bdia", dropout=0.1, gate=0.0, padded=True), (*STATES, "carry", "generator", "choice"),
    ),
    "bdia, 64 bits, bf16": (Case("bdia", state="fixed64", autocast=True), (*STATES, "carry", "choice")),
    "bdia, blocks that save nothing": (Case("bdia", shift=2, padded=True, layers=4), ("choice", "carry")),
    "bdia, a layer kept": (Case("bdia", keep=1, twice=True), ("choice", "carry", "state")),
    "leapfrog, spectral norm, twice": (Case("leapfrog", spectral=True, twice=True), (*STATES, "copy")),
    "leapfrog, 64 bits, bf16, products kept": (
        Case("leapfrog", state="fixed64", autocast=True, gate=0.0, save_ops=MM), (*STATES, "output"),
    ),
    "leapfrog, large tensors": (Case("leapfrog", gate=0.0, width=64, shape=(4, 32), curve=True), STATES),
}  # fmt: skip
#: So many draws of each, twice; of those with more work in a pass fewer.
OWN_PARTS = 2
OWN_DRAWS = {name: 120 if c.twice or c.attend or c.save_ops else 460 for name, (c, _) in OWN.items()}

#: The caller's weights, buffers and arguments, with all of every saved tensor compared.
OTHERS = {
    "midpoint, zero gate": Case(gate=0.0, attend=True, mask=True, dropout=0.1, twice=True),
    "blend, bf16": Case("blend", autocast=True, attend=True, mask=True, save_ops="attention"),
    "hamiltonian": Case("hamiltonian", layers=2, spectral=True, gate=0.0, aux=True),
    "bdia": Case("bdia", dropout=0.1, padded=True, aux=True, twice=True),
    "leapfrog, large tensors": Case("leapfrog", width=64, shape=(1, 2), attend=True, mask=True),
}
OTHERS_DRAWS = 120


@pytest.fixture(autouse=True)
def _watching():
    with watching():
        yield


def silent(found):
    return [d for d in found if d.outcome == "silent"]


def own(name):
    case, kinds = OWN[name]
    return Subject(case), kinds


@pytest.mark.parametrize("part", range(OWN_PARTS))
@pytest.mark.parametrize("name", OWN)
def test_what_the_library_keeps_or_rebuilds(name, part):
    subject, kinds = own(name)
    found = draws(subject, OWN_DRAWS[name], kinds, seed=part)
    assert not silent(found)
    outcomes = Counter((d.kind, d.outcome) for d in found)
    assert all(outcomes[kind, "reported"] for kind in kinds), f"never reported: {outcomes}"


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_the_callers(name):
    subject = Subject(dataclasses.replace(OTHERS[name], every=True))
    found = draws(subject, OTHERS_DRAWS, callers(OTHERS[name]), moments=("before", "between"))
    assert not silent(found)
    outcomes = Counter((d.kind, d.outcome) for d in found)
    assert all(outcomes[kind, "reported"] for kind in callers(OTHERS[name])), outcomes


def callers(case):
    return CALLERS if case.mask else CALLERS[:2]


def test_there_are_ten_thousand():
    assert sum(OWN_DRAWS.values()) * OWN_PARTS + len(OTHERS) * OTHERS_DRAWS >= 10_000
    schemes, states = ({getattr(case, name) for case, _ in OWN.values()} for name in ("scheme", "state"))
    assert schemes == {"midpoint", "blend", "hamiltonian", "bdia", "leapfrog"} and states == {
        "fixed32",
        "fixed64",
    }


def test_one_bit_and_nobody_is_told():
    for t in (
        torch.zeros(3, 5),
        torch.zeros(4, 6).t()[1:, ::2],
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(2, 1).expand(2, 7),
    ):
        whole = t._base if t._base is not None else t
        back = flip(t, random.Random(1))
        bits = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert sum(byte.bit_count() for byte in bits) == 1 and t._version == 0
        back()
        assert not any(whole.reshape(-1).view(torch.uint8).numpy().tobytes())


def test_a_draw_is_a_function_of_its_seed():
    subject, kinds = own("midpoint")
    one, two, other = (draws(subject, 20, kinds, seed=s) for s in (5, 5, 6))
    assert one == two != other
    assert Counter(d.moment for d in draws(subject, 200, kinds)).keys() == {
        "before",
        "rebuilt",
        "evaluating",
        "asked",
    }


# --- mutants: without one protection some flips are silent ---

#: Of each saved tensor an eighth is looked at.
LARGE = Case(gate=0.0, layers=1, width=64, shape=(16, 64), curve=True)
NOTHING = OWN["bdia, blocks that save nothing"][0]
PRODUCTS = Case(save_ops=MM)
MUTANTS = {
    "no fingerprint of what is kept": (Looker, "whole", lambda *_: None, PRODUCTS, ("output",), ("asked",)),
    "no look at the view": (Audit, "read_view", lambda *_: None, Case(), ("rebuilt view",), ("asked",)),
    "no look at copies": (Audit, "same_copies", lambda *_: None, NOTHING, ("choice",), ("before",)),
    "no look at choices in time": (Audit, "guard", lambda *_: None, NOTHING, ("choice",), ("before",)),
    "no look at kept states": (Audit, "unchanged", lambda *_: None, LARGE, ("state",), ("before",)),
    "no look at outputs": (
        _selection,
        "fingerprints",
        lambda *_: ([], []),
        PRODUCTS,
        ("output",),
        ("asked",),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name, monkeypatch):
    owner, attribute, mutant, case, kinds, moments = MUTANTS[name]
    subject = Subject(case)
    assert not silent(draws(subject, 40, kinds, moments=moments))
    monkeypatch.setattr(owner, attribute, mutant)
    assert silent(draws(subject, 40, kinds, moments=moments, strict=False)), "nobody notices that it is gone"


def test_mutant_that_looks_at_no_saved_tensor(monkeypatch):
    look = Looker._look
    monkeypatch.setattr(Looker, "_look", lambda self, *args: look(self, *args)._replace(bits=None))
    subject = Subject(dataclasses.replace(OTHERS["midpoint, zero gate"], every=True))
    assert silent(draws(subject, 40, CALLERS, moments=("before",)))
