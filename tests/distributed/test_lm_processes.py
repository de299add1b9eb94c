"""The language model trained by two processes: the run of one process, whatever the engine. By a check that
notices what a group could do wrong.
"""

import contextlib
import dataclasses
import hashlib
import json
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

from revstep import lm
from revstep.errors import ConfigError
from revstep.lm import _parallel, _run
from revstep.lm._architectures import Block

KINDS = ("ddp", "fsdp")
#: What a clock or the machine decides.
CLOCKED = {"seconds", "tokens_per_second", "peak_memory"}


@pytest.fixture
def config(tmp_path):
    """A factory of tiny runs; ``out`` is a name in ``tmp_path``, or "" for none."""
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"{i} the state is an integer and the step can be undone\n"[i % 7 :] for i in range(100)),
        encoding="utf-8",
    )
    base = lm.TrainConfig(
        data=(str(text),),
        tokenizer="bytes",
        scheme="blend:c=0.25",
        layers=2,
        width=16,
        heads=2,
        context=16,
        steps=6,
        batch=4,
        lr=1e-2,
        min_lr=1e-3,
        warmup=2,
        clip=0.0,
        eval_every=3,
        eval_batches=2,
        save_every=0,
        device="cpu",
        progress=False,
    )
    return lambda out, **changes: dataclasses.replace(base, out=str(tmp_path / out) if out else "", **changes)


# ---- what the processes are sent ----


@contextlib.contextmanager
def patched(owner, name, value):
    with mock.patch.object(owner, name, value):
        yield


