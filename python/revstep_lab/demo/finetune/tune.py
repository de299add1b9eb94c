"""What the worked example ``revstep demo --hf`` measures of a trained model: bytes and seconds of a step,
fine-tuning by each method, and what each recurrence costs without retraining and after distillation.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revstep import hf
from revstep._files import write_folder
from revstep._models.layers import unwrapped
from revstep.hf._calibrate import both_losses
from revstep.hf._finetune import FineTune, add_lora, checkpointed, finetune, merge_lora
from revstep.hf._sources import load_model, load_tokenizer
from revstep.ops import carry_bits

from ..depth import Kept, saved_by
from .settings import Settings, Text

# ------------------------------------------------------------------------------------------------------------
# Bytes kept for the backward pass of a transformers model's trunk, by the meter of the other demo.


def kept(model: nn.Module, ids: Tensor) -> Kept:
    """What the pass from token ids to the last hidden state leaves for backward: the model without its
    vocabulary head, in training mode.
    """
    inner = unwrapped(model)
    trunk = getattr(inner, inner.base_model_prefix)
    made = hf.conversion(model)
    model.train()
    try:
        return saved_by(
            lambda: trunk(input_ids=ids, use_cache=False).last_hidden_state,
            list(inner.parameters()),
            lambda: None if made is None else made.report,
            reversible=made is not None,
        )
    finally:
        model.eval()


# ------------------------------------------------------------------------------------------------------------
# Seconds of one training step, interleaved: a machine whose speed drifts gives each method its share of the
# drift.

ROUNDS = 5


def speed(folder: Path, text: Text, settings: Settings) -> list[dict[str, Any]]:
    """Forward and backward of full fine-tuning by each method, in rounds A B C A B C ...; the ratio to plain
    is the median of the rounds' ratios.
    """
    models = {label: _prepared(folder, text, scheme) for label, scheme in METHODS.items()}
    ids = text.train[: settings.batch].clone()
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for model in models.values():
        _step(model, ids)  # warms up
    for _ in range(ROUNDS):
        for label, model in models.items():
            with checkpointed(model, METHODS[label] == "checkpoint"):
                began = time.perf_counter()
                _step(model, ids)
                seconds[label].append(time.perf_counter() - began)
    return [
        {
            "method": label,
            "seconds": [round(s, 5) for s in values],
            "ratio": round(statistics.median(a / b for a, b in zip(values, seconds["plain"])), 3),
        }
        for label, values in seconds.items()
    ]


def _prepared(folder: Path, text: Text, scheme: str) -> nn.Module:
    model = load_model(folder)
    if scheme not in STORED:
        hf.convert(model, scheme, calibration=text.train[:8], say=None)
    return model.train()


def _step(model: nn.Module, ids: Any) -> None:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


# ------------------------------------------------------------------------------------------------------------
# Fine-tuning on another text: plain, with every layer checkpointed, and reversible, from the same weights,
# with the same rows in the same order.

STORED = ("plain", "checkpoint")
#: label -> scheme, or one of STORED.
METHODS = {
    "plain": "plain",
    "checkpoint": "checkpoint",
    "Blend, c = 1/4": "blend:c=0.25",
    "Blend, c = 1/2": "blend:c=0.5",
    "BDIA": "bdia",
}
ADAPTING = ("full", "LoRA")


def tune(
    folder: Path,
    text: Text,
    settings: Settings,
    label: str,
    adapting: str,
    original: float,
    deploy: Path | None = None,
) -> dict[str, Any]:
    """One fine-tuning, as plain JSON values: losses before, as trained and deployed (reverted), bytes, speed,
    states. ``original``: the loss before anything; ``deploy``: save the plain model there.
    """
    scheme = METHODS[label]
    model = load_model(folder)
    if scheme not in STORED:
        hf.convert(model, scheme, calibration=text.train[:8], say=None)
    converted = original if scheme in STORED else hf.mean_loss(model, text.held_out)
    torch.manual_seed(settings.seed)
    model = add_lora(model, settings.lora, targets="all-linear") if adapting == "LoRA" else model
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with tempfile.TemporaryDirectory() as scratch:
        how = FineTune(
            out=scratch,
            steps=settings.tune_steps,
            batch=settings.batch,
            lr=settings.lora_lr if adapting == "LoRA" else settings.tune_lr,
            warmup=settings.tune_steps // 10,
            seed=settings.seed,
            device=settings.device,
            checkpointing=scheme == "checkpoint",
        )
        tuned = finetune(model, text.train, how, say=None)
    trained, plain = both_losses(model, text.held_out)
    bytes_kept = _kept(model, text, settings, scheme == "checkpoint")
    model = merge_lora(model)
    if hf.conversion(model) is not None:
        hf.revert(model)
    if deploy is not None:
        write_folder(deploy, model.save_pretrained)
        write_folder(deploy, load_tokenizer(folder).save_pretrained)
    return {
        "method": label,
        "scheme": scheme,
        "adapting": adapting,
        "trainable": trainable,
        "steps": len(tuned.losses),
        "original": original,
        "converted": converted,
        "as_trained": trained,
        "deployed": plain,
        "merged": hf.mean_loss(model, text.held_out),
        "kept_for_backward": bytes_kept,
        "report_bytes": tuned.bytes_saved,
        "tokens_per_second": round(tuned.tokens_per_second, 1),
        "passes": tuned.passes,
        "states_rebuilt": tuned.states,
        "states_bit_equal": tuned.matched,
        "reconstruction": tuned.reconstruction,
        "training_loss": [round(v, 5) for v in tuned.losses],
    }


def _kept(model: nn.Module, text: Text, settings: Settings, checkpointing: bool) -> dict[str, int]:
    # A copy: a row of the text would count as the whole text, whose storage it is.
    ids = text.train[: settings.batch].clone().to(next(model.parameters()).device)
    with checkpointed(model, checkpointing):
        return kept(model, ids).to_dict()


def tune_all(
    folder: Path, text: Text, settings: Settings, deploy: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every method, in full and with LoRA; the model fine-tuned in full as Blend(1/4) is deployed."""
    rows, original = [], hf.mean_loss(load_model(folder), text.held_out)
    for adapting in ADAPTING:
        for label in METHODS:
            last = adapting == "full" and METHODS[label] == "blend:c=0.25"
            rows.append(tune(folder, text, settings, label, adapting, original, deploy if last else None))
            say(
                f"  {adapting:5} {label:16} {rows[-1]['original']:.4f} -> {rows[-1]['deployed']:.4f}, states"
                f" {rows[-1]['reconstruction']}"
            )
    return rows


def sample(folder: Path, prompt: str, tokens: int) -> str:
    """What the deployed model, a plain transformers one, goes on with, the likeliest token each time."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    made = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        made["input_ids"],
        attention_mask=made["attention_mask"],
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


# ------------------------------------------------------------------------------------------------------------
# What running a trained model as another recurrence costs, with no retraining; and what distillation mends
# of the costliest.

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
