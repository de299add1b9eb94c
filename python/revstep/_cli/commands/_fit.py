"""``--fit SIZE`` of ``revstep finetune``: kept layers and tiles with which a step is predicted to fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..._specs import STORED_TRUNKS
from ..._values import parse_bytes, size
from ...errors import ConfigError

if TYPE_CHECKING:
    from ._finetune_run import Run

#: What it chooses, or is another budget.
_CHOSEN = ("keep", "tile", "memory_budget")
#: Carry bits a layer that are planned for where the scheme is "auto", which is chosen later.
_AUTO_BITS = 5


def check_fit(given: dict[str, Any]) -> None:
    """Raises ConfigError where ``--fit`` has nothing to choose, or is no size."""
    if "fit" not in given:
        return
    parse_bytes(given["fit"])
    for name in _CHOSEN:
        if name in given:
            raise ConfigError(f"--fit chooses --{name.replace('_', '-')}: drop one of the two")
    if given.get("scheme") in STORED_TRUNKS:
        raise ConfigError(f"--fit chooses kept layers and tiles, and --scheme is {given['scheme']}: drop one")
    if "teacher" in given:
        raise ConfigError(
            "--fit does not know what a --teacher holds beside the model: use --keep and --tile"
        )
    if given.get("lora_targets", "all-linear") not in ("all-linear", "auto"):
        raise ConfigError(
            "--fit plans adapters on all-linear or auto modules, expected --lora-targets of those"
        )


def fitting(run: Run) -> dict[str, int]:
    """``keep`` and, where no kept layer fits, ``tile`` of the fastest reversible point that is predicted to
    fit, weights and optimiser state included.

    Raises:
        ConfigError: nothing fits: says what the smallest needs.
    """
    from ..._models.training import CPU_CHUNK
    from ...plan import plan
    from ...plan._choice import fastest, nothing_fits

    how, budget = run.how, parse_bytes(run.given["fit"])
    lora = None if run.lora is None else "auto" if run.lora[2] is None else run.lora[2]
    targets = ",targets=all-linear" if lora == "all-linear" else ""
    chunk = CPU_CHUNK if how.loss_chunk == "auto" else how.loss_chunk
    device = run.model.device.type
    made = plan(
        run.model,
        sequence=run.rows.shape[1],
        batch=how.batch,
        memory=budget,
        dtype=how.dtype,
        trainable="all" if run.lora is None else f"lora:r={run.lora[0]}{targets}",
        scheme=_planned(run),
        state=run.given.get("state", "fixed32"),
        chunk=chunk or 1,
        accumulate=how.accumulate > 1,
        fused_step=how.fused_step,
        offload_carries=bool(run.given.get("offload_carries")) and device != "cpu",
        device=device,
        headroom=0.0,
    )
    asked = (how.fused_step, chunk != 0)
    points = [p for p in made.points if p.mode == "reversible" and (p.fused_step, p.chunked) == asked]
    if not points:
        raise ConfigError("--fit plans the loss in chunks, and this model's cannot be: use --loss-chunk 0")
    best = fastest(points, budget)
    if best is None:
        raise ConfigError(f"--fit: {nothing_fits(points, budget, how.batch)}")
    print(
        f"to fit {size(budget)}: {best}, {size(best.peak)} predicted, {best.step_time:.2f} times plain's time"
    )
    return {"keep": best.keep} | ({"tile": best.tile} if best.tile else {})


def _planned(run: Run) -> str:
    scheme = run.get("scheme")
    if scheme != "auto":
        return scheme
    return f"blend:c={2.0 ** -math.ceil(run.given.get('bits', _AUTO_BITS))}"
