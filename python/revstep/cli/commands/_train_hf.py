"""``revstep train --hf``: fine-tuning of a Hugging Face model folder by transformers' Trainer, plain or reversible."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from .. import options
from . import _hf_text

#: Options of ``revstep train`` that also hold for --hf, beside those of its own group.
SHARED = (
    "data", "extensions", "max_bytes", "val_fraction", "scheme", "state", "start", "keep", "memory_budget", "save_ops", "out", "resume", "dtype", "device", "steps", "batch", "accumulate",
    "context", "lr", "warmup", "weight_decay", "clip", "seed", "save_every", "eval_batches", "loss_chunk",
)  # fmt: skip
OWN = ("lora", "lora_alpha", "lora_targets", "teacher", "teacher_weight", "deploy")
_TUNE = ("dtype", "device", "steps", "batch", "accumulate", "lr", "warmup", "weight_decay", "clip", "seed", "save_every", "loss_chunk", "teacher_weight")
CONTEXT, VAL_FRACTION, EVAL_BATCHES, OUT = 512, 0.05, 16, "run-hf"
#: Read of the standard library, where no --data is given; all of it would take a tokenizer half a minute.
LIBRARY_BYTES = 4_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Hugging Face model (--hf); defaults there: blend:c=0.25, 200 steps, batch 4, context 512, lr 5e-5 falling as a cosine, no warm-up, float32"
    )
    group.add_argument("--hf", metavar="MODEL_DIR", help="fine-tune the model of this folder, converted or plain; --scheme plain or checkpoint: not reversible")
    group.add_argument("--lora", type=int, metavar="R", help="train LoRA adapters of this rank alone")
    group.add_argument("--lora-alpha", type=float, metavar="X", help="scale times rank (default: twice the rank)")
    group.add_argument("--lora-targets", metavar="NAMES", help="modules, by commas, or all-linear (default: peft's own for the architecture)")
    group.add_argument("--teacher", metavar="MODEL_DIR", help="distil: learn this model's answers instead of the text's next tokens")
    group.add_argument("--teacher-weight", type=float, metavar="X", help="share of the teacher in the loss, the rest is the text's (default 1)")
    group.add_argument("--deploy", metavar="DIR", help="also write the plain model there, adapters merged")


def refuse_without_hf(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that only go with --hf."""
    given = options.given(args, OWN)
    if given:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')} goes with --hf MODEL_DIR")


def run(args: argparse.Namespace, own_model: tuple[str, ...]) -> int:
    """``own_model``: options of the command that only make sense for a model of the project's own."""
    wrong = [name for name in own_model if getattr(args, name) is not None and name not in SHARED]
    if wrong or args.stop_at is not None:
        raise ConfigError(f"--{(wrong or ['stop_at'])[0].replace('_', '-')} is for models trained from scratch and does not go with --hf; drop it")
    given = options.given(args, [name for name in SHARED if name != "resume"] + list(OWN))
    if ("lora_alpha" in given or "lora_targets" in given) and "lora" not in given:
        raise ConfigError("--lora-alpha and --lora-targets go with --lora R; give the rank")
    if given.get("lora", 1) < 1:
        raise ConfigError(f"--lora is {given['lora']}, expected the rank of the adapters, a whole number of at least 1")
    _hf_text.check(given.get("scheme"), given.get("state"))
    if "teacher_weight" in given and "teacher" not in given:
        raise ConfigError("--teacher-weight goes with --teacher MODEL_DIR")
    from ...hf.quiet import quiet

    with quiet():
        return _Run(args, given).go()


