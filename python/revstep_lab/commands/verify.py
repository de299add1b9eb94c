"""``revstep verify``: every claim, measured on this machine; with ``--block`` what a user's own block does,
and with ``--html`` a page of all of it.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from revstep._cli._numbers import output_file, output_folder

# ---- What ``revstep verify --block`` prints ----

#: Of a network of the user's own blocks.
LAYERS = 12


def run_block(args: argparse.Namespace) -> int:
    """Findings, drift and advice for a user's own block; exit code 1 when it breaks a rule."""
    from torch.nn.parameter import is_lazy

    from revstep._cli import shared
    from revstep.errors import ConfigError
    from revstep.verify import blockcheck

    from ..bench.runner import environment

    layers = LAYERS if args.layers is None else args.layers
    refused = [f"--{name}" for name in ("state", "html", "only") if getattr(args, name)]
    if refused:
        raise ConfigError(
            f"{', '.join(refused)} cannot be used with --block, which measures your block in every state"
            " format"
        )
    if args.dtype and len(args.dtype) > 1:
        raise ConfigError(f"--dtype was given {len(args.dtype)} times, expected one with --block")
    dtype = args.dtype[0] if args.dtype else None
    subject = blockcheck.make_subject(args.block, args.block_args, args.shape, dtype, residual=args.residual)
    made = subject.make()
    modules = made if isinstance(made, tuple) else (made,)
    count = sum(p.numel() for m in modules for p in m.parameters() if not is_lazy(p))
    kind = (
        f"({', '.join(type(m).__name__ for m in modules)})" if len(modules) > 1 else type(modules[0]).__name__
    )
    print(
        f"{args.block}: {kind}, {count:,} parameters, input {tuple(subject.x.shape)} {subject.x.dtype} on"
        f" {subject.x.device}, {layers} layers\n"
    )
    report = blockcheck.check_block(subject, layers, args.scheme)
    print(
        shared.table(("check", "", "measured"), [(f.check, f.verdict, _measured(f)) for f in report.findings])
    )
    for scheme, (depths, columns) in report.drift.items():
        print(f"\nworst relative error of a rebuilt state, {scheme}")
        rows = [(str(d), *(_error(values[i]) for values in columns.values())) for i, d in enumerate(depths)]
        print(shared.table(("layers", *columns), rows))
        print(
            f"fixed-point format to use: {report.formats[scheme]}"
            if report.formats[scheme]
            else "no fixed-point format holds its states"
        )
    _print_words(report, args.residual)
    if args.json:
        shared.write_json(args.json, {"environment": environment(str(subject.x.device)), **report.to_dict()})
        print(f"\nwrote {args.json}")
    return 0 if report.ok else 1


def _measured(f: Any) -> str:
    words = f.result.claim + (f": {f.result.why}" if f.result.why else "")
    words = textwrap.shorten(words, 200, placeholder=" ...")  # whole in the JSON file
    said = f.result.unit in ("violations", "largest state", "bytes")
    plain = f.ok or said or not math.isfinite(f.result.measured)
    return words if plain else f"{words} (error {f.result.measured:.2g})"


def _error(value: float | None) -> str:
    return "not measured" if value is None else "0" if value == 0.0 else f"{value:.1e}"


def _print_words(report: Any, residual: bool) -> None:
    for note in report.notes:
        print(f"\nnote: {note}")
    broken = [f for f in report.findings if not f.ok]
    advice = report.advice()
    print()
    if advice:
        print("what to change:" if broken else "worth a look:")
        for n, words in enumerate(advice, 1):
            print(f"  {n}. {words}")
    for f in broken:
        print(f"FAILED  {f.check}: {f.result.claim}")
    held = len(report.findings) - len(broken)
    use = "in ReversibleStack(..., residual=True)" if residual else "in a ReversibleStack as it is"
    verdict = "" if broken else f": the block can be used {use}"
    print(f"{held} of {len(report.findings)} checks hold{verdict}")


# ---- What ``revstep verify --html`` puts on its page ----


def check_page(args: argparse.Namespace) -> None:
    """Before minutes of measuring. Raises ConfigError: matplotlib is missing."""
    if args.html:
        from revstep._imports import require

        require("matplotlib", "revstep verify --html")


