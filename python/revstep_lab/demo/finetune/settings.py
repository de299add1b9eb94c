"""What a run of the worked example is made of."""

from __future__ import annotations

from dataclasses import dataclass

from revstep.errors import ConfigError

FAMILIES = ("gpt2", "llama")


@dataclass(frozen=True)
class Settings:
    """Sizes. The defaults take about a quarter of an hour on one CPU core; :meth:`small` less than a minute.

    Attributes:
        steps, tune_steps: of training each model, and of each fine-tuning.
        layers, width, heads, vocab, context, batch: the models, and the rows of a step.
        lr, tune_lr, lora_lr: peak learning rates; lora: rank of the adapters.
        batches: of a validation.
        text: characters of the standard library that are read.
        families: what is trained.
        seed: of weights and order. out: folder of everything. device: "cpu", or "auto".

    Raises:
        ConfigError: a number that cannot be used.
    """

    steps: int = 1500
    tune_steps: int = 80
    layers: int = 8
    width: int = 128
    heads: int = 4
    vocab: int = 1024
    context: int = 128
    batch: int = 4
    lr: float = 3e-3
    tune_lr: float = 5e-4
    lora_lr: float = 3e-3
    lora: int = 8
    batches: int = 12
    text: int = 3_000_000
    families: tuple[str, ...] = FAMILIES
    seed: int = 0
    out: str = "revstep-demo-hf"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "tune_steps", "layers", "heads", "context", "batch", "lora", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a whole number of at least 1")
        if self.width % (2 * self.heads) or self.width < 1:
            raise ConfigError(f"width is {self.width}, expected a multiple of twice the {self.heads} heads")
        unknown = [f for f in self.families if f not in FAMILIES]
        if unknown or not self.families:
            raise ConfigError(f"families are {self.families}, expected some of {', '.join(FAMILIES)}")
        if not self.out:
            raise ConfigError("out is empty: name a folder for the models, figures and numbers")

    @classmethod
    def small(cls, steps: int = 40, **changes) -> Settings:
        """For a check that everything works."""
        sizes = {"layers": 4, "width": 64, "heads": 2, "vocab": 384, "context": 64, "batch": 8, "batches": 2, "text": 300_000, "lora": 4}
        return cls(**{"steps": steps, "tune_steps": max(1, steps // 5), **sizes, **changes})
