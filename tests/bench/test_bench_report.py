"""Cases are found, not listed; their results become one table of lines, and one page with figures that says
what the files say.
"""

import argparse
import csv
import json
import types

import pytest

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench import results
from revstep_lab.commands import bench

TINY = "--layers 2 --width 16 --heads 2 --batch 1 --length 8 --rounds 1 --no-memory".split()
PNG = b"\x89PNG\r\n\x1a\n"


def row(name, p50, **more):
    return {
        "name": name,
        "p20": 0.9 * p50,
        "p50": p50,
        "p80": 1.2 * p50,
        "ratios": {"b" if name == "a" else "a": 2.0},
        **more,
    }


def result(**more):
    env = {
        "device": "a machine",
        "threads": 1,
        "date": "2026-01-02",
        "revstep": "0.1.0",
        "commit": "abc",
        "torch": "2",
        "python": "3",
        "revlib": "1.7",
    }
    case = {
        "layers": 2,
        "width": 16,
        "heads": 2,
        "batch": 1,
        "length": 8,
        "dtype": "float32",
        "scheme": "midpoint",
        "device": "cpu",
    }
    memory = {"kept": 10_000, "peak": 20_000, "process": None}
    return {
        "bench": "trunk",
        "command": "revstep bench --layers 2",
        "rounds": 3,
        "case": case,
        "environment": env,
        "goals": [{"what": "a / b", "value": 1.31, "goal": 1.3, "at_least": False, "met": False}],
        "measurements": [row("a", 0.5, memory=memory, network="x", flag=True), row("b", 0.25, memory=memory)],
        **more,
    }


# ---- cases ----


def test_every_case_is_found_and_keeps_the_contract():
    cases = bench.find_cases()
    assert {"trunk", "keep", "peers", "ode"} <= set(cases) and bench.DEFAULT in cases
    for name, module in cases.items():
        assert module.NAME == name and module.HELP and "\n" not in module.HELP and module.ROUNDS >= 1
        assert all(line.startswith("revstep bench") for line in module.EXAMPLES.strip().splitlines())
        assert all(callable(getattr(module, f)) for f in ("run", "tables", "verdicts"))


def test_a_new_file_is_a_new_case(tmp_path, monkeypatch, capsys):
    (tmp_path / "echo.py").write_text(
        "NAME, HELP, EXAMPLES, ROUNDS, OPTIONS = 'echo', 'says', 'revstep bench echo', 4, {'word': ({},"
        " 'what')}\ndef run(options, settings):\n    import datetime\n    result = {'case': options,"
        " 'environment': dict.fromkeys(('device', 'threads', 'date', 'revstep', 'commit', 'torch', 'python'),"
        " 1), 'measurements': [],\n              'skipped': [{'what': 'all', 'reason': 'it is an echo'}]}\n  "
        "  settings.show(result)\n    return result\ndef tables(result): return [('Said', ('word',),"
        " [(result['case']['word'],)])]\ndef verdicts(result): return [('goal', '1', 'at most 2', 'met')]\n"
    )
    package = __import__("revstep_lab.cases", fromlist=["x"])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr(bench, "find_cases", bench.find_cases.__wrapped__)
    assert _cli.main(["bench", "echo", "--word", "hello", "--json", str(tmp_path / "e.json")]) == 0
    said = capsys.readouterr().out
    assert (
        "hello" in said
        and "medians of 4" in said
        and "skipped: all: it is an echo" in said
        and "goal: 1, goal at most 2: met" in said
    )
    assert json.loads((tmp_path / "e.json").read_text())["command"] == "revstep bench echo --word hello"
    assert (
        _cli.main(["bench", "echo", "--layers", "3"]) == 2
        and "--layers is no option of 'revstep bench echo'" in capsys.readouterr().err
    )


def test_one_option_means_one_thing():
    a, b = (
        types.SimpleNamespace(OPTIONS={"size": (settings, "text")})
        for settings in ({"type": int}, {"type": float})
    )
    assert bench.options_of({"a": a, "c": a}) == {"size": ({"type": int}, "a: text; c: text")}
    with pytest.raises(ValueError, match="--size of b"):
        bench.options_of({"a": a, "b": b})


@pytest.mark.parametrize(
    "line, command",
    [
        ("bench", "revstep bench"),
        ("bench keep --layers 3", "revstep bench keep --layers 3"),
        ("bench ode --depths 4 8 --rounds 2", "revstep bench ode --depths 4 8 --rounds 2"),
        ("bench peers --no-memory", "revstep bench peers --no-memory"),
    ],
)
def test_the_command_is_the_one_given(line, command):
    args = _cli.make_parser().parse_args(line.split())
    module = bench.find_cases()[args.case]
    given = {
        name: value for name in module.OPTIONS if (value := getattr(args, name.replace("-", "_"))) is not None
    }
    assert bench.command(module, given, args) == command


# ---- lines ----


def test_lines_carry_every_figure():
    found = results.lines(result())
    assert all(
        set(line) <= set(results.FIELDS)
        and line["device"] == "a machine"
        and line["commit"] == "abc"
        and line["date"] == "2026-01-02"
        for line in found
    )
    figures = {(line["name"], line["metric"]): line["p50"] for line in found}
    assert figures == {
        ("a", "time"): 0.5,
        ("a", "time / b"): 2.0,
        ("a", "memory.kept"): 10_000,
        ("a", "memory.peak"): 20_000,
        ("b", "time"): 0.25,
        ("b", "time / a"): 2.0,
        ("b", "memory.kept"): 10_000,
        ("b", "memory.peak"): 20_000,
    }
    assert [(line["p20"], line["p80"]) for line in found if line["metric"] == "time"] == [
        (0.45, 0.6),
        (0.225, 0.3),
    ]
    assert (
        json.loads(found[0]["packages"]) == {"revlib": "1.7"}
        and json.loads(found[0]["options"])["layers"] == 2
    )


