"""transformers' Trainer on two gloo processes: what it wraps is DDP, and a converted model trains in it as in
one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from ddp_training import differing

sys.path.insert(0, str(Path(__file__).parents[1] / "hf"))  # for `models`

from models import LAYERS, VOCAB, converted
from transformers import Trainer, TrainerCallback, TrainingArguments

from revstep import hf


class Rows(torch.utils.data.Dataset):
    """Rows that count up in steps; all of them have equally many tokens."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict:
        ids = (i * 5 + torch.arange(10) * 3) % (VOCAB - 3) + 3
        return {"input_ids": ids, "labels": ids}


class Reports(TrainerCallback):
    def __init__(self):
        self.exact = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        report = hf.conversion(model).report
        self.exact.append(report is not None and report.exact)


def _run(out: str, keep: int = 0, accumulate: int = 1, backend: str | None = None) -> tuple:
    made, reports = converted("Llama", convert={"keep": keep}), Reports()
    args = TrainingArguments(
        out,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        save_strategy="no",
        ddp_backend=backend,
        logging_steps=1,
    )
    trainer = Trainer(model=made, args=args, train_dataset=Rows(), callbacks=[reports])
    trainer.train()
    kind = type(trainer.model_wrapped).__name__
    return kind, reports.exact, {name: p.detach().clone() for name, p in made.named_parameters()}


@contextlib.contextmanager
def _as_torchrun(rank: int):
    """What accelerate looks for; and it forgets what it has found when this is over."""
    from accelerate.state import AcceleratorState

    # The group is there already.
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
    }
    with mock.patch.dict(os.environ, {name: str(value) for name, value in environment.items()}):
        AcceleratorState._reset_state(True)
        yield
        AcceleratorState._reset_state(True)


def _runs(rank: int, out: str) -> list:
    with _as_torchrun(rank):
        return [_run(out, keep, backend="gloo") for keep in (0, LAYERS)]


def test_trainer(ranks, tmp_path):
    """Weights to the bit: of the stored recurrence, and of one process that accumulates what the
    ranks see.
    """
    kind, exact, expected = _run(str(tmp_path), accumulate=2)
    assert kind == "LlamaForCausalLM" and exact == [True] * 4
    for (wrapped, rebuilt, weights), (_, _, stored) in ranks(_runs, str(tmp_path)):
        assert wrapped == "DistributedDataParallel" and rebuilt == [True] * 4
        assert not differing(weights, stored) and not differing(weights, expected)
    assert differing(expected, _run(str(tmp_path))[2])  # one process that sees half of it
