"""What ``revstep bench pretrained`` compares: the methods, the case with its sizes, and the models that the
methods begin from.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from revstep import hf
from revstep.errors import ConfigError
from revstep.hf._finetune import FineTune, finetune
from revstep.hf._sources import load_model

from ..real.settings import Settings, Text, read

# ------------------------------------------------------------------------------------------------------------
# What is compared, and how much of it.

PLAIN, CHECKPOINTING, BY_LAYER = "plain", "checkpointing", "Blend, c by layer"
BY_TILES = f"{BY_LAYER}, MLPs by tiles"
HEAD_LAST = f"{BY_LAYER}, MLPs by large tiles, head's gradient last"
CHECKPOINTING_LAST = f"{CHECKPOINTING}, head's gradient last"
ADAPTING = ("LoRA", "full")
#: What is measured: losses over the seeds, and seconds and bytes of a step.
LOSSES, COSTS = "losses", "costs"
PARTS = (LOSSES, COSTS)
#: What becomes of the gradients of the step that is timed: nothing, or AdamW steps by each inside backward.
LEFT_OUT, FUSED = "left-out", "fused-step"
OPTIMIZERS = (LEFT_OUT, FUSED)


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        scheme: what the model is converted to; None: it stays plain.
        checkpointing: torch's, of every layer.
        distilled: the converted model learns the plain one's answers before it is fine-tuned.
        tile: tokens of a tile of its MLPs; the model begins as that of c by layer. None: whole.
        head_last: the gradient of a matrix that is head and embedding comes at the end of backward.
    """

    scheme: str | None = None
    checkpointing: bool = False
    distilled: bool = False
    tile: int | None = None
    head_last: bool = False


#: All are compared with the first one.
METHODS = {
    PLAIN: Method(),
    CHECKPOINTING: Method(checkpointing=True),
    "Blend, c = 1/8": Method("blend:c=0.125"),
    "Blend, c = 1/16": Method("blend:c=0.0625"),
    BY_LAYER: Method("auto"),
    BY_TILES: Method("auto", tile=256),
    HEAD_LAST: Method("auto", tile=1024, head_last=True),
    CHECKPOINTING_LAST: Method(checkpointing=True, head_last=True),
    "Hamiltonian, distilled": Method("hamiltonian", distilled=True),
    "Midpoint, distilled": Method("midpoint", distilled=True),
}
#: What a run does not depend on, so that more of it can be asked for later.
_NOT_OF_A_RUN = ("parts", "methods", "seeds", "timed_batch", "timed_context", "optimizer")


@dataclass(frozen=True)
class PretrainedCase:
    """A model and how it is fine-tuned.

    Attributes:
        model: a folder, a GGUF file or a name, as ``revstep finetune`` takes it; empty: SmolLM2-135M.
        adapting: "LoRA" (adapters on all linear layers) or "full".
        parts: some of PARTS.
        methods: some of METHODS, plain among them; by default those that every model can.
        seeds: of the adapters and of the order of the rows.
        steps, batch, context: optimiser steps, rows of a step, tokens of a row.
        rank: of the adapters.
        lr: of AdamW.
        bits: mean carry bits of a layer where c goes by layer.
        distil_steps, distil_lr: of the distillation, one of as many rows a step.
        held_out: rows of the text that the losses are taken on.
        timed_batch, timed_context: of the step whose seconds and bytes are measured.
        optimizer: one of OPTIMIZERS, in that step.
        threads: of torch.

    Raises:
        ConfigError: a value that cannot be used.
    """

    model: str = ""
    adapting: str = "LoRA"
    parts: tuple[str, ...] = PARTS
    methods: tuple[str, ...] = tuple(name for name, m in METHODS.items() if not m.head_last)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 200
    batch: int = 1
    context: int = 256
    rank: int = 8
    lr: float = 2e-4
    bits: float = 4.0
    distil_steps: int = 200
    distil_lr: float = 3e-4
    held_out: int = 32
    timed_batch: int = 2
    timed_context: int = 1024
    optimizer: str = LEFT_OUT
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("parts", "methods", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.parts or set(self.parts) - set(PARTS):
            raise ConfigError(
                f"parts are {' '.join(self.parts) or 'none'}, expected some of {', '.join(PARTS)}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}, expected {' or '.join(OPTIMIZERS)}")
        if self.adapting not in ADAPTING:
            raise ConfigError(f"adapting is {self.adapting!r}, expected {' or '.join(ADAPTING)}")
        if unknown := [m for m in self.methods if m not in METHODS]:
            raise ConfigError(f"method {unknown[0]!r} is not known, expected some of {'; '.join(METHODS)}")
        if PLAIN not in self.methods:
            raise ConfigError(
                f"methods are {'; '.join(self.methods)}, expected plain among them: the others are compared"
                " with it"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}, expected one or more, each once")

    @property
    def short_name(self) -> str:
        """The model's name without the folders of this machine."""
        return Path(self.model).name or "SmolLM2-135M"

    def of_a_run(self) -> dict[str, Any]:
        """What finished runs are only good for."""
        about = {name: value for name, value in asdict(self).items() if name not in _NOT_OF_A_RUN}
        return {**about, "model": self.short_name}


# ------------------------------------------------------------------------------------------------------------
# Where each method begins: the plain model, or one that is converted, and distilled where it has to be.
#
# Each is made once and kept as a folder.

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
        if METHODS[name].tile:
            how = hf.conversion(self.load(BY_LAYER)).stack.options
            return hf.convert(model, how.stack_options(tile=METHODS[name].tile))
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
