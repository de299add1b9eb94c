"""The step of a transformer trunk, forward and backward, stored, checkpointed and reversible, on the same blocks."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..lm.model import Block, GPTConfig, ResidualStack
from ..schemes import Scheme, make
from ..stack import ReversibleStack
from ..state import FixedPoint, Float
from .runner import Measurement, environment, measure

#: At most this ratio. ``keep=1`` stores the last layer's graph, which backward would build first thing: no extra peak in a trunk.
_TO = {"plain": 1.30, "checkpoint": 1.10, "checkpoint, no early stop": 1.00}
GOALS = {(ours, other): goal for ours in ("reversible, keep=1", "reversible") for other, goal in _TO.items()}
GOALS["reversible", "reversible, float state"] = 1.02


@dataclass(frozen=True)
class TrunkCase:
    """Shape of the measured trunk. ``dtype``: ``"float32"`` or ``"bfloat16"`` (autocast)."""

    layers: int = 12
    width: int = 384
    heads: int = 6
    batch: int = 4
    length: int = 256
    dtype: str = "float32"
    scheme: str = "midpoint"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise ConfigError(f"device is {self.device!r}, expected 'cpu'" + (" or 'cuda'" if torch.cuda.is_available() else ": no CUDA device is visible"))
        for name in ("layers", "batch", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")


def in_autocast(case: TrunkCase) -> contextlib.AbstractContextManager:
    """Around the forward pass of a case: autocast for bfloat16."""
    return torch.autocast(case.device, dtype=torch.bfloat16) if case.dtype == "bfloat16" else contextlib.nullcontext()


def blocks_of(case: TrunkCase) -> list[Block]:
    """The case's blocks, with the weights that its seed gives."""
    torch.manual_seed(0)
    config = GPTConfig(vocab=256, context=case.length, layers=case.layers, width=case.width, heads=case.heads)
    return [Block(config).to(case.device) for _ in range(case.layers)]


def one_step(case: TrunkCase, trunk: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward of a trunk on a fresh leaf."""

    def run() -> None:
        leaf = x.detach().requires_grad_()
        with in_autocast(case):
            y = trunk(leaf)
        y.square().mean().backward()

    return run


def synchronise(case: TrunkCase) -> Callable[[], None]:
    return torch.cuda.synchronize if case.device == "cuda" else lambda: None


def clock_of(case: TrunkCase) -> Callable[[], float]:
    """Processor time where one CPU thread does the work, which others on the machine disturb less; else wall time."""
    return time.process_time if case.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _trunks(case: TrunkCase) -> dict[str, Callable[[Tensor], Tensor]]:
    blocks = blocks_of(case)
    scheme: Scheme = make(case.scheme)
    plain = ResidualStack(blocks)

    def checkpointed(x: Tensor, early_stop: bool) -> Tensor:
        for block in blocks:
            x = x + checkpoint(block, x, use_reentrant=False, early_stop=early_stop)
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        float_state = ReversibleStack(blocks, scheme, state=Float())
    return {
        "plain": plain,
        "checkpoint": lambda x: checkpointed(x, True),
        "checkpoint, no early stop": lambda x: checkpointed(x, False),
        "reversible": ReversibleStack(blocks, scheme, state=FixedPoint()),
        "reversible, keep=1": ReversibleStack(blocks, scheme, state=FixedPoint(), keep=1),
        "reversible, float state": float_state,
    }


def run_trunk(case: TrunkCase, rounds: int = 15) -> dict:
    """Measure one case. Returns ``{"case", "environment", "goals", "measurements"}`` ready for JSON."""
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows: list[Measurement] = measure({name: one_step(case, t, x) for name, t in _trunks(case).items()}, rounds, sync=synchronise(case))
    found = {m.name: m for m in rows}
    goals = [{"of": a, "to": b, "ratio": found[a].ratios[b], "goal": goal, "met": found[a].ratios[b] <= goal} for (a, b), goal in GOALS.items()]
    return {"case": asdict(case), "environment": environment(case.device), "goals": goals, "measurements": [m.to_dict() for m in rows]}
