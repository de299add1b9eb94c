"""docs/benchmarks/flips.json says how much of what is flipped in the caller's memory stays silent."""

import json
import math

import pages

from revstep.stack._saved import Looker

flips = pages.load(pages.ROOT / "docs" / "flips.py")
RECORD = json.loads(flips.FILE.read_text(encoding="utf-8"))
NAME, COUNT = "2 positions, float32", 150


def row(name, checks):
    return next(r for r in RECORD["rows"] if r["case"] == name and r["checks"] == checks)


def agrees(found, stated):
    """Within five standard deviations of as many draws at the stated share, none worse than twice the worst.

    The first draws are a part of all; a processor that rounds otherwise loses other low bits of a weight.
    """
    p, n = stated["share"], found["draws"]
    few = abs(found["silent"] - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1
    return few and found["largest"] <= 2 * stated["largest"]


def test_the_record_is_whole():
    measured = {(r["case"], r["checks"]) for r in RECORD["rows"]}
    assert measured == {(n, c) for n in flips.CASES for c in (True, "all")}, "run python docs/flips.py"
    default = [r for r in RECORD["rows"] if r["checks"] is True]
    assert RECORD["draws"] == sum(r["draws"] for r in default)
    assert RECORD["largest"] == max(r["largest"] for r in default)
    assert RECORD["share"] == sum(r["silent"] for r in default) / RECORD["draws"]
    assert RECORD["command"] == flips.COMMAND == "python docs/flips.py"
    assert all(RECORD["environment"][k] for k in ("device", "date", "torch", "revstep", "commit"))
    for r in RECORD["rows"]:
        assert r["reported"] + r["same"] + r["silent"] == r["draws"] == flips.DRAWS
        assert len(r["silent_at"]) == r["silent"]


def test_with_all_of_every_tensor_compared_nothing_is_silent():
    assert all(r["silent"] == 0 for r in RECORD["rows"] if r["checks"] == "all")
    assert flips.measure(NAME, True, COUNT)["silent"] == 0


def test_the_default_measured_again():
    assert agrees(flips.measure(NAME, False, COUNT), row(NAME, True))


def test_mutant_that_looks_at_no_saved_tensor(monkeypatch):
    look = Looker._look
    monkeypatch.setattr(Looker, "_look", lambda self, *args: look(self, *args)._replace(bits=None))
    assert not agrees(flips.measure(NAME, False, COUNT), row(NAME, True))
