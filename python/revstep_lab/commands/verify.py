"""``revstep verify``: every claim, measured on this machine."""

from __future__ import annotations

import argparse

NAME = "verify"
HELP = "measure every claim on this machine, of reversible stacks and of integrators; exit code 1 when one fails"
EXAMPLES = """
revstep verify
revstep verify --only ode
revstep verify --method kahan_li6 --equation separable --details
revstep verify --scheme blend --state fixed32
revstep verify --json claims.json --html page
revstep verify --block mymodule:make_block --shape 2,128,64
revstep verify --block blocks.py:make_block --block-args "64, dropout=0.1" --layers 24
revstep verify --block blocks.py:make_usual --residual --shape 2,128,64
"""
#: Options that choose rows of one part; giving any leaves out the other part.
ROWS = {"networks": ("scheme", "state", "dtype"), "ode": ("method", "equation", "property")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=tuple(ROWS), help="only the claims of reversible stacks, or of the integrators (default: both)")
    parser.add_argument("--details", action="store_true", help="print every measurement, not only the tables and what fails")
    parser.add_argument("--json", metavar="FILE", help="write all measurements, with device, versions and date, to this file")
    parser.add_argument("--html", metavar="DIR", help="write DIR/index.html: all claims, with figures, in one file")
    rows = parser.add_argument_group("only some rows", "each may be repeated; rows of stacks leave the integrators out, and the other way round")
    rows.add_argument("--scheme", action="append", metavar="NAME", help="of stacks: midpoint, blend, ...")
    rows.add_argument("--state", action="append", metavar="NAME", help="of stacks: fixed32, fixed64, float32, float64")
    rows.add_argument("--dtype", action="append", metavar="NAME", help="of the blocks: float32, float64, bfloat16, float16, float32+bf16")
    rows.add_argument("--method", action="append", metavar="NAME", help="of integrators: verlet, yoshida4, ...")
    rows.add_argument("--equation", action="append", metavar="KIND", help="first, second, separable")
    rows.add_argument("--property", action="append", metavar="NAME", help="of integrators: order, gradients, ...")
    block = parser.add_argument_group("your own block")
    block.add_argument("--block", metavar="MODULE:FUNCTION", help="check what this function of a module (or file.py) returns: an nn.Module, or a pair (F, G)")
    block.add_argument("--block-args", metavar="ARGS", help='arguments of the function, as in a call: "64, dropout=0.1"')
    usual = "the block returns x + f(x): check it as revstep.from_residual takes it"
    block.add_argument("--residual", action="store_true", help=usual)
    block.add_argument("--shape", metavar="B,T,C", help="shape of the block's input (default: what its method example_input() returns)")
    block.add_argument("--layers", type=int, default=12, metavar="N", help="how many of them in a row (default 12)")


def run(args: argparse.Namespace) -> int:
    if args.block:
        from ._verify_block import run_block

        return run_block(args)
    if args.residual:
        from revstep.errors import ConfigError

        raise ConfigError("--residual says how the block of --block is written: give --block too")
    from revstep.cli import output

    from ..bench.runner import environment
    from ._verify_networks import run_networks
    from ._verify_ode import run_ode
    from ._verify_page import check_page, write_page

    check_page(args)
    done = {}
    for part, measure in (("networks", run_networks), ("ode", run_ode)):
        if part in parts(args):
            done[part] = measure(args)
            if args.details:
                print("\n".join(done[part].details) + "\n")
            print(output.table(done[part].header, done[part].rows) + "\n")
    claims, failures = sum(o.claims for o in done.values()), [f for o in done.values() for f in o.failures]
    if args.json:
        records = {{"networks": "cases", "ode": "ode"}[part]: o.record for part, o in done.items()}
        output.write_json(args.json, {"environment": environment(), "claims": claims, "failed": len(failures), **records})
        print(f"wrote {args.json}\n")
    if args.html:
        print(f"wrote {write_page(args, environment(), done)}\n")
    for label, r in failures:
        print(f"FAILED  {label}: {r}")
    print(f"{claims - len(failures)} of {claims} claims hold" + ("" if not failures else f"; {len(failures)} fail"))
    return 1 if failures else 0


def parts(args: argparse.Namespace) -> list[str]:
    """The parts to measure.

    Raises:
        ConfigError: rows of a part that ``--only`` leaves out.
    """
    from revstep.errors import ConfigError

    named = [part for part, options in ROWS.items() if any(getattr(args, o) for o in options)]
    chosen = [args.only] if args.only else named or list(ROWS)
    if not set(named) <= set(chosen):
        given = ", ".join(f"--{o}" for part in named for o in ROWS[part] if part not in chosen and getattr(args, o))
        raise ConfigError(f"{given} and --only {args.only} leave nothing to measure: leave one of them out")
    return chosen
