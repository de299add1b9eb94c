"""``revstep bench trunk``: a training step of a transformer trunk, forward and backward, stored, checkpointed
and reversible, on the same blocks.

It is what ``revstep bench`` without a case measures. Other cases take their trunk, its step and its table
from here.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from revstep.errors import ConfigError
from revstep.lm._architectures import Block, GPTConfig, ResidualStack
from revstep.schemes import Scheme, make
from revstep.stack import ReversibleStack
from revstep.state import FixedPoint, Float

from ..bench.peaks import Step, in_children
from ..bench.runner import environment, goal, measure

#: At most this ratio to checkpointing of every block, and of fixed point to a float state. ``keep=1`` stores
#: the last layer's graph, which backward would build first thing: no extra peak in a trunk.
TO_CHECKPOINT, TO_FLOAT_STATE = 1.08, 1.02


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
            raise ConfigError(
                f"device is {self.device!r}, expected 'cpu'"
                + (" or 'cuda'" if torch.cuda.is_available() else ": no CUDA device is visible")
            )
        for name in ("layers", "batch", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")


def in_autocast(case: TrunkCase) -> contextlib.AbstractContextManager:
    """Around the forward pass of a case: autocast for bfloat16."""
    return (
        torch.autocast(case.device, dtype=torch.bfloat16)
        if case.dtype == "bfloat16"
        else contextlib.nullcontext()
    )


def blocks_of(case: TrunkCase) -> list[Block]:
    """The case's blocks, with the weights that its seed gives."""
    torch.manual_seed(0)
    config = GPTConfig(vocab=256, context=case.length, layers=case.layers, width=case.width, heads=case.heads)
    return [Block(config).to(case.device) for _ in range(case.layers)]


