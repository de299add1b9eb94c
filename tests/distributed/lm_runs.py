"""Tiny runs of the language model that the processes of a group are sent, broken on purpose where asked, and
their comparison.
"""

import contextlib
import dataclasses
import hashlib
import warnings
from unittest import mock

import torch

from revstep import lm
from revstep.lm import _parallel, _run

KINDS = ("ddp", "fsdp")
#: What a clock or the machine decides.
CLOCKED = {"seconds", "tokens_per_second", "peak_memory"}


def tiny_runs(tmp_path):
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


# ---- what is compared ----


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


def joined_bound(config):
    """Of the loss of one forward pass at the initial weights, in another order of rows.

    A product of rows and a matrix may be summed in another order, by less than a unit of the state's grid
    here (|f| < 1, K <= 64: K eps / 2 < 2**-19), so each of the layers' increments moves by at most 2 + 1
    units. The norm before the head divides by the deviation of the embeddings' sum, 0.02 sqrt(2): times 36. A
    logit has ``width`` products with weights of 0.02 (four deviations: 0.08), and a cross entropy moves by
    twice its logits at most.
    """
    return config.layers * 3 * 2.0**-20 * 36 * config.width * 0.08 * 2
