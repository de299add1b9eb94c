"""``revstep bench dial``: a real pretrained model run reversibly, without training: what each choice of c
costs it, on the text it was chosen on and on another one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from revstep._options import StackOptions
from revstep.errors import ConfigError
from revstep.hf._auto import START, TOKENS, Search, Wanted, carried, some_tokens
from revstep.hf._calibrate import as_batches
from revstep.hf._dial import Trials, scheme_of
from revstep.hf._install import install
from revstep.schemes import Blend
from revstep.state import FixedPoint

from ..bench.runner import environment, goal
from .pretrained import load_pretrained

#: Divergence of the default, nats a token, and of a mean of 3.8 bits and 3.5: what the docs promise.
DEFAULT, AT_38, AT_35 = 0.004, 0.010, 0.010
#: One c in every layer.
ONE_C = tuple(2.0**-b for b in (2, 3, 4, 5))
#: Mean bits of the choices by layer.
BITS = (3.0, 3.5, 3.8, 4.0)
#: What each of the free parts of a choice is worth: name -> (signs, weights).
PARTS = {
    "bits alone": (False, False),
    "with weights": (False, True),
    "with signs": (True, False),
    "with both": (True, True),
}


@dataclass(frozen=True)
class DialCase:
    """What is measured.

    Args:
        model: a folder, a GGUF file or a name, as ``revstep finetune`` takes it.
        tokens: of each text, in rows of 512; what is chosen on the first one is chosen on 1,024 of them.
        bits: mean carry bits of the choices by layer.
        parts: mean carry bits at which every part of a choice is measured.
        threads: of torch.
    """

    model: str = ""
    tokens: int = 2048
    bits: tuple[float, ...] = BITS
    parts: tuple[float, ...] = (3.5, 4.0)
    threads: int = 1


def texts(whole: str, tokenizer: Any, tokens: int, length: int = 512) -> list[torch.Tensor]:
    """Two texts of so many tokens, (rows, length), of pieces from all over the two halves of one.

    Raises:
        ConfigError: it is too short for that.
    """
    found, rows = [], max(1, tokens // length)
    for half in (whole[: len(whole) // 2], whole[len(whole) // 2 :]):
        step, pieces = len(half) // rows, []
        for begin in range(0, step * rows, max(1, step)):
            ids = tokenizer(half[begin : begin + 12 * length], verbose=False)["input_ids"][:length]
            pieces.append(torch.tensor(ids[:length]))
        if tokens < length or step < length or any(len(p) < length for p in pieces):
            raise ConfigError(f"tokens is {tokens}, expected at least {length}, and fewer than the text has")
        found.append(torch.stack(pieces[:rows]))
    return found


def run_dial(
    case: DialCase, load: Callable[[str], tuple[Any, Any]], whole: str, say: Callable[[str], None]
) -> dict:
    """Every choice on both texts.

    Args:
        case: the case; load: gives (model, tokenizer) of ``case.model``.
        whole: prose, of which two parts are taken; say: gets a line a choice.

    Returns:
        ``{"case", "environment", "model", "rows", "without", "goals", "layers"}``, ready for JSON.

    Raises:
        ConfigError: too few tokens in ``whole``, or no choice keeps the model.
    """
    torch.set_num_threads(case.threads)
    model, tokenizer = load(case.model)
    text, other = texts(whole, tokenizer, case.tokens)
    measured = _Measured(model.eval(), text, other, say)
    rows = [measured.row(f"c = 1/{round(1 / c)} in every layer", Blend(c=c)) for c in ONE_C]
    choices, parts, seconds = measured.chosen(case)
    rows += [measured.row(name, scheme, START) for name, scheme in choices.items()]
    parts = [{**part, **measured.row(name, scheme, START)} for name, (part, scheme) in parts.items()]
    about = {
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": measured.layers,
        "losses": measured.losses,
        "seconds of the default": seconds,
    }
    goals = [
        goal(
            "divergence of the default on the other text, nats",
            rows[len(ONE_C)]["other"]["divergence"],
            DEFAULT,
            False,
        )
    ]
    for bits, bound in ((3.8, AT_38), (3.5, AT_35)):
        found = [row for row in rows if row["name"] == f"by layer, {bits:g} bits"]
        goals += [
            goal(
                f"divergence at {bits} bits on the other text, nats", row["other"]["divergence"], bound, False
            )
            for row in found
        ]
    scheme = choices["by layer, the default"]
    layers = {"c": list(scheme.c), "weights": list(scheme.weights)}
    return {
        "case": asdict(case),
        "environment": environment(),
        "model": about,
        "rows": rows,
        "without": parts,
        "goals": goals,
        "layers": layers,
    }


class _Measured:
    """One model and two texts."""

    def __init__(self, model: Any, text: torch.Tensor, other: torch.Tensor, say: Callable[[str], None]):
        self.model, self.say = model, say
        self.batches = [some_tokens(as_batches(text, None, model), TOKENS), as_batches(other, None, model)]
        self.layers, self.losses = 0, [0.0, 0.0]

    @contextlib.contextmanager
    def _trials(self, scheme: Blend, start: str, batches: list[dict]) -> Iterator[Trials]:
        made = install(self.model, StackOptions(scheme=scheme, state=FixedPoint(64, 24), start=start))
        try:
            with Trials(self.model, made, batches, self.say) as trials:
                yield trials
        finally:
            made.detach()

    def row(self, name: str, scheme: Blend, start: str = "repeat") -> dict:
        """What a scheme does to both texts."""
        found = []
        for i, batches in enumerate(self.batches):
            with self._trials(scheme, start, batches) as trials:
                seen, self.layers, self.losses[i] = trials.seen(scheme), trials.layers, trials.loss
                found.append({"divergence": seen.divergence, "change": seen.loss / trials.loss - 1.0})
        bits = carried(scheme, self.layers, start)
        self.say(
            f"{name}: {bits:.2f} bits, {found[0]['divergence']:.2g} nats, {found[1]['divergence']:.2g} on the"
            " other text"
        )
        return {"name": name, "bits": bits, "text": found[0], "other": found[1]}

    def chosen(self, case: DialCase) -> tuple[dict, dict, float]:
        """(choices by name, parts by name, seconds of the default's choice), all from one measurement of the
        layers.
        """
        choices, parts, begin = {}, {}, time.perf_counter()
        with self._trials(Blend(), START, self.batches[0]) as trials:
            form = trials.measure()
            wanted = {"by layer, the default": Wanted()} | {
                f"by layer, {bits:g} bits": Wanted(bits=bits) for bits in case.bits
            }
            seconds = 0.0
            for name, asked in wanted.items():
                search = Search(trials, asked, form)
                search.run()
                if search.chosen is None:
                    raise ConfigError(
                        f"no choice of c by layer keeps the model: within {asked.tolerance:g} nats a token"
                        f" and {asked.loss_tolerance:.2%} of its loss"
                    )
                choices[name] = search.chosen.scheme
                seconds = seconds or time.perf_counter() - begin
            for bits in case.parts:
                for part, (signs, weights) in PARTS.items():
                    form.as_measured()
                    form.signs, form.leaning = signs, weights
                    point = form.of_bits(bits)
                    if point is not None:
                        about = {"part": part, "asked": bits, "expected": form.at(point)}
                        parts[f"{bits:g} bits, {part}"] = about, scheme_of(point)
        return choices, parts, seconds


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "dial"
HELP = (
    "a real pretrained model run reversibly without training: loss and divergence by carry bits, one c or c"
    " by layer"
)
EXAMPLES = """
revstep bench dial --json dial.json
revstep bench dial --model my-model --tokens 4096 --json dial_mine.json
"""
ROUNDS = 1
#: Option -> (settings for argparse, help).
OPTIONS: dict[str, tuple[dict, str]] = {
    "model": (
        {},
        "a folder, a GGUF file or a name on the hub (default: SmolLM2-135M from the package index)",
    ),
    "tokens": ({"type": int}, "of each of the two texts (default 2048)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..demo.finetune.settings import documentation

    result = run_dial(
        DialCase(**options), load_pretrained, documentation(), lambda line: print(line, flush=True)
    )
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    about = result["model"]
    title = (
        f"{about['class']}, {about['parameters']:,} parameters, {about['layers']} layers, run reversibly"
        f" without training; loss {about['losses'][0]:.3f} on the text c was chosen on,"
        f" {about['losses'][1]:.3f} on another"
    )
    header = ("run as", "bits a layer", "KL, nats a token", "loss", "KL, other text", "loss, other text")
    found = [(title, header, [_line(row["name"], row) for row in result["rows"]])]
    if result["without"]:
        rows = [_line(f"{row['asked']:g} bits, {row['part']}", row) for row in result["without"]]
        found.append(
            ("What each part of a choice by layer is worth, from one measurement, uncorrected", header, rows)
        )
    return found


def _line(name: str, row: dict) -> tuple[str, ...]:
    figures = [
        f"{row[which]['divergence']:.2g}" if k == 0 else f"{row[which]['change']:+.2%}"
        for which in ("text", "other")
        for k in (0, 1)
    ]
    return (name, f"{row['bits']:.2f}", *figures)


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
