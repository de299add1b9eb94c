"""What every training of a language model can use: the loss of a large vocabulary in parts, and the sum of
what the backward passes of a run reported.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import ConfigError, UnsupportedError
from ..stack._report import Report, combined

#: Rows of a chunk of the loss on CPU. torch 2.13's own choice there is too small when the vocabulary is
#: large: 2048 rows, width 256, 32,768 ids, one x86 core, float32, loss and gradients: all logits 1.9 s and
#: 783 MB, torch's choice 4.4 s and 181 MB, 256 rows 1.0 s and 182 MB.
CPU_CHUNK = 256


def options(chunk: int | str, device: str) -> Any:
    """Of ``linear_cross_entropy``: rows of logits at a time, or "auto"."""
    if chunk == "auto" and device == "cpu":
        chunk = CPU_CHUNK
    sizes = {} if chunk == "auto" else {"batch_chunk_size": int(chunk), "chunking_method": None}
    # Forced there, by a warning that breaks the graph.
    return nn.LinearCrossEntropyOptions(allow_retain_graph=torch.compiler.is_compiling(), **sizes)


class Tie:
    """A matrix that is both a model's embedding and its head, in one forward pass.

    The head's gradient of it exists from the loss on, and the embedding's, which comes last, is zero but for
    the rows of the tokens that were read. Autograd adds the two up as dense tensors, so that there are two of
    the size of the vocabulary. Here the head hands its own to the embedding, which adds its rows to it.

    Args:
        last: the head's is computed when the embedding asks for it, from the logits once more, so that no
            gradient of the matrix exists while the layers between are differentiated.

    Attributes:
        gradient: the head's, on its way, or what computes it.
    """

    __slots__ = ("__weakref__", "gradient", "last")

    def __init__(self, last: bool = False) -> None:
        self.last = last
        self.gradient: Tensor | Callable[[], Tensor] | None = None

    def take(self) -> Tensor | None:
        """The head's gradient, which is the caller's from now on; None where the head has had none."""
        gradient, self.gradient = self.gradient, None
        return gradient() if callable(gradient) else gradient


class TiedEmbedding(torch.autograd.Function):
    """(weight, ids, tie) -> rows of ``weight``. Gradient of ``weight``: its own and what ``tie`` holds."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, tie: Tie) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding, ctx.tie = weight.shape, padding, tie
        return F.embedding(ids, weight, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        (ids,) = ctx.saved_tensors
        total = ctx.tie.take()
        if total is None:
            total = g.new_zeros(ctx.shape)
        rows, at = g.reshape(-1, g.shape[-1]), ids.reshape(-1)
        if ctx.padding is not None:
            rows = rows * (at != ctx.padding)[:, None]
        add = total.index_add if torch.is_grad_enabled() else total.index_add_
        return add(0, at, rows), None, None, None


class _FirstDerivative(torch.autograd.Function):
    """A loss as it is. Its gradients are numbers found in the forward pass, and no functions of the inputs: a
    graph of them would have second derivatives that lack the head's part.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "create_graph=True asks for second derivatives, and the loss in chunks has none: hold all"
                " logits, by loss_chunk=0 in revstep.lm, or by revstep.hf.unchunk_loss(model)"
            )
        return g


def reaches(node: Any, other: Any, limit: int = 200_000) -> bool:
    """Does the gradient that comes to ``node`` go on to ``other``? Nothing saved is asked for."""
    nodes, seen = [node], set()
    while nodes and len(seen) < limit:
        node = nodes.pop()
        if node is other:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [n for n, _ in node.next_functions]
    return False


def _errors(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, count: Any,
    ignore_index: int, wanted: bool,
) -> Iterator[tuple[slice, Tensor, Tensor]]:  # fmt: skip
    """Chunk by chunk: (which rows, the gradient of their logits, the sum of their losses). The gradient,
    (softmax - one) / count, takes the place of the logits, and the next chunk's takes its; only if
    ``wanted``.
    """
    logits = rows.new_empty(min(chunk, rows.shape[0]), weight.shape[0])
    for a in range(0, rows.shape[0], chunk):
        h, counts = rows[a : a + chunk], targets[a : a + chunk] != ignore_index
        at = targets[a : a + chunk].where(counts, 0)[:, None]
        z = torch.mm(h, weight.t(), out=logits[: h.shape[0]])
        if bias is not None:
            z += bias
        top = z.amax(1, keepdim=True)
        chosen = z.gather(1, at)
        sums = z.sub_(top).exp_().sum(1, keepdim=True)
        loss = ((top + sums.log() - chosen).squeeze(1) * counts).sum()
        if wanted:
            share = counts[:, None].to(z.dtype) / _divisor(count)
            z.mul_(share / sums).scatter_add_(1, at, -share)
        yield slice(a, a + chunk), z, loss


def _divisor(count: Any) -> Any:
    """``count``; 1 where no target counts. The mean is NaN then, and the gradients of its parts are zero."""
    return torch.where(count == 0, 1, count) if isinstance(count, Tensor) else count


class _InChunks(torch.autograd.Function):
    """(rows, weight, bias, targets) -> sum of CE(W h_i + b, t_i) over the targets that count, divided by
    ``count``.

    The logits of a chunk become their own gradient, (softmax - one) / count, in place, and that goes into the
    gradients of rows, matrix and bias at once: no product is computed twice, and beside those gradients
    nothing exists but the logits of one chunk. Backward multiplies them by the incoming gradient, in place
    unless the graph is kept. Only a matrix whose gradient comes last (:class:`Tie`) has its logits computed
    twice.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int,
        count: Any, ignore_index: int, tie: Tie | None,
    ) -> Tensor:  # fmt: skip
        of_rows, of_weight, of_bias = ctx.needs_input_grad[:3]
        drows = torch.zeros_like(rows) if of_rows else None
        last = of_weight and tie is not None and tie.last
        dweight = torch.zeros_like(weight) if of_weight and not last else None
        dbias = torch.zeros_like(bias) if of_bias else None
        total = rows.new_zeros(())
        given = (rows, weight, bias, targets)
        for at, z, loss in _errors(*given, chunk, count, ignore_index, any(ctx.needs_input_grad[:3])):
            total += loss
            if drows is not None:
                torch.mm(z, weight, out=drows[at])
            if dweight is not None:
                dweight.addmm_(z.t(), rows[at])
            if dbias is not None:
                dbias += z.sum(0)
        ctx.found, ctx.tie, ctx.last = [drows, dweight, dbias], tie, (chunk, count, ignore_index)
        if last:
            ctx.save_for_backward(*given)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple:
        if ctx.found is None:
            raise RuntimeError(
                "the gradients of this loss have been used: pass retain_graph=True the first time"
            )
        if torch._C._autograd._get_current_graph_task_keep_graph():
            found = [None if d is None else d * g for d in ctx.found]
        else:
            found, ctx.found = ctx.found, None
            for d in found:
                if d is not None:
                    d.mul_(g)
        if ctx.saved_tensors:
            given = ctx.saved_tensors
            ctx.tie.gradient = functools.partial(_of_the_matrix, g, given[1]._version, *given, *ctx.last)
        elif ctx.tie is not None:
            ctx.tie.gradient, found[1] = found[1], None
        return *found, None, None, None, None, None


