"""What a c of its own costs a pretrained model in every layer, and the bits that are worth it.

Block j of a converted model reads a state that is off by c_j times the increment before it. To second order
the divergence of its next-token distribution from the original's is therefore a quadratic form, in the c of
all layers and in the weights of their increments: 1/2 |sum_j c_j v_j + sum_j e_j u_j|^2. Here v_j and u_j are
the changes of the logits per unit of c_j and of weight, in the metric of the original's distribution
(Fisher's). They are measured, a pass each. The bits of all layers, the signs of c and the weights are then
those that make the form small. The derivation, and what it gains over bits alone: docs/decisions, 15.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._models.layers import unwrapped
from ..errors import ConfigError
from ..schemes import Blend, Scheme
from ..schemes._base import Claims, Coefficients
from ..schemes.blend import gammas
from ._calibrate import labels_of
from ._layer_steps import Conversion
from ._probe import as_it_was
from ._settings import uncached

#: Bits that a layer may take: |c| = 2**-bits, the smallest that the kernels undo last.
BITS = range(1, 9)
#: c of the one layer, and the change of the one weight, with which v and u are measured.
ALONE, LEANING = 2.0**-4, 2.0**-6
#: Of each position so many of the likeliest tokens stand for all, as far as v and u are concerned.
LIKELIEST = 512
#: Log-probabilities of the original that are compared with, at most, in numbers.
MAX_COMPARED = 2**26
#: A weight is changed only where what that does is well determined, and by LEAN at most.
RIDGE, LEAN = 1e-3, 0.25


class Loose(Scheme):
    """A trial: any c, also zero, and any weight, one a layer. For forward passes alone."""

    name = "loose"
    claims = Claims(
        equation="y' = f(y)", order=1, symmetric=False, symplectic=False, evaluations=1,
        stability="none is claimed: it is run forwards only, over the layers of one model",
        source="docs/decisions, 15",
    )  # fmt: skip

    def __init__(self, c: Sequence[float], weights: Sequence[float]):
        self.c = [float(x) for x in c]
        self.gammas = gammas(self.c, [float(w) for w in weights])

    def coefficients(self, layer: int) -> Coefficients:
        return Coefficients(self.c[layer], 1.0 - self.c[layer], self.gammas[layer])

    def euler_gamma(self) -> float:
        return self.gammas[0]


class _Replayed(nn.Module):
    """A block that gives what it gave in the original, where its input is the same."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        self.original: dict[int, Any] = {}
        self.batch, self.same, self.keep = 0, False, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.same and self.batch in self.original:
            return self.original[self.batch]
        out = self.block(*args, **kwargs)
        if self.keep:
            self.original[self.batch] = out
        return out


@dataclass(frozen=True)
class Seen:
    """What one pass over all batches showed.

    Attributes:
        loss: mean, of the next token.
        divergence: from the original, nats a token.
        change: of the logits, as :meth:`Trials._change` has it.
    """

    loss: float
    divergence: float
    change: Tensor


