"""What running a trained model as another recurrence costs, with no retraining; and what distillation mends
of the costliest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revstep import hf
from revstep.hf._finetune import FineTune, finetune
from revstep.hf._folders import load_model
from revstep.ops import carry_bits

from .settings import Settings, Text

#: label -> scheme; each with both starts.
SCHEMES = {
    "Midpoint, h = 1": "midpoint:h=1",
    "Midpoint, h = 1/2": "midpoint:h=0.5",
    "blend, the paper's a": "midpoint_blend:a=paper,seed=0",
    "BDIA, drawn +-1/2": "bdia:seed=0",
    "Blend, c = 1/2": "blend:c=0.5",
    "Blend, c = 1/4": "blend:c=0.25",
    "Blend, c = 1/8": "blend:c=0.125",
}
STARTS = ("repeat", "euler")


def loss(model: nn.Module, batches: Sequence[dict], training: bool = False) -> float:
    """Mean next-token loss; ``training``: in training mode (without dropout that is where BDIA draws its
    signs).
    """
    if not training:
        return hf.mean_loss(model, batches)
    model.train()
    with torch.no_grad():
        losses = [
            float(model(**batch, labels=batch["input_ids"], use_cache=False).loss) * len(batch["input_ids"])
            for batch in batches
        ]
    model.eval()
    return sum(losses) / sum(len(batch["input_ids"]) for batch in batches)


def measure(folder: Path, text: Text) -> tuple[float, list[dict[str, Any]]]:
    """(loss of the original, a row for each scheme and start), on held-out text of what the model was trained
    on. Rows as plain JSON values.
    """
    model = load_model(folder)
    original, rows = loss(model, text.held_out), []
    for label, scheme in SCHEMES.items():
        for start in STARTS:
            hf.convert(model, scheme, start=start, calibration=text.train[:8], say=None)
            made = hf.conversion(model)
            draws = scheme.startswith("bdia")
            found = loss(model, text.held_out, training=draws)
            bits = [carry_bits(made.scheme.coefficients(k).alpha) for k in range(made.stack.steps)]
            rows.append(
                {
                    "scheme": label,
                    "spec": scheme,
                    "start": start,
                    "carry_bits": max(bits),
                    "state": str(made.state),
                    "loss": found,
                    "change": found / original - 1.0,
                    "change_in_evaluation": (
                        loss(model, text.held_out) / original - 1.0 if draws else found / original - 1.0
                    ),
                }
            )
            hf.revert(model)
    return original, rows


def distil(folder: Path, text: Text, settings: Settings) -> dict[str, Any]:
    """Midpoint with h = 1 taught by the original for as many steps as a fine-tuning has."""
    student, teacher = load_model(folder), load_model(folder)
    hf.convert(student, "midpoint:h=1", calibration=text.train[:8], say=None)
    before = loss(student, text.held_out)
    with tempfile.TemporaryDirectory() as scratch:
        how = FineTune(
            out=scratch,
            steps=settings.tune_steps,
            batch=settings.batch,
            lr=settings.lr / 3,
            warmup=settings.tune_steps // 10,
            seed=settings.seed,
            device=settings.device,
        )
        tuned = finetune(student, text.train, how, teacher=teacher, say=None)
    original = loss(teacher, text.held_out)
    after = loss(student, text.held_out)
    return {
        "scheme": "Midpoint, h = 1, distilled",
        "steps": settings.tune_steps,
        "original": original,
        "loss_before": before,
        "loss": after,
        "change": after / original - 1.0,
        "divergence": [round(v, 5) for v in tuned.losses],
        "states_rebuilt": tuned.states,
        "states_bit_equal": tuned.matched,
    }
