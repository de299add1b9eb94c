"""The ODE benchmark measures the same problem on both sides, counts per unit of work, and says what it left
out and why.
"""

import dataclasses
import json
import math
import sys
import time

import numpy as np
import pytest
import torch

from revstep import Float, _cli
from revstep.errors import ConfigError
from revstep_lab.bench import neural_field, packages, pendulums, runner, two_body
from revstep_lab.bench.runner import Measurement, goal, measure, per
from revstep_lab.cases import ode, trunk
from revstep_lab.cases.ode import OdeCase, run_ode
from revstep_lab.cases.trunk import TrunkCase

TINY = (
    "ode --steps 50 --return-steps 60 --pendulums 4 --pendulum-steps 5 --sample 2 --depths 2 4 --batch 3"
    " --width 2 --rounds 2".split()
)


def test_per_unit_of_work():
    """40 units in 8 s beside 10 units in 4 s: half as long a unit."""
    a, b = per(
        [Measurement("a", 8.0, 8.0, 16.0, {"b": 2.0}), Measurement("b", 4.0, 4.0, 4.0, {"a": 0.5})],
        {"a": 40, "b": 10},
    )
    assert (a.p50, a.p80, b.p50) == (0.2, 0.4, 0.4)
    assert a.ratios == {"b": 0.5} and b.ratios == {"a": 2.0}


@pytest.mark.parametrize(
    "value, bound, at_least, met",
    [
        (1.5, 1.5, True, True),
        (1.49, 1.5, True, False),
        (1e-12, 1e-12, False, True),
        (2e-12, 1e-12, False, False),
        (math.nan, 1.0, True, False),
        (math.nan, 1.0, False, False),
    ],
)
def test_goal_is_met_on_its_side_of_the_bound_only(value, bound, at_least, met):
    assert goal("x", value, bound, at_least)["met"] is met