def _of_the_matrix(
    g: Tensor, version: int, rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int,
    count: Any, ignore_index: int,
) -> Tensor:  # fmt: skip
    """The gradient of the head's matrix by itself, with the bits that it has beside the others'."""
    if weight._version != version:
        raise RuntimeError(
            "the matrix of head and embedding was changed while backward ran, and the head's gradient of it"
            " (head_last) was still to be computed: step it when its gradient has come, as"
            " revstep.fused_step does, or leave out head_last"
        )
    found = torch.zeros_like(weight)
    with torch.autocast(weight.device.type, enabled=False):
        for at, z, _ in _errors(rows, weight, bias, targets, chunk, count, ignore_index, True):
            found.addmm_(z.t(), rows[at])
    return found.mul_(g)


#: Dtypes of weights of which :class:`_InChunks` computes the loss.
WIDE = (torch.float32, torch.float64)


def has_operator() -> bool:
    """Whether torch has the loss in chunks itself, as torch 2.13 has."""
    return hasattr(F, "linear_cross_entropy") and hasattr(nn, "LinearCrossEntropyOptions")


def lacking(weight: Tensor) -> str:
    """What the loss in chunks needs for a head with this matrix, and this torch has not; empty: nothing."""
    if has_operator() or weight.dtype in WIDE:
        return ""
    return (
        f"torch 2.13 (torch.nn.functional.linear_cross_entropy) for weights in"
        f" {str(weight.dtype).removeprefix('torch.')}, and this is torch {torch.__version__}"
    )


