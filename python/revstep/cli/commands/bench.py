"""``revstep bench``: a training step of a transformer trunk, plain, checkpointed and reversible, side by side."""

from __future__ import annotations

import argparse

NAME = "bench"
HELP = "time one training step of a trunk: plain, checkpointed, reversible, interleaved in one run"
EXAMPLES = """
revstep bench
revstep bench --dtype bfloat16 --scheme blend --rounds 31 --json step.json
revstep bench --device cuda --layers 24 --width 1024 --heads 16 --length 1024
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scheme", default="midpoint", help="a reversible scheme (default midpoint)")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 for autocast (default float32)")
    for name, default in (("layers", 12), ("width", 384), ("heads", 6), ("batch", 4), ("length", 256), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements, with device, versions and date, to this file")


def run(args: argparse.Namespace) -> int:
    from ...bench import TrunkCase, run_trunk
    from ...errors import ConfigError
    from .. import output

    if args.rounds < 1:
        raise ConfigError(f"--rounds is {args.rounds}, expected at least 1")
    fields = ("layers", "width", "heads", "batch", "length", "dtype", "scheme", "device")
    result = run_trunk(TrunkCase(**{f: getattr(args, f) for f in fields}), args.rounds)
    env = result["environment"]
    print(f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, medians of {args.rounds} interleaved rounds\n")
    rows = [
        (
            m["name"],
            f"{m['p50'] * 1e3:.1f}",
            f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
            f"{m['ratios'].get('plain', 1.0):.3f}",
            f"{m['ratios'].get('checkpoint', 1.0):.3f}",
        )
        for m in result["measurements"]
    ]
    print(output.table(("step", "ms", "p20 to p80", "/ plain", "/ checkpoint"), rows))
    print()
    for goal in result["goals"]:
        print(f"{goal['of']} / {goal['to']}: {goal['ratio']:.3f}, goal at most {goal['goal']:.2f}: {'met' if goal['met'] else 'NOT met'}")
    if args.json:
        output.write_json(args.json, result)
        print(f"\nwrote {args.json}")
    return 0
