"""The vocabulary head of a Hugging Face model without ever holding all its logits: ``chunk_loss(model)`` and
``unchunk_loss(model)``.

    loss = sum_i CE(W h_i + b, label_{i+1}) / count        h_i: what the head reads

Only this instance changes: its head returns ``LazyLogits`` while gradients are recorded, and its
``loss_function`` gives them to torch's chunked op. Class, parameters, state_dict and config stay. Without
gradients (generation, evaluation) the head returns logits as always.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._imports import require
from .._models.layers import SOFTCAP, hooked, plain_head, transformer
from .._models.training import WIDE, Tie, TiedEmbedding, chunked_cross_entropy, lacking, reaches
from ..errors import ConfigError, UnsupportedError
from ._lazy import LazyLogits, lazy_logits

__all__ = ["ChunkedLoss", "LazyForward", "TiedLookup", "chunk_loss", "unchunk_loss"]


class LazyForward:
    """The ``forward`` of one head. A plain object and not a closure, so that the model can still be pickled
    and copied.
    """

    def __init__(self, head: nn.Linear):
        self.head = head

    def __call__(self, input: Tensor) -> Tensor:
        head = self.head
        return (
            lazy_logits(input, head.weight, head.bias)
            if torch.is_grad_enabled()
            else type(head).forward(head, input)
        )


class TiedLookup:
    """The ``forward`` of an embedding whose matrix is the head's too, and trains: see
    :class:`~revstep._models.training.Tie`.
    """

    def __init__(self, embedding: nn.Embedding, last: bool):
        self.embedding = embedding
        self.last = last
        self._lookup: tuple[Any, Any] = (None, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lookup": (None, None)}

    def __call__(self, input: Tensor) -> Tensor:
        embedding = self.embedding
        wanted = torch.is_grad_enabled() and embedding.weight.requires_grad
        # a compiler has graphs of its own, and where the matrix is another one by now, so is its gradient
        if not wanted or torch.compiler.is_compiling() or type(embedding.weight) is not nn.Parameter:
            return type(embedding).forward(embedding, input)
        tie = Tie(self.last)
        out = TiedEmbedding.apply(embedding.weight, input, embedding.padding_idx, tie)
        self._lookup = weakref.ref(out.grad_fn), weakref.ref(tie)
        return out

    def tie(self, hidden: Tensor, weight: Tensor) -> Tie | None:
        """Of the last lookup, if ``hidden`` was computed from it, so that its backward pass will come."""
        node, tie = (ref and ref() for ref in self._lookup)
        self._lookup = None, None
        if node is None or tie is None or weight is not self.embedding.weight or hidden.grad_fn is None:
            return None
        return tie if reaches(hidden.grad_fn, node) else None


class ChunkedLoss:
    """transformers' ``ForCausalLMLoss`` for lazy logits; real ones go to ``original``."""

    def __init__(self, original: Any, chunk: int | str, was_set: bool, lookup: TiedLookup | None = None):
        self.original = original
        self.lookup = lookup
        self.chunk = chunk
        self.was_set = was_set

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        # kwargs: models hand all of their forward's own to the loss; transformers' loss ignores them in the
        # same way.
        if not isinstance(logits, LazyLogits) or logits.source.computed is not None:
            real = logits.real() if isinstance(logits, LazyLogits) else logits
            return self.original(
                real, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
            )
        if vocab_size != logits.shape[-1]:
            raise ConfigError(
                f"the head has {logits.shape[-1]} outputs, the config says vocab_size={vocab_size}; expected"
                " the same: resize the embeddings"
            )
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]  # token t predicts t + 1
        source = logits.source
        parts = [source.hidden, source.weight, source.bias]
        if not logits.requires_grad:
            parts = [None if part is None else part.detach() for part in parts]
        targets = shift_labels.reshape(-1).to(source.hidden.device)
        tie = self.lookup and self.lookup.tie(source.hidden, source.weight)
        return chunked_cross_entropy(
            *parts, targets, self.chunk, count=num_items_in_batch, ignore_index=ignore_index, tie=tie
        )


class _Reached(Exception):
    """The probe's loss was called."""