def test_lines_of_other_shapes():
    """Parts within parts."""
    nested = {
        **result(),
        "parts": {
            "two-body": {"rows": [row("a", 1.0)]},
            "field": {"steps": {"16": [row("a", 2.0, bytes_kept=7)]}},
        },
    }
    del nested["measurements"]
    assert [(line["group"], line["metric"]) for line in results.lines(nested)] == [
        ("parts/two-body/rows", "time"),
        ("parts/two-body/rows", "time / b"),
        ("parts/field/steps/16", "time"),
        ("parts/field/steps/16", "time / b"),
        ("parts/field/steps/16", "bytes_kept"),
    ]


def test_csv_of_the_command_line(tmp_path):
    path = tmp_path / "figures.csv"
    assert _cli.main(["bench", *TINY, "--csv", str(path)]) == 0
    first = path.read_text()
    assert _cli.main(["bench", "keep", *TINY, "--csv", str(path)]) == 0
    assert path.read_text().startswith(first)
    rows = list(csv.DictReader(path.open()))
    assert {r["bench"] for r in rows} == {"trunk", "keep"} and all(
        r["device"] and r["torch"] and r["date"] for r in rows
    )
    assert {r["metric"] for r in rows if r["bench"] == "keep" and r["name"] == "plain"} == {
        "time",
        "time / keep=0",
        "time / keep=1",
        "time / keep=2",
    }
    assert all(float(r["p20"]) <= float(r["p50"]) <= float(r["p80"]) for r in rows if r["metric"] == "time")


def test_a_foreign_file_is_left_alone(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="begins with 'a,b'"):
        results.add_to_csv(str(path), result())
    assert path.read_text() == "a,b\n1,2\n"
    path.write_text(",".join(results.FIELDS))  # the last line of a file need not be ended
    results.add_to_csv(str(path), result())
    assert len(list(csv.DictReader(path.open()))) == 8


# ---- the page ----


def test_report_says_what_the_files_say(tmp_path, capsys):
    (tmp_path / "step.json").write_text(
        json.dumps(result(skipped=[{"what": "a rival", "reason": "not installed"}]))
    )
    (tmp_path / "other.json").write_text('{"of": "another command"}')
    assert _cli.main(["bench", "--report", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    assert (
        "a machine, 1 thread, Python 3, torch 2, revlib 1.7, revstep 0.1.0 (abc), 2026-01-02; medians of 3"
        " rounds; `revstep bench --layers 2`" in page
    )
    assert (
        "| a | 500.0 | 450.0 to 600.0 | 1.000 | 1.000 | 10 KB | 20 KB | - |" in page
        and "| a / b | 1.31 | at most 1.3 | NOT met |" in page
    )
    assert (
        "Left out: a rival: not installed." in page
        and "other" not in page
        and "[all numbers](step.json)" in page
    )
    figure = tmp_path / "step-measurements.png"
    assert (
        f"]({figure.name})" in page
        and figure.read_bytes().startswith(PNG)
        and f"wrote {figure}" in capsys.readouterr().out
    )
    other = bench.page(
        {tmp_path / "step.json": result(measurements=[row("a", 0.7)], goals=[])}, bench.find_cases()
    )
    assert (
        "| a | 700.0 |" in other
        and "500.0" not in other
        and "NOT met" not in other
        and "Left out" not in other
    )


def test_figures_show_the_rows(tmp_path):
    """Other numbers, another picture; a group of one row has none."""
    from revstep_lab.bench.results import draw_rows

    paths = [tmp_path / f"{i}.png" for i in range(4)]
    draw_rows(paths[0], "t", "s", [row("a", 1.0), row("b", 2.0)])
    draw_rows(paths[1], "t", "s", [row("a", 1.0), row("b", 2.5)])
    draw_rows(paths[2], "t", "s", [row("a", 1.0, bytes_kept=10), row("b", 2.0, bytes_kept=20)])
    draw_rows(paths[3], "t", "s", [row("a", 1.0, bytes_kept=10), row("b", 2.0, bytes_kept=30)])
    assert len({p.read_bytes() for p in paths}) == 4
    one = result(measurements=[row("a", 1.0)])
    assert bench.figures(tmp_path / "x.json", one) == []


@pytest.mark.parametrize(
    "text, match",
    [
        (None, "has no JSON file of 'revstep bench'"),
        ('{"bench": "gone"}', "is of 'revstep bench gone', expected one of compile"),
    ],
)
def test_refused(tmp_path, capsys, text, match):
    if text:
        (tmp_path / "x.json").write_text(text)
    assert _cli.main(["bench", "--report", str(tmp_path)]) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    "more", [["--layers", "3"], ["--rounds", "2"], ["--json", "x"], ["--no-memory"], ["keep"]]
)
def test_report_measures_nothing(tmp_path, capsys, more):
    assert _cli.main(["bench", *more, "--report", str(tmp_path)]) == 2
    assert "--report measures nothing" in capsys.readouterr().err


def test_parser_knows_all_options():
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    text = parser.format_help()
    assert all(f"--{name}" in text for m in bench.find_cases().values() for name in m.OPTIONS) and all(
        name in text for name in bench.find_cases()
    )
