"""``revstep bench price``: what exactness costs a training step of a reversible trunk: fixed point beside a
float state, every scheme.

Beside it, what the checks cost, off, on and "all"; and another build, if one is named.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from typing import Any

import torch

from revstep.errors import ConfigError
from revstep.schemes import available, make
from revstep.stack import ReversibleStack
from revstep.state import FixedPoint, Float, StateFormat

from ..bench.runner import Measurement, environment, goal, measure
from . import trunk
from ._builds import run_against
from .trunk import TO_FLOAT_STATE, TrunkCase, blocks_of, clock_of, one_step, synchronise

#: What is measured: fixed point beside float states, and the three values of ``checks`` beside each other.
PARTS = ("states", "checks")
#: A step with the checks on at most this much beside one without. What ``checks="all"`` takes has no goal.
OF_CHECKS = 1.01
CHECKS: dict[str, bool | str] = {"checks=False": False, "checks=True": True, 'checks="all"': "all"}


def run_price(
    case: TrunkCase,
    rounds: int = 15,
    schemes: tuple[str, ...] = (),
    parts: tuple[str, ...] = PARTS,
    against: str | None = None,
) -> dict:
    """``{"case", "environment", "measurements", "goals", "checks", "against"}``, ready for JSON.

    ``measurements`` and ``goals`` are those of the part "states"; the last two have their own.

    On one CPU thread times are processor time, which others on the machine disturb less.

    Args:
        case: the trunk.
        rounds: interleaved rounds of each comparison.
        schemes: those of the part "states", none given for all. The other parts
            use the first, else the case's.
        parts: some of :data:`PARTS`.
        against: the Python of an environment with another revstep, to be timed too; None for none.

    Raises:
        ConfigError: an unknown scheme or part, or an interpreter that cannot run the case.
    """
    if not parts or set(parts) - set(PARTS):
        raise ConfigError(f"parts are {', '.join(parts) or 'none'}, expected some of {', '.join(PARTS)}")
    unknown = set(schemes) - set(available())
    if unknown:
        raise ConfigError(f"schemes has {sorted(unknown)[0]!r}, expected some of {', '.join(available())}")
    one = replace(case, scheme=schemes[0]) if schemes else case
    rows: list[dict] = []
    goals: list[dict] = []
    for scheme in (schemes or available()) if "states" in parts else ():
        fixed, floating = pair = _pair(replace(case, scheme=scheme), rounds)
        rows += [m.to_dict() for m in pair]
        goals.append(goal(f"{fixed.name} / float state", fixed.ratios[floating.name], TO_FLOAT_STATE, False))
    about = {name: value for name, value in asdict(case).items() if name != "scheme"}
    result = {"case": about, "environment": environment(case.device), "measurements": rows, "goals": goals}
    if "checks" in parts:
        result["checks"] = _checks(one, rounds)
    if against is not None:
        result["against"] = run_against(one, against, rounds)
    return result


def _stack(case: TrunkCase, state: StateFormat) -> ReversibleStack:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a float state says that its reconstruction drifts
        return ReversibleStack(blocks_of(case), make(case.scheme), state=state)


def _pair(case: TrunkCase, rounds: int) -> list[Measurement]:
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    stacks = {
        f"{case.scheme}, fixed point": _stack(case, FixedPoint()),
        f"{case.scheme}, float state": _stack(case, Float()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = {name: one_step(case, stack, x) for name, stack in stacks.items()}
        return measure(steps, rounds, sync=synchronise(case), clock=clock_of(case))


def _checks(case: TrunkCase, rounds: int) -> dict:
    """One step with each value of ``checks``, on the same blocks. ``{"scheme", "measurements", "goals"}``."""
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    blocks = blocks_of(case)
    scheme = make(case.scheme)
    stacks = {name: ReversibleStack(blocks, scheme, checks=checks) for name, checks in CHECKS.items()}
    steps = {name: one_step(case, stack, x) for name, stack in stacks.items()}
    rows = measure(steps, rounds, sync=synchronise(case), clock=clock_of(case))
    off, on, _ = CHECKS
    ratio = next(m for m in rows if m.name == on).ratios[off]
    goals = [goal(f"{on} / {off}, {case.dtype}", ratio, OF_CHECKS, False)]
    return {"scheme": case.scheme, "measurements": [m.to_dict() for m in rows], "goals": goals}


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "price"
HELP = "a step in fixed point beside one in a float state, for every scheme, and what the checks take"
EXAMPLES = """
revstep bench price --schemes midpoint blend
revstep bench price --parts checks --dtype bfloat16 --rounds 25
"""
ROUNDS = 15
OPTIONS: dict[str, tuple[dict, str]] = {
    "schemes": ({"nargs": "+"}, "some of the schemes (default all); the first is that of the checks"),
    "parts": ({"nargs": "+", "metavar": "PART"}, "some of states, checks (default all)"),
    "against": ({"metavar": "PYTHON"}, "also time the step of the revstep of this other Python"),
    **{name: option for name, option in trunk.OPTIONS.items() if name != "scheme"},
}


def run(options: dict[str, Any], settings: Any) -> dict:
    lists = {name: tuple(options.pop(name)) for name in ("schemes", "parts") if name in options}
    against = options.pop("against", None)
    result = run_price(TrunkCase(**options), settings.rounds, against=against, **lists)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    found = []
    if result["measurements"]:
        header = ("step", "ms", "p20 to p80", "/ the scheme's other state")
        rows = [(*_times(m), *(f"{r:.3f}" for r in m["ratios"].values())) for m in result["measurements"]]
        found.append((trunk.title({**result["case"], "scheme": "as named"}), header, rows))
    for part, first in (("checks", "checks=False"), ("against", "the other build")):
        if part in result:
            found.append(_beside(result, part, first))
    return found


def _times(m: dict) -> tuple[str, str, str]:
    return m["name"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}"


def _beside(result: dict, part: str, first: str) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """The table of a part whose rows stand beside one of them."""
    title = trunk.title({**result["case"], "scheme": result[part]["scheme"]})
    rows = [(*_times(m), f"{m['ratios'].get(first, 1.0):.3f}") for m in result[part]["measurements"]]
    builds = result[part].get("builds", {})
    said = "; ".join(f"{name}: revstep {b['revstep']}, torch {b['torch']}" for name, b in builds.items())
    return title + (f" ({said})" if said else ""), ("step", "ms", "p20 to p80", f"/ {first}"), rows


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    parts = [result, *(result[part] for part in ("checks", "against") if part in result)]
    return rows([g for part in parts for g in part["goals"]])
