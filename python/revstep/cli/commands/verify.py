"""``revstep verify``: every claim, measured on this machine."""

from __future__ import annotations

import argparse

NAME = "verify"
HELP = "measure every claim on this machine: schemes x state formats x block dtypes; exit code 1 when one fails"
EXAMPLES = """
revstep verify
revstep verify --scheme blend --state fixed32
revstep verify --json claims.json --details
revstep verify --html page
revstep verify --block mymodule:make_block --shape 2,128,64
revstep verify --block blocks.py:make_block --block-args "64, dropout=0.1" --layers 24
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scheme", action="append", metavar="NAME", help="only this scheme (may be repeated)")
    parser.add_argument("--state", action="append", metavar="NAME", help="only this state format: fixed32, fixed64, float32, float64 (may be repeated)")
    parser.add_argument(
        "--dtype", action="append", metavar="NAME", help="only this block dtype: float32, float64, bfloat16, float16, float32+bf16 (may be repeated)"
    )
    block = parser.add_argument_group("your own block")
    block.add_argument(
        "--block", metavar="MODULE:FUNCTION", help="check the block that this function of a module (or file.py:function) returns, an nn.Module or a pair (F, G)"
    )
    block.add_argument("--block-args", metavar="ARGS", help='arguments of the function, as in a call: "64, dropout=0.1"')
    block.add_argument("--shape", metavar="B,T,C", help="shape of the block's input (default: what its method example_input() returns)")
    block.add_argument("--layers", type=int, default=12, metavar="N", help="how many of them in a row (default 12)")
    parser.add_argument("--details", action="store_true", help="print every measurement, not only the table and what fails")
    parser.add_argument("--only", choices=("networks", "ode"), help="only the claims of reversible stacks, or of the integrators (default: both)")
    parser.add_argument("--html", metavar="DIR", help="write a page with all claims and figures, DIR/index.html")
    parser.add_argument("--json", metavar="FILE", help="write all measurements, with device, versions and date, to this file")


def run(args: argparse.Namespace) -> int:
    if args.block:
        from ._verify_block import run_block

        return run_block(args)
    from ...bench.runner import environment
    from ...verify import run_suite
    from .. import output

    rows = _select(args)
    print(f"{len(rows)} combinations of scheme, state and block dtype (float32+bf16: float32 blocks under bfloat16 autocast)\n")
    table, record, failures, total = [], [], [], 0
    for case, results in run_suite(rows):
        bad = [r for r in results if not r.ok]
        total += len(results)
        failures += [(case, r) for r in bad]
        record.append({"scheme": case.scheme, "state": case.state, "dtype": case.dtype, "results": [r.to_dict() for r in results]})
        table.append(
            (
                case.scheme,
                case.state,
                case.dtype,
                _worst(results, "rebuilt", "reconstruction"),
                _worst(results, "gradient"),
                f"{len(results) - len(bad)} of {len(results)}",
            )
        )
        if args.details:
            for r in results:
                print(f"{case.scheme} {case.state} {case.dtype}: {r}")
    print(output.table(("scheme", "state", "block", "reconstruction", "gradients", "claims hold"), table))
    if args.json:
        output.write_json(args.json, {"environment": environment(), "claims": total, "failed": len(failures), "cases": record})
        print(f"\nwrote {args.json}")
    print()
    for case, r in failures:
        print(f"FAILED  {case.scheme} {case.state} {case.dtype}: {r}")
    print(f"{total - len(failures)} of {total} claims hold" + ("" if not failures else f"; {len(failures)} fail"))
    return 1 if failures else 0


def _select(args: argparse.Namespace) -> list:
    from ...errors import ConfigError
    from ...verify import cases

    rows = cases()
    for field in ("scheme", "state", "dtype"):
        wanted, known = getattr(args, field), sorted({getattr(c, field) for c in rows})
        unknown = sorted(set(wanted or ()) - set(known))
        if unknown:
            raise ConfigError(f"unknown {field} {', '.join(unknown)}, expected some of {', '.join(known)}")
        rows = [c for c in rows if not wanted or getattr(c, field) in wanted]
    return rows


def _worst(results: list, *words: str) -> str:
    """The cell of a column: exact, or the largest measured error of the claims that mention one of ``words``."""
    picked = [r for r in results if any(word in r.claim for word in words)]
    if not all(r.ok for r in picked):
        return "FAILS"
    worst = max(r.measured for r in picked)
    return "exact" if worst == 0.0 and picked[0].bound == 0.0 else f"off by {worst:.1e}"