def write_page(args: argparse.Namespace, environment: dict[str, Any], done: dict[str, Any]) -> Path:
    """DIR/index.html, from the outcomes of the parts that were measured."""
    from ..verify.report import Page, network_pictures, ode_pictures
    from . import _verify_networks, _verify_ode

    failures = [f"{label}: {r}" for o in done.values() for label, r in o.failures]
    page = Page(
        environment, "revstep " + shlex.join(sys.argv[1:]), sum(o.claims for o in done.values()), failures
    )
    print("measuring and drawing the figures\n")
    if "networks" in done:
        section = _verify_networks.section(done["networks"])
        section.pictures = network_pictures()
        page.sections.append(section)
    if "ode" in done:
        section = _verify_ode.section(done["ode"])
        section.pictures = ode_pictures(args.method)
        page.sections.append(section)
    return page.write(Path(args.html))


# ---- ``revstep verify``: every claim, measured on this machine ----

NAME = "verify"
HELP = (
    "measure every claim on this machine, of reversible stacks and of integrators; exit code 1 when one fails"
)
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
    parser.add_argument(
        "--only",
        choices=tuple(ROWS),
        help="only the claims of reversible stacks, or of the integrators (default: both)",
    )
    parser.add_argument(
        "--details", action="store_true", help="print every measurement, not only the tables and what fails"
    )
    parser.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        help="write all measurements, with device, versions and date, to this file",
    )
    parser.add_argument(
        "--html",
        type=output_folder,
        metavar="DIR",
        help="write DIR/index.html: all claims, with figures, in one file",
    )
    rows = parser.add_argument_group(
        "only some rows",
        "each may be repeated; rows of stacks leave the integrators out, and the other way round",
    )
    rows.add_argument("--scheme", action="append", metavar="NAME", help="of stacks: midpoint, blend, ...")
    rows.add_argument(
        "--state", action="append", metavar="NAME", help="of stacks: fixed32, fixed64, float32, float64"
    )
    rows.add_argument(
        "--dtype",
        action="append",
        metavar="NAME",
        help="of the blocks: float32, float64, bfloat16, float16, float32+bf16",
    )
    rows.add_argument(
        "--method", action="append", metavar="NAME", help="of integrators: verlet, yoshida4, ..."
    )
    rows.add_argument("--equation", action="append", metavar="KIND", help="first, second, separable")
    rows.add_argument(
        "--property", action="append", metavar="NAME", help="of integrators: order, gradients, ..."
    )
    block = parser.add_argument_group("your own block")
    block.add_argument(
        "--block",
        metavar="MODULE:FUNCTION",
        help="check what this function of a module (or file.py) returns: an nn.Module, or a pair (F, G)",
    )
    block.add_argument(
        "--block-args", metavar="ARGS", help='arguments of the function, as in a call: "64, dropout=0.1"'
    )
    usual = "the block returns x + f(x): check it as revstep.from_residual takes it"
    block.add_argument("--residual", action="store_true", help=usual)
    block.add_argument(
        "--shape",
        metavar="B,T,C",
        help="shape of the block's input (default: what its method example_input() returns)",
    )
    block.add_argument(
        "--layers", type=int, metavar="N", help=f"how many of them in a row (default {LAYERS})"
    )


def run(args: argparse.Namespace) -> int:
    if args.block:
        return run_block(args)
    given = {name: getattr(args, name) for name in ("residual", "block_args", "shape", "layers")}
    alone = [f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, False)]
    if alone:
        from revstep.errors import ConfigError

        raise ConfigError(f"{alone[0]} is about the block of --block: give --block too")
    from revstep._cli import shared

    from ..bench.runner import environment
    from ._verify_networks import run_networks
    from ._verify_ode import run_ode

    check_page(args)
    done = {}
    for part, measure in (("networks", run_networks), ("ode", run_ode)):
        if part in parts(args):
            done[part] = measure(args)
            if args.details:
                print("\n".join(done[part].details) + "\n")
            print(shared.table(done[part].header, done[part].rows) + "\n")
    claims, failures = sum(o.claims for o in done.values()), [f for o in done.values() for f in o.failures]
    if args.json:
        records = {{"networks": "cases", "ode": "ode"}[part]: o.record for part, o in done.items()}
        shared.write_json(
            args.json, {"environment": environment(), "claims": claims, "failed": len(failures), **records}
        )
        print(f"wrote {args.json}\n")
    if args.html:
        print(f"wrote {write_page(args, environment(), done)}\n")
    for label, r in failures:
        print(f"FAILED  {label}: {r}")
    print(
        f"{claims - len(failures)} of {claims} claims hold"
        + ("" if not failures else f"; {len(failures)} fail")
    )
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
        given = ", ".join(
            f"--{o}" for part in named for o in ROWS[part] if part not in chosen and getattr(args, o)
        )
        raise ConfigError(f"{given} and --only {args.only} leave nothing to measure: leave one of them out")
    return chosen
