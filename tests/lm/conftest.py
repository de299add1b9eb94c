"""Tiny texts and runs for the language-model tests: a few kilobytes, two layers, seconds in all."""

import dataclasses

import pytest
import torch

from revstep import lm

WORDS = "the state is an integer and the step can be undone so nothing is lost on the way down\n"


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to gain from threads, and on a busy machine threads that wait for each other
    cost ten times the work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path):
    """A folder of three small text files in two levels, about 9 kB."""
    folder = tmp_path / "text"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("b.txt", "a.txt", "sub/c.txt")):
        (folder / name).write_text("".join(f"{i} {WORDS}"[j % 7 :] for j in range(36)), encoding="utf-8")
    return folder


@pytest.fixture
def config(text, tmp_path):
    """A factory of tiny ``TrainConfig``s; keywords change single values."""
    base = lm.TrainConfig(
        data=(str(text),),
        tokenizer="bytes",
        scheme="plain",
        layers=2,
        width=16,
        heads=2,
        context=16,
        dropout=0.1,
        steps=8,
        batch=2,
        lr=1e-2,
        min_lr=1e-3,
        warmup=2,
        eval_every=0,
        eval_batches=2,
        save_every=0,
        device="cpu",
        out=str(tmp_path / "run"),
        progress=False,
    )
    return lambda **changes: dataclasses.replace(base, **changes)
