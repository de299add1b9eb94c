"""``revstep bench``: measurements side by side in one run, and the page of all of them that ``--report``
writes. A case is a module of :mod:`revstep_lab.cases`; there is no list of them.

A case has NAME, HELP (one line), EXAMPLES, ROUNDS, OPTIONS (name -> settings for argparse, help),
``run(options, settings) -> result``, which calls ``settings.show(result)`` once or, part by part, more often,
and for the results it shows ``tables(result) -> [(title, header, rows)]`` and ``verdicts(result) -> [(what,
value, bound, met or NOT met)]``. A result has ``environment`` and may have ``skipped``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import pkgutil
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType

from revstep._cli._numbers import output_file
from revstep._files import read_json, write_folder
from revstep._values import shown
from revstep.errors import ConfigError

from .. import tables

NAME = "bench"
HELP = (
    "time training steps and integrations beside other ways and other packages, interleaved in one run; count"
    " their memory; write tables and figures"
)
DEFAULT = "trunk"


@dataclass(frozen=True)
class Settings:
    """Of one run: interleaved rounds, whether memory is measured, what shows a result."""

    rounds: int
    memory: bool
    show: Callable[[dict], None]


@functools.cache
def find_cases() -> dict[str, ModuleType]:
    """The case modules by NAME, sorted. They import torch, so this waits until the command is bench."""
    package = importlib.import_module("revstep_lab.cases")
    modules = (
        importlib.import_module(f"{package.__name__}.{i.name}")
        for i in pkgutil.iter_modules(package.__path__)
        if not i.name.startswith("_")
    )
    return {m.NAME: m for m in sorted(modules, key=lambda m: m.NAME)}


def options_of(cases: dict[str, ModuleType]) -> dict[str, tuple[dict, str]]:
    """Option -> (settings for argparse, help of all cases that have it).

    Raises:
        ValueError: two cases give one option different settings.
    """
    settings: dict[str, dict] = {}
    about: dict[str, list[str]] = {}
    for case, module in cases.items():
        for name, (options, text) in module.OPTIONS.items():
            if settings.setdefault(name, options) != options:
                raise ValueError(
                    f"--{name} of {case} is {options}, another case has {settings[name]}: one command line"
                    f" has one --{name}"
                )
            about.setdefault(name, []).append(f"{case}: {text}")
    return {name: (options, "; ".join(about[name])) for name, options in settings.items()}


def examples() -> str:
    """Of the command and of every case."""
    lines = [line.strip() for m in find_cases().values() for line in m.EXAMPLES.strip().splitlines()]
    return "\n".join(["revstep bench", *lines, "revstep bench --report docs/benchmarks"])


EXAMPLES = examples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cases = find_cases()
    said = "; ".join(f"{name}: {module.HELP}" for name, module in cases.items())
    parser.add_argument("case", nargs="?", choices=cases, default=DEFAULT, help=f"{said} (default {DEFAULT})")
    parser.add_argument(
        "--rounds",
        type=int,
        help="interleaved rounds (default "
        + ", ".join(f"{m.ROUNDS} for {n}" for n, m in cases.items())
        + ")",
    )
    parser.add_argument(
        "--no-memory",
        action="store_true",
        help="leave out the untimed steps, in processes of their own, that measure peak memory",
    )
    parser.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        help="write the measurements, with device, commit, versions and date, to this file",
    )
    parser.add_argument(
        "--csv",
        type=output_file,
        metavar="FILE",
        help="add them to this table, one line a figure, with the same",
    )
    parser.add_argument(
        "--report",
        metavar="FOLDER",
        help="measure nothing: write report.md and figures from the JSON files in this folder",
    )
    for name, (options, text) in options_of(cases).items():
        parser.add_argument(f"--{name}", **options, help=text)


def run(args: argparse.Namespace) -> int:
    from revstep._cli import shared
    from revstep.errors import ConfigError

    cases = find_cases()
    module = cases[args.case]
    given = {name: getattr(args, name.replace("-", "_")) for m in cases.values() for name in m.OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if args.report:
        return _report(args, given)
    foreign = sorted(set(given) - set(module.OPTIONS))
    if foreign:
        raise ConfigError(
            f"--{foreign[0]} is no option of 'revstep bench {args.case}', expected some of"
            f" --{', --'.join(module.OPTIONS)}"
        )
    rounds = module.ROUNDS if args.rounds is None else args.rounds
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}, expected at least 1")
    settings = Settings(rounds, not args.no_memory, Shown(module, rounds))
    result = module.run({name.replace("-", "_"): value for name, value in given.items()}, settings)
    record = {"bench": module.NAME, "command": command(module, given, args), "rounds": rounds, **result}
    if args.json:
        shared.write_json(args.json, record)
        print(f"\nwrote {args.json}")
    if args.csv:
        from ..bench.results import add_to_csv

        add_to_csv(args.csv, record)
        print(f"\nadded to {args.csv}")
    return 0


def command(module: ModuleType, given: dict, args: argparse.Namespace) -> str:
    """The command line that measures this again."""
    words = ["revstep", "bench", *[module.NAME] * (module.NAME != DEFAULT)]
    for name, value in given.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    words += ["--rounds", str(args.rounds)] * (args.rounds is not None) + ["--no-memory"] * args.no_memory
    return shlex.join(words)


class Shown:
    """Prints results of a case: the line of device and versions once, then tables, goals and what was left
    out.
    """

    def __init__(self, module: ModuleType, rounds: int):
        self.module, self.rounds, self.headed = module, rounds, False

    def __call__(self, result: dict) -> None:
        from revstep._cli import shared

        env = result["environment"]
        if not self.headed:
            threads = f"{env['threads']} thread{'s' * (env['threads'] > 1)}"
            print(
                f"{env['device']}, {threads}, torch {env['torch']}, {env['date']}, medians of {self.rounds}"
                " interleaved rounds"
            )
            self.headed = True
        for title, header, rows in self.module.tables(result):
            print(f"\n{title}\n\n{shared.table(header, rows)}")
        print()
        for what, value, bound, met in self.module.verdicts(result):
            print(f"{what}: {value}, goal {bound}: {met}")
        for skip in result.get("skipped", []):
            print(f"skipped: {skip['what']}: {skip['reason']}")
        print(end="", flush=True)


def _report(args: argparse.Namespace, given: dict) -> int:
    from revstep.errors import ConfigError

    named = [
        *given,
        *(name for name in ("rounds", "json", "csv", "no_memory") if getattr(args, name)),
        *[args.case] * (args.case != DEFAULT),
    ]
    if named:
        raise ConfigError(
            f"--report measures nothing, but {named[0]} was given: leave it out, or measure first with --json"
            f" {args.report}/NAME.json"
        )
    for path in write(args.report, find_cases()):
        print(f"wrote {path}")
    return 0


# ------------------------------------------------------------------------------------------------------------
# ``revstep bench --report FOLDER``: report.md and figures from the JSON files that ``revstep bench --json``
# wrote there.

PAGE = "report.md"
_HEAD = """<!-- Written by revstep bench --report from the JSON files beside it. Do not edit it. -->