def test_command_line(tmp_path, capsys, monkeypatch):
    # Compiling takes them a while; see test_diffrax_takes_the_same_steps and test_heyoka_....
    monkeypatch.setitem(sys.modules, "diffrax", None)
    monkeypatch.setitem(sys.modules, "heyoka", None)
    path = tmp_path / "ode.json"
    assert _cli.main(["bench", *TINY, "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert (
        data["case"]["pendulums"] == 4
        and data["rounds"] == 2
        and data["environment"]["scipy"]
        and data["environment"]["threads"] == 1
    )
    assert list(data["parts"]) == list(OdeCase().parts)
    for part in data["parts"].values():
        rows = part["rows"] if "rows" in part else [row for rows in part["steps"].values() for row in rows]
        assert all(row["name"] in said and 0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
        for g in part["goals"]:
            assert g["what"] in said and g["met"] == (
                g["value"] >= g["goal"] if g["at_least"] else g["value"] <= g["goal"]
            )
        for s in part["skipped"]:
            assert s["reason"] in said


def test_one_part_only(capsys):
    assert _cli.main(["bench", *TINY, "--parts", "pendulums"]) == 0
    said = capsys.readouterr().out
    assert "solve_ivp RK45, joint" in said and "Two bodies" not in said and "Neural field" not in said


def test_absent_packages_are_skipped_with_a_reason(monkeypatch, capsys):
    for name in packages.OLDEST:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it now raises ModuleNotFoundError
    result = run_ode(
        OdeCase(
            steps=20,
            return_steps=20,
            pendulums=2,
            pendulum_steps=2,
            sample=1,
            depths=(2, 4),
            batch=3,
            width=2,
        ),
        rounds=1,
    )
    bodies, many, field = result["parts"].values()
    assert not any("heyoka" in row["name"] for row in many["rows"])
    assert [row["name"] for row in bodies["rows"]] == list(two_body.OURS)
    assert not any("REBOUND" in g["what"] for g in bodies["goals"]) and len(bodies["goals"]) == 2
    for part, names in ((bodies, ["rebound"]), (many, ["heyoka"]), (field, ["torchdiffeq", "diffrax"])):
        reasons = [s["reason"] for s in part["skipped"]]
        assert len(reasons) == len(names) and all(
            f"package {n}," in r and "pip install 'revstep[bench]'" in r for n, r in zip(names, reasons)
        )
    assert not {"rebound", "heyoka", "torchdiffeq", "diffrax"} & result["environment"].keys()


def test_a_package_that_is_too_old_is_skipped(monkeypatch):
    monkeypatch.setattr(packages, "require", lambda *args: math)
    monkeypatch.setattr(packages, "version", lambda name: "5.1.9")
    module, reason = packages.peer("rebound")
    assert module is None and "5.1.9 is installed, 5.2 or newer" in reason
    monkeypatch.setattr(packages, "version", lambda name: "10.0")
    assert packages.peer("rebound") == (math, "")


def test_a_broken_package_is_no_absent_one(monkeypatch, tmp_path):
    (tmp_path / "torchdiffeq.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchdiffeq", raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        packages.peer("torchdiffeq")


def test_percentiles_lie_between_the_times():
    """Also of two rounds, one of them ten times as long: no extrapolation."""
    times = iter([0.0, 1.0, 1.0, 11.0])
    original, runner.time.perf_counter = runner.time.perf_counter, lambda: next(times)
    try:
        (row,) = measure({"a": lambda: None}, rounds=2, warmup=0)
    finally:
        runner.time.perf_counter = original
    assert 1.0 <= row.p20 < row.p50 == 5.5 < row.p80 <= 10.0


# ---- two bodies ----


def test_start_is_the_orbit_it_says():
    """Semi-major axis and eccentricity from energy and angular momentum of the relative orbit, momentum and
    centre of mass at rest.
    """
    q, v = two_body.start()
    masses = np.array(two_body.MASSES)
    r, w, mu = q[1] - q[0], v[1] - v[0], masses.sum()
    axis = 1 / (2 / np.linalg.norm(r) - w @ w / mu)
    momentum = np.linalg.norm(np.cross(r, w))
    # Each comes from a handful of roundings of numbers near 1.
    assert axis == pytest.approx(1.0, rel=1e-14) and math.sqrt(
        1 - momentum**2 / (mu * axis)
    ) == pytest.approx(0.1, rel=1e-12)
    assert np.abs(masses @ q).max() < 1e-18 and np.abs(masses @ v).max() < 1e-18


def test_exact_states_return_and_float_states_do_not():
    """The same function that finds no differing bit in fixed point finds some for float64, and some energy
    error for verlet.
    """
    exact, floats, verlet = (
        two_body.there_and_back(m, s, 500)
        for m, s in (("kahan_li6", None), ("kahan_li6", Float(torch.float64)), ("verlet", None))
    )
    assert (
        exact["differing"] == 0 and exact["difference"] == 0 and exact["energy_error"] <= two_body.ENERGY_HELD
    )
    assert floats["differing"] > 0 and floats["difference"] > 0
    assert verlet["differing"] == 0 and verlet["energy_error"] > two_body.ENERGY_HELD


def test_rebound_integrates_the_same_orbit():
    """Its leapfrog is our verlet: after 1,000 steps the states differ by rounding only; JANUS comes back to
    its first step bit for bit.
    """
    rebound = pytest.importorskip("rebound")
    made = two_body.simulation(rebound, "leapfrog")
    made.steps(1000)
    ours = two_body.integrate("verlet", Float(torch.float64), 1000)
    # Rounding of eps/2 in each of 3 updates a step, grown by the shear of the orbit (3/2 n t): 1000 * 2e-16 *
    # 3 * 1.5 = 1e-12.
    assert two_body._difference(two_body._state(made), (ours.ys[-1], ours.velocities[-1])) < 1e-12
    janus = two_body.rebound_there_and_back(rebound, "janus", 500)
    assert janus["differing"] == 0 and 0 < janus["energy_error_at_end"] < 1e-11
    assert two_body.rebound_there_and_back(rebound, "leapfrog", 500)["differing"] > 0


# ---- neural field ----


def test_bytes_kept_are_those_of_the_method():
    """Ours: two int64 slots and two checksums of two saves; stored by autograd: grows with the steps."""
    net, y = neural_field.Net(3), torch.randn(5, 3)
    kept = {
        n: {k: neural_field.bytes_kept(f, net, y) for k, f in neural_field.forwards(net, n, None).items()}
        for n in (4, 8)
    }
    assert kept[4]["revstep midpoint"] == kept[8]["revstep midpoint"] == 2 * 15 * 8 + 2 * 16
    for n in (4, 8):  # the coupling of yoshida4's copies: 15 carry bits twice a step, each in an int32 word
        assert kept[n]["revstep yoshida4"] == kept[n]["revstep midpoint"] + n * 2 * 4
    # 15 carry bits a step, in an int32 word.
    assert kept[8]["revstep reversible_rk4"] - kept[4]["revstep reversible_rk4"] == 4 * 4
    assert (
        kept[8]["midpoint, stored by autograd"] - kept[4]["midpoint, stored by autograd"]
        >= 4 * 5 * (3 + 6) * 4
    )


def test_the_stored_graph_is_that_of_the_same_steps():
    """float64 fields on the default grid: the two gradients differ by the grid's rounding, and by more for
    another method.
    """
    net, y = neural_field.Net(3).double(), torch.randn(5, 3, dtype=torch.float64)
    found = {k: neural_field.gradients(f, net, y) for k, f in neural_field.forwards(net, 8, None).items()}
    # 8 steps with roundings of 2**-55 and eps: far below 1e-13; midpoint and yoshida4 differ by h**2 = 1/64
    # times a constant.
    assert neural_field._off(found["revstep midpoint"], found["midpoint, stored by autograd"]) < 1e-13
    assert neural_field._off(found["revstep yoshida4"], found["midpoint, stored by autograd"]) > 1e-7


def test_torchdiffeq_variants_solve_the_same_equation():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    net, y = neural_field.Net(3), torch.randn(5, 3)
    with torch.no_grad():
        ends = {k: f(y)[0] for k, f in neural_field.forwards(net, 64, torchdiffeq).items()}
    assert len(ends) == 11
    for name in neural_field.OURS:
        assert torch.equal(ends[f"revstep {name}"], ends[f"revstep {name}, loop in Python"])
    for name, end in ends.items():
        # O(h**2) = 2.4e-4 of the second-order ones.
        assert torch.allclose(end, ends["torchdiffeq rk4"], rtol=0, atol=1e-3), name


def test_diffrax_takes_the_same_steps():
    """Its leapfrog midpoint is ours in float32; XLA's tanh and sums round otherwise: 8 steps of a few eps.
    Other methods differ by a multiple of h**2.
    """
    diffrax = pytest.importorskip("diffrax")
    net, y = neural_field.Net(3), torch.randn(5, 3)
    stored = neural_field.gradients(
        neural_field.forwards(net, 8, None)["midpoint, stored by autograd"], net, y
    )
    off = {
        name: neural_field._off(neural_field.as_tensors(call()), stored)
        for name, (call, _) in neural_field.compiled_calls(diffrax, net, y, 8).items()
    }
    assert off["diffrax LeapfrogMidpoint"] < 1e-5 and off["diffrax LeapfrogMidpoint, all states"] < 1e-5
    assert (
        1e-4 < off["diffrax ReversibleHeun"] < 0.1 and 1e-4 < off["diffrax LeapfrogMidpoint, backsolve"] < 0.1
    )


def test_rows_without_counted_bytes(monkeypatch):
    """diffrax's rows show no bytes, and stand beside the others in every ratio."""
    monkeypatch.setattr(
        neural_field, "peer", lambda name: (math, "") if name == "diffrax" else (None, "left out")
    )
    monkeypatch.setattr(neural_field, "compiled_calls", lambda *args: {"diffrax X": (lambda: None, 77)})
    part = neural_field.run((2, 3), rows=2, width=2, rounds=1)
    assert [s["reason"] for s in part["skipped"]] == ["left out"]
    row = part["steps"]["3"][-1]
    assert (row["name"], row["bytes_kept"], row["xla_temporaries"]) == (
        "diffrax X",
        None,
        77,
    ) and "revstep midpoint" in row["ratios"]
    assert set(part["first_calls"]) == set(neural_field.OURS) and part["clock"] in ("processor", "wall")
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in part["first_calls"].values())
    (_, header, rows), _ = ode.tables({"parts": {"neural-field": part}})
    assert rows[-1][header.index("bytes kept")] == "-"


# ---- what is refused ----


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"parts": ("three-body",)}, "three-body"),
        ({"parts": ()}, "none"),
        ({"steps": 1}, "steps"),
        ({"return_steps": 0}, "return_steps"),
        ({"pendulums": 0}, "pendulums"),
        ({"sample": 2000}, "sample"),
        ({"depths": (64, 16)}, "depths"),
        ({"depths": (1,)}, "depths"),
        ({"depths": ()}, "depths"),
        ({"threads": 0}, "threads"),
    ],
)
def test_refused(wrong, match):
    with pytest.raises(ConfigError, match=match):
        OdeCase(**wrong)