class _Probe:
    """Stands for the loss during the probe and looks at what it is given."""

    def __init__(self):
        self.logits: Any = None

    def __call__(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.logits = logits
        raise _Reached


def chunk_loss(model: nn.Module, chunk: int | str = "auto", head_last: bool = False) -> nn.Module:
    """Let ``model``, any ``*ForCausalLM`` of transformers (or a peft model around one), compute its training
    loss in chunks of rows. Returns it.

    Args:
        model: runs one forward pass of two tokens here, to see that nothing reads the logits before the loss.
        chunk: rows (tokens) of logits held at a time, or "auto".
        head_last: where embedding and head share a matrix and it trains, its gradient (vocabulary x width,
            often the largest of the model) is computed at the end of backward and not at its beginning, so
            that it does not lie beside everything that the layers need. The logits are computed twice. The
            gradient has the same bits.

    ``outputs.logits`` stay usable in training: they are computed when touched, before the optimiser's step.

    Raises:
        ConfigError: ``chunk``; torch too old; ``head_last`` where no matrix is shared, or one in half
            precision.
        UnsupportedError: no plain linear head, another loss than ForCausalLMLoss, logits that the model
            changes before its loss.
    """
    if chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ConfigError(f"chunk is {chunk!r}; expected 'auto' or a positive number of rows")
    base = transformer(model)
    if isinstance(base.__dict__.get("_loss_function"), ChunkedLoss):
        raise ConfigError(
            "this model's loss is chunked already; expected a plain one: unchunk_loss(model) first"
        )
    head = plain_head(base)
    if missing := lacking(head.weight):
        raise ConfigError(f"chunk_loss needs {missing}: upgrade torch")
    original = base.loss_function
    loss_utils = require("transformers.loss.loss_utils", "chunk_loss", "hf")
    if original is not loss_utils.ForCausalLMLoss:
        name = getattr(original, "__name__", type(original).__name__)
        raise UnsupportedError(
            f"{type(base).__name__} has the loss {name}; expected transformers' ForCausalLMLoss, whose"
            " semantics the chunked loss has"
        )
    was_set = "_loss_function" in base.__dict__
    _install(head)
    try:
        _probe(base)
    except BaseException:
        _remove(head)
        raise
    finally:
        _set_loss(base, original, was_set)
    lookup = _tie(base.get_input_embeddings(), head, head_last)
    base.loss_function = ChunkedLoss(original, chunk, was_set, lookup)
    if head_last:
        _check_last(model, lookup, head)
    return model


def _check_last(model: nn.Module, lookup: TiedLookup | None, head: nn.Linear) -> None:
    if lookup is not None and head.weight.dtype in WIDE:
        return
    unchunk_loss(model)
    if lookup is not None:
        raise ConfigError(
            f"head_last with a matrix in {head.weight.dtype}, expected float32 or float64: keep the weights"
            " in float32 and compute under bfloat16 autocast, or leave out head_last"
        )
    raise ConfigError(
        "head_last, but the head's matrix is not that of a plain embedding: nothing is added to its gradient"
        " later, so it need not wait (with fused_step it is gone before the layers begin). Leave out"
        " head_last"
    )


def unchunk_loss(model: nn.Module) -> nn.Module:
    """Undo ``chunk_loss``: the head and the loss of the instance as they were. Returns the model.

    Raises:
        ConfigError: its loss is not chunked.
    """
    base = transformer(model)
    loss = base.__dict__.get("_loss_function")
    if not isinstance(loss, ChunkedLoss):
        raise ConfigError("this model's loss is not chunked; expected one that chunk_loss was called on")
    _remove(base.get_output_embeddings())
    embedding = base.get_input_embeddings()
    if isinstance(embedding.__dict__.get("forward"), TiedLookup):
        del embedding.forward
    _set_loss(base, loss.original, loss.was_set)
    return model


def _set_loss(base: nn.Module, original: Any, was_set: bool) -> None:
    if was_set:
        base.loss_function = original
    else:
        base.__dict__.pop("_loss_function", None)  # the property then looks the loss up by the class again


def _install(head: nn.Linear) -> None:
    """Behind accelerate's hook where there is one: it moves the input, and brings in weights that are
    elsewhere.
    """
    setattr(head, "_old_forward" if hooked(head) else "forward", LazyForward(head))


def _tie(embedding: Any, head: nn.Linear, last: bool) -> TiedLookup | None:
    """Where the embedding's matrix is the head's, and nothing stands before its forward: put into it."""
    if type(embedding) is not nn.Embedding or embedding.weight is not head.weight:
        return None
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse:
        return None
    if "forward" in embedding.__dict__ or hooked(embedding):
        return None
    embedding.forward = lookup = TiedLookup(embedding, last)  # type: ignore[method-assign]
    return lookup


def _remove(head: nn.Module) -> None:
    if isinstance(head.__dict__.get("_old_forward"), LazyForward):
        head._old_forward = type(head).forward.__get__(head)
    if isinstance(head.__dict__.get("forward"), LazyForward):
        del head.forward


def _probe(base: nn.Module) -> None:
    """Two tokens up to the loss, which must receive the head's logits untouched."""
    name = type(base).__name__
    if getattr(base.config.get_text_config(), SOFTCAP, None) is not None:
        raise UnsupportedError(
            f"{name} caps its logits ({SOFTCAP}) before the loss; expected logits that go from the head to"
            " the loss unchanged"
        )
    device = base.get_input_embeddings().weight.device
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    probe = _Probe()
    base.loss_function = probe
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            base(input_ids=tokens, labels=tokens, use_cache=False)
    except _Reached:
        pass
    if probe.logits is None:
        raise UnsupportedError(
            f"{name} does not call self.loss_function in its forward; expected a model that does: it computes"
            " the loss in a way of its own"
        )
    if not isinstance(probe.logits, LazyLogits) or probe.logits.source.computed is not None:
        raise UnsupportedError(
            f"{name} reads or changes its logits between head and loss (scaling, soft-capping, slicing);"
            " expected them to go to the loss unchanged: train it with all logits"
        )
