"""The logits of a model with the chunked loss are never held, and the measure would see them."""

import copy

import pytest
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("transformers")
from loss_models import batch, build, run

from revstep.hf._loss import chunk_loss

pytestmark = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch without linear_cross_entropy"
)


def peak(model, inputs):
    """The most bytes alive at once during a training step, beyond what was there before it, inner buffers of
    fused operations included.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        run(model, **inputs)
    changes = sorted(
        ((e.start_ns(), e.nbytes()) for e in p.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda c: c[0],
    )
    live = highest = 0
    for _, change in changes:
        live += change
        highest = max(highest, live)
    return highest


def test_the_logits_are_never_held():
    vocab, rows, time, chunk = 32768, 4, 64, 16
    plain, inputs = (
        build(vocab=vocab, tie_word_embeddings=True, max_position_embeddings=64),
        batch(rows, time, vocab),
    )
    model = chunk_loss(copy.deepcopy(plain), chunk)
    logits = 4 * rows * time * vocab  # bytes, 32 MiB
    held, saved = peak(plain, inputs), peak(model, inputs)
    # Head and embedding each make a gradient of (V, C) and autograd adds them: three at once. Chunk: logits
    # and a copy. The trunk: under 2 MiB.
    assert held > 2 * logits and saved <= 3 * 4 * vocab * 16 + 2 * 4 * chunk * vocab + 2**21 < logits


def test_the_measure_sees_held_logits():
    vocab = 32768
    model = chunk_loss(build(vocab=vocab, tie_word_embeddings=True), 10**6)  # one chunk: all logits
    assert peak(model, batch(4, 64, vocab)) > 4 * 4 * 64 * vocab
