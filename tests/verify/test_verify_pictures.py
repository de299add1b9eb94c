"""The integrators' part of ``revstep verify --html``: convergence as it is drawn, cells as they are written,
and the command that makes a page of them.
"""

import html
import re

import numpy as np
import pytest
import torch

from revstep import _cli, ode
from revstep.verify._checks import Result
from revstep_lab.commands import _verify_networks, _verify_ode, _verify_outcome
from revstep_lab.drawing import INK
from revstep_lab.verify import ode as claims
from revstep_lab.verify.ode import drift, order
from revstep_lab.verify.report import Page, convergence, ode_pictures, stability

METHODS = ode.available()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# ---- convergence ----


@pytest.fixture
def drawn(monkeypatch):
    """The figures behind the pictures that are made."""
    figures, picture = [], convergence.picture

    def keep(fig, *rest):
        figures.append(fig)
        return picture(fig, *rest)

    monkeypatch.setattr(convergence, "picture", keep)
    return figures


def test_convergence_is_drawn_as_it_was_measured(drawn):
    panels = convergence.measure({name: METHODS[name] for name in ("hamiltonian", "verlet", "midpoint")})
    assert [(panel["equation"], list(panel["lines"])) for panel in panels] == [
        ("first", ["verlet", "midpoint"]),
        ("separable", ["hamiltonian", "verlet"]),
    ]
    for panel in panels:
        for name, line in panel["lines"].items():
            assert line["order"] == METHODS[name].claims(panel["equation"]).order
            assert abs(line["slope"] - line["order"]) < 0.15 and line["errors"][0] > line["errors"][-1] > 0
    found = convergence.draw(panels)
    assert found.id == "convergence" and found.data == {"panels": panels}
    (fig,) = drawn
    for ax, panel in zip(fig.axes, panels, strict=True):
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("h", "error")
        assert ax.get_title("left") == f"{panel['problem']}, t = {panel['end']:g}"
        for shown, (name, line) in zip(ax.lines, panel["lines"].items(), strict=True):
            assert np.array_equal(shown.get_xdata(), line["h"])
            assert np.array_equal(shown.get_ydata(), line["errors"])
            assert shown.get_color() == convergence.COLOURS[line["order"]]
            label = f"{name}  {line['slope']:.2f}"
            assert [t.get_color() for t in ax.texts if t.get_text() == label] == [shown.get_color()]
            assert f"{name} {line['slope']:.2f} (claims {line['order']})" in found.alt
    worst = max(abs(line["slope"] - line["order"]) for p in panels for line in p["lines"].values())
    assert f"furthest from its claim is {worst:.2f} off" in found.caption


def test_what_a_logarithmic_axis_cannot_show_is_said_in_words_alone(drawn):
    line = {"h": [0.1, 0.05], "errors": [1e-3, 2.5e-4], "slope": 2.0, "order": 2}
    lines = {"good": line, "exact": {**line, "errors": [1e-3, 0.0]}, "lost": {**line, "errors": [1, np.inf]}}
    lines["odd"] = {**line, "order": 7}
    found = convergence.draw([{"equation": "first", "problem": "a problem", "end": 1.0, "lines": lines}])
    (ax,) = drawn[0].axes
    assert [shown.get_color() for shown in ax.lines] == [convergence.COLOURS[2], INK]
    assert [t.get_text() for t in ax.texts] == ["good  2.00", "odd  2.00"]
    assert "exact 2.00 (claims 2)" in found.alt and "5.00 off" in found.caption


def test_methods_whose_order_is_of_a_mean_are_not_drawn():
    assert METHODS["midpoint_blend"].claims("first").in_expectation
    first, separable = (convergence.chosen(equation, METHODS) for equation, _ in convergence.PANELS)
    assert "midpoint_blend" not in first and "reversible_rk4" in first
    assert "yoshida4" not in first and "yoshida4" in separable and "verlet" in first


def test_a_picture_without_a_line_is_left_out(monkeypatch):
    """Regions of stability are drawn of no method in particular."""
    assert convergence.measure({}) == []
    monkeypatch.setattr(stability, "measure", lambda methods: {})
    assert ode_pictures([]) == []


def test_an_interval_has_an_end_at_which_no_longer_step_is_tried(monkeypatch):
    monkeypatch.setattr(stability, "LONGEST", 1.5)
    assert stability.theoretical_interval(METHODS["verlet"]) == 1.5
    assert stability.measured_interval(METHODS["verlet"]) == 1.5


# ---- the page ----


