"""``revstep verify``: holds on this build, counts against the registry, and goes red, by name, when something
is broken.
"""

import json

import pytest
import torch

import revstep
from revstep import _cli, ops, verify
from revstep.schemes import available
from revstep.stack._audit import Audit
from revstep_lab.verify import cases, example_blocks, example_input, run_suite

ONE = ["verify", "--scheme", "blend", "--state", "fixed32", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_every_scheme_state_and_dtype_is_a_row():
    rows = cases()
    assert {r.scheme for r in rows} == set(available())
    assert len(rows) == len(set(rows)) == len(available()) * 4 * 5


@pytest.mark.parametrize("name", available())
def test_all_claims_of_a_scheme_hold(name):
    for case, results in run_suite(
        [c for c in cases() if c.scheme == name and c.dtype in ("float32", "float32+bf16")]
    ):
        assert len(results) >= 4
        assert all(r.ok for r in results), [str(r) for r in results if not r.ok] + [case]


def test_table_and_json(tmp_path, capsys):
    path = tmp_path / "claims.json"
    assert _cli.main([*ONE, "--json", str(path), "--details"]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert (
        "exact" in said
        and f"{data['claims']} of {data['claims']} claims hold" in said
        and data["failed"] == 0
    )
    assert [c["scheme"] for c in data["cases"]] == ["blend"] and data["environment"][
        "torch"
    ] == torch.__version__
    assert all(
        {"claim", "ok", "measured", "bound", "unit", "why"} == r.keys() for r in data["cases"][0]["results"]
    )


def test_unknown_names_are_sentences(capsys):
    assert _cli.main(["verify", "--state", "fixed16"]) == 2
    assert "unknown state fixed16, expected some of fixed32" in capsys.readouterr().err


def _negated_inverse(monkeypatch):
    original = ops.inverse
    monkeypatch.setattr(
        ops,
        "inverse",
        lambda nxt, cur, f, carry, a, b, gamma, *rest: original(nxt, cur, f, carry, a, b, -gamma, *rest),
    )


def _no_carry(monkeypatch):
    original = ops.inverse
    monkeypatch.setattr(
        ops,
        "inverse",
        lambda nxt, cur, f, carry, *rest: original(nxt, cur, f, torch.zeros_like(carry), *rest),
    )


def _silent_audit(monkeypatch):
    monkeypatch.setattr(Audit, "rebuilt", lambda self, k, state, stats: None)
    monkeypatch.setattr(Audit, "unchanged", lambda self, k, state: None)


def _unflagged(monkeypatch):
    original = ops.step

    def step(*args):
        view, nxt, carry, stats = original(*args)
        stats = stats.clone()
        stats[1] = 0
        return view, nxt, carry, stats

    monkeypatch.setattr(ops, "step", step)


@pytest.mark.parametrize(
    "mutant, claim",
    [
        (_negated_inverse, "one step undone bit for bit"),
        (_no_carry, "every state rebuilt bit for bit"),
        (_silent_audit, "one flipped bit is found"),
        (_unflagged, "a value out of range is flagged"),
    ],
)
def test_mutants_fail_by_name(monkeypatch, capsys, mutant, claim):
    mutant(monkeypatch)
    assert _cli.main(ONE) == 1
    assert f"FAILED  blend fixed32 float32: {claim}" in capsys.readouterr().out


def test_gradient_oracle_is_independent_of_the_compiled_kernels(monkeypatch):
    """The oracle never calls the operators it judges."""
    stack = revstep.ReversibleStack(example_blocks(2), revstep.Blend())

    def refuse(*args):
        raise AssertionError("the oracle used a compiled operator")

    for name in ("step", "inverse", "encode", "decode"):
        monkeypatch.setattr(ops, name, refuse)
    verify.stored(stack, example_input()).sum().backward()