def one_step(case: TrunkCase, trunk: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward of a trunk on a fresh leaf."""
    return lambda: train_step(trunk, x, case)


def synchronise(case: TrunkCase) -> Callable[[], None]:
    return torch.cuda.synchronize if case.device == "cuda" else lambda: None


def clock_of(case: TrunkCase) -> Callable[[], float]:
    """Processor time where one CPU thread does the work, which others on the machine disturb less; else wall
    time.
    """
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


def train_step(
    trunk: Callable[[Tensor], Tensor], x: Tensor, case: TrunkCase, between: Callable[[], None] = lambda: None
) -> Tensor:
    """Forward and backward of the mean square, with a fresh graph; ``between`` is called between the two.
    Returns the input, whose gradient is there.

    A trunk with ``loses_autocast`` evaluates its blocks again without the autocast of the forward pass: its
    backward pass is run in one.
    """
    leaf = x.detach().requires_grad_()
    with in_autocast(case):
        y = trunk(leaf)
    between()
    loss = y.square().mean()
    # A new one: no cast weight is left in its cache.
    with in_autocast(case) if getattr(trunk, "loses_autocast", False) else contextlib.nullcontext():
        loss.backward()
    return leaf


def in_steps(
    trunk: Callable[[Tensor], Tensor], parameters: Iterable[Tensor], case: TrunkCase
) -> tuple[Step, Step, Callable[[], None]]:
    """``(step, one on a smaller input, what forgets the gradients)`` of a trunk, as
    :func:`..bench.peaks.in_children` asks for.
    """
    x, parameters = torch.randn(case.batch, case.length, case.width, device=case.device), list(parameters)

    def forget() -> None:
        for p in parameters:
            p.grad = None

    return (
        (lambda between: train_step(trunk, x, case, between)),
        (lambda between: train_step(trunk, x[:1, :8], case, between)),
        forget,
    )


def steps(case: TrunkCase, name: str) -> tuple[Step, Step, Callable[[], None]]:
    """The steps of a row, for :func:`..bench.peaks.in_children`."""
    trunks = _trunks(case)
    return in_steps(trunks[name], trunks["plain"].parameters(), case)


def timed(trunks: dict[str, Callable[[Tensor], Tensor]], case: TrunkCase, rounds: int) -> list[dict]:
    """Measurements of a training step of each trunk, as dictionaries."""
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = measure(
            {name: one_step(case, trunk, x) for name, trunk in trunks.items()}, rounds, sync=synchronise(case)
        )
    return [m.to_dict() for m in rows]


def run_trunk(case: TrunkCase, rounds: int = 15, memory: bool = True) -> dict:
    """Measure one case. Returns ``{"case", "rounds", "environment", "goals", "measurements"}`` ready for
    JSON; with ``memory`` each measurement has one.
    """
    trunks = _trunks(case)
    rows = timed(trunks, case, rounds)
    if memory:
        found = in_children(steps, case, list(trunks))
        rows = [{**row, "memory": found[row["name"]]} for row in rows]
    return {
        "case": asdict(case),
        "rounds": rounds,
        "environment": environment(case.device),
        "goals": _goals(case, rows),
        "measurements": rows,
    }


def to_plain(case: TrunkCase) -> float:
    """A reversible step at most this much beside the plain one."""
    return 1.30 if case.device == "cuda" else 1.25 if case.dtype == "float32" else 1.35


def _goals(case: TrunkCase, rows: list[dict]) -> list[dict]:
    ratios = {row["name"]: row["ratios"] for row in rows}
    bounds = {"plain": to_plain(case), "checkpoint": TO_CHECKPOINT, "checkpoint, no early stop": 1.0}
    pairs = [("reversible, keep=1", other, bound) for other, bound in bounds.items()]
    pairs += [
        ("reversible", "checkpoint, no early stop", 1.0),
        ("reversible", "reversible, float state", TO_FLOAT_STATE),
    ]
    return [goal(f"{ours} / {other}", ratios[ours][other], bound, False) for ours, other, bound in pairs]


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "trunk"
HELP = "a training step, plain, checkpointed and reversible"
EXAMPLES = """
revstep bench --dtype bfloat16 --scheme blend --rounds 31 --json step.json
revstep bench --device cuda --layers 24 --width 1024 --heads 16 --length 1024 --csv figures.csv
"""
ROUNDS = 15
_SIZES = {"layers": 12, "width": 384, "heads": 6, "batch": 4, "length": 256}
#: Option -> (settings for argparse, help); the defaults are TrunkCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "scheme": ({}, "a reversible scheme (default midpoint)"),
    "dtype": ({}, "float32, or bfloat16 for autocast (default float32)"),
    **{name: ({"type": int}, f"default {default}") for name, default in _SIZES.items()},
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:

    result = run_trunk(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def title(case: dict) -> str:
    return (
        f"{case['layers']} blocks, width {case['width']}, {case['heads']} heads, {case['batch']} x"
        f" {case['length']}, {case['dtype']}, scheme {case['scheme']}"
    )


def steps_table(
    result: dict, against: tuple[str, ...], more: tuple[tuple[str, Any], ...] = ()
) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Times, ratios to the rows ``against``, memory where it was measured, and ``more`` columns (header, text
    of a row).
    """
    from revstep._values import size

    memory = all("memory" in m for m in result["measurements"])
    rows = []
    for m in result["measurements"]:
        cells = [
            m["name"],
            f"{m['p50'] * 1e3:.1f}",
            f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
            *(f"{m['ratios'].get(o, 1.0):.3f}" for o in against),
        ]
        if memory:
            cells += [
                "-" if m["memory"][k] is None else size(m["memory"][k]) for k in ("kept", "peak", "process")
            ]
        rows.append((*cells, *(text(m) for _, text in more)))
    header = (
        "step",
        "ms",
        "p20 to p80",
        *(f"/ {o}" for o in against),
        *(("kept", "peak", "process") if memory else ()),
        *(name for name, _ in more),
    )
    return title(result["case"]), header, rows


def tables(result: dict) -> list:
    return [steps_table(result, ("plain", "checkpoint"))]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
