"""The scheme of a pretrained model: the fewest carry bits that keep its next-token distribution and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .._options import StackOptions
from ..errors import ConfigError
from ..schemes import Blend
from ..state import FixedPoint
from ._calibrate import ROWS
from ._dial import BITS, Form, Seen, Trials, scheme_of
from ._install import install
from ._probe import as_it_was
from ._settings import uncached
from .adapters import Adapter

#: Tokens that the search reads, and of a row of them; more make it slower and hardly better.
TOKENS, ROW = 1024, 256
#: A choice fits the text it was made on better than others: there it has to be within this share of the
#: tolerance.
MARGIN = 0.8
#: One c for all layers: what the table shows beside the choice.
SHOWN = tuple(2.0**-bits for bits in (2, 3, 4, 5))
#: Passes of the search itself, after the layers have been measured.
ROUNDS = 8
#: What a model without next-token predictions is run as: nothing of it can be measured here.
UNMEASURED = Blend(c=2.0**-5)
#: The start of a Blend by layer, whose result is the same as that of "repeat", for fewer bits.
START = "euler"


@dataclass(frozen=True)
class Trial:
    """One point: the scheme, the carry bits it costs an element and layer, what it did to the text.

    Attributes:
        loss: mean next-token loss; change: of that, relative to the original's.
        divergence: KL divergence of the next token's distribution from the original's, nats a token.
    """

    scheme: Blend
    bits: float
    loss: float
    change: float
    divergence: float


@dataclass(frozen=True)
class Wanted:
    """What a choice must keep, or how many bits it may take.

    Args:
        tolerance: largest divergence, nats a token, also on text that the choice was not made on (hence
            MARGIN).
        loss_tolerance: largest relative rise of the loss.
        bits: the mean carry bits to choose for instead; None: the fewest within the tolerances.

    Raises:
        ConfigError: a number that is not positive, bits below 1 or above 8.
    """

    tolerance: float = 0.004
    loss_tolerance: float = 0.005
    bits: float | None = None

    def __post_init__(self) -> None:
        for name, example in (
            ("tolerance", "0.004 nats a token"),
            ("loss_tolerance", "0.005 for half a percent"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"{name} is {value!r}, expected a positive number, e.g. {example}")
        if self.bits is not None and not (isinstance(self.bits, (int, float)) and 1 <= self.bits <= 8):
            raise ConfigError(f"bits is {self.bits!r}, expected the mean carry bits of a layer, from 1 to 8")

    def met(self, trial: Trial) -> bool:
        return trial.divergence <= self.aim and trial.change <= self.loss_tolerance

    @property
    def aim(self) -> float:
        """The divergence that a choice may have on the text it is made on."""
        return MARGIN * self.tolerance


def choose_scheme(
    model: nn.Module,
    batches: Sequence[dict],
    wanted: Wanted,
    start: str | None,
    say: Callable[[str], None],
    adapter: str | Adapter | None = None,
) -> tuple[Blend, str]:
    """(scheme, start): c by layer, with the fewest bits that keep the model. Says the table it chose from.

    Raises:
        ConfigError: no point of the dial keeps the model.
    """
    batches = some_tokens(batches, TOKENS)
    start = start or START
    made = install(
        model, StackOptions(scheme=Blend(), state=FixedPoint(64, 24), start=start), adapter=adapter
    )
    try:
        with Trials(model, made, batches, say) as trials:
            search = Search(trials, wanted)
            shown = [search.tried(Blend(c=[c] * trials.layers)) for c in SHOWN]
            search.run()
    finally:
        made.detach()
    say(table([*shown, *search.tries], trials.loss, search.chosen))
    if search.chosen is None:
        best = min([*shown, *search.tries], key=lambda t: t.divergence)
        raise ConfigError(
            f"no point of the dial keeps the model: within {wanted.tolerance:g} nats a token and"
            f" {wanted.loss_tolerance:.2%} of the loss of {trials.loss:.4f}; the best is {best.bits:.1f}"
            f" bits, {best.divergence:.2g} nats, {best.change:+.2%}. Give larger tolerances, or a scheme and"
            " fine-tune"
        )
    say(by_layer(search.chosen.scheme, search.form))
    return search.chosen.scheme, start


class Search:
    """From the quadratic form to a measured choice.

    Args:
        trials: of the model on the text; wanted: what the choice must keep.
        form: from an earlier :meth:`Trials.measure`; None: it is measured.
    """

    def __init__(self, trials: Trials, wanted: Wanted, form: Form | None = None):
        self.trials = trials
        self.wanted = wanted
        self.form = form
        self.tries: list[Trial] = []
        self.chosen: Trial | None = None
        self.near = False  # the form is right to a factor of two where the search is

    def run(self) -> None:
        self.form = self.form or self.trials.measure()
        self.form.as_measured()
        if self.wanted.bits is not None:
            self._for_bits(self.wanted.bits)
        else:
            self._within_tolerance()
        # Far from the original the form says little: one c for all, and finer until it does.
        if self.chosen is None:
            for bits in BITS:
                self._tried(
                    np.concatenate([np.full(self.form.layers, 2.0**-bits), np.zeros(self.form.layers)])
                )
                if self.chosen is not None:
                    return

    def _for_bits(self, bits: float) -> None:
        point = None
        for _ in range(ROUNDS // 2):
            point = self.form.of_bits(bits, point)
            if point is None or not self._tried(point):
                return

    def _within_tolerance(self) -> None:
        aim = self.wanted.aim
        share = 1.0
        point = None
        for _ in range(ROUNDS):
            point = self.form.within(aim, point)
            if point is None or not self._tried(point):
                return
            trial = self.tries[-1]
            expected = self.form.at(point)
            over = trial.divergence > self.wanted.aim
            met = self.wanted.met(trial)
            if not over and not met:  # the loss alone has risen too much
                share *= 0.5
            if self.near:  # the form is right here but for a constant, which comes off the aim
                aim = share * self.wanted.aim - (trial.divergence - expected)
            elif not met:
                aim = expected * (0.9 * self.wanted.aim / trial.divergence if over else 0.5)

    def _tried(self, point: np.ndarray) -> bool:
        """Whether a pass at this point told something new; then the form goes on from there."""
        scheme = scheme_of(point)
        known = [t for t in self.tries if t.scheme.c == scheme.c]
        if any(self.wanted.met(t) or t.scheme == scheme for t in known):
            return False
        expected, seen = self.form.at(point), self.trials.seen(scheme)
        trial = self._trial(scheme, seen)
        self.tries.append(trial)
        self._consider(trial)
        # Too far from the original a form of second order is not worth correcting.
        self.near = self.near or 0.5 < trial.divergence / max(expected, 1e-12) < 2.0
        if self.near:
            self.form.corrected(point, seen.change)
        return True

    def _consider(self, trial: Trial) -> None:
        if self.wanted.bits is not None:
            better = self.chosen is None or trial.divergence < self.chosen.divergence
        else:
            known = (self.chosen.bits, self.chosen.divergence) if self.chosen is not None else None
            better = self.wanted.met(trial) and (known is None or (trial.bits, trial.divergence) < known)
        if better:
            self.chosen = trial

    def tried(self, scheme: Blend) -> Trial:
        return self._trial(scheme, self.trials.seen(scheme))

    def _trial(self, scheme: Blend, seen: Seen) -> Trial:
        layers = self.trials.layers
        start = self.trials.made.stack.start
        bits = carried(scheme, layers, start)
        return Trial(scheme, bits, seen.loss, seen.loss / self.trials.loss - 1.0, seen.divergence)


def carried(scheme: Blend, layers: int, start: str) -> float:
    """Carry bits an element and layer, on average over the layers."""
    steps = (scheme.start_coefficients(j, start).alpha for j in range(layers))
    return sum(ops.carry_bits(alpha) for alpha in steps) / layers


def some_tokens(batches: Sequence[dict], tokens: int, length: int = ROW) -> list[dict]:
    """About so many tokens, in pieces of at most ``length`` that lie evenly over all of the text.

    What is chosen on neighbouring pieces fits these and less of the rest: signs and weights have many ways
    to.

    Args:
        batches: keyword arguments with ``input_ids`` (B, T), and perhaps tensors of the same shape, which are
            cut with them. A batch with others, such as pictures, stays whole.
    """
    pieces = [piece for batch in batches for piece in _pieces(batch, length)]
    mean = sum(p["input_ids"].numel() for p in pieces) / max(1, len(pieces))
    wanted = min(len(pieces), max(1, round(tokens / max(1.0, mean))))
    chosen = [pieces[round(i * (len(pieces) - 1) / max(1, wanted - 1))] for i in range(wanted)]
    found: list[dict] = []
    for piece in chosen:
        alike = found and _joins(found[-1], piece)
        if alike:
            found[-1] = {
                k: torch.cat([found[-1][k], v]) if isinstance(v, Tensor) else v for k, v in piece.items()
            }
        else:
            found.append(piece)
    return found


def _pieces(batch: dict, length: int) -> Iterator[dict]:
    ids = batch["input_ids"]
    if any(isinstance(v, Tensor) and v.shape != ids.shape for v in batch.values()):
        yield batch
        return
    mask = batch.get("attention_mask")
    for row in range(ids.shape[0]):
        for begin in range(0, max(1, ids.shape[1] - length + 1), length):
            piece = slice(begin, begin + length)
            if isinstance(mask, Tensor) and int((mask[row, piece] != 0).sum()) < 2:
                continue  # padding
            yield {k: v[row : row + 1, piece] if isinstance(v, Tensor) else v for k, v in batch.items()}


def _joins(one: dict, other: dict) -> bool:
    """Rows of one length, with the same tensors beside them."""
    if one.keys() != other.keys() or any(
        isinstance(v, Tensor) and v.ndim != 2 for v in (*one.values(), *other.values())
    ):
        return False
    return one["input_ids"].shape[1] == other["input_ids"].shape[1] and one["input_ids"].shape[0] < ROWS


def predicts_tokens(model: nn.Module, batches: Sequence[dict] | None) -> bool:
    """A causal language model, whose next-token distributions can be compared on these batches."""
    if model.get_output_embeddings() is None or getattr(model.config, "is_encoder_decoder", False):
        return False
    return batches is None or all(isinstance(b.get("input_ids"), Tensor) for b in batches)


@torch.no_grad()
def own_text(model: nn.Module, say: Callable[[str], None], rows: int = 4) -> Tensor:
    """Token ids (rows, T) that the model makes up itself: what it is calibrated on where no text is given.

    They are the same at every call. A model that cannot be asked for text gets random tokens, and ``say`` is
    told.
    """
    config = model.config.get_text_config()
    vocabulary = getattr(config, "vocab_size", None) or model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), as_it_was(model):
        torch.manual_seed(0)
        ids = torch.randint(0, vocabulary, (rows, _length(config, TOKENS // rows)), device=device)
        padding = getattr(config, "pad_token_id", None)
        if isinstance(padding, int):
            ids[ids == padding] = (padding + 1) % vocabulary
        first = config.bos_token_id if isinstance(getattr(config, "bos_token_id", None), int) else None
        if first is not None and 0 <= first < vocabulary:
            ids[:, 0] = first
        ids = _readable(model, ids)
        length = ids.shape[1]
        try:
            made = model.generate(
                input_ids=ids[:, :1],
                attention_mask=torch.ones_like(ids[:, :1]),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_beams=1,
                min_new_tokens=length - 1,
                max_new_tokens=length - 1,
                pad_token_id=0,
            )
            return made[:, :length]
        except Exception as error:  # a model that cannot be asked for text with ids alone
            say(
                f"{type(model).__name__} makes up no text by itself ({type(error).__name__}: {error}); random"
                " tokens stand in for it"
            )
            return ids


def _length(config: Any, most: int) -> int:
    """A row's length that the config allows; XLNet's says -1, as many as there are."""
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return max(2, min([most, *(n for n in named if isinstance(n, int) and n > 0)]))


def _readable(model: nn.Module, ids: Tensor) -> Tensor:
    """As many of the columns as the model reads, where its config does not say how many those are."""
    while ids.shape[1] > 2:
        try:
            model(input_ids=ids[:1], **uncached(model))
            return ids
        except (RuntimeError, IndexError, ValueError):
            ids = ids[:, : ids.shape[1] // 2]
    return ids


def table(trials: Sequence[Trial], original: float, chosen: Trial | None) -> str:
    """The trials as lines of text, the chosen one marked."""
    lines = [
        f"original loss {original:.4f}",
        f"{'step':22} {'bits a layer':>12} {'KL, nats':>10} {'loss':>9} {'change':>9}",
    ]
    for t in trials:
        one = set(t.scheme.c) if t.scheme.weights is None else ()
        name = f"Blend c = {t.scheme.c[0]:g}" if len(one) == 1 else "Blend, c by layer"
        mark = "  <- chosen" if t is chosen else ""
        lines.append(f"{name:22} {t.bits:12.2f} {t.divergence:10.2g} {t.loss:9.4f} {t.change:+9.2%}{mark}")
    return "\n".join(lines)


def by_layer(scheme: Blend, form: Form) -> str:
    """What each layer costs alone at c = 1/8, and what it was given."""
    lines = [f"{'layer':>5} {'KL at 1/8 alone':>16} {'c':>11} {'weight':>8}"]
    for j, (cost, c) in enumerate(zip(form.sensitivities, scheme.c)):
        weight = 1.0 if scheme.weights is None else scheme.weights[j]
        lines.append(f"{j:5d} {cost / 64:16.2g} {c:11.7g} {weight:8.4f}")
    return "\n".join(lines)
