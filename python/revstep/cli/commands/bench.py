"""``revstep bench``: measurements side by side in one run. A case is a module ``_bench_NAME`` with OPTIONS and ``run(options, rounds) -> result``."""

from __future__ import annotations

import argparse

from . import _bench_compile, _bench_keep, _bench_kernels, _bench_ode, _bench_overhead, _bench_price, _bench_trunk

NAME = "bench"
HELP = "time a trunk's training step (plain, checkpointed, reversible; layers kept, blocks compiled, states, beside its blocks), kernels, or integrations, interleaved in one run"
EXAMPLES = """
revstep bench
revstep bench --dtype bfloat16 --scheme blend --rounds 31 --json step.json
revstep bench --device cuda --layers 24 --width 1024 --heads 16 --length 1024
revstep bench keep --json keep.json
revstep bench compile --json compile.json
revstep bench price --schemes midpoint blend
revstep bench overhead --json overhead.json
revstep bench kernels --sizes 4194304 --thread-counts 1
revstep bench ode --json ode.json
revstep bench ode --parts two-body --steps 1000000
"""
CASES = {
    "trunk": _bench_trunk, "keep": _bench_keep, "compile": _bench_compile, "price": _bench_price, "overhead": _bench_overhead, "kernels": _bench_kernels, "ode": _bench_ode,
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", nargs="?", choices=CASES, default="trunk", help="what to measure (default trunk; ode needs revstep[bench] for all comparisons)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default " + ", ".join(f"{m.ROUNDS} for {n}" for n, m in CASES.items()) + ")")
    parser.add_argument("--json", metavar="FILE", help="write the measurements, with device, versions and date, to this file")
    about: dict[str, list[str]] = {}
    settings: dict[str, dict] = {}
    for case, module in CASES.items():
        for name, (options, text) in module.OPTIONS.items():
            about.setdefault(name, []).append(f"{case}: {text}")
            settings[name] = options
    for name, options in settings.items():
        parser.add_argument(f"--{name}", **options, help="; ".join(about[name]))


def run(args: argparse.Namespace) -> int:
    from ...errors import ConfigError
    from .. import output

    module = CASES[args.case]
    given = {name: getattr(args, name.replace("-", "_")) for m in CASES.values() for name in m.OPTIONS}
    foreign = sorted(name for name, value in given.items() if value is not None and name not in module.OPTIONS)
    if foreign:
        raise ConfigError(f"--{foreign[0]} is no option of 'revstep bench {args.case}', expected some of --{', --'.join(module.OPTIONS)}")
    rounds = module.ROUNDS if args.rounds is None else args.rounds
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}, expected at least 1")
    result = module.run({name.replace("-", "_"): value for name, value in given.items() if value is not None}, rounds)
    if args.json:
        output.write_json(args.json, result)
        print(f"\nwrote {args.json}")
    return 0