class Trials:
    """Passes of one converted model over some text, beside its original. A context manager.

    Args:
        model: the model; made: its conversion, in a state format that holds everything.
        batches: keyword arguments with ``input_ids``, perhaps ``attention_mask``.
        say: gets how far the measurement is, every ten seconds.
    """

    def __init__(
        self, model: nn.Module, made: Conversion, batches: Sequence[dict], say: Callable[[str], None]
    ):
        self.model = model
        self.made = made
        self.batches = batches
        self.say = say
        self.layers = len(made.layers)
        self.within = contextlib.ExitStack()

    def __enter__(self) -> Trials:
        self.within.enter_context(as_it_was(self.model))
        stack = self.made.stack
        self.scheme, self.plain = stack.scheme, list(stack.blocks)
        try:
            self._original()
        except BaseException:
            self.within.close()
            raise
        self.blocks = [_Replayed(block) for block in stack.blocks]
        stack.blocks = nn.ModuleList(self.blocks)
        return self

    def __exit__(self, *_: object) -> None:
        self.made.stack.scheme, self.made.stack.blocks = self.scheme, nn.ModuleList(self.plain)
        self.within.close()

    def seen(self, scheme: Scheme) -> Seen:
        """A pass as ``scheme``."""
        loss = divergence = 0.0
        changes = []
        for i, logits in enumerate(self._passes(scheme)):
            loss += self._loss(logits, self.batches[i])
            divergence += self._divergence(logits, i)
            changes.append(self._change(logits, i))
        return Seen(loss / self.predicted, max(0.0, divergence / self.positions), torch.cat(changes))

    def changes(self, scheme: Scheme, same: int = 0, keep: bool = False) -> Tensor:
        """The change of the logits alone.

        Args:
            scheme: as in :meth:`seen`.
            same: so many of the first blocks read what they read in the original, and are not evaluated.
            keep: this pass is the original, whose increments such passes use.
        """
        logits = self._passes(scheme, same, keep)
        return torch.cat([self._change(own, i) for i, own in enumerate(logits)])

    def _passes(self, scheme: Scheme, same: int = 0, keep: bool = False) -> Iterator[Tensor]:
        self.made.stack.scheme = scheme
        for i, batch in enumerate(self.batches):
            for j, block in enumerate(self.blocks):
                block.batch, block.same, block.keep = i, j < same, keep
            yield self._logits(batch)

    def _divergence(self, logits: Tensor, batch: int) -> float:
        at, _, then, _, _ = self.known[batch]
        now = logits.flatten(0, 1)[at].float().log_softmax(-1)
        return float((then.exp() * (then - now)).sum())

    def _change(self, logits: Tensor, batch: int) -> Tensor:
        """In the metric of the original's distribution, which a constant in all logits does not change."""
        at, p, _, likeliest, before = self.known[batch]
        change = logits.flatten(0, 1)[at[:, None], likeliest].float() - before
        change -= (p * change).sum(-1, keepdim=True) / p.sum(-1, keepdim=True)
        return (p.sqrt() * change).flatten()

    # ---- the original ----

    def _original(self) -> None:
        ids = [batch["input_ids"] for batch in self.batches]
        self.made.detach()
        try:
            loss, self.predicted, self.known, self.positions = 0.0, 0, [], 0
            for batch in self.batches:
                logits = self._logits(batch)
                loss += self._loss(logits, batch)
                self.predicted += int((labels_of(batch)[:, 1:] != -100).sum())
                self.known.append(self._known(logits, batch, sum(x.numel() for x in ids)))
                self.positions += len(self.known[-1][0])
        finally:
            self.made.attach()
        if not self.predicted:
            raise ConfigError(
                "the calibration data has no next token to predict: give rows of at least two tokens"
            )
        self.loss = loss / self.predicted

    def _known(self, logits: Tensor, batch: dict, tokens: int) -> tuple[Tensor, ...]:
        """What is kept of the original, at the positions that are compared.

        Returns:
            the positions; the probabilities of the likeliest tokens there; all log-probabilities; which
            tokens those are; and their logits.
        """
        mask = batch.get("attention_mask")
        every = torch.arange(logits.shape[0] * logits.shape[1], device=logits.device)
        every = every if mask is None or mask.shape != logits.shape[:2] else every[mask.flatten() != 0]
        step = -(-tokens * logits.shape[-1] // MAX_COMPARED)  # every so many-th position
        at = every[::step]
        rows = logits.flatten(0, 1)[at].float()
        before, likeliest = rows.topk(min(LIKELIEST, rows.shape[-1]), -1)
        spoken = rows.log_softmax(-1)
        return at, spoken.gather(-1, likeliest).exp(), spoken, likeliest, before

    def _logits(self, batch: dict) -> Tensor:
        inner = unwrapped(self.model)
        logits = inner(**{k: v for k, v in batch.items() if k != "labels"}, **uncached(inner)).logits
        if logits.ndim != 3 or logits.shape[:2] != batch["input_ids"].shape:
            raise ConfigError(
                f"{type(inner).__name__} gives logits of shape {tuple(logits.shape)}, expected one row a"
                " token"
            )
        return logits

    def _loss(self, logits: Tensor, batch: dict) -> float:
        rows, labels = logits[:, :-1].flatten(0, 1).float(), labels_of(batch)[:, 1:].flatten()
        return float(nn.functional.cross_entropy(rows, labels, ignore_index=-100, reduction="sum"))

    # ---- the measurement ----

    def measure(self) -> Form:
        """v and u of every layer: two passes a layer, each of which evaluates the blocks above it alone."""
        count = self.layers
        begin = time.monotonic()
        told, rows = begin, []
        original = self.changes(Loose([0.0] * count, [1.0] * count), keep=True)
        replays = self._replays(original)
        for k in range(2 * count):
            layer = k % count
            if k == 0:  # c of the first layer has no effect
                rows.append(torch.zeros_like(original, dtype=torch.bfloat16))
                continue
            c, weights = [0.0] * count, [1.0] * count
            if k < count:
                c[layer], unit = ALONE, ALONE
            else:
                weights[layer], unit = 1.0 + LEANING, LEANING
            same = layer if k < count else layer + 1
            change = self.changes(Loose(c, weights), same if replays else 0)
            rows.append((change / unit).to(torch.bfloat16))
            if time.monotonic() - told > 10:
                told = time.monotonic()
                left = (told - begin) / (k + 1) * (2 * count - k - 1)
                self.say(f"the dial: {k + 1} of {2 * count} passes, {left:.0f} s left")
        self._forget()
        return Form(torch.stack(rows), self.positions)

    def _replays(self, original: Tensor) -> bool:
        """Whether blocks can be left out.

        They cannot where one writes what a later one reads, as in Gemma 4, whose layers share keys and
        values.
        """
        count = self.layers
        same = False
        try:
            again = (self.changes(Loose([0.0] * count, [1.0] * count), k) for k in (count // 2, count - 1))
            same = all(torch.equal(change, original) for change in again)
        except Exception:  # what a block reads is not there; anything else, passes without replays will say
            same = False
        if not same:
            self._forget()
            self.say("the dial: layers share more than their state here, so every pass evaluates all of them")
        return same

    def _forget(self) -> None:
        for block in self.blocks:
            block.original.clear()


class Form:
    """1/2 z' G z with z = (c, e), and a linear term once a pass has been measured away from zero.

    Args:
        rows: v and u, (2 layers, numbers).
        positions: how many tokens they are sums over.

    Attributes:
        signs: c may be negative. Without them it is measured what they are worth; likewise
        leaning: weights may differ from one.
    """

    def __init__(self, rows: Tensor, positions: int):
        self.rows, self.positions, self.layers = rows, positions, len(rows) // 2
        self.gram = np.zeros((len(rows), len(rows)))
        for part in rows.split(2**16, dim=1):
            own = part.float()
            self.gram += (own @ own.T).double().cpu().numpy()
        self.gram /= positions
        self.as_measured()

    def as_measured(self) -> None:
        """Without corrections, signs and weights as they may be."""
        self.linear = np.zeros(len(self.rows))
        self.signs = True
        self.leaning = True

    @property
    def sensitivities(self) -> np.ndarray:
        """Divergence per c**2 of each layer alone, nats a token."""
        return np.diag(self.gram)[: self.layers] / 2

    def at(self, z: np.ndarray) -> float:
        """The divergence that is expected at z, up to a constant."""
        return float(0.5 * z @ self.gram @ z + self.linear @ z)

    def corrected(self, z: np.ndarray, change: Tensor) -> None:
        """From now on the change that was measured at z is the one that is expected there.

        Of other points only the difference from z is still taken from the form.
        """
        own = [float(row.float() @ change) / self.positions for row in self.rows]
        self.linear = np.array(own) - self.gram @ z

    def best(self, price: float, start: np.ndarray | None = None, restarts: int = 8) -> np.ndarray:
        """z with the least divergence + price * bits, by coordinate descent over c; the weights are solved
        for.
        """
        n = self.layers
        generator = np.random.default_rng(0)
        cross, lean = self.gram[:n, n:], self.gram[n:, n:]
        lean = lean + RIDGE * np.diag(np.diag(lean) + 1e-12)
        gain = np.linalg.solve(lean, cross.T) if self.leaning else np.zeros((n, n))
        matrix, linear = self.gram[:n, :n] - cross @ gain, self.linear[:n] - gain.T @ self.linear[n:]
        bits = np.repeat(np.array(BITS), 2)
        dial = 2.0**-bits * np.tile([1.0, -1.0 if self.signs else 1.0], len(BITS))
        found, least = None, np.inf
        for k in range(restarts):
            c = start[:n].copy() if start is not None and k == 0 else generator.choice(dial, n)
            c[0] = 0.0
            _descend(c, matrix, linear, dial, price * bits)
            value = 0.5 * c @ matrix @ c + linear @ c + price * mean_bits(c) * n
            if value < least:
                found, least = c, value
        weights = -np.linalg.solve(lean, cross.T @ found + self.linear[n:]) if self.leaning else np.zeros(n)
        return np.concatenate([found, weights.clip(-LEAN, LEAN)])

    def within(self, divergence: float, start: np.ndarray | None = None) -> np.ndarray | None:
        """The cheapest z whose expected divergence is at most this; None where there is none."""
        found = self._bisected(lambda z: self.at(z) <= divergence, start)
        return found if found is not None and self.at(found) <= divergence else None

    def of_bits(self, bits: float, start: np.ndarray | None = None) -> np.ndarray | None:
        """The best z of at most so many bits a layer; None where one bit in each is more."""
        found = self._bisected(lambda z: mean_bits(z[: self.layers]) > bits, start, last=False)
        return found if found is not None and mean_bits(found[: self.layers]) <= bits else None

    def _bisected(
        self, cheap: Callable[[np.ndarray], bool], start: np.ndarray | None, last: bool = True
    ) -> np.ndarray | None:
        """Of the prices up to which ``cheap`` holds: z at the last of them, or at the first above them."""
        low = 1e-10
        high = 1.0
        found = None
        for _ in range(26):
            price = (low * high) ** 0.5
            z = self.best(price, start)
            holds = cheap(z)
            if holds == last:
                found = z
            low, high = (price, high) if holds else (low, price)
        return found


def _descend(
    c: np.ndarray, matrix: np.ndarray, linear: np.ndarray, dial: np.ndarray, prices: np.ndarray
) -> None:
    """c, in place, to where no single layer's change makes it cheaper; c of layer 0 stays."""
    for _ in range(64):
        moved = False
        for j in range(1, len(c)):
            by = dial - c[j]
            cost = by * (matrix[j] @ c + linear[j]) + 0.5 * matrix[j, j] * by * by + prices
            k = int(cost.argmin())
            if dial[k] != c[j] and cost[k] < cost[int(np.abs(by).argmin())] - 1e-15:
                c[j] = dial[k]
                moved = True
        if not moved:
            return


def mean_bits(c: np.ndarray) -> float:
    """Carry bits an element and layer; those of layer 0 are left out by start ``"euler"``."""
    n = len(c)
    return float(-np.log2(np.abs(c[1:])).sum() / n) if n > 1 else 0.0


def scheme_of(z: np.ndarray) -> Blend:
    """The scheme of a point; c of layer 0, which has no effect, is 1/2."""
    n = len(z) // 2
    return Blend(c=[0.5, *z[1:n].tolist()], weights=[round(1.0 + e, 5) for e in z[n:].tolist()])
