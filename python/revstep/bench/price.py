"""The price of exactness: the training step of a reversible trunk in fixed point beside the same one in a float state, for every scheme."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace

import torch

from ..errors import ConfigError
from ..schemes import available, make
from ..stack import ReversibleStack
from ..state import FixedPoint, Float, StateFormat
from .runner import Measurement, environment, goal, measure
from .trunk import TO_FLOAT_STATE, TrunkCase, blocks_of, clock_of, one_step, synchronise


def run_price(case: TrunkCase, rounds: int = 15, schemes: tuple[str, ...] = ()) -> dict:
    """``{"case", "environment", "measurements", "goals"}``, two rows a scheme, ready for JSON. ``schemes``: none given for all; that of the case is not looked at.

    On one CPU thread times are processor time, which others on the machine disturb less.
    """
    unknown = set(schemes) - set(available())
    if unknown:
        raise ConfigError(f"schemes has {sorted(unknown)[0]!r}, expected some of {', '.join(available())}")
    rows, goals = [], []
    for scheme in schemes or available():
        fixed, floating = pair = _pair(replace(case, scheme=scheme), rounds)
        rows += [m.to_dict() for m in pair]
        goals.append(goal(f"{fixed.name} / float state", fixed.ratios[floating.name], TO_FLOAT_STATE, False))
    about = {name: value for name, value in asdict(case).items() if name != "scheme"}
    return {"case": about, "environment": environment(case.device), "measurements": rows, "goals": goals}


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
