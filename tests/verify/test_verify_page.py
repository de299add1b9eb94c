"""The figures of ``revstep verify --html``: what they show is what was measured, theory and measurement apart
are noticed.
"""

import io
import math

import pytest
import torch

from revstep import _cli, ode
from revstep_lab.verify.report import Cell, Page, Section, depth, energy, stability
from revstep_lab.verify.report.page import environment_line

METHODS = ode.available()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def decoded(picture):
    from PIL import Image

    image = Image.open(io.BytesIO(picture.png))
    image.load()
    return image


def test_energy_is_bounded_for_verlet_and_secular_for_runge_kutta():
    panels = energy.measure({n: METHODS[n] for n in ("verlet", "reversible_rk4")}, steps=100_000)
    kepler, oscillator = (panel["lines"] for panel in panels)
    assert set(kepler) == {"verlet"} and set(oscillator) == {"verlet", "reversible_rk4"}
    verlet, rk4 = oscillator["verlet"], oscillator["reversible_rk4"]
    assert abs(verlet["slope"]) < 4 * verlet["slope_error"] and abs(rk4["slope"]) > 100 * rk4["slope_error"]
    assert (
        verlet["error"][-1] < 2 * verlet["error"][len(verlet["error"]) // 2]
        and rk4["error"][-1] > 5 * rk4["error"][len(rk4["error"]) // 2]
    )
    picture = energy.draw(panels)
    assert (
        picture.id == "energy-drift"
        and abs(decoded(picture).width - 2 * picture.width) <= 2
        and "verlet" in picture.alt
    )


def test_measured_stability_is_the_theoretical_one():
    data = stability.measure({n: METHODS[n] for n in ("verlet", "yoshida4")})
    assert all(region["agree"] > 0.995 and region["compared"] > 4000 for region in data["regions"].values())
    assert data["intervals"]["verlet"]["theory"] == pytest.approx(2.0, abs=stability.FINE)
    assert all(abs(i["measured"] - i["theory"]) <= 2 * stability.FINE for i in data["intervals"].values())
    assert decoded(stability.draw(data)).height > 400


def test_another_theory_would_be_noticed(monkeypatch):
    name = next(iter(stability.REGIONS))
    monkeypatch.setattr(
        stability, "REGIONS", {name: (stability.REGIONS[name][0], lambda z: stability.blend_radius(1.1 * z))}
    )
    assert stability.measure({})["regions"][name]["agree"] < 0.99


def test_depth_figure_says_what_is_exact():
    data = depth.measure(layers=4)
    assert all(
        d["fixed"] == [0.0, 0.0, 0.0] and set(d["errors"]) == {"float32", "bf16", "fp16"}
        for d in data.values()
    )
    picture = depth.draw(data)
    assert "exactly 0 at every depth" in picture.alt and decoded(picture).width > 1000
    data["blend"]["fixed"][-1] = 1e-9
    data["blend"]["errors"]["fp16"] = [None, math.inf, 1e-3]
    assert "NOT always exact" in depth.draw(data).alt


def test_page_escapes_and_names_what_fails():
    page = Page(
        {"device": "<cpu>", "threads": 2},
        "revstep verify",
        3,
        ["a < b"],
        [Section("T", "x", ("h",), [[Cell("FAILS", "bad", 'say "no"')]], [], ["one"])],
    ).html()
    assert (
        "2 of 3 claims hold; 1 fail" in page
        and "a &lt; b" in page
        and "&lt;cpu&gt;, 2 threads" in page
        and 'title="say &quot;no&quot;"' in page
    )
    assert '<td class="bad"' in page and "all 1 measurements" in page
    assert (
        environment_line({"device": "x", "threads": 1, "date": "d", "torch": "2", "commit": ""})
        == "x, 1 thread, d, torch 2"
    )


@pytest.mark.slow
def test_the_command_writes_a_page(tmp_path, capsys):
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
                "--html",
                str(tmp_path / "page"),
            ]
        )
        == 0
    )
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert (
        'id="reconstruction-by-depth"' in text
        and "claims hold" in text
        and "wrote" in capsys.readouterr().out
    )


def test_a_page_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, capsys):
    import importlib

    original = importlib.import_module

    def missing(name, *rest):
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    assert _cli.main(["verify", "--html", "page"]) == 2
    said = capsys.readouterr()
    assert "needs the package matplotlib" in said.err and "combinations" not in said.out