def test_the_page_of_a_method(tmp_path, capsys):
    folder = tmp_path / "page"
    words = ["--method", "verlet", "--equation", "separable", "--property", "checksum", "--html", str(folder)]
    assert _cli.main(["verify", *words]) == 0
    said, text = capsys.readouterr().out, (folder / "index.html").read_text(encoding="utf-8")
    assert f"wrote {folder / 'index.html'}" in said and "2 of 2 claims hold" in text
    pictures = re.findall(r'<img id="([^"]+)" alt="([^"]+)"', text)
    assert [name for name, _ in pictures] == ["convergence", "energy-drift", "stability-region"]
    assert all("verlet" in alt for _, alt in pictures)
    assert "<h2>Integrators</h2>" in text and "<h2>Reversible stacks</h2>" not in text
    assert "<th>method</th><th>equation</th><th>checksum</th>" in text
    (cell,) = re.findall(
        r'<td>verlet</td><td>separable</td><td class="good" title="([^"]+)">holds</td>', text
    )
    assert html.unescape(cell).startswith("one flipped bit is seen when reversed: ok (0 missed flips")


def series(change):
    t = tuple(float(n) for n in range(len(change)))
    return drift.Series("made up", "energy", 0.1, t, tuple(change))


def test_cells_say_the_figure_of_the_sentence():
    """Slopes and drifts in their own words, with what the property's own function wrote."""
    verlet = METHODS["verlet"]
    run = order.Convergence("a problem", (0.1, 0.05, 0.025), (1e-2, 2.5e-3, 6.25e-4), 0.0, 2)
    assert _verify_ode._cell([order.judged("order 2, a", run, 2)])[:2] == ("2.00", "good")
    rising = [1e-3 * n for n in range(200)]
    wave = [1e-4 * (-1) ** n for n in range(200)]
    for change, claimed, text, kind in (
        (wave, True, "bounded ", "good"),
        (rising, False, "secular 2e-01", ""),
        (rising, True, "FAILS", "bad"),
        ([0.0, float("nan")], False, "not bounded", ""),
    ):
        result = drift.judged(verlet, "second", series(change), 1000, claimed)
        cell = _verify_ode._cell([result])
        assert cell[0].startswith(text) and cell[1:] == (kind, str(result))
    measured = Result("m", True, 2e-10, 1e-9, "relative error", "all at once")
    assert _verify_ode._cell([measured])[0] == "2e-10"
    assert _verify_ode._cell([Result("m", True, 0.0, 0.0, "largest error", "")])[0] == "exact"


def test_the_cell_nearest_to_its_bound_is_shown():
    results = [
        Result("order 2, a", True, off, 0.15, "off", f"slope {2 + off:.2f} on a problem, errors")
        for off in (0.01, 0.14, 0.05)
    ]
    text, kind, words = _verify_ode._cell(results)
    assert (text, kind) == ("2.14", "good") and words == "; ".join(map(str, results))


def test_stacks_that_were_not_run_or_fail_are_told_apart():
    out = _verify_outcome.Outcome("reversible stacks", _verify_networks.HEADER)
    out.rows = [
        ("blend", "fixed32", "float32", "exact", "exact", "6 of 6"),
        ("blend", "float32", "bfloat16", "off by 1.2e-07", "exact", "4 of 4"),
        ("midpoint", "fixed32", "float32", "FAILS", "exact", "5 of 6"),
    ]
    section = _verify_networks.section(out)
    assert section.header == ("scheme", "state", "float32", "bfloat16")
    assert [[(c.text, c.kind) for c in row[2:]] for row in section.rows] == [
        [("exact", "good"), ("not run", "none")],
        [("not run", "none"), ("off by 1.2e-07", "")],
        [("FAILS (5 of 6 hold)", "bad"), ("not run", "none")],
    ]
    assert section.rows[2][2].words == "reconstruction FAILS, gradients exact"
    assert '<td class="none">not run</td>' in Page({}, "", 1, [], [section]).html()


def test_the_largest_error_is_the_one_that_is_said():
    results = [Result("a", True, off, 1.0, "error") for off in (1e-8, 3e-7, 2e-9)]
    assert _verify_outcome.error_cell(results) == "off by 3.0e-07"


def test_a_terminal_sees_how_far_it_is(monkeypatch, capsys):
    cases = [claims.OdeCase("checksum", name, "first") for name in ("verlet", "midpoint")]
    rows = [(case, []) for case in cases]
    assert list(_verify_outcome.watched(cases, iter(rows))) == rows and capsys.readouterr().err == ""
    monkeypatch.setattr(_verify_outcome.sys.stderr, "isatty", lambda: True)
    assert list(_verify_outcome.watched(cases, iter(rows))) == rows
    assert capsys.readouterr().err == "\r1 of 2\r2 of 2\n"


def test_one_block_has_one_dtype(capsys):
    words = ["--block", "torch.nn:Identity", "--shape", "2,4", "--dtype", "float32", "--dtype", "bfloat16"]
    assert _cli.main(["verify", *words]) == 2
    said = capsys.readouterr()
    assert "--dtype was given 2 times, expected one with --block" in said.err and said.out == ""
