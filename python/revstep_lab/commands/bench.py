"""``revstep bench``: measurements side by side in one run. A case is a module ``_bench_NAME`` of this folder; there is no list of them.

It has NAME, HELP (one line), EXAMPLES, ROUNDS, OPTIONS (name -> settings for argparse, help), ``run(options, settings) -> result``, which calls
``settings.show(result)`` once or, part by part, more often, and for the results it shows ``tables(result) -> [(title, header, rows)]`` and
``verdicts(result) -> [(what, value, bound, met or NOT met)]``. A result has ``environment`` and may have ``skipped``. torch is imported in ``run``.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

NAME = "bench"
HELP = "time training steps and integrations beside other ways and other packages, interleaved in one run; count their memory; write tables and figures"
DEFAULT = "trunk"


@dataclass(frozen=True)
class Settings:
    """Of one run: interleaved rounds, whether memory is measured, what shows a result."""

    rounds: int
    memory: bool
    show: Callable[[dict], None]


def find_cases() -> dict[str, ModuleType]:
    """The case modules by NAME, sorted."""
    package = importlib.import_module(__package__)
    modules = (importlib.import_module(f"{__package__}.{i.name}") for i in pkgutil.iter_modules(package.__path__) if i.name.startswith("_bench_"))
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
                raise ValueError(f"--{name} of {case} is {options}, another case has {settings[name]}: one command line has one --{name}")
            about.setdefault(name, []).append(f"{case}: {text}")
    return {name: (options, "; ".join(about[name])) for name, options in settings.items()}


CASES = find_cases()
EXAMPLES = "\n".join(
    ["revstep bench", *(line.strip() for m in CASES.values() for line in m.EXAMPLES.strip().splitlines()), "revstep bench --report docs/benchmarks"]
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    said = "; ".join(f"{name}: {module.HELP}" for name, module in CASES.items())
    parser.add_argument("case", nargs="?", choices=CASES, default=DEFAULT, help=f"{said} (default {DEFAULT})")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default " + ", ".join(f"{m.ROUNDS} for {n}" for n, m in CASES.items()) + ")")
    parser.add_argument("--no-memory", action="store_true", help="leave out the untimed steps, in processes of their own, that measure peak memory")
    parser.add_argument("--json", metavar="FILE", help="write the measurements, with device, commit, versions and date, to this file")
    parser.add_argument("--csv", metavar="FILE", help="add them to this table, one line a figure, with the same")
    parser.add_argument("--report", metavar="FOLDER", help="measure nothing: write report.md and figures from the JSON files in this folder")
    for name, (options, text) in options_of(CASES).items():
        parser.add_argument(f"--{name}", **options, help=text)


def run(args: argparse.Namespace) -> int:
    from revstep.cli import output
    from revstep.errors import ConfigError

    module = CASES[args.case]
    given = {name: getattr(args, name.replace("-", "_")) for m in CASES.values() for name in m.OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if args.report:
        return _report(args, given)
    foreign = sorted(set(given) - set(module.OPTIONS))
    if foreign:
        raise ConfigError(f"--{foreign[0]} is no option of 'revstep bench {args.case}', expected some of --{', --'.join(module.OPTIONS)}")
    rounds = module.ROUNDS if args.rounds is None else args.rounds
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}, expected at least 1")
    settings = Settings(rounds, not args.no_memory, Shown(module, rounds))
    result = module.run({name.replace("-", "_"): value for name, value in given.items()}, settings)
    record = {"bench": module.NAME, "command": command(module, given, args), "rounds": rounds, **result}
    if args.json:
        output.write_json(args.json, record)
        print(f"\nwrote {args.json}")
    if args.csv:
        from ..bench.records import add_to_csv

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
    """Prints results of a case: the line of device and versions once, then tables, goals and what was left out."""

    def __init__(self, module: ModuleType, rounds: int):
        self.module, self.rounds, self.headed = module, rounds, False

    def __call__(self, result: dict) -> None:
        from revstep.cli import output

        env = result["environment"]
        if not self.headed:
            threads = f"{env['threads']} thread{'s' * (env['threads'] > 1)}"
            print(f"{env['device']}, {threads}, torch {env['torch']}, {env['date']}, medians of {self.rounds} interleaved rounds")
            self.headed = True
        for title, header, rows in self.module.tables(result):
            print(f"\n{title}\n\n{output.table(header, rows)}")
        print()
        for what, value, bound, met in self.module.verdicts(result):
            print(f"{what}: {value}, goal {bound}: {met}")
        for skip in result.get("skipped", []):
            print(f"skipped: {skip['what']}: {skip['reason']}")
        print(end="", flush=True)


def _report(args: argparse.Namespace, given: dict) -> int:
    from revstep.errors import ConfigError

    from . import _report_bench

    named = [*given, *(name for name in ("rounds", "json", "csv", "no_memory") if getattr(args, name)), *[args.case] * (args.case != DEFAULT)]
    if named:
        raise ConfigError(f"--report measures nothing, but {named[0]} was given: leave it out, or measure first with --json {args.report}/NAME.json")
    for path in _report_bench.write(args.report, CASES):
        print(f"wrote {path}")
    return 0
