"""Where each method begins: the plain model, or one that is converted, and distilled where it has to be.

Each is made once and kept as a folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from revstep import hf
from revstep.hf.finetune import FineTune, finetune
from revstep.hf.folders import load_model

from ..real.settings import Settings
from ..real.text import Text, read
from .case import METHODS, PLAIN, PretrainedCase

#: Rows that a format and c by layer are chosen on.
_ROWS_OF_CALIBRATION = 8


class Bases:
    """The models that trials begin from, in a folder each under ``folder``, and the text they learn.

    Args:
        load: gives (model, tokenizer) of ``case.model``.
        say: gets a line before what takes long.
    """

    def __init__(
        self,
        case: PretrainedCase,
        folder: Path,
        load: Callable[[str], tuple[nn.Module, Any]],
        say: Callable[[str], None],
    ):
        self.case, self.folder, self.say = case, folder, say
        folder.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load(case.model)
        settings = Settings(batch=case.batch, context=case.context, held_out=case.held_out)
        self.text: Text = read(tokenizer, settings)
        timed = Settings(batch=case.timed_batch, context=case.timed_context, held_out=1)
        self.timed_rows = read(tokenizer, timed).train[: case.timed_batch].clone()
        self.name, self.parameters = type(model).__name__, sum(p.numel() for p in model.parameters())
        self._keep(PLAIN, lambda: model)

    def load(self, method: str) -> nn.Module:
        """The model a method begins from, made if there is none yet."""
        at = PLAIN if METHODS[method].scheme is None else method
        return load_model(self._keep(at, lambda: self._made(at)))

    def _keep(self, method: str, make: Callable[[], nn.Module]) -> Path:
        where = self.folder / method.replace("/", "_").replace(", ", "-").replace(" ", "-").replace("=", "")
        if not where.exists():
            # A folder is whole, or it is not there.
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                made = Path(scratch) / "model"
                make().save_pretrained(made)
                os.replace(made, where)
        return where

    def converted(self, name: str) -> nn.Module:
        """The plain model as a method runs it, without distillation."""
        model, scheme, rows = self.load(PLAIN), METHODS[name].scheme, self.text.train
        if scheme is not None:
            self.say(f"{name}: converting")
            options: dict[str, Any] = {"bits": self.case.bits} if scheme == "auto" else {}
            some = rows[:: max(1, len(rows) // _ROWS_OF_CALIBRATION)][:_ROWS_OF_CALIBRATION]
            hf.convert(model, scheme, calibration=some, say=self.say, **options)
        return model

    def _made(self, name: str) -> nn.Module:
        case, rows, model = self.case, self.text.train, self.converted(name)
        if METHODS[name].distilled:
            self.say(f"{name}: distilling for {case.distil_steps} steps")
            with tempfile.TemporaryDirectory() as scratch:
                how = FineTune(
                    out=scratch,
                    steps=case.distil_steps,
                    batch=case.batch,
                    lr=case.distil_lr,
                    warmup=case.distil_steps // 10,
                    device="cpu",
                )
                finetune(model, rows, how, teacher=self.load(PLAIN), say=None)
        return model
