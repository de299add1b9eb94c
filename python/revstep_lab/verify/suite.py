"""The table behind ``revstep verify``: every registered scheme x state format x block dtype, every claim measured."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from revstep.errors import AmplificationWarning, ReconstructionWarning
from revstep.schemes import Scheme, available
from revstep.stack import ReversibleStack
from revstep.state import FixedPoint, Float, StateFormat
from revstep.verify.blockcheck.load import DTYPES
from revstep.verify.gradients import gradients
from revstep.verify.reconstruction import reconstruction
from revstep.verify.result import Result

from .arithmetic import agreement, overflow, round_trip
from .block import example_blocks, example_input
from .checksums import checksums

FORMATS: dict[str, StateFormat] = {"fixed32": FixedPoint(32), "fixed64": FixedPoint(64), "float32": Float(torch.float32), "float64": Float(torch.float64)}
LAYERS = 7
#: Step size of the stacks, where a scheme's default would leave the range of fixed32 with blocks at four times their initial scale.
#: Options that suit the example blocks; signs drawn per row are fixed, so that passes can be compared.
OPTIONS = {"leapfrog": {"h": 0.5}, "bdia": {"seed": 1}}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    scheme: str
    state: str
    dtype: str

    def build_scheme(self) -> Scheme:
        return available()[self.scheme](**OPTIONS.get(self.scheme, {}))

    def stack(self, start: str, layers: int = LAYERS) -> ReversibleStack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AmplificationWarning)
            return ReversibleStack(example_blocks(layers, dtype=DTYPES[self.dtype][0]), self.build_scheme(), state=FORMATS[self.state], start=start)

    def context(self) -> Callable[[], Any]:
        autocast = DTYPES[self.dtype][1]
        return contextlib.nullcontext if autocast is None else lambda: torch.autocast("cpu", dtype=autocast)

    def run(self) -> list[Result]:
        """All claims of this row."""
        scheme, fmt, value = self.build_scheme(), FORMATS[self.state], DTYPES[self.dtype][0]
        results = [agreement(scheme, fmt, value), round_trip(scheme, fmt, value)]
        if fmt.exact:
            results.append(overflow(scheme, fmt))
        x = example_input(dtype=value)
        for start in scheme.starts:
            stack = self.stack(start)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReconstructionWarning)
                with self.context()():
                    results.append(_named(reconstruction(stack, x), start))
                results.append(_named(gradients(stack, x, context=self.context()), start))
                if fmt.exact:
                    stack.blocks.eval()  # no dropout; the stack itself stays in training, where every scheme is reversible
                    results.append(_named(checksums(stack, x), start))
        return results


def _named(result: Result, start: str) -> Result:
    return Result(f"{result.claim} (start {start})", *(getattr(result, f) for f in ("ok", "measured", "bound", "unit", "why")))


def cases() -> list[Case]:
    """Every combination; the registry decides which schemes there are."""
    return [Case(scheme, state, dtype) for scheme in available() for state in FORMATS for dtype in DTYPES]


def run_suite(rows: list[Case] | None = None) -> Iterator[tuple[Case, list[Result]]]:
    """Measure row by row, so that a caller can show progress."""
    for case in cases() if rows is None else rows:
        yield case, case.run()
