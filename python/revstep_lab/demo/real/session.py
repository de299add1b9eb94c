"""The demo on real weights from start to end."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revstep import hf
from revstep._imports import require
from revstep._models.lora import add_lora, merge_lora
from revstep.errors import ConfigError
from revstep.hf import _sources
from revstep.hf._finetune import FineTune, Tuned, finetune
from revstep.hf._settings import quiet
from revstep.lm._files import write_atomic

from ...bench.runner import environment
from . import record
from .record import measure
from .settings import Settings, Text, read

MODEL = "SmolLM2-135M-Instruct"
PROMPT = "The following sections describe the standard types that are built into the interpreter."
FILES = ("demo.json", "demo.png", "model")
#: Fewest and most steps that follow from the minutes.
STEPS = (4, 500)


@dataclass
class Outcome:
    """What ``run`` returns.

    Attributes:
        folder: where all of it lies.
        code: 0; 1: a state was not rebuilt bit for bit; 130: stopped by Ctrl-C, what there was is written.
        document: everything in demo.json.
        summary: the same in words.
        written: names in ``folder``.
    """

    folder: Path
    code: int = 0
    document: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    written: tuple[str, ...] = FILES


def check_packages() -> None:
    """Raises ConfigError for a package of revstep[demo] that is missing."""
    for package in ("matplotlib", "tqdm", "transformers", "accelerate", "peft", "gguf"):
        require(package, "the demo on real weights", "demo")


def run(settings: Settings, weights: Path, say: Callable[[str], None] = print) -> Outcome:
    """Convert, measure, fine-tune, deploy, compare, draw and write.

    Args:
        settings: what to do.
        weights: the GGUF file, as ``find_weights`` gives it; a folder of a model as well.
        say: gets lines on what is going on.

    Raises:
        ConfigError: packages of revstep[demo] that are missing, weights that cannot be read, a folder that
            holds a model already; nothing has been computed then.
        OSError: the folder cannot be written.
    """
    check_packages()
    folder = Path(settings.out)
    if (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds a model already: name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        return _Session(settings, weights, folder, say).go()


class _Session:
    def __init__(self, settings: Settings, weights: Path, folder: Path, say: Callable[[str], None]):
        self.settings, self.folder, self.say, self.began = settings, folder, say, time.perf_counter()
        self.where = environment()
        self.model, self.tokenizer = _sources.load(weights, say=say)
        self.text: Text = read(self.tokenizer, settings)
        self.losses: dict[str, float] = {}

    def go(self) -> Outcome:
        from revstep.lm._session import Interrupt

        count = sum(p.numel() for p in self.model.parameters())
        self.say(
            f"{MODEL}: {count / 1e6:.1f} M parameters; to learn: {self.text.what},"
            f" {self.text.train.numel():,} tokens"
        )
        before = self._sample(self.model)
        self.losses["plain"] = self._loss(self.model)
        rows = self.text.train
        hf.convert(
            self.model, self.settings.scheme, calibration=rows[:: max(1, len(rows) // 8)][:8], say=self.say
        )
        self.losses["converted"] = self._loss(self.model)
        self.say(
            f"loss {self.losses['plain']:.4f} plain, {self.losses['converted']:.4f} converted, nothing"
            " trained yet"
        )
        torch.manual_seed(self.settings.seed)  # of the adapters
        model = add_lora(self.model, self.settings.rank, targets="all-linear")
        self.say(f"a step of {self.settings.batch} x {self.settings.context} tokens, three ways:")
        memory = measure(model, rows[: self.settings.batch].clone(), self.say)
        how = self._how(memory["reversible"]["seconds"])
        with Interrupt() as interrupt, tempfile.TemporaryDirectory() as scratch:
            tuned = self._train(model, how, scratch, lambda: interrupt.requested)
        if tuned.interrupted:
            self.say(
                f"stopped after step {tuned.step} of {how['steps']}; what is there is deployed and written"
            )
        sample = {"prompt": PROMPT, "before": before, "after": self._deploy(model)}
        outcome = self._write(tuned, memory, sample)
        if tuned.interrupted and outcome.code == 0:
            outcome.code = 128 + interrupt.signal
        return outcome

    def _how(self, seconds: float) -> dict[str, Any]:
        s = self.settings
        steps = s.steps or min(max(round(60 * s.minutes / seconds), STEPS[0]), STEPS[1])
        return {"steps": steps, "batch": s.batch, "lr": s.lr, "warmup": steps // 10, "seed": s.seed}

    def _train(self, model: nn.Module, how: dict[str, Any], scratch: str, stop: Callable[[], bool]) -> Tuned:
        settings = FineTune(out=scratch, device="cpu", **how)
        return finetune(
            model, self.text.train, settings, stop=stop, say=self.say, progress=self.settings.progress
        )

    def _deploy(self, model: nn.Module) -> str:
        """Merge, revert, save, and load the folder by transformers alone; a sample of what was loaded."""
        self.model = merge_lora(model)
        self.losses["trained"] = self._loss(self.model)
        hf.revert(self.model)
        out = self.folder / "model"
        self.model.save_pretrained(out)
        self.tokenizer.save_pretrained(out)
        transformers = require("transformers", "loading the model again", "demo")
        deployed = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
        self.losses["deployed"] = self._loss(deployed)
        return self._sample(deployed)

    def _loss(self, model: nn.Module) -> float:
        return hf.mean_loss(model, self.text.held_out)

    def _sample(self, model: nn.Module) -> str:
        """The likeliest continuation of the prompt, each time."""
        made = self.tokenizer(PROMPT, return_tensors="pt")
        options = {"max_new_tokens": self.settings.tokens, "do_sample": False}
        ids = model.generate(
            made["input_ids"], attention_mask=made["attention_mask"],
            pad_token_id=self.tokenizer.eos_token_id, **options,
        )  # fmt: skip
        return self.tokenizer.decode(ids[0, made["input_ids"].shape[1] :], skip_special_tokens=True)

    def _write(self, tuned: Tuned, memory: dict[str, Any], sample: dict[str, str]) -> Outcome:
        exact = tuned.passes > 0 and tuned.states == tuned.matched
        steps = len(tuned.losses)
        given = asdict(self.settings).items()
        chosen = {name: value for name, value in given if name not in ("out", "progress")}
        document = {
            "environment": self.where, "command": self.settings.command(steps), "model": MODEL,
            "text": self.text.what,
            "settings": chosen, "steps": steps, "seconds": round(time.perf_counter() - self.began, 1),
            "training_seconds": round(sum(tuned.seconds), 1),
            "tokens_per_second": round(tuned.tokens_per_second, 1),
            "losses": self.losses, "memory": memory, "exact": exact, "states": tuned.reconstruction,
            "states_rebuilt": tuned.states, "states_bit_equal": tuned.matched, "sample": sample,
            "training_loss": [round(v, 5) for v in tuned.losses], "file": "demo.json",
        }  # fmt: skip
        document["summary"] = record.summary(document)
        write_atomic(self.folder / "demo.json", (json.dumps(document, indent=1) + "\n").encode())
        record.draw(self.folder / "demo.png", document)
        return Outcome(self.folder, 0 if exact else 1, document, document["summary"])