class _Run:
    """One fine-tuning, from folders to folders."""

    def __init__(self, args: argparse.Namespace, given: dict[str, Any]):
        from ...hf import folders
        from ...hf.finetune import FineTune

        self.given, self.out = given, given.get("out", OUT)
        scheme = given.get("scheme")
        self.how = FineTune(
            out=self.out, resume=bool(args.resume) and (args.resume != "auto" or any(Path(self.out).glob("checkpoint-*"))), checkpointing=scheme == "checkpoint", **{name: given[name] for name in _TUNE if name in given}
        )  # fmt: skip
        self.tokenizer = folders.load_tokenizer(args.hf)
        self.model = self._load(args.hf, scheme)
        context = given.get("context", _hf_text.row_length(self.model, CONTEXT))
        if context != _hf_text.row_length(self.model, context):
            raise ConfigError(f"--context is {context}, the model has {_hf_text.row_length(self.model, context)} positions; give at most that")
        rows = _hf_text.token_rows(
            self.tokenizer,
            given.get("data"),
            context,
            extensions=given.get("extensions", _hf_text.EXTENSIONS),
            max_bytes=given.get("max_bytes", 0 if "data" in given else LIBRARY_BYTES),
        )
        held = max(1, int(len(rows) * given.get("val_fraction", VAL_FRACTION)))
        if len(rows) <= held:
            raise ConfigError(
                f"the text has {len(rows)} rows of {context} tokens, expected more than {held} to train on: give more text or a smaller --context"
            )
        self.rows, tail = rows[:-held], rows[-held:]
        self.held_out = [{"input_ids": part} for part in tail[: given.get("eval_batches", EVAL_BATCHES) * self.how.batch].split(self.how.batch)]

    def _load(self, folder: str, scheme: str | None) -> Any:
        from ...hf import folders

        if scheme is not None and folders.converted(folder):
            print(f"{folder} was saved converted; it is loaded plain and converted as asked for", file=sys.stderr)
        return folders.load_model(folder, plain=scheme is not None)

    def go(self) -> int:
        from ... import hf
        from ...hf.finetune import add_lora, finetune
        from ...hf.folders import load_model
        from ...lm.session import Interrupt

        self._convert(hf)
        before = hf.mean_loss(self.model, self.held_out)
        if "lora" in self.given:
            import torch

            torch.manual_seed(self.how.seed)  # of the adapters' weights
            self.model = add_lora(self.model, self.given["lora"], self.given.get("lora_alpha"), self.given.get("lora_targets"))
        teacher = load_model(self.given["teacher"], plain=True) if "teacher" in self.given else None
        with Interrupt() as interrupt:
            tuned = finetune(self.model, self.rows, self.how, teacher=teacher, stop=lambda: interrupt.requested)
        if tuned.interrupted:
            print(f"stopped after step {tuned.step} of {self.how.steps}, checkpoint in {self.out}; go on with the same command and --resume", file=sys.stderr)
            return 128 + interrupt.signal
        self._report(tuned, before)
        return 0

    def _convert(self, hf: Any) -> None:
        made = hf.conversion(self.model)
        if self.given.get("scheme") in ("plain", "checkpoint"):
            return
        options_ = {name: self.given[name] for name in ("state", "start", "keep", "memory_budget", "save_ops") if name in self.given}
        if made is None:
            nonfinite = "propagate" if self.how.dtype == "float16" else "raise"  # so that the gradient scaler can skip a step
            calibration = self.rows[:: max(1, len(self.rows) // 16)][:16]
            hf.convert(self.model, self.given.get("scheme", "blend:c=0.25"), calibration=calibration, on_nonfinite=nonfinite, **options_)
        elif options_:
            raise ConfigError(f"--{next(iter(options_))} goes with --scheme here: the folder was saved converted ({made})")
        else:
            print(f"as it was saved: {made}")

    def _report(self, tuned: Any, before: float) -> None:
        from ... import hf
        from ...hf.finetune import both_losses, merge_lora

        if hasattr(self.model, "merge_and_unload"):
            self.model.save_pretrained(Path(self.out) / "adapter")
        self.model = merge_lora(self.model).cpu()
        trained, plain = both_losses(self.model, self.held_out)
        self._save(self.out)
        print(f"states {tuned.reconstruction}; {tuned.tokens_per_second:,.0f} tokens/s")
        print(f"validation loss {before:.4f} before, {trained:.4f} as trained, {plain:.4f} reverted to the plain model")
        print(f"saved in {self.out}")
        if "deploy" in self.given:
            if hf.conversion(self.model) is not None:
                hf.revert(self.model)
            self._save(self.given["deploy"])
            print(f"the plain model in {self.given['deploy']}")

    def _save(self, folder: str) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
