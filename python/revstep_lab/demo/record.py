"""What the demo of stacks says of its run: rows, sentences and JSON, all from the same measurements."""

from __future__ import annotations

import math
from typing import Any

from revstep.stack import ReversibleStack

from .depth import Findings
from .race import Race, Racer
from .settings import Text

HEADER = (
    "stack",
    "validation loss",
    "tokens/s",
    "kept for backward",
    "states rebuilt",
    "in float states",
    "gradient there",
)
NOTE = (
    "kept for backward: by the trunk; errors are relative to the state's own norm; gradient there: cosine to"
    " stored autograd's in the same float states"
)
#: Below this cosine to the stored gradient, training in float states would follow another gradient.
OTHER_GRADIENT = 0.99


def row(racer: Racer, found: Findings, tokens: int, at_depth: str | None = None) -> dict[str, Any]:
    """Everything measured about one stack, as plain JSON values (before ``clean``).

    ``at_depth``: why its bytes could not be measured at other depths, or None.
    """
    failures = (
        ([racer.failure] if racer.failure else [])
        + found.failures
        + ([f"at other depths: {at_depth}"] if at_depth else [])
    )
    reversible = isinstance(racer.model.trunk, ReversibleStack)
    return {
        "stack": racer.name,
        "scheme": (
            str(racer.model.trunk.scheme)
            if reversible
            else (
                "residual, each block recomputed"
                if racer.name == "checkpoint"
                else "residual, everything stored"
            )
        ),
        "steps": len(racer.losses),
        "validation_loss": racer.points[-1][1] if racer.points and not racer.failure else None,
        "tokens_per_second": tokens / racer.step_seconds if racer.seconds else None,
        "kept_for_backward": found.kept.to_dict() if found.kept else None,
        "training": (
            {
                "backward_passes": racer.passes,
                "states_rebuilt": racer.states,
                "states_bit_equal": racer.matched,
                "max_error": racer.max_error,
                "headroom": racer.headroom,
            }
            if reversible
            else None
        ),
        "trained": found.reconstruction.to_dict() if found.reconstruction else None,
        "gradients_equal_stored": found.gradients_equal,
        "float_states": (
            {"worst_error": found.float_error, "gradient_cosine": found.float_cosine} if reversible else None
        ),
        "failures": failures,
        "reversible": reversible,
        "exact": is_exact(racer, found) and not failures if reversible else None,
    }