def _ours(weight: Tensor, tie: Tie | None) -> bool:
    """Computed by :class:`_InChunks`. A compiler needs torch's operator, which it knows."""
    if weight.dtype not in WIDE or torch.compiler.is_compiling():
        return False
    return weight.device.type == "cpu" or (tie is not None and tie.last) or not has_operator()


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk: int | str,
    *,
    count: Tensor | int | None = None,
    ignore_index: int = -100,
    tie: Tie | None = None,
) -> Tensor:
    """Cross entropy of ``hidden @ weight.T + bias``, summed and divided by ``count`` (None: by the number of
    targets that count).

    ``hidden`` (..., C), ``weight`` (V, C), ``bias`` (V,), ``targets`` (N,) int64 -> scalar float32 (float64
    for float64 models).

    On CPU, for float32 and float64 (elsewhere where the gradient of a tied matrix comes last, or torch has no
    op), by :class:`_InChunks`; elsewhere by torch 2.13's op. That op returns the loss in its inputs' dtype
    and computes the gradients of "mean" and "sum" in the forward pass, rounded to it before any loss scale:
    we leave autocast and use the weights' own dtype. For 16-bit weights we ask for the loss of each token,
    whose gradients are computed in backward from the incoming one (one product with the head more), and add
    those up in float32.

    ``tie``: of the embedding with the same matrix, see :class:`Tie`.

    Raises:
        ConfigError: weights in 16 bits, and a torch before 2.13. UnsupportedError, in backward: second
            derivatives are asked for.
    """
    loss = _in_chunks(hidden, weight, bias, targets, chunk, count, ignore_index, tie)
    # A compiled graph is refused second derivatives by torch itself.
    return loss if torch.compiler.is_compiling() else _FirstDerivative.apply(loss)


def _in_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | str,
    count: Tensor | int | None, ignore_index: int, tie: Tie | None,
) -> Tensor:  # fmt: skip
    rows = hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype)  # (N, C)
    narrow = weight.dtype in (torch.float16, torch.bfloat16)
    if _ours(weight, tie):
        if count is None:
            count = (targets != ignore_index).sum()
        with torch.autocast(weight.device.type, enabled=False):
            size = CPU_CHUNK if chunk == "auto" else int(chunk)
            return _InChunks.apply(rows, weight, bias, targets, size, count, ignore_index, tie)
    if not has_operator():  # a compiler leaves its graph here, and comes back to ours
        needs = f"the loss in chunks needs {lacking(weight)}"
        raise ConfigError(f"{needs}: upgrade torch, or hold all logits (loss_chunk=0)")
    if count is None:
        count = (targets != ignore_index).sum()
    with torch.autocast(hidden.device.type, enabled=False):
        loss = F.linear_cross_entropy(
            rows,
            weight,
            targets,
            linear_bias=bias,
            reduction="none" if narrow else "sum",
            ignore_index=ignore_index,
            options=options(chunk, hidden.device.type),
        )
        if narrow:
            loss = loss.float().sum()
    if not isinstance(count, Tensor):
        return loss / count
    count = count.to(loss.device)
    return torch.where(count == 0, math.nan, loss / _divisor(count))


# ------------------------------------------------------------------------------------------------------------
# What the backward passes of a run reported, added up.


@dataclass(kw_only=True)
class Tally:
    """Over the backward passes that were looked at.

    Attributes:
        passes: how many rebuilt states; states: how many they rebuilt; matched: how many of those had the
            forward pass's bits.
        exact: all of them were exact; None: nothing was rebuilt.
        max_error, headroom: the worst of the reports, as :class:`~revstep.stack.Report` has them; an error
        that was not measured once stays unknown.
        checksum: of the reports, in their order; None: nothing was rebuilt.
        bytes_saved: what the stack kept for the last pass; None: nothing was rebuilt.
    """

    passes: int = 0
    states: int = 0
    matched: int = 0
    exact: bool | None = None
    max_error: float | None = 0.0
    headroom: float = math.inf
    checksum: int | None = None
    bytes_saved: int | None = None

    def add(self, report: Report | None) -> None:
        """One more pass; None: it rebuilt nothing."""
        if report is None:
            return
        self.passes = self.passes + 1
        self.states = self.states + report.layers
        self.matched = self.matched + report.matched
        self.exact = report.exact and self.exact is not False
        self.max_error = worst(self.max_error, report.max_error)
        self.headroom = min(self.headroom, report.headroom)
        self.checksum = (
            report.checksum if self.checksum is None else combined((self.checksum, report.checksum))
        )
        self.bytes_saved = report.bytes_saved

    @property
    def reconstruction(self) -> str:
        """In words, for a log."""
        if not self.passes:
            return "nothing to rebuild"
        return (
            f"{'exact' if self.states == self.matched else 'NOT EXACT'} ({self.matched:,} of {self.states:,}"
            f" states bit-equal in {self.passes:,} passes)"
        )


def worst(a: float | None, b: float | None) -> float | None:
    """The larger error; one that was not measured stays unknown."""
    return None if a is None or b is None else max(a, b)
