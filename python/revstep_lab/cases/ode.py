"""``revstep bench ode``: integrations beside other packages: two bodies beside REBOUND, many pendulums beside
scipy and heyoka, the gradient of a neural field beside torchdiffeq and diffrax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import scipy
import torch

from revstep.errors import ConfigError

from ..bench import neural_field, pendulums, two_body
from ..bench.packages import versions
from ..bench.runner import environment
from ._builds import run_ode_against

#: Packages of :mod:`..bench.packages` that integrate.
RIVALS = ("rebound", "heyoka", "torchdiffeq", "diffrax")


@dataclass(frozen=True)
class OdeCase:
    """What is measured and how large.

    Args:
        parts: some of :data:`PARTS`.
        steps: of the two bodies in one timed call. return_steps: of the long way there and back.
        pendulums, pendulum_steps: of the batch. sample: how many of them scipy takes one by one.
        depths: numbers of steps of the neural field, increasing. batch, width: of its state.
        loop_steps: of a single system beside another build; of the pendulums a hundredth.
        threads: of revstep's loop over the batch, of torch and of heyoka; REBOUND and scipy take one here,
            and so does the default.
    """

    parts: tuple[str, ...] = ("two-body", "pendulums", "neural-field")
    steps: int = 200_000
    return_steps: int = 1_000_000
    pendulums: int = 1000
    pendulum_steps: int = 1000
    sample: int = 3
    depths: tuple[int, ...] = (16, 64, 1024)
    batch: int = 64
    width: int = 32
    loop_steps: int = 2_000_000
    threads: int = 1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            raise ConfigError(
                f"parts are {', '.join(self.parts) or 'none'}, expected some of {', '.join(PARTS)}"
            )
        for name, least in (
            ("steps", 2),
            ("return_steps", 1),
            ("pendulums", 1),
            ("pendulum_steps", 1),
            ("sample", 1),
            ("loop_steps", 1),
            ("batch", 1),
            ("width", 1),
            ("threads", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.sample > self.pendulums:
            raise ConfigError(f"sample is {self.sample}, expected at most the {self.pendulums} pendulums")
        if not self.depths or min(self.depths) < 2 or list(self.depths) != sorted(set(self.depths)):
            raise ConfigError(f"depths are {self.depths}, expected increasing numbers of steps, at least 2")


#: Part -> its measurement of a case with so many rounds.
PARTS: dict[str, Callable[[OdeCase, int], dict]] = {
    "two-body": lambda case, rounds: two_body.run(case.steps, case.return_steps, rounds),
    "pendulums": lambda case, rounds: pendulums.run(case.pendulums, case.pendulum_steps, case.sample, rounds),
    "neural-field": lambda case, rounds: neural_field.run(case.depths, case.batch, case.width, rounds),
}


def run_ode(
    case: OdeCase,
    rounds: int = 9,
    show: Callable[[dict], None] = lambda part: None,
    against: str | None = None,
) -> dict:
    """Measure the parts of a case, or this build beside another one.

    Args:
        case: what is measured.
        rounds: of each comparison.
        show: gets a result with each part alone as it is done.
        against: the Python of an environment with another revstep. Then its runs and ours are timed in turn,
            and none of the parts.

    Returns:
        ``{"case", "rounds", "environment", "parts"}``, ready for JSON, and ``"against"`` where it is asked
        for.

    Raises:
        ConfigError: an interpreter that cannot run the case.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        about = environment() | {"scipy": scipy.__version__} | versions(*RIVALS)
        result: dict = {"case": asdict(case), "rounds": rounds, "environment": about, "parts": {}}
        if against is not None:
            result["against"] = run_ode_against(case, against, rounds)
            show(result)
            return result
        for name in case.parts:
            result["parts"][name] = part = PARTS[name](case, rounds)
            show({**result, "parts": {name: part}, "skipped": part["skipped"]})
        return result
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "ode"
HELP = "integrations beside REBOUND, scipy, heyoka, torchdiffeq and diffrax"
EXAMPLES = """
revstep bench ode --json ode.json
revstep bench ode --parts two-body --steps 1000000
revstep bench ode --parts two-body pendulums --threads 2
revstep bench ode --against old/bin/python --rounds 25
"""
ROUNDS = 9
Tables = list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]
#: Option -> (settings for argparse, help); the defaults are OdeCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "parts": ({"nargs": "+", "metavar": "PART"}, "some of two-body, pendulums, neural-field (default all)"),
    "steps": ({"type": int}, "of the two bodies in a timed call (default 200000)"),
    "return-steps": ({"type": int}, "of the two bodies on the long way there and back (default 1000000)"),
    "pendulums": ({"type": int}, "in the batch (default 1000)"),
    "pendulum-steps": ({"type": int}, "of each (default 1000)"),
    "sample": ({"type": int}, "pendulums that scipy takes one by one (default 3)"),
    "depths": (
        {"type": int, "nargs": "+", "metavar": "STEPS"},
        "numbers of steps of the neural field (default 16 64 1024)",
    ),
    "batch": ({"type": int}, "rows of the neural field's state (default 64)"),
    "width": ({"type": int}, "of the neural field's state (default 32)"),
    "against": (
        {"metavar": "PYTHON"},
        "time runs beside those of the revstep of this other Python, and no part",
    ),
    "loop-steps": ({"type": int}, "of a single system beside another build (default 2000000)"),
    "threads": ({"type": int}, "of revstep, torch and heyoka; the others take one (default 1)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from revstep.errors import ConfigError

    against = options.pop("against", None)
    if against is not None and "parts" in options:
        raise ConfigError(
            "--parts and --against are given: runs beside another build have no parts, leave out one"
        )
    case = OdeCase(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    )
    return run_ode(case, settings.rounds, settings.show, against)


def tables(result: dict) -> Tables:
    """``(title, header, rows)`` of each table of each part, as the command prints it and the documentation
    shows it.
    """
    found = [table for name, part in result["parts"].items() for table in _TABLES[name](part)]
    return found + (_against(result["against"]) if "against" in result else [])


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    """``(what, value, goal, met or NOT met)`` of each goal of each part."""
    from ..tables import rows

    parts = [*result["parts"].values(), *([result["against"]] if "against" in result else [])]
    return rows([g for part in parts for g in part["goals"]])


def _against(part: dict) -> Tables:
    rows = []
    for m in part["rows"]:
        spread = (
            f"{1e3 * b['p50']:.3g} ({1e3 * b['p20']:.3g} to {1e3 * b['p80']:.3g})" for b in (m, m["other"])
        )
        rows.append((m["name"], *spread, *(f"{ratio:.3f}" for ratio in m["ratios"].values())))
    builds = "; ".join(
        f"{name}: revstep {b['revstep']}, torch {b['torch']}" for name, b in part["builds"].items()
    )
    header = ("run", "this build, ms (p20 to p80)", "the other build, ms (p20 to p80)", "this / the other")
    return [(f"Runs of this build beside those of another ({builds})", header, rows)]


def _two_body(part: dict) -> Tables:
    rows = [
        (
            m["name"],
            f"{m['steps_per_second'] / 1e6:.2f}",
            f"{1e9 * m['p20']:.0f} to {1e9 * m['p80']:.0f}",
            f"{m['energy_error_at_end']:.1e}",
            "bit for bit" if m["differing"] == 0 else f"off by {m['difference']:.1e}",
        )
        for m in part["rows"]
    ]
    title = f"Two bodies (m = 1 and 0.001, e = 0.1, dt = 0.001), {part['steps']:,} steps; and as many back"
    return [
        (
            title,
            ("integrator", "million steps/s", "ns a step, p20 to p80", "|dE/E| at the end", "start returned"),
            rows,
        )
    ]


def _pendulums(part: dict) -> Tables:
    rows = [
        (
            m["name"],
            str(m["order"]),
            f"{1e9 * m['p50']:.4g}",
            f"{1e9 * m['p20']:.4g} to {1e9 * m['p80']:.4g}",
            f"{m['steps']}",
            f"{1e6 * m['p50'] * m['steps']:.3g}",
            f"{m['error']:.1e}",
        )
        for m in part["rows"]
    ]
    title = f"{part['pendulums']:,} pendulums, h = 0.01 (one by one: {part['sample']} of them)"
    return [
        (
            title,
            (
                "method",
                "order",
                "ns a step and pendulum",
                "p20 to p80",
                "steps",
                "µs a pendulum",
                "largest error of an angle",
            ),
            rows,
        )
    ]


def _neural_field(part: dict) -> Tables:
    tables = []
    for steps, measured in part["steps"].items():
        header = ["method", "ms", "p20 to p80", "bytes kept"]
        others = [m["name"] for m in measured if m["name"] in ("torchdiffeq midpoint", "torchdiffeq rk4")]
        rows = [
            (
                m["name"],
                f"{1e3 * m['p50']:.1f}",
                f"{1e3 * m['p20']:.1f} to {1e3 * m['p80']:.1f}",
                "-" if m["bytes_kept"] is None else f"{m['bytes_kept']:,}",
                *(f"{m['ratios'].get(o, 1.0):.2f}" for o in others),
            )
            for m in measured
        ]
        title = (
            f"Neural field, {int(steps):,} steps, batch {part['batch']}, width {part['width']}: forward and"
            f" backward, {measured[0]['rounds']} rounds"
        )
        tables.append((title, (*header, *(f"/ {o}" for o in others)), rows))
    return tables


_TABLES = {"two-body": _two_body, "pendulums": _pendulums, "neural-field": _neural_field}