def test_refused_on_the_command_line(capsys):
    assert _cli.main(["bench", "ode", "--layers", "3"]) == 2
    assert "--layers is no option of 'revstep bench ode'" in capsys.readouterr().err
    assert _cli.main(["bench", "--pendulums", "3"]) == 2
    assert "--pendulums is no option of 'revstep bench trunk'" in capsys.readouterr().err
    assert _cli.main(["bench", "pde"]) == 2
    assert _cli.main(["bench", *TINY, "--rounds", "0"]) == 2


@pytest.mark.parametrize("module, case", [(ode, OdeCase), (trunk, None)])
def test_help_names_the_defaults(module, case):
    defaults = {f.name: f.default for f in dataclasses.fields(case or TrunkCase)}
    # No part of a case.
    options = {name: option for name, option in module.OPTIONS.items() if name != "against"}
    assert {name.replace("-", "_") for name in options} == set(defaults)
    for name, (_, text) in options.items():
        value = defaults[name.replace("-", "_")]
        said = (
            "all"
            if name == "parts"
            else " ".join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
        )
        assert text.rstrip(")").endswith(f"default {said}") or f"(default {said})" in text, name


def test_one_thread_is_timed_by_its_processor_time():
    """Sleeping takes none; on several threads it is wall time."""
    before = torch.get_num_threads()
    try:
        found = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            (row,) = measure({"a": lambda: time.sleep(0.05)}, rounds=1, warmup=0, clock=runner.own_clock())
            found[threads] = row.p50
    finally:
        torch.set_num_threads(before)
    assert found[1] < 0.02 and found[2] >= 0.05


def test_threads_are_put_back():
    torch.set_num_threads(2)
    result = run_ode(OdeCase(("pendulums",), pendulums=2, pendulum_steps=2, sample=1), rounds=1)
    assert torch.get_num_threads() == 2 and result["environment"]["threads"] == 1


def test_measure_is_the_interleaved_one():
    assert pendulums.measure is two_body.measure is neural_field.measure is measure
