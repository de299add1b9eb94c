"""Fine-tuning over several seeds beside its cost: ordinary, with checkpointing, and reversible; in full and
with LoRA; deployed as the ordinary model.

One transformers model is trained on the standard library's sources; each method starts from those weights and
sees the same rows of another text, Python's documentation, in the same order for a seed. ``revstep bench
finetune`` runs this.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revstep import hf
from revstep._files import write_folder
from revstep.errors import ConfigError
from revstep.hf._calibrate import both_losses
from revstep.hf._finetune import FineTune, Tuned, add_lora, checkpointed, finetune, merge_lora
from revstep.hf._settings import quiet
from revstep.hf._sources import load_model

from ...bench.peaks import Step, in_children
from ...bench.runner import environment, measure
from .settings import Settings, Text, as_rows, documentation, library, make, make_tokenizer, untrained
from .tune import ADAPTING, STORED

#: label -> scheme, or one of STORED. The others are compared with the first.
METHODS = {
    "ordinary": "plain",
    "checkpointing": "checkpoint",
    "Blend, c = 1/4": "blend:c=0.25",
    "Blend, c = 1/2": "blend:c=0.5",
    "BDIA": "bdia",
    "Midpoint": "midpoint",
}
#: Trainers, and children that measure memory, know no text.
_ROWS_OF_CALIBRATION = 8


@dataclass(frozen=True)
class FinetuneCase:
    """Sizes; the attributes as in :class:`.settings.Settings`.

    Attributes:
        family: "gpt2" or "llama". methods: some of METHODS, "ordinary" among them. seeds: of the order of the
            rows and of the adapters.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: a method that is not known, ordinary missing, fewer than two seeds, or what Settings
            refuses.
    """

    family: str = "llama"
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 700
    tune_steps: int = 40
    layers: int = 8
    width: int = 64
    heads: int = 4
    vocab: int = 512
    context: int = 96
    batch: int = 4
    lr: float = 3e-3
    tune_lr: float = 5e-4
    lora_lr: float = 3e-3
    lora: int = 8
    batches: int = 10
    text: int = 2_000_000
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("methods", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if unknown := [m for m in self.methods if m not in METHODS]:
            raise ConfigError(f"method {unknown[0]!r} is not known, expected some of {'; '.join(METHODS)}")
        if "ordinary" not in self.methods:
            raise ConfigError(
                f"methods are {'; '.join(self.methods)}, expected ordinary among them: the others are"
                " compared with it"
            )
        if len(self.seeds) < 2 or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds are {self.seeds}, expected two or more, each once")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is {self.device!r}, expected cpu or cuda")
        self.settings(0)

    @classmethod
    def default(cls, device: str = "cpu", **changes: Any) -> FinetuneCase:
        """The sizes of the device: on CUDA about 90 million parameters."""
        large = {
            "steps": 4000,
            "tune_steps": 200,
            "layers": 16,
            "width": 640,
            "heads": 10,
            "vocab": 4096,
            "context": 512,
            "batch": 16,
            "lr": 1e-3,
            "tune_lr": 2e-4,
            "lora_lr": 1e-3,
            "lora": 16,
            "text": 12_000_000,
        }
        return cls(**{**(large if device == "cuda" else {}), "device": device, **changes})

    def settings(self, seed: int) -> Settings:
        names = (
            "steps",
            "tune_steps",
            "layers",
            "width",
            "heads",
            "vocab",
            "context",
            "batch",
            "lr",
            "tune_lr",
            "lora_lr",
            "lora",
            "batches",
            "text",
        )
        device = "auto" if self.device == "cuda" else "cpu"
        return Settings(
            **{name: getattr(self, name) for name in names}, families=(self.family,), seed=seed, device=device
        )


class _Ids:
    """As much of a tokenizer as makes a model."""

    eos_token_id = 0

    def __init__(self, vocab: int):
        self.vocab = vocab

    def __len__(self) -> int:
        return self.vocab


def adapted(
    model: nn.Module, case: FinetuneCase, method: str, adapting: str, calibration: Tensor, seed: int
) -> nn.Module:
    """The model converted where the method is reversible, with adapters where they are asked for."""
    if METHODS[method] not in STORED:
        hf.convert(model, METHODS[method], calibration=calibration, say=None)
    torch.manual_seed(seed)
    return add_lora(model, case.lora, targets="all-linear") if adapting == "LoRA" else model


def trial(
    case: FinetuneCase, base: Path, texts: tuple[Text, Text], method: str, adapting: str, seed: int
) -> dict[str, Any]:
    """One fine-tuning as plain JSON values: losses on the new text as trained and deployed, and of the
    deployed model on the old one.
    """
    old, new = texts
    settings = case.settings(seed)
    model = adapted(load_model(base), case, method, adapting, new.train[:_ROWS_OF_CALIBRATION], seed)
    with tempfile.TemporaryDirectory() as scratch:
        how = FineTune(
            out=scratch,
            steps=case.tune_steps,
            batch=case.batch,
            lr=case.lora_lr if adapting == "LoRA" else case.tune_lr,
            warmup=case.tune_steps // 10,
            seed=seed,
            device=settings.device,
            checkpointing=METHODS[method] == "checkpoint",
        )
        tuned = finetune(model, new.train, how, say=None)
    trained, plain = both_losses(model, new.held_out)
    model = merge_lora(model)
    if hf.conversion(model) is not None:
        hf.revert(model)
    # Deployed as anyone would: saved, and loaded by transformers alone.
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, model.save_pretrained)
        deployed = load_model(folder)
    return {
        "method": method,
        "adapting": adapting,
        "seed": seed,
        "as_trained": trained,
        "unmerged": plain,
        "deployed": hf.mean_loss(deployed, new.held_out),
        "old": hf.mean_loss(deployed, old.held_out),
        **_states(tuned),
        "training_loss": [round(v, 5) for v in tuned.losses],
    }


def _states(tuned: Tuned) -> dict[str, int]:
    return {"states_rebuilt": tuned.states, "states_bit_equal": tuned.matched}


def summary(
    case: FinetuneCase, trials: Sequence[dict[str, Any]], method: str, adapting: str
) -> dict[str, Any]:
    """Mean, standard deviation and each of the losses of a method, and the paired difference of the deployed
    one to ordinary fine-tuning.
    """
    own, ordinary = (
        [t for t in trials if (t["method"], t["adapting"]) == (m, adapting)] for m in (method, "ordinary")
    )
    found: dict[str, Any] = {}
    for what in ("as_trained", "deployed", "old"):
        values = [t[what] for t in own]
        found[what] = {"mean": statistics.mean(values), "sd": statistics.stdev(values), "each": values}
    apart = [a["deployed"] - b["deployed"] for a, b in zip(own, ordinary, strict=True)]
    found["difference"] = {
        "mean": statistics.mean(apart),
        "standard_error": statistics.stdev(apart) / len(apart) ** 0.5,
    }
    found["states_rebuilt"], found["states_bit_equal"] = (
        sum(t[k] for t in own) for k in ("states_rebuilt", "states_bit_equal")
    )
    return found


@contextmanager
def _one_step(case: FinetuneCase, model: nn.Module, method: str, ids: Tensor) -> Iterator[Callable[[], None]]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with checkpointed(model, METHODS[method] == "checkpoint"):
        yield step


def name_of(method: str, adapting: str) -> str:
    return f"{method}, {adapting}"


def times(case: FinetuneCase, base: Path, text: Text, rounds: int) -> dict[str, dict]:
    """Seconds of a whole training step of every method, in full and with LoRA, in interleaved rounds; the
    ratio is to ordinary of the same kind.
    """
    from contextlib import ExitStack

    ids = text.train[: case.batch].clone().to(case.device)
    with ExitStack() as stack:
        made = {}
        for adapting in ADAPTING:
            for method in case.methods:
                model = (
                    adapted(load_model(base), case, method, adapting, text.train[:_ROWS_OF_CALIBRATION], 0)
                    .to(case.device)
                    .train()
                )
                made[name_of(method, adapting)] = stack.enter_context(_one_step(case, model, method, ids))
        cuda = case.device == "cuda"
        clock = time.process_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter
        rows = measure(made, rounds, sync=torch.cuda.synchronize if cuda else lambda: None, clock=clock)
    return {
        m.name: {
            **m.to_dict(),
            "ratios": {
                o: r for o, r in m.ratios.items() if o == name_of("ordinary", m.name.rsplit(", ", 1)[1])
            },
        }
        for m in rows
    }


def steps(case: FinetuneCase, name: str) -> tuple[Step, Step, Callable[[], None]]:
    """The steps of a row, for :func:`revstep_lab.bench.peaks.in_children`: forward and backward of untrained
    weights, which take the same bytes.
    """
    method, adapting = name.rsplit(", ", 1)
    ids = torch.randint(0, case.vocab, (case.batch, case.context), generator=torch.Generator().manual_seed(0))
    with quiet():
        model = (
            adapted(
                untrained(case.family, case.settings(0), _Ids(case.vocab)), case, method, adapting, ids, 0
            )
            .to(case.device)
            .train()
        )

    def step_on(rows: Tensor) -> Step:
        rows = rows.clone().to(case.device)

        def step(between: Callable[[], None]) -> None:
            with checkpointed(model, METHODS[method] == "checkpoint"):
                loss = model(input_ids=rows, labels=rows, use_cache=False).loss
                between()
                loss.backward()

        return step

    return step_on(ids), step_on(ids[:1, :8]), lambda: model.zero_grad(set_to_none=True)


def run_finetune(
    case: FinetuneCase, rounds: int, memory: bool = True, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Train one model, fine-tune it by every method, in full and with LoRA, over the seeds; measure steps and
    memory.
    """
    settings = case.settings(0)
    with quiet(), tempfile.TemporaryDirectory(prefix="revstep-") as folder:
        base = Path(folder) / "base"
        code = library(case.text)
        tokenizer = make_tokenizer(code, case.vocab, 4 * case.context)
        texts = as_rows(code, tokenizer, settings), as_rows(documentation(), tokenizer, settings)
        make(case.family, settings, texts[0], tokenizer, base)
        model = load_model(base)
        parameters, (old, new) = (
            sum(p.numel() for p in model.parameters()),
            (hf.mean_loss(model, text.held_out) for text in texts),
        )
        say(
            f"{type(model).__name__}, {parameters:,} parameters; loss on the old text {old:.4f}, on the new"
            f" one {new:.4f}"
        )
        converted, trials = {}, []
        for method in case.methods:
            again = adapted(load_model(base), case, method, "full", texts[1].train[:_ROWS_OF_CALIBRATION], 0)
            converted[method] = hf.mean_loss(again, texts[1].held_out)
        for seed in case.seeds:
            for adapting in ADAPTING:
                for method in case.methods:
                    trials.append(trial(case, base, texts, method, adapting, seed))
                    say(
                        f"seed {seed}, {name_of(method, adapting)}: {new:.4f} ->"
                        f" {trials[-1]['as_trained']:.4f}, deployed {trials[-1]['deployed']:.4f}"
                    )
        measured = times(case, base, texts[1], rounds)
        rows = []
        for adapting in ADAPTING:
            for method in case.methods:
                name = name_of(method, adapting)
                rows.append(
                    {
                        **measured[name],
                        **summary(case, trials, method, adapting),
                        "converted": converted[method],
                    }
                )
        if memory:
            found = in_children(steps, case, [row["name"] for row in rows])
            rows = [{**row, "memory": found[row["name"]]} for row in rows]
    return {
        "environment": environment(case.device),
        "case": asdict(case),
        "class": type(model).__name__,
        "parameters": parameters,
        "before": {"old": old, "new": new},
        "trials": trials,
        "measurements": rows,
        "goals": [],
        "skipped": [],
    }
