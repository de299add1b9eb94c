"""``revstep verify`` on the integrators: table, JSON, choice of rows, and exit code 1 with the name of the
claim that fails.
"""

import json

import pytest
import torch

from revstep import _cli
from revstep_lab.verify import ode


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


ROWS = ["verify", "--method", "verlet", "--property", "checksum", "--property", "gradients"]


def test_table_and_json(tmp_path, capsys):
    path = tmp_path / "claims.json"
    assert _cli.main([*ROWS, "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert "stacks:" not in said and "cases" not in data
    assert {(c["method"], c["equation"], c["property"]) for c in data["ode"]} == {
        ("verlet", e, p) for e in ("first", "second", "separable") for p in ("checksum", "gradients")
    }
    assert (
        data["claims"] == sum(len(c["results"]) for c in data["ode"]) == 12
        and data["failed"] == 0
        and "12 of 12 claims hold" in said
    )
    (row,) = (line for line in said.splitlines() if line.split()[:2] == ["verlet", "second"])
    assert row.split()[2] == "holds"


def test_rows_of_both_parts_measure_both(capsys):
    assert (
        _cli.main(
            [
                "verify",
                "--scheme",
                "blend",
                "--state",
                "fixed32",
                "--dtype",
                "float32",
                "--method",
                "midpoint",
                "--property",
                "checksum",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "stacks: 1 combinations" in said and "integrators: 1 combinations" in said


def test_a_failing_claim_is_named(monkeypatch, capsys):
    from revstep.ode._loop import Walker

    monkeypatch.setattr(Walker, "compare", lambda self, expected: None)
    assert _cli.main([*ROWS, "--equation", "second"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  verlet second checksum: one flipped bit is found in backward" in said and "1 fail" in said


def test_code_that_raises_is_a_failed_claim(monkeypatch, capsys):
    from revstep_lab.verify.ode import checksum

    def broken(method, equation):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(checksum, "measure", broken)
    assert _cli.main([*ROWS, "--equation", "second"]) == 1
    assert "ZeroDivisionError: by zero" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--method", "simpson"], "unknown method simpson, expected some of "),
        (["--property", "beauty"], "unknown property beauty, expected some of checksum"),
        (["--method", "leapfrog", "--equation", "first"], "no method serves such an equation"),
        (
            ["--only", "networks", "--method", "verlet"],
            "--method and --only networks leave nothing to measure",
        ),
        (["--only", "ode", "--dtype", "float32"], "--dtype and --only ode"),
    ],
)
def test_mistakes_are_sentences(options, sentence, capsys):
    assert _cli.main(["verify", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_every_property_of_every_method_is_a_row():
    assert (
        {c.property for c in ode.cases()}
        == set(ode.properties())
        >= {"checksum", "determinism", "drift", "gradients", "order"}
    )
