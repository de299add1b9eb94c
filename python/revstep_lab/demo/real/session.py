"""The demo on real weights, ``revstep demo``, from start to end: the run itself, its picture, the step that
it measures three ways, and its result in words.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from revstep import hf
from revstep._files import write_atomic, write_folder
from revstep._imports import require
from revstep._locks import only_writer
from revstep._models.layers import add_lora, merge_lora
from revstep.errors import ConfigError
from revstep.hf import _sources
from revstep.hf._calibrate import as_plain, four_losses
from revstep.hf._finetune import FineTune, Tuned, checkpointed, finetune
from revstep.hf._loss import chunk_loss, unchunk_loss
from revstep.hf._settings import quiet

from ...bench.peaks import by_allocator
from ...bench.runner import environment
from ...drawing import INK, PALETTE, SOFT, figure, label_ends, save
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
    with only_writer(folder), quiet():
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
        write_folder(out, self.model.save_pretrained)
        write_folder(out, self.tokenizer.save_pretrained)
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
        document["summary"] = summary(document)
        write_atomic(self.folder / "demo.json", (json.dumps(document, indent=1) + "\n").encode())
        draw(self.folder / "demo.png", document)
        return Outcome(self.folder, 0 if exact else 1, document, document["summary"])


# ------------------------------------------------------------------------------------------------------------
# The picture: the loss on its way down with the four that count, and what a step holds each way.

WORDS = {
    "plain": "plain, before",
    "converted": "converted",
    "trained": "as trained",
    "deployed": "deployed, plain",
}


def draw(path: Path, document: dict[str, Any]) -> None:
    """Write the picture of a run's document."""
    title = f"{document['model']} fine-tuned reversibly, deployed as the plain model"
    where = document["environment"]
    what = f"LoRA on {document['text']}; {document['steps']} steps"
    subtitle = f"{what}; {where['device']}, torch {where['torch']}, {where['date']}"
    fig, (left, right) = figure(2, 12.4, 4.4, 1.9, title, subtitle)
    _losses(left, document)
    _memory(right, document["memory"])
    save(fig, path)


def _losses(ax: Any, document: dict[str, Any]) -> None:
    losses, found = document["training_loss"], document["losses"]
    window = max(1, len(losses) // 10)
    smooth = [float(np.mean(losses[max(0, i + 1 - window) : i + 1])) for i in range(len(losses))]
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=SOFT, linewidth=0.7, alpha=0.5)
    ax.plot(steps, smooth, color=INK, linewidth=1.8)
    ends = []
    for (name, words), colour in zip(WORDS.items(), PALETTE):
        at = 0 if name in ("plain", "converted") else len(losses)
        ax.plot([at], [found[name]], marker="o", color=colour, zorder=4)
        ends.append((at, found[name], f"{words}: {found[name]:.4f}", colour))
    ax.set_xlabel("step", color=INK, fontsize=9)
    ax.set_ylabel("loss, nats a token", color=INK, fontsize=9)
    ax.set_title("training loss, and held-out losses as dots", fontsize=9.5, color=INK, loc="left")
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    label_ends(ax, ends, size=8.5)


def _memory(ax: Any, memory: dict[str, Any]) -> None:
    names = list(memory)
    peaks = [memory[name]["peak"] / 1e6 for name in names]
    ax.bar(range(len(names)), peaks, width=0.55, color=[SOFT, PALETTE[4], PALETTE[0]])
    for i, (name, peak) in enumerate(zip(names, peaks)):
        ax.text(
            i,
            peak,
            f"{peak:,.0f} MB\n{memory[name]['seconds']:.1f} s",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, 1.2 * max(peaks))
    ax.set_ylabel("peak of one step above the weights, MB", color=INK, fontsize=9)
    ax.set_title("memory of one training step", fontsize=9.5, color=INK, loc="left")


# ------------------------------------------------------------------------------------------------------------
# One training step, plain, checkpointed and reversible, of one model and rows: what it holds, its time.

WAYS = ("plain", "checkpointed", "reversible")
#: Timed steps of each way, in turn, after one whose bytes are counted, which warms up.
ROUNDS = 2


def measure(
    model: nn.Module, rows: Tensor, say: Callable[[str], None] = lambda line: None
) -> dict[str, dict[str, float]]:
    """``{way: {"peak", "kept", "seconds"}}`` of forward and backward pass; all three have the loss in chunks.

    ``peak`` and ``kept`` are bytes of torch's allocator above what was there before: weights are in neither.

    Args:
        model: converted, with adapters. It is as it was, afterwards.
        rows: token ids of a step (B, T).
        say: gets a line for each way.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write lines of its own
    training = model.training
    chunk_loss(model.train())
    found: dict[str, dict[str, float]] = {}
    try:
        for way in WAYS:
            with _run_as(model, way):
                found[way] = dict(by_allocator(lambda between: _step(model, rows, between)))
            say(f"  {way:14} {found[way]['peak'] / 1e6:8,.0f} MB at its peak")
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in WAYS * ROUNDS:
            with _run_as(model, way):
                began = time.perf_counter()
                _step(model, rows, lambda: None)
                seconds[way].append(time.perf_counter() - began)
        for way in WAYS:
            found[way]["seconds"] = statistics.median(seconds[way])
    finally:
        unchunk_loss(model)
        model.train(training)
    return found


@contextmanager
def _run_as(model: nn.Module, way: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if way == "reversible" else as_plain(model))
        stack.enter_context(checkpointed(model, way == "checkpointed"))
        yield


def _step(model: nn.Module, rows: Tensor, between: Callable[[], Any]) -> None:
    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    between()
    loss.backward()
    model.zero_grad(set_to_none=True)


# ---- What came of a run, in words and numbers ----


def memory_table(memory: dict[str, Any]) -> str:
    """Peaks and times of a step, each beside plain's."""
    plain = memory["plain"]
    lines = ["one training step    peak above the weights    time"]
    for way, found in memory.items():
        less = "" if way == "plain" else f"  {plain['peak'] / found['peak']:.1f} times less"
        slower = "" if way == "plain" else f"  {found['seconds'] / plain['seconds']:.2f} x plain"
        lines.append(f"  {way:16} {found['peak'] / 1e6:10,.0f} MB{less:16} {found['seconds']:8.2f} s{slower}")
    return "\n".join(lines)


def summary(document: dict[str, Any]) -> str:
    """All of it for a terminal, the verdict first."""
    sample = document["sample"]
    return "\n\n".join(
        [
            verdict(document),
            four_losses(document["losses"]),
            memory_table(document["memory"]),
            f"before: {sample['before']!r}\nafter:  {sample['after']!r}",
        ]
    )


def verdict(document: dict[str, Any]) -> str:
    """One sentence on what held and what did not."""
    losses = document["losses"]
    mb = {way: f"{found['peak'] / 1e6:,.0f}" for way, found in document["memory"].items()}
    apart = losses["deployed"] / losses["trained"] - 1
    if not document["exact"]:
        return f"NOT everything held: {document['states']}; please report it with {document['file']}"
    return (
        f"{document['model']} learned {document['text']} in {document['steps']} steps: every one of the"
        f" {document['states_rebuilt']:,} hidden states that backward rebuilt has the bits of the forward"
        f" pass, a step held {mb['reversible']} MB instead of {mb['plain']} (checkpointed"
        f" {mb['checkpointed']}), and deployed as the plain model its loss is {apart:+.2%} from that as"
        " trained"
    )