def same_rows(rank):
    return patched(_parallel._Group, "rows", lambda self, batch: batch[: len(batch) // self.size])


def never_joined(rank):
    return patched(_parallel.Replicated, "accumulating", lambda self, called, last: called.no_sync())


def own_loss(rank):
    return patched(_run, "joined", lambda parts, real=_run.joined: real(parts[:1]))


def norm_of_a_shard(rank):
    return patched(
        _run,
        "clip_gradients",
        lambda model, limit: float(
            torch.nn.utils.get_total_norm([p.grad.to_local() for p in model.parameters()])
        ),
    )


def one_generator(rank):
    return patched(_parallel.Engine, "seed", lambda self, seed, step=0: seed)


def random_states_forgotten(rank):
    return patched(
        _run.Run,
        "_restore_random",
        lambda self, saved: _run.restore_random(saved.training["random"], self.device),
    )


def optimizer_forgotten(rank):
    return patched(_run.Run, "_restore_optimizer", lambda self, saved: None)


def weights_of_each_alone(rank):
    return patched(
        _parallel._Group,
        "part",
        lambda self, tensor, like: torch.zeros(tensor.shape) if self.rank else tensor,
    )


def digest(model):
    """Of all weights, whole."""
    total = hashlib.sha256()
    for _, p in sorted(model.named_parameters()):
        total.update((p.full_tensor() if hasattr(p, "full_tensor") else p).detach().numpy().tobytes())
    return total.hexdigest()


def train(rank, config, resume=False, stop_at=None, mutants=()):
    """A run on this process -> its log entries, weights as a digest, and the rest of the result."""
    entries = []
    torch.manual_seed(12345 + rank)  # what a new process would not share with the one before
    with contextlib.ExitStack() as broken, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for mutant in mutants:
            broken.enter_context(globals()[mutant](rank))
        result = lm.train(lm.TrainConfig(**config), resume=resume, stop_at=stop_at, on_step=entries.append)
    return {
        "entries": entries,
        "digest": digest(result.model),
        "signal": result.signal,
        "step": result.step,
        "skipped": result.skipped,
        "exact": result.exact,
    }


def keeping(rank, config, keeps):
    return train(rank, {**config, "keep": keeps[rank]})


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


def refused(rank, config):
    with pytest.raises(ConfigError) as caught:
        lm.train(lm.TrainConfig(**config))
    return str(caught.value)


# ---- one process and two ----


def steps_of(entries, *without):
    """The log without what depends on clocks."""
    return [{k: v for k, v in e.items() if k not in {*CLOCKED, *without}} for e in entries]


def bits(tree):
    """Whatever is in a checkpoint, to be compared by ``==``."""
    if isinstance(tree, dict):
        return {k: bits(v) for k, v in tree.items()}
    if isinstance(tree, torch.Tensor):
        return tree.dtype, tuple(tree.shape), tree.numpy().tobytes()
    return [bits(v) for v in tree] if isinstance(tree, (list, tuple)) else tree


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


def joined_bound(config):
    """Of the loss of one forward pass at the initial weights, in another order of rows.

    A product of rows and a matrix may be summed in another order, by less than a unit of the state's grid
    here (|f| < 1, K <= 64: K eps / 2 < 2**-19), so each of the layers' increments moves by at most 2 + 1
    units. The norm before the head divides by the deviation of the embeddings' sum, 0.02 sqrt(2): times 36. A
    logit has ``width`` products with weights of 0.02 (four deviations: 0.08), and a cross entropy moves by
    twice its logits at most.
    """
    return config.layers * 3 * 2.0**-20 * 36 * config.width * 0.08 * 2


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


# ---- stopped and resumed ----


def after_resuming(ranks, config, kind, mutants=()):
    """Names of what differs between a run of two processes and one stopped at step 3 and resumed."""
    whole = ranks(train, config("whole", parallel=kind, scheme="bdia", dropout=0.1).to_dict())
    parts = config("parts", parallel=kind, scheme="bdia", dropout=0.1).to_dict()
    first = ranks(train, parts, False, 3)
    second = ranks(train, parts, True, None, mutants)
    saved = [lm.load_checkpoint(config(name).out) for name in ("whole", "parts")]
    logs = [
        [json.loads(line) for line in (Path(config(name).out) / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    clean = [steps_of(log, "val_loss") for log in logs]  # validated where it stopped, too
    assert [entry["step"] for entry in logs[0]] == [1, 2, 3, 4, 5, 6] and first[1]["step"] == 3
    found = {
        "log": clean[0] != clean[1],
        "digests": [r["digest"] for r in whole] != [r["digest"] for r in second],
        "weights": bits(saved[0].weights) != bits(saved[1].weights),
        "training": bits(saved[0].training) != bits(saved[1].training),
    }
    return [name for name, different in found.items() if different]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(ranks, config, kind):
    assert after_resuming(ranks, config, kind) == []


@pytest.mark.parametrize(
    "kind, mutant",
    [("ddp", "random_states_forgotten"), ("fsdp", "optimizer_forgotten"), ("ddp", "weights_of_each_alone")],
)
def test_the_resume_check_notices(ranks, config, kind, mutant):
    assert "weights" in after_resuming(ranks, config, kind, (mutant,))


def test_processes_draw_from_generators_of_their_own(ranks, config):
    """On the same rows their states differ by the dropout masks alone, in every step; with one generator they
    would not.
    """
    run = config("", parallel="ddp", dropout=0.1).to_dict()
    for mutants, distinct in ((("same_rows",), 2), (("same_rows", "one_generator"), 1)):
        entries = ranks(train, run, False, None, mutants)[0]["entries"]
        assert [len(set(entry["checksums"])) for entry in entries] == [distinct] * 6


def test_a_checkpoint_belongs_to_no_engine(ranks, config):
    """Begun with one engine and ended with another; with equal numbers of processes the bits stay, else the
    sum's order changes.
    """
    whole = ranks(train, config("whole", parallel="ddp").to_dict())[0]
    ranks(train, config("run", parallel="fsdp").to_dict(), False, 3)
    middle = lm.load_checkpoint(config("run").out)
    assert {name: type(w) for name, w in middle.weights.items()} == {
        name: torch.Tensor for name in lm.load_checkpoint(config("whole").out).weights
    }
    second = ranks(train, config("run", parallel="ddp").to_dict(), True, 4)[0]
    assert second["entries"][0]["loss"] == whole["entries"][3]["loss"]
    with pytest.raises(ConfigError, match=r"started alone: use torchrun .* or parallel 'none'"):
        lm.resume(config("run").out)
    with pytest.warns(UserWarning, match="parallel ddp of 2 -> none"):
        alone = lm.resume(config("run").out, {"parallel": "none"}, stop_at=5)
    # two steps on, what has moved is a rounding of the second one's gradient: the next loss still is that of
    # the same weights, in another order of rows
    assert alone.losses[0] == pytest.approx(whole["entries"][4]["loss"], abs=joined_bound(config("")))
    last = ranks(train, config("run", parallel="fsdp").to_dict(), True)[0]
    assert last["step"] == 6 and last["exact"] and math.isfinite(last["entries"][-1]["loss"])
    assert lm.generate_text(config("run").out, "the", count=3).startswith("the")


# ---- what one process meets is everyone's ----


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
