"""What ``revstep verify --block`` prints."""

from __future__ import annotations

import argparse
import math
import textwrap
from typing import Any


def run_block(args: argparse.Namespace) -> int:
    """Findings, drift and advice for a user's own block; exit code 1 when it breaks a rule."""
    from torch.nn.parameter import is_lazy

    from revstep.cli import output
    from revstep.errors import ConfigError
    from revstep.verify import blockcheck

    from ..bench.runner import environment

    refused = [f"--{name}" for name in ("state", "html", "only") if getattr(args, name)]
    if refused:
        raise ConfigError(f"{', '.join(refused)} cannot be used with --block, which measures your block in every state format")
    if args.dtype and len(args.dtype) > 1:
        raise ConfigError(f"--dtype was given {len(args.dtype)} times, expected one with --block")
    dtype = args.dtype[0] if args.dtype else None
    subject = blockcheck.make_subject(args.block, args.block_args, args.shape, dtype, residual=args.residual)
    made = subject.make()
    modules = made if isinstance(made, tuple) else (made,)
    count = sum(p.numel() for m in modules for p in m.parameters() if not is_lazy(p))
    kind = f"({', '.join(type(m).__name__ for m in modules)})" if len(modules) > 1 else type(modules[0]).__name__
    print(f"{args.block}: {kind}, {count:,} parameters, input {tuple(subject.x.shape)} {subject.x.dtype} on {subject.x.device}, {args.layers} layers\n")
    report = blockcheck.check_block(subject, args.layers, args.scheme)
    print(output.table(("check", "", "measured"), [(f.check, f.verdict, _measured(f)) for f in report.findings]))
    for scheme, (depths, columns) in report.drift.items():
        print(f"\nworst relative error of a rebuilt state, {scheme}")
        rows = [(str(d), *(_error(values[i]) for values in columns.values())) for i, d in enumerate(depths)]
        print(output.table(("layers", *columns), rows))
        print(f"fixed-point format to use: {report.formats[scheme]}" if report.formats[scheme] else "no fixed-point format holds its states")
    _print_words(report, args.residual)
    if args.json:
        output.write_json(args.json, {"environment": environment(str(subject.x.device)), **report.to_dict()})
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
