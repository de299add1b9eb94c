"""Integrations beside other packages: two bodies, many pendulums, the gradient of a neural field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import scipy
import torch

from revstep.errors import ConfigError

from . import neural_field, pendulums, two_body
from .ode_builds import run_against
from .peers import versions
from .runner import environment

#: Packages of :mod:`.peers` that integrate.
RIVALS = ("rebound", "torchdiffeq", "diffrax")


@dataclass(frozen=True)
class OdeCase:
    """What is measured and how large.

    Args:
        parts: some of :data:`PARTS`.
        steps: of the two bodies in one timed call. return_steps: of the long way there and back.
        pendulums, pendulum_steps: of the batch. sample: how many of them scipy takes one by one.
        depths: numbers of steps of the neural field, increasing. batch, width: of its state.
        loop_steps: of a single system beside another build; of the pendulums a hundredth.
        threads: of revstep's loop over the batch and of torch; REBOUND and scipy take one for these problems, and so does the default.
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
            raise ConfigError(f"parts are {', '.join(self.parts) or 'none'}, expected some of {', '.join(PARTS)}")
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
        ``{"case", "rounds", "environment", "parts"}``, ready for JSON, and ``"against"`` where it is asked for.

    Raises:
        ConfigError: an interpreter that cannot run the case.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        about = environment() | {"scipy": scipy.__version__} | versions(*RIVALS)
        result: dict = {"case": asdict(case), "rounds": rounds, "environment": about, "parts": {}}
        if against is not None:
            result["against"] = run_against(case, against, rounds)
            show(result)
            return result
        for name in case.parts:
            result["parts"][name] = part = PARTS[name](case, rounds)
            show({**result, "parts": {name: part}, "skipped": part["skipped"]})
        return result
    finally:
        torch.set_num_threads(before)