# All measurements

Times are medians over interleaved rounds of one run, each with a fresh graph after uncounted warm-up rounds.
Ratios are medians of the ratios of single rounds. *kept* is what torch's allocator holds between forward and
backward, *peak* the most it holds during the step; both are above what was there before, and contain the
parameters' gradients. *process* is the growth of the process's resident memory (VmHWM). The memory of a row
is measured in an untimed step, in a process of its own.
"""


def results(folder: Path, cases: dict[str, ModuleType]) -> dict[Path, dict]:
    """File -> result, of every JSON file of the folder that a case of ``revstep bench`` wrote.

    Raises:
        ConfigError: there is none, or one of a case that is not here.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; remove it, or measure again") from error
        if not isinstance(data, dict) or "bench" not in data:
            continue  # of another command
        if not isinstance(data["bench"], str) or data["bench"] not in cases:
            raise ConfigError(
                f"{path} is of 'revstep bench {shown(data['bench'], quoted=False)}', expected one of"
                f" {', '.join(cases)}"
            )
        found[path] = data
    if not found:
        raise ConfigError(
            f"{folder} has no JSON file of 'revstep bench', expected some: revstep bench --json"
            f" {folder}/NAME.json"
        )
    return found


def page(found: dict[Path, dict], cases: dict[str, ModuleType]) -> str:
    """The whole page, goals that are not met and what was left out included."""
    parts = [_HEAD]
    for path, result in found.items():
        with _as_written(path):
            parts += _section(path, result, cases)
    return "\n".join(parts)