def is_exact(racer: Racer, found: Findings) -> bool:
    """Every backward pass of the training and the examination of the trained weights rebuilt every state bit
    for bit.
    """
    trained = racer.passes > 0 and racer.passes == len(racer.losses) and racer.matched == racer.states > 0
    examined = (
        found.reconstruction is not None
        and found.reconstruction.ok
        and found.reconstruction.measured == 0.0
        and found.gradients_equal is True
    )
    return trained and examined


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The printed line of a row."""
    loss, speed, kept = row["validation_loss"], row["tokens_per_second"], row["kept_for_backward"]
    front = (
        row["stack"],
        "-" if loss is None else f"{loss:.3f}",
        "-" if speed is None else f"{speed:,.0f}",
        "-" if kept is None else size(kept["total"]),
    )
    if not row["reversible"]:
        return (*front, "recomputed" if row["stack"] == "checkpoint" else "stored", "-", "-")
    return (
        *front,
        rebuilt(row),
        drift(row["float_states"]["worst_error"]),
        angle(row["float_states"]["gradient_cosine"]),
    )


def rebuilt(row: dict[str, Any]) -> str:
    if row["exact"]:
        return f"exact ({row['training']['states_rebuilt']:,})"
    training, trained = row["training"], row["trained"]
    if trained is not None and not (trained["ok"] and trained["measured"] == 0.0):
        return f"NOT EXACT (error {number(trained['measured'])})"
    if training["states_bit_equal"] != training["states_rebuilt"]:
        return f"NOT EXACT ({training['states_rebuilt'] - training['states_bit_equal']} states differ)"
    if row["gradients_equal_stored"] is False:
        return "NOT EXACT (gradients differ)"
    return "FAILED" if row["failures"] else "not shown"


def drift(error: float | None) -> str:
    return (
        "-"
        if error is None
        else "off by " + (number(error) if math.isfinite(error) else "more than floats hold")
    )


def angle(cosine: float | None) -> str:
    return "-" if cosine is None else "not finite" if cosine != cosine else f"cosine {cosine:.4f}"


def number(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.2g}"


def size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count < 1e7 else f"{count / 1e6:.1f} MB"


# ---- sentences ----


def paragraph(rows: list[dict[str, Any]], unigram: float) -> str:
    """What the table shows, in words, from its numbers."""
    parts = [_verdict(rows), _learned(rows, unigram), _memory(rows), _floats(rows)]
    return " ".join(part for part in parts if part)


def _verdict(rows: list[dict[str, Any]]) -> str:
    mine = [r for r in rows if r["reversible"]]
    bad = [r for r in rows if r["failures"] or (r["reversible"] and not r["exact"])]
    if bad:
        why = "; ".join(f"{r['stack']}: {r['failures'][0] if r['failures'] else rebuilt(r)}" for r in bad)
        return f"NOT everything held: {len(bad)} of {len(rows)} stacks failed. {why.rstrip('.')}."
    if not mine:
        return "No reversible stack was trained, so nothing was rebuilt."
    passes, states = (sum(r["training"][k] for r in mine) for k in ("backward_passes", "states_rebuilt"))
    return (
        f"Each of the {states:,} hidden states that {_plural(len(mine), 'reversible stack')} rebuilt in"
        f" {passes:,} backward passes is, bit for bit, the one the forward pass computed; on the trained"
        " weights so is every state on validation text, and the gradients equal those of stored autograd bit"
        " for bit."
    )


def _learned(rows: list[dict[str, Any]], unigram: float) -> str:
    losses = {r["stack"]: r["validation_loss"] for r in rows if r["validation_loss"] is not None}
    if not losses:
        return ""
    best, last = min(losses, key=losses.get), max(losses, key=losses.get)
    learned = sum(loss < unigram for loss in losses.values())
    against = f"knowing only how often each byte occurs gives {unigram:.3f}"
    against += (
        ", and every stack is below it"
        if learned == len(losses)
        else f", and {learned} of {len(losses)} stacks are below it"
    )
    spread = (
        f"from {losses[best]:.3f} ({best}) to {losses[last]:.3f} ({last})"
        if len(losses) > 1
        else f"{losses[best]:.3f} ({best})"
    )
    return f"Validation losses are {spread} nats a byte; {against}."


def _memory(rows: list[dict[str, Any]]) -> str:
    plain = next((r for r in rows if not r["reversible"] and r["kept_for_backward"]), None)
    mine = [r for r in rows if r["reversible"] and r["kept_for_backward"]]
    if plain is None or not mine:
        return ""
    factors = [plain["kept_for_backward"]["total"] / r["kept_for_backward"]["total"] for r in mine]
    low, high = f"{min(factors):.0f}", f"{max(factors):.0f}"
    times = f"{low} times" if low == high else f"{low} to {high} times"
    text = f"The reversible trunks keep {times} fewer bytes for backward than the {plain['stack']} one"
    speeds = [
        r["tokens_per_second"] / plain["tokens_per_second"]
        for r in mine
        if r["tokens_per_second"] and plain["tokens_per_second"]
    ]
    return text + (f", at {min(speeds):.2f} to {max(speeds):.2f} of its speed." if speeds else ".")


def _floats(rows: list[dict[str, Any]]) -> str:
    measured = {
        r["stack"]: r["float_states"]
        for r in rows
        if r["reversible"] and r["float_states"]["worst_error"] is not None
    }
    if not measured:
        return ""
    errors = {name: f["worst_error"] for name, f in measured.items()}
    low, high = min(errors, key=errors.get), max(errors, key=errors.get)
    text = (
        f"Run in float states instead, the same weights rebuild a state that is {drift(errors[high])} times"
        f" its own norm ({high})"
    )
    text += f", at best {drift(errors[low])} ({low})" if low != high else ""
    other = [
        name
        for name, f in measured.items()
        if f["gradient_cosine"] is not None and not f["gradient_cosine"] >= OTHER_GRADIENT
    ]
    return text + (
        f"; the gradients of {', '.join(other)} are then another network's."
        if other
        else "; at this depth that hardly turns their gradients."
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


# ---- JSON ----


def curves(race: Race) -> list[dict[str, Any]]:
    """Losses of each stack, rounded: for drawing."""
    return [
        {
            "stack": r.name,
            "training_loss": [round(v, 5) for v in r.losses],
            "seconds": [round(v, 5) for v in r.seconds],
            "validation": [{"step": step, "loss": loss} for step, loss in r.points],
        }
        for r in race.racers
    ]


def setup(race: Race, text: Text) -> dict[str, Any]:
    model = race.racers[0].model
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": race.settings.layers,
        "width": race.settings.width,
        "heads": race.settings.heads,
        "context": race.settings.context,
        "batch": race.settings.batch,
        "seed": race.settings.seed,
        "peak_learning_rate": race.settings.lr,
        "steps": race.steps,
        "dtype": str(race.dtype).removeprefix("torch."),
        "minutes": race.settings.minutes,
        "text": text.facts,
        "unigram_entropy": text.unigram,
    }


def clean(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
