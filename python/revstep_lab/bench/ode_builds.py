"""Integrations of this build of revstep beside those of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from revstep.errors import ConfigError

from .builds import NAMES, TO_OTHER_BUILD, both, in_turn
from .runner import goal, summary

#: A gradient of this build at most this much beside one of the other: finding what acts is part of it.
GRADIENT = 1.05
CHILD = Path(__file__).with_name("runs_child.py")


def bound_of(name: str) -> float | None:
    """What a run may take beside the other build's, as a ratio. None where there is no goal.

    A run of few steps has none: choosing its units and judging its grid are in its time.
    """
    if name.startswith("neural field"):
        return GRADIENT if name.endswith("gradient") else None
    return None if name.startswith("one pendulum") else TO_OTHER_BUILD


def run_against(case: Any, python: str, rounds: int) -> dict:
    """Every run that both builds know, in turn.

    Args:
        case: an :class:`~.ode.OdeCase`.
        python: the interpreter of the environment with the other build, which is run without PYTHONPATH.
        rounds: runs of each.

    Returns:
        ``{"rows": [measurement of this build, with "other": that build's percentiles], "goals", "builds"}``.

    Raises:
        ConfigError: as :func:`.builds.run_against`, or the builds know different runs.
    """
    found: list[dict] = []
    goals = []
    with both(case, python, CHILD.read_text(encoding="utf-8")) as builds:
        known = [build.about.pop("runs") for build in builds.values()]
        if known[0] != known[1]:
            raise ConfigError(f"the builds know the runs {known[0]} and {known[1]}, expected the same in both")
        for name in known[0]:
            times = in_turn(builds, rounds, name)
            ours, theirs = (summary(build, times) for build in NAMES)
            other = {"p20": theirs.p20, "p50": theirs.p50, "p80": theirs.p80}
            found.append({**ours.to_dict(), "name": name, "other": other})
            bound = bound_of(name)
            if bound is not None:
                goals.append(goal(f"{NAMES[0]} / {NAMES[1]}, {name}", ours.ratios[NAMES[1]], bound, False))
        about = {name: build.about for name, build in builds.items()}
    return {"rows": found, "goals": goals, "builds": about}
