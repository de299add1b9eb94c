"""All findings about one block."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...errors import ConfigError, ResidualBlockWarning
from ...schemes import Scheme, available
from ._behaviour import SKIPS, behaviour
from ._depth import Depth, drift_table, exactness, measure_range, plain_network, range_finding
from ._load import Finding, Subject, caught, finding

#: Schemes a single block is measured with by default: the one recommended for language models and the one
#: without damping.
SINGLE, PAIR = ("blend", "midpoint"), ("hamiltonian",)


@dataclass
class BlockReport:
    """What was found.

    Attributes:
        subject: name of the block.
        layers: how many were stacked.
        findings: every rule, kept or broken.
        drift: for each scheme ``(depths, {column: worst relative error by depth})``.
        formats: for each scheme the fixed-point format to use, as it would be written; None: none holds its
            states.
        notes: what could not be measured here, and why.
    """

    subject: str
    layers: int
    findings: list[Finding] = field(default_factory=list)
    drift: dict[str, tuple[list[int], dict[str, list[float | None]]]] = field(default_factory=dict)
    formats: dict[str, str | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(f.ok for f in self.findings)

    def advice(self) -> list[str]:
        """What to change, in words, each sentence once, after the checks it comes from."""
        said: dict[str, list[str]] = {}
        # States to which a skip connection is added once more double from layer to layer.
        skip = any(f.check.endswith(SKIPS) and not f.ok for f in self.findings)
        consequences = {"reconstruction", "gradients"} | ({"range", "plain network"} if skip else set())
        causes = [f for f in self.findings if f.check not in consequences]
        # What does not come back follows from a broken rule.
        for f in self.findings if all(f.ok for f in causes) else causes:
            for sentence in f.advice:
                said.setdefault(sentence, []).append(f.check)
        return [f"{', '.join(dict.fromkeys(checks))}: {sentence}" for sentence, checks in said.items()]

    def to_dict(self) -> dict[str, Any]:
        return {
            "block": self.subject,
            "layers": self.layers,
            "ok": self.ok,
            "findings": [f.to_dict() for f in self.findings],
            "drift": {
                name: {"layers": depths, "worst_relative_error": columns}
                for name, (depths, columns) in self.drift.items()
            },
            "format": self.formats,
            "advice": self.advice(),
            "notes": self.notes,
        }


def check_block(subject: Subject, layers: int = 12, schemes: list[str] | None = None) -> BlockReport:
    """Measure every rule on the subject's block alone, then on ``layers`` of them under each scheme.

    Args:
        subject: the block and its input, as :func:`~revstep.verify.blockcheck.make_subject` makes it.
        layers: how many, at least 1.
        schemes: names; None: blend and midpoint for a block, hamiltonian for a pair.

    Raises:
        ConfigError: no layers, or a scheme that does not take such blocks.
    """
    if layers < 1:
        raise ConfigError(f"--layers {layers}: expected at least 1")
    report = BlockReport(subject.name, layers)
    for label, make in subject.parts().items():
        report.findings += behaviour(make, subject.x, label)
    chosen = [_scheme(name, subject) for name in schemes or (PAIR if "F" in subject.parts() else SINGLE)]
    if any(f.check.endswith(("shape", "in-place write")) and not f.ok for f in report.findings):
        report.notes.append(
            "the measurements with several layers were left out: a stack refuses such a block"
        )
        return report
    made = [subject.make(seed) for seed in range(layers)]
    for scheme in chosen:
        said: list[str] = []
        with caught(said.append), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResidualBlockWarning)  # said by the skip connection
            _measure(report, Depth(subject, scheme, made))
        for words in said:
            claim = f"runs in a stack of {layers} layers ({scheme.name})"
            advice = (
                "the block works alone and not in a stack: it must allow being evaluated again, with"
                " gradients, on states of the same shape"
            )
            report.findings.append(finding("stack", claim, False, words, advice))
    return report


def _measure(report: BlockReport, depth: Depth) -> None:
    name = depth.scheme.name
    measured = measure_range(depth)
    report.findings.append(range_finding(measured, report.layers, name))
    report.formats[name] = str(measured.format) if measured.format else None
    depths, columns, notes = drift_table(depth, measured.format)
    report.drift[name] = (depths, columns)
    residual = any(f.check.endswith(SKIPS) and not f.ok for f in report.findings)
    report.findings.append(plain_network(depth, measured.format, residual))
    if measured.format is not None:
        found, more = exactness(depth, measured.format)
        report.findings += found
        notes += more
    report.notes += [n for n in notes if n not in report.notes]


def _scheme(name: str, subject: Subject) -> Scheme:
    known = available()
    if name not in known:
        raise ConfigError(f"unknown scheme {name}, expected some of {', '.join(known)}")
    made = subject.make()
    two = isinstance(made, tuple) or callable(getattr(made, "halves", None))
    if known[name].halves == 2 and not two:
        raise ConfigError(
            f"{name} needs a pair (F, G), or a block with a method halves() -> (F, G); {subject.name} makes"
            f" one {type(made).__name__}"
        )
    if known[name].halves == 1 and not isinstance(made, nn.Module):
        raise ConfigError(
            f"{name} needs one block that returns the increment f(x); {subject.name} makes a pair, which"
            " hamiltonian takes"
        )
    return known[name]()
