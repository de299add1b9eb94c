"""What is compared, and how much of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from revstep.errors import ConfigError

PLAIN, CHECKPOINTING, BY_LAYER = "plain", "checkpointing", "Blend, c by layer"
ADAPTING = ("LoRA", "full")
#: What is measured: losses over the seeds, and seconds and bytes of a step.
LOSSES, COSTS = "losses", "costs"
PARTS = (LOSSES, COSTS)


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        scheme: what the model is converted to; None: it stays plain.
        checkpointing: torch's, of every layer.
        distilled: the converted model learns the plain one's answers before it is fine-tuned.
    """

    scheme: str | None = None
    checkpointing: bool = False
    distilled: bool = False


#: All are compared with the first one.
METHODS = {
    PLAIN: Method(),
    CHECKPOINTING: Method(checkpointing=True),
    "Blend, c = 1/8": Method("blend:c=0.125"),
    "Blend, c = 1/16": Method("blend:c=0.0625"),
    BY_LAYER: Method("auto"),
    "Hamiltonian, distilled": Method("hamiltonian", distilled=True),
    "Midpoint, distilled": Method("midpoint", distilled=True),
}
#: What a run does not depend on, so that more of it can be asked for later.
_NOT_OF_A_RUN = ("parts", "methods", "seeds", "timed_batch", "timed_context")


@dataclass(frozen=True)
class PretrainedCase:
    """A model and how it is fine-tuned.

    Attributes:
        model: a folder, a GGUF file or a name, as ``revstep finetune`` takes it; empty: SmolLM2-135M.
        adapting: "LoRA" (adapters on all linear layers) or "full".
        parts: some of PARTS.
        methods: some of METHODS, plain among them.
        seeds: of the adapters and of the order of the rows.
        steps, batch, context: optimiser steps, rows of a step, tokens of a row.
        rank: of the adapters.
        lr: of AdamW.
        bits: mean carry bits of a layer where c goes by layer.
        distil_steps, distil_lr: of the distillation, one of as many rows a step.
        held_out: rows of the text that the losses are taken on.
        timed_batch, timed_context: of the step whose seconds and bytes are measured.
        threads: of torch.

    Raises:
        ConfigError: a value that cannot be used.
    """

    model: str = ""
    adapting: str = "LoRA"
    parts: tuple[str, ...] = PARTS
    methods: tuple[str, ...] = tuple(METHODS)
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
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("parts", "methods", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.parts or set(self.parts) - set(PARTS):
            raise ConfigError(f"parts are {' '.join(self.parts) or 'none'}, expected some of {', '.join(PARTS)}")
        if self.adapting not in ADAPTING:
            raise ConfigError(f"adapting is {self.adapting!r}, expected {' or '.join(ADAPTING)}")
        if unknown := [m for m in self.methods if m not in METHODS]:
            raise ConfigError(f"method {unknown[0]!r} is not known, expected some of {'; '.join(METHODS)}")
        if PLAIN not in self.methods:
            raise ConfigError(f"methods are {'; '.join(self.methods)}, expected plain among them: the others are compared with it")
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
