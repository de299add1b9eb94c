"""The language model trained by two processes: the run of one process, whatever the engine, by a check that
notices what a group could do wrong.
"""

import contextlib
import math
import os
import shutil
import signal
import socket
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from lm_runs import KINDS, bits, digest, joined_bound, patched, steps_of, tiny_runs, train

from revstep import lm
from revstep.errors import ConfigError
from revstep.lm._architectures import Block


@pytest.fixture
def config(tmp_path):
    return tiny_runs(tmp_path)


# ---- one process and two ----


def norms_differ(kind, alone, group, out):
    """DDP has the gradient of one process, so its norm. FSDP2 adds n squares in another order: n additions,
    each wrong by half an ulp at most.
    """
    count = sum(w.numel() for w in lm.load_checkpoint(out).weights.values())
    bound = 0.0 if kind == "ddp" else count * torch.finfo(torch.float32).eps / 2
    return any(
        abs(a["grad_norm"] - b["grad_norm"]) > bound * a["grad_norm"]
        for a, b in zip(alone, group, strict=True)
    )


@contextlib.contextmanager
def launched():
    """The environment of the one process of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mock.patch.dict(
        os.environ, RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    ):
        yield


def differences(ranks, config, kind, mutants=(), **changes):
    """Names of what differs between a run of two processes and one of a process that adds up the two halves
    of each batch.

    FSDP2 is compared with itself on one process: its nodes around a block add up the gradient of the block's
    input in another order than without it.
    """
    entries = []
    with launched():
        alone = config(
            "alone",
            batch=2,
            accumulate=2,
            eval_batches=4,
            parallel="none" if kind == "ddp" else "fsdp",
            **changes,
        )
        lm.train(alone, on_step=entries.append)
    both = ranks(train, config("group", parallel=kind, **changes).to_dict(), False, None, mutants)
    alone, group = lm.load_checkpoint(config("alone").out), lm.load_checkpoint(config("group").out)
    found = {
        "processes": (
            both[0]["digest"] != both[1]["digest"]
            or steps_of(both[0]["entries"]) != steps_of(both[1]["entries"])
        ),
        "log": (
            steps_of(entries, "checksums", "grad_norm")
            != steps_of(both[0]["entries"], "checksums", "grad_norm")
        ),
        "norm": norms_differ(kind, entries, both[0]["entries"], config("group").out),
        "weights": bits(alone.weights) != bits(group.weights),
        "optimizer": bits(alone.training["optimizer"]) != bits(group.training["optimizer"]),
        "files": (
            sorted(p.name for p in Path(config("group").out).iterdir())
            != sorted(p.name for p in Path(config("alone").out).iterdir())
        ),
    }
    return [name for name, different in found.items() if different]


RUNS = [
    {"scheme": "plain"},
    {"scheme": "blend:c=0.25", "keep": 1},
    {"scheme": "hamiltonian", "tied": False},
    {"scheme": "bdia:seed=1"},
    {
        "model": "llama",
        "scheme": "midpoint_blend:a=paper,seed=3",
        "dtype": "bfloat16",
        "heads": 4,
        "kv_heads": 2,
    },
    {"scheme": "checkpoint", "model": "llama"},
]


@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: ",".join(map(str, changes.values())))
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one_bit_for_bit(ranks, config, kind, changes):
    """Halves of a loss and of a gradient are exact, so that one process adding up the parts and two averaging
    theirs round alike.
    """
    assert differences(ranks, config, kind, **changes) == []


def test_ddp_clips_as_one_process(ranks, config):
    assert differences(ranks, config, "ddp", clip=0.1) == []


WRONG = [
    ("ddp", "same_rows", {"log", "weights"}),
    ("fsdp", "same_rows", {"log", "weights"}),
    ("ddp", "never_joined", {"processes", "weights"}),
    ("ddp", "own_loss", {"log"}),
    ("fsdp", "own_loss", {"log"}),
    ("fsdp", "norm_of_a_shard", {"processes", "norm"}),
]


# A set prints in an order of its own in each process: no part of an id.
@pytest.mark.parametrize(
    "kind, mutant, seen", WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_comparison_notices(ranks, config, kind, mutant, seen):
    assert seen <= set(differences(ranks, config, kind, (mutant,)))


def test_ddp_and_fsdp_agree(ranks, config):
    """Bit for bit where FSDP2's nodes around a block leave no sum in another order (halves, whose input is
    used once), else to rounding.
    """
    for scheme in ("hamiltonian", "midpoint"):
        ddp, fsdp = (ranks(train, config(kind, parallel=kind, scheme=scheme).to_dict())[0] for kind in KINDS)
        first, second = ddp["entries"][0], fsdp["entries"][0]
        assert (
            first["loss"] == second["loss"]
            and first["checksums"] == second["checksums"]
            and ddp["exact"]
            and fsdp["exact"]
        )
        assert not norms_differ("fsdp", [first], [second], config("fsdp").out)
        if scheme == "hamiltonian":
            assert ddp["digest"] == fsdp["digest"] and [e["loss"] for e in ddp["entries"]] == [
                e["loss"] for e in fsdp["entries"]
            ]
        for kind in KINDS:
            shutil.rmtree(config(kind).out)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up(ranks, config, kind):
    """Two micro-batches of four rows on two processes, and four of two rows on one: four gradients added in
    another order, so to rounding.

    Each of three additions is wrong by 2**-24 of the norms it adds at most. Those of parts of a batch are not
    20 times the whole's, at weights that have not been fitted to any text: less than 4e-6.
    """
    entries = []
    lm.train(config("", batch=2, accumulate=4, steps=1), on_step=entries.append)
    both = ranks(train, config("", accumulate=2, steps=1, parallel=kind).to_dict())
    (first,), (second,) = (r["entries"] for r in both)
    assert both[0]["digest"] == both[1]["digest"] and steps_of([first]) == steps_of([second])
    assert first["loss"] == entries[0]["loss"] and first["grad_norm"] == pytest.approx(
        entries[0]["grad_norm"], rel=4e-6
    )


def keeping(rank, config, keeps):
    return train(rank, {**config, "keep": keeps[rank]})


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_may_keep_as_many_graphs_as_it_has_room_for(ranks, config, kind):
    alike, unlike = (
        ranks(keeping, config("", parallel=kind, layers=3).to_dict(), keeps) for keeps in ((0, 0), (2, 0))
    )
    assert {r["digest"] for r in alike} == {r["digest"] for r in unlike}
    assert [r["entries"][0]["loss"] for r in alike] == [r["entries"][0]["loss"] for r in unlike]


@pytest.mark.parametrize("kind", KINDS)
def test_the_joined_batch_to_rounding(ranks, config, kind):
    single = lm.train(config("", steps=1)).losses
    (group, _), shifted = (
        ranks(train, config("", steps=1, parallel=kind).to_dict()),
        lm.train(config("", steps=1, seed=1)).losses,
    )
    bound = joined_bound(config(""))
    assert abs(group["entries"][0]["loss"] - single[0]) <= bound < abs(shifted[0] - single[0])


# ---- what one process meets is everyone's ----


def faulty(rank, config, fault):
    """As ``train``, where process 1 meets ``fault`` in its third step; -> its result, or the error's name and
    text.
    """
    done, forward, block = 0, lm.GPT.forward, Block.forward

    def on_step(entry):
        nonlocal done
        done += 1
        if fault == "signals" and rank == 1 and done == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    def bad(self, *args):
        return forward(self, *args) * (float(fault) if (rank, done) == (1, 2) else 1.0)

    def large(self, *args):
        return block(self, *args) * (1e9 if (rank, done) == (1, 2) else 1.0)

    where = (
        (Block, "forward", large)
        if fault == "states"
        else (lm.GPT, "forward", forward if fault == "signals" else bad)
    )
    with patched(*where), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            result = lm.train(lm.TrainConfig(**config), on_step=on_step)
        except lm.DivergedError as error:
            return str(error)
    return {
        "digest": digest(result.model),
        "signal": result.signal,
        "step": result.step,
        "skipped": result.skipped,
        "losses": result.losses,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_to_one_stops_all_at_the_same_step(ranks, config, kind):
    """Twice, as under torchrun, which passes on the Ctrl-C that the terminal has given to all."""
    both = ranks(faulty, config("run", parallel=kind).to_dict(), "signals")
    assert [(r["step"], r["signal"]) for r in both] == [(3, signal.SIGINT)] * 2
    assert lm.load_checkpoint(config("run").out).step == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_on_one_is_so_on_all(ranks, config, kind):
    texts = ranks(faulty, config("", parallel=kind).to_dict(), "nan")
    assert texts[0] == texts[1] and "the loss of step 3 is nan" in texts[0]


@pytest.mark.parametrize(
    "changes, fault",
    [({}, "nan"), ({}, "states"), ({"dtype": "float16"}, "inf")],
    ids=["nan", "states", "float16"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_one_must_skip_is_skipped_by_all(ranks, config, kind, changes, fault):
    both = ranks(faulty, config("", parallel=kind, on_bad_step="skip", **changes).to_dict(), fault)
    assert both[0]["digest"] == both[1]["digest"] and [r["skipped"] for r in both] == [1, 1]
    assert [math.isfinite(loss) for loss in both[0]["losses"]] == [True, True, False, True, True, True]


# ---- what is refused ----


def refused(rank, config):
    with pytest.raises(ConfigError) as caught:
        lm.train(lm.TrainConfig(**config))
    return str(caught.value)


def test_what_cannot_be_shared_out_is_refused(ranks, config):
    texts = ranks(refused, config("", parallel="ddp", batch=3).to_dict())
    assert (
        texts
        == ["batch is 3; expected a multiple of the 2 processes, among which its rows are shared out"] * 2
    )


def test_what_goes_wrong_on_the_first_is_said_by_the_first(ranks, config):
    texts = ranks(failing, config("", parallel="fsdp", data=("nowhere",)).to_dict())
    assert texts[0].startswith("ConfigError: no file or folder nowhere")
    assert texts[1].startswith(
        "ParallelError: process 1 stopped with process 0, which says: no file or folder nowhere"
    )


def failing(rank, config):
    try:
        lm.train(lm.TrainConfig(**config))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
