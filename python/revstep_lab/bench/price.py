"""What exactness costs a training step of a reversible trunk: fixed point beside a float state, every scheme.

Beside it, what the checks cost, off, on and "all"; and another build, if one is named.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace

import torch

from revstep.errors import ConfigError
from revstep.schemes import available, make
from revstep.stack import ReversibleStack
from revstep.state import FixedPoint, Float, StateFormat

from .builds import run_against
from .runner import Measurement, environment, goal, measure
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
    stacks = {f"{case.scheme}, fixed point": _stack(case, FixedPoint()), f"{case.scheme}, float state": _stack(case, Float())}
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
