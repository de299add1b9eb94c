"""``revstep demo``: the plain stack and every reversible one, side by side, in about three minutes."""

from __future__ import annotations

import argparse

NAME = "demo"
HELP = "train the plain stack and every reversible one side by side on real text, and compare what each keeps and rebuilds"
EXAMPLES = """
revstep demo
revstep demo --minutes 10 --layers 24 --out demo24
revstep demo --schemes midpoint blend:c=0.5 --seed 1
revstep demo --dtype bfloat16 --device cuda
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=3.0, metavar="X", help="about how long all of it may take (default 3)")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="steps of each stack, to repeat a run (default: as many as fit into the minutes)")
    parser.add_argument("--out", default="revstep-demo", metavar="DIR", help="folder for demo.json and the figures (default revstep-demo)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the initial weights and batches (default 0)")
    parser.add_argument("--layers", type=int, default=12, metavar="N", help="blocks (default 12)")
    parser.add_argument("--width", type=int, default=64, metavar="N", help="channels (default 64)")
    parser.add_argument(
        "--schemes", nargs="+", default=[], metavar="NAME[:OPTIONS]", help="stacks beside the plain one (default: every reversible scheme there is)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="of the blocks: float32, bfloat16 (autocast), auto: bfloat16 where it is at least as fast as float32 here (default auto)",
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, ...; auto: cuda if there is one (default auto)")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    from ...demo import Settings
    from ...demo import run as run_demo
    from .. import output

    names = ("minutes", "steps", "out", "seed", "layers", "width", "dtype", "device", "progress")
    outcome = run_demo(Settings(schemes=tuple(args.schemes), **{name: getattr(args, name) for name in names}))
    if outcome.interrupted:
        what = f"wrote {_listing(outcome.written)} in {outcome.folder}" if outcome.written else "before there was anything to write"
        print(f"\ninterrupted; {what}")
        return outcome.code
    print()
    print(output.table(*outcome.table))
    print(f"({outcome.document['note']})")
    print()
    print(outcome.paragraph)
    print(f"\nwrote {_listing(outcome.written)} in {outcome.folder}")
    return outcome.code


def _listing(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