@contextlib.contextmanager
def _as_written(path: Path) -> Iterator[None]:
    """A result that lacks what every run writes, or has another kind of value there, is refused by name."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = f"{type(error).__name__}: {shown(str(error), quoted=False)}"
        raise ConfigError(
            f"{path} is not what revstep bench --json writes ({reason}): remove it, or measure again"
        ) from error


def _section(path: Path, result: dict, cases: dict[str, ModuleType]) -> list[str]:
    pictures = [f"![{path.stem}: {group}]({name})\n" for group, name, _ in figures(path, result)]
    pictures += [
        f"![{path.stem}: {_curve(cases, result)} against {axis}]({path.stem}-{axis}.png)\n"
        for axis in getattr(cases[result["bench"]], "CURVES", ())
    ]
    return [f"## {path.stem}\n", figures_of(result, cases[result["bench"]], path.name, pictures)]


def _curve(cases: dict[str, ModuleType], result: dict) -> str:
    """What the curves of a case show: its CURVE, or the loss."""
    return getattr(cases[result["bench"]], "CURVE", "loss")


def figures_of(result: dict, module: ModuleType, link: str, pictures: Sequence[str] = ()) -> str:
    """Device, versions and command of one result, its tables, what goes behind them, its goals, and what was
    left out. ``link``: where its file is.
    """
    env = result["environment"]
    packages = ", ".join(
        f"{key} {env[key]}"
        for key in env
        if key not in ("device", "threads", "date", "revstep", "commit", "torch", "python")
    )
    parts = [
        f"{env['device']}, {env['threads']} thread{'s' * (env['threads'] > 1)}, Python {env['python']}, torch"
        f" {env['torch']}{', ' * bool(packages)}{packages}, revstep {env['revstep']} ({env['commit']}),"
        f" {env['date']}; medians of {result['rounds']} rounds; `{result['command']}` ([all"
        f" numbers]({link}))\n"
    ]
    parts += [
        f"**{title}.**\n\n{tables.table(header, rows)}\n" for title, header, rows in module.tables(result)
    ]
    parts += pictures
    if goals := module.verdicts(result):
        parts.append(tables.table(("goal", "measured", "", ""), goals) + "\n")
    skipped = result.get("skipped", []) + [
        s for part in result.get("parts", {}).values() for s in part.get("skipped", [])
    ]
    parts += [f"Left out: {skip['what']}: {skip['reason']}.\n" for skip in skipped]
    return "\n".join(parts)


def figures(path: Path, result: dict) -> list[tuple[str, str, list[dict]]]:
    """``(group, file name, its rows)`` of every figure of a result: one for each group of two measurements or
    more.
    """
    from ..bench.results import measurements

    groups = [
        (group, [m for _, m in rows])
        for group, rows in groupby(measurements(result), key=lambda found: found[0])
    ]
    return [
        (group, f"{path.stem}-{re.sub('[^a-z0-9]+', '-', group.lower())}.png", rows)
        for group, rows in groups
        if len(rows) > 1
    ]


def write(folder: str, cases: dict[str, ModuleType]) -> list[Path]:
    """Page and figures into the folder, all of them or none; returns their paths.

    Raises:
        ConfigError: as :func:`results`; a result that lacks what a run writes.
    """
    found = results(Path(folder), cases)
    said = page(found, cases).encode()
    written: list[Path] = []

    def into(part: Path) -> None:
        for path, result in found.items():
            with _as_written(path):
                written.extend(_draw(part / path.name, result, cases))
        (part / PAGE).write_bytes(said)

    write_folder(folder, into)
    return [Path(folder) / name for name in (*(path.name for path in written), PAGE)]


def _draw(path: Path, result: dict, cases: dict[str, ModuleType]) -> list[Path]:
    """The figures of one result, beside ``path``."""
    from ..bench.results import draw_curves, draw_rows

    written = []
    env = result["environment"]
    for group, name, rows in figures(path, result):
        draw = draw_curves if "x" in rows[0] else draw_rows
        draw(
            path.with_name(name),
            path.stem if group == "measurements" else f"{path.stem}: {group}",
            f"{env['device']}, torch {env['torch']}, {env['date']}; {result['command']}",
            rows,
        )
        written.append(path.with_name(name))
    if getattr(cases[result["bench"]], "CURVES", ()):
        written += cases[result["bench"]].draw(path, result)
    return written
