"""One fine-tuning of ``revstep finetune``, from a model and text to a folder; what is kept to go
on with it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from ..._files import write_folder
from ..._locks import only_writer
from ..._specs import STORED_TRUNKS
from ...errors import ConfigError
from .. import shared
from ._finetune_record import goes_on, options_of, plain, read_record, write_record
from ._fit import fitting
from .finetune import DEFAULTS, LEARNING_RATE, LIBRARY_BYTES, check

#: Rows of the text that the state format and, with ``auto``, the scheme are chosen on; tokens of them in all.
CALIBRATION_ROWS, CALIBRATION_TOKENS = 16, 4096
_TUNE = (
    "dtype",
    "device",
    "steps",
    "batch",
    "accumulate",
    "lr",
    "warmup",
    "weight_decay",
    "clip",
    "seed",
    "save_every",
    "loss_chunk",
    "head_last",
    "fused_step",
    "teacher_weight",
)


#: Options that only say how to convert.
_CHOICES = (*shared.OF_AUTO, "state", *shared.OF_CONVERT)


class Run:
    """One fine-tuning.

    Args:
        model: as the user calls it.
        given: the options that were given, by name; those of a run that goes on are taken from its record.
        out, deploy: folders. resume: None, "must" or "auto". progress: a bar instead of lines, on a terminal.
    """

    def __init__(
        self,
        model: str,
        given: dict[str, Any],
        *,
        out: str,
        deploy: str | None,
        resume: str | None,
        progress: bool,
    ):
        self.name, self.out, self.deploy, self.progress = model, Path(out), deploy, progress
        there = [Path(p) for p in (out, deploy) if p and Path(p).exists()]
        if Path(model).exists() and any(folder.samefile(model) for folder in there):
            raise ConfigError(f"the folder to write, {out}, is that of the model itself: name another one")
        self.resume = resume
        self.record: dict[str, Any] = {}
        self.given = given

    def _look(self) -> None:
        """What the folder holds, once no other run can change it."""
        model, given, resume = self.name, self.given, self.resume
        record = read_record(self.out)
        self.done = record is not None and record["finished"] and resume == "auto"
        self.goes_on = not self.done and goes_on(self.out, record, model, resume)
        begun = {"model": model, "options": plain(given), "finished": False}
        self.record = record if self.goes_on else begun
        self.given = options_of(self.record, given, self.out) if self.goes_on else given
        check(self.given)

    def go(self) -> int:
        """Do it; the exit code."""
        with contextlib.ExitStack() as stack:
            for folder in dict.fromkeys(Path(path) for path in (self.out, self.deploy) if path):
                stack.enter_context(only_writer(folder))
            return self._go()

    def _go(self) -> int:
        self._look()
        if self.done:
            print(f"nothing to do: {self.out} holds the finished run; try it: revstep generate {self.out}")
            return 0
        from ...hf._settings import quiet

        with quiet():
            self._prepare()
            self._convert()
            return self._train()

    def get(self, name: str) -> Any:
        return self.given.get(name, DEFAULTS.get(name))

    def _of_auto(self) -> dict[str, Any]:
        """What was given to choose c by."""
        names = (*shared.OF_AUTO, "loss_tolerance") if self.get("scheme") == "auto" else ()
        return {name: self.given[name] for name in names if name in self.given}

    # ---- before training ----

    def _prepare(self) -> None:
        """Settings, model, adapters and rows: all that can be refused without computing anything."""
        import torch

        from ..._models import layers
        from ...hf import _sources
        from ...hf._auto import Wanted
        from ...hf._finetune import FineTune, check_loss
        from ...lm._parallel import find_device

        Wanted(**self._of_auto())  # refuses what cannot be chosen by
        full = bool(self.given.get("full"))
        tune = {name: self.get(name) for name in _TUNE if self.get(name) is not None}
        tune.setdefault("lr", LEARNING_RATE["full" if full else "lora"])
        tune["warmup"] = self.given.get("warmup", min(DEFAULTS["warmup"], tune["steps"] // 10))
        self.how = FineTune(
            out=str(self.out), resume=self.goes_on, checkpointing=self.get("scheme") == "checkpoint", **tune
        )
        device = find_device(self.how.device)
        scheme = self.given.get("scheme")
        self.model, self.tokenizer = _sources.load(self.name, plain=scheme is not None)
        if full:  # steps of full fine-tuning are lost in the digits of a narrower dtype
            self.model.float()
        self.model.to(device)
        self.lora = (
            None
            if full
            else (
                self.given.get("lora", DEFAULTS["lora"]),
                self.given.get("lora_alpha"),
                None if self.get("lora_targets") == "auto" else self.get("lora_targets"),
            )
        )
        chunk = 0 if "teacher" in self.given else self.how.loss_chunk
        if self.lora:
            layers.check_lora(self.model, *self.lora, chunked=chunk != 0)
        if self.how.head_last and chunk == 0:
            raise ConfigError("--head-last is of the loss in chunks, which --teacher rules out: drop one")
        check_loss(self.model, chunk, self.how.head_last)
        self.teacher = None
        if "teacher" in self.given:
            self.teacher = _sources.load(self.given["teacher"], plain=True)[0].to(device)
        self._read(torch)

    def _read(self, torch: Any) -> None:
        context = self.given.get("context", shared.row_length(self.model, DEFAULTS["context"]))
        if context != shared.row_length(self.model, context):
            raise ConfigError(
                f"--context is {context}, the model has {shared.row_length(self.model, context)} positions;"
                " expected at most that: drop it, or give a smaller one"
            )
        rows = shared.token_rows(
            self.tokenizer, self.given.get("data"), context,
            extensions=self.given.get("extensions", shared.EXTENSIONS),
            max_bytes=self.given.get("max_bytes", 0 if "data" in self.given else LIBRARY_BYTES),
        )  # fmt: skip
        held = max(1, int(len(rows) * self.get("val_fraction")))
        if len(rows) <= held:
            raise ConfigError(
                f"the text has {len(rows)} rows of {context} tokens, {held} of which are held out, expected"
                " more to train on: give more text or a smaller --context"
            )
        self.rows, tail = rows[:-held], rows[-held:]
        wanted = min(held, self.get("eval_batches") * self.how.batch)
        # Of all held-out text, not of its first file.
        spread = tail[torch.linspace(0, held - 1, wanted).round().long()]
        self.held_out = [{"input_ids": part.to(self.model.device)} for part in spread.split(self.how.batch)]
        where = self.get("lora_targets")
        if where == "auto":
            where = "the modules that peft chooses"
        what = "all weights" if self.lora is None else f"LoRA of rank {self.lora[0]} on {where}"
        print(
            f"{type(self.model).__name__}: {what}, learning rate {self.how.lr:g}; {rows.numel():,} tokens of "
            f"text, {self.how.steps} steps of {self.how.batch * self.how.accumulate} x {context} tokens, "
            f"{spread.numel():,} held out to compare"
        )

    def _convert(self) -> None:
        """Convert the model, and compare it with the plain one on text that it was not calibrated on."""
        from ... import hf
        from ...hf import _settings
        from ...hf._calibrate import as_plain

        before = self.record.get("before")  # where the run goes on, both are known
        made = hf.conversion(self.model)
        stored = self.get("scheme") in STORED_TRUNKS
        choices = {name: self.given[name] for name in _CHOICES if name in self.given}
        asked = [name.replace("_", "-") for name in (*_CHOICES, "fit") if name in self.given]
        if made is not None and asked:
            raise ConfigError(
                f"--{asked[0]} says how to convert, and the folder was saved converted ({made}); expected a"
                " plain model, or no such option"
            )
        if stored and asked:
            raise ConfigError(
                f"--{asked[0]} is of reversible training, and the scheme is {self.get('scheme')}; expected a"
                " reversible scheme, or no such option"
            )
        if before is None:
            with as_plain(self.model):
                before = {"plain": self._loss("the plain model")}
        if made is not None:
            print(f"as it was saved: {made}")
        elif "conversion" in self.record:
            hf.convert(self.model, **_settings.arguments(self.record["conversion"]))
        elif not stored:
            rows = self.rows[:: max(1, len(self.rows) // CALIBRATION_ROWS)][:CALIBRATION_ROWS]
            rows = rows[: max(1, CALIBRATION_TOKENS // rows.shape[1])]
            choices |= self._of_auto() | (fitting(self) if "fit" in self.given else {})
            # Propagated, so that the gradient scaler can skip a step.
            nonfinite = "propagate" if self.how.dtype == "float16" else "raise"
            hf.convert(
                self.model,
                self.get("scheme"),
                calibration=rows,
                on_nonfinite=nonfinite,
                tokenizer=self.tokenizer,
                say=print,
                **choices,
            )
        if "converted" not in before:
            same = hf.conversion(self.model) is None
            before["converted"] = before["plain"] if same else self._loss("the converted model")
        change = before["converted"] / before["plain"] - 1
        print(
            "validation loss {plain:.4f} plain, {converted:.4f} converted ({change:+.2%})".format(
                **before, change=change
            )
        )
        if abs(change) > self.get("loss_tolerance"):
            self._warn(
                f"the conversion alone changes the loss by {change:+.2%}, past the tolerance of"
                f" {self.get('loss_tolerance'):.2%}: training begins with another model than yours; take a"
                " smaller c (--scheme blend:c=0.0625 or less) or --scheme auto"
            )
        self.record["before"] = before
        if hf.conversion(self.model) is not None and made is None:
            self.record["conversion"] = _settings.read(self.model.config)

    def _loss(self, what: str) -> float:
        """Mean loss on the held-out rows; on a terminal with a bar, since a large model takes minutes."""
        from ... import hf

        batches: Any = self.held_out
        if self.progress and sys.stderr.isatty():
            from ..._imports import require

            tqdm = require("tqdm", "the progress bar (or --no-progress)", "hf").tqdm
            batches = tqdm(batches, desc=f"validation, {what}", unit="batch", dynamic_ncols=True, leave=False)
        tokens = [b["input_ids"][:, 1:].numel() for b in self.held_out]
        return sum(n * hf.mean_loss(self.model, [b]) for n, b in zip(tokens, batches)) / sum(tokens)

    # ---- training and after ----

    def _train(self) -> int:
        import torch

        from ..._models.layers import add_lora
        from ...hf._finetune import finetune
        from ...lm._session import Interrupt

        write_record(self.out, self.record)
        if self.lora:
            torch.manual_seed(self.how.seed)  # of the adapters' weights
            self.model = add_lora(self.model, *self.lora)
        with Interrupt() as interrupt:
            tuned = finetune(
                self.model,
                self.rows,
                self.how,
                teacher=self.teacher,
                stop=lambda: interrupt.requested,
                progress=self.progress,
            )
        if tuned.interrupted:
            print(
                f"stopped after step {tuned.step} of {self.how.steps}, checkpoint in {self.out}; "
                f"go on with: revstep finetune {self.name} --out {self.out} --resume",
                file=sys.stderr,
            )
            return 128 + interrupt.signal
        self._finish(tuned)
        return 0

    def _finish(self, tuned: Any) -> None:
        from ... import hf
        from ..._models.layers import merge_lora
        from ...hf._calibrate import as_plain, four_losses

        if self.lora:
            write_folder(self.out / "adapter", self.model.save_pretrained)
        losses = self.record["before"] | {"trained": self._loss("as trained")}
        self.model = merge_lora(self.model)
        converted = hf.conversion(self.model) is not None
        with as_plain(self.model):
            changed = converted or self.lora
            losses["deployed"] = self._loss("deployed") if changed else losses["trained"]
        self.model.cpu()
        self._save(self.out)
        print(f"states {tuned.reconstruction}; {tuned.tokens_per_second:,.0f} tokens/s")
        print(four_losses(losses))
        apart = losses["deployed"] / losses["trained"] - 1
        if abs(apart) > self.get("loss_tolerance"):
            self._warn(
                f"deployed as the plain model the loss is {apart:+.2%} from that as trained, past the"
                f" tolerance of {self.get('loss_tolerance'):.2%}; a smaller c (--scheme blend:c=0.0625 or"
                " less) brings the two together"
            )
        write_record(
            self.out, self.record | {"finished": True, "losses": losses, "states": tuned.reconstruction}
        )
        print(f"saved in {self.out}; try it: revstep generate {self.out}")
        if self.deploy is not None:
            if converted:
                hf.revert(self.model)
            self._save(self.deploy)
            print(f"the plain model in {self.deploy}")

    def _save(self, folder: str | Path) -> None:
        def write(part: Path) -> None:
            self.model.save_pretrained(part)
            self.tokenizer.save_pretrained(part)

        write_folder(folder, write)

    def _warn(self, sentence: str) -> None:
        print(f"revstep: warning: {sentence}", file=sys.stderr)
