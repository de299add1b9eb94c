"""The ODE section of docs/benchmarks.md, from docs/benchmarks/ode.json (written by ``revstep bench ode --json``): the tables that the command prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from revstep.bench import OdeCase
from revstep.cli.commands._bench_ode import ROUNDS, tables, verdicts
from revstep.cli.output import markdown

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures of docs/benchmarks/ode.json, by docs/generate.py -->", "<!-- /figures of ode.json -->"


def _command(data: dict) -> str:
    """The command line that measured this: what is not a default is in it."""
    given = {f.name: data["case"][f.name] for f in dataclasses.fields(OdeCase) if data["case"][f.name] != _plain(f.default)}
    given |= {} if data["rounds"] == ROUNDS else {"rounds": data["rounds"]}
    options = [f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in given.items()]
    return " ".join(["revstep bench ode", *options, "--json ode.json"])


def _plain(default: object) -> object:
    return list(default) if isinstance(default, tuple) else default


def section() -> str:
    """Device, versions and command, then every table and every goal, met or not."""
    data = json.loads((DOCS / "benchmarks" / "ode.json").read_text(encoding="utf-8"))
    env = data["environment"]
    packages = ", ".join(
        f"{name} {env[key]}" for name, key in (("torch", "torch"), ("scipy", "scipy"), ("REBOUND", "rebound"), ("torchdiffeq", "torchdiffeq")) if key in env
    )
    parts = [
        f"{env['device']}, {env['threads']} thread{'s' * (env['threads'] > 1)}, Python {env['python']}, {packages}, revstep {env['revstep']} ({env['commit']}), "
        f"{env['date']}; medians of {data['rounds']} rounds; `{_command(data)}` ([all numbers](benchmarks/ode.json))"
    ]
    for name, part in data["parts"].items():
        for title, header, rows in tables({"parts": {name: part}}):
            parts += [f"**{title}.**", markdown(header, rows)]
        parts += [f"Left out: {skip['what']}: {skip['reason']}." for skip in part["skipped"]]
    parts += ["**Goals.** Ratios are medians of the ratios of single rounds.", markdown(("what", "measured", "goal", ""), verdicts(data))]
    return "\n\n".join(parts)


def with_section(page: str) -> str:
    """The page with its figures renewed. Raises ValueError when the marks are not there once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"docs/benchmarks.md needs the lines {BEGIN!r} and {END!r} once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section()}\n\n{END}{rest.split(END)[1]}"


def pages() -> dict[Path, str]:
    """Path -> text as it should be."""
    page = DOCS / "benchmarks.md"
    return {page: with_section(page.read_text(encoding="utf-8"))}
