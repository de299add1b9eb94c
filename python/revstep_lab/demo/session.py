"""The demo of stacks from start to end. Whatever happens, what has been measured is written and named."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from revstep._files import write_atomic
from revstep._imports import require
from revstep._locks import only_writer
from revstep.lm._parallel import find_device

from ..bench.runner import environment
from . import plots, record
from .depth import Findings, examine, memory_by_depth
from .race import Race, choose
from .settings import Settings, Text, standard_library

#: Seconds kept back for drawing and writing.
RESERVE = 5.0
INTERRUPTED = 130


@dataclass
class Outcome:
    """What ``run`` returns.

    Attributes:
        code: 0; 1: a stack failed or a state was not rebuilt; 130: interrupted.
        document: everything in ``demo.json``.
        table: header and rows as text; paragraph: what they show.
        written: names of the files in ``folder``.
    """

    folder: Path
    code: int = 0
    document: dict[str, Any] = field(default_factory=dict)
    table: tuple[tuple[str, ...], list[tuple[str, ...]]] = ((), [])
    paragraph: str = ""
    written: list[str] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        return self.code == INTERRUPTED


def run(settings: Settings, say: Callable[[str], None] = print) -> Outcome:
    """Train, examine, draw, write. ``say`` gets lines on what is going on.

    On Ctrl-C the training ends where it is; the figures and numbers there are so far are written.

    Raises:
        ConfigError: a value that cannot be used, or packages of ``revstep[lm]`` that are missing; nothing has
            been computed yet.
        OSError: the folder cannot be written.
    """
    began = time.perf_counter()
    require("matplotlib", "drawing the figures")
    if settings.progress:
        require("tqdm", "the progress bar (or turn it off)")
    device = find_device(settings.device)
    outcome = Outcome(Path(settings.out))
    threads = torch.get_num_threads()
    try:
        with only_writer(outcome.folder), standard_library(settings) as text:
            _Session(settings, text, device, outcome, say, began).go()
    finally:
        torch.set_num_threads(threads)
    return outcome


class _Session:
    """One run's parts, in the order they come to be: race, depth, findings."""

    def __init__(
        self,
        settings: Settings,
        text: Text,
        device: torch.device,
        outcome: Outcome,
        say: Callable[[str], None],
        began: float,
    ):
        self.settings, self.text, self.device, self.outcome, self.say, self.began = (
            settings,
            text,
            device,
            outcome,
            say,
            began,
        )
        self.race: Race | None = None
        self.depth: dict[str, Any] | None = None
        self.findings: dict[str, Findings] = {}
        self.timings: dict[str, float] = {}

    def go(self) -> None:
        try:
            self._prepare()
            self._train()
            self._examine()
        except KeyboardInterrupt:
            self.outcome.code = INTERRUPTED
        if self.race is not None:
            self._write()

    def _prepare(self) -> None:
        facts = self.text.facts
        self.say(
            f"text: {facts['files']} files of this machine's Python standard library,"
            f" {facts['training_tokens'] / 1e6:.1f} MB; held out: {facts['validation_tokens'] / 1e6:.2f} MB"
        )
        dtype, threads, self.timings = choose(self.settings, self.text, self.device)
        torch.set_num_threads(threads)
        self.depth = memory_by_depth(self.settings, self.device, dtype)
        self.race = Race(self.settings, self.text, self.device, dtype)
        shape = record.setup(self.race, self.text)
        timed = ", ".join(f"{seconds * 1e3:.0f} ms in {name}" for name, seconds in self.timings.items())
        device = self.device.type
        if device == "cpu":
            device += f", {threads} thread{'s' * (threads > 1)}"
        self.say(
            f"model: a GPT of {shape['layers']} layers, width {shape['width']},"
            f" {shape['parameters'] / 1e6:.2f} M parameters, on bytes; {shape['dtype']} on"
            f" {device} (a pass takes {timed})"
        )
        self.say(
            f"stacks: {', '.join(self.settings.stacks())}; the same initial weights and batches, one step"
            " each in turn"
        )

    def _left(self) -> float:
        return 60 * self.settings.minutes - RESERVE - (time.perf_counter() - self.began)

    def _train(self) -> None:
        bar = None
        if self.settings.progress:
            bar = require("tqdm", "the progress bar").tqdm(
                total=self.race.steps or None, unit="round", dynamic_ncols=True, desc="training", disable=None
            )
        try:
            for done in self.race.rounds(self._left):
                if bar is not None:
                    bar.total = self.race.steps or None
                    bar.set_postfix_str(self._status(), refresh=False)
                    bar.update(done - bar.n)
        finally:
            if bar is not None:
                bar.close()

    def _status(self) -> str:
        losses = ", ".join(
            f"{r.name} {r.losses[-1]:.2f}" for r in self.race.racers if r.losses and not r.failure
        )
        matched, states = (sum(getattr(r, k) for r in self.race.racers) for k in ("matched", "states"))
        return f"{losses}; {matched:,} of {states:,} states exact"

    def _examine(self) -> None:
        x, y = (t.to(self.device) for t in next(self.text.validation.spread(1)))
        racers = self.race.racers
        if self.settings.progress:
            racers = require("tqdm", "the progress bar").tqdm(
                racers, unit="stack", dynamic_ncols=True, desc="examining", disable=None
            )
        for racer in racers:
            self.findings[racer.name] = examine(racer.model, x, y, self.race.dtype)

    # ---- writing ----

    def _write(self) -> None:
        outcome, race = self.outcome, self.race
        rows = [
            record.row(
                r, self.findings.get(r.name, Findings()), race.tokens, self.depth["failures"].get(r.name)
            )
            for r in race.racers
        ]
        if not outcome.interrupted:
            failed = any(row["failures"] or (row["reversible"] and not row["exact"]) for row in rows)
            outcome.code = 1 if failed else 0
            outcome.table = (record.HEADER, [record.cells(row) for row in rows])
            outcome.paragraph = record.paragraph(rows, self.text.unigram)
        self._draw()
        steps = race.steps or max(len(r.losses) for r in race.racers)
        outcome.document = record.clean(
            {
                "environment": environment(str(self.device)) | {"ran_on": self.device.type},
                "command": self.settings.command(
                    steps, str(race.dtype).removeprefix("torch."), self.device.type
                ),
                "seconds": round(time.perf_counter() - self.began, 1),
                "exit_code": outcome.code,
                "interrupted": outcome.interrupted,
                "summary": outcome.paragraph,
                "setup": record.setup(race, self.text),
                "seconds_a_pass": self.timings,
                "note": record.NOTE,
                "table": {
                    "header": list(outcome.table[0]),
                    "rows": [list(cells) for cells in outcome.table[1]],
                },
                "stacks": rows,
                "curves": record.curves(race),
                "memory_by_depth": self.depth,
                "drift_by_depth": {
                    name: {"float_states": f.float_drift, "exact": f.exact_drift}
                    for name, f in self.findings.items()
                    if f.reconstruction
                },
            }
        )
        write_atomic(outcome.folder / "demo.json", (json.dumps(outcome.document, indent=1) + "\n").encode())
        outcome.written.append("demo.json")

    def _draw(self) -> None:
        folder, race, settings = self.outcome.folder, self.race, self.settings
        where = (
            f"GPT on bytes of the Python standard library, {settings.layers} layers, width {settings.width},"
            f" {race.settings.batch} x {race.settings.context} tokens a step"
        )
        curves = record.curves(race)
        if any(len(c["validation"]) > 1 for c in curves):
            plots.draw_curves(
                folder / "curves.png",
                curves,
                race.tokens,
                self.text.unigram,
                f"{where}; thick: validation, thin: training",
            )
            self.outcome.written.append("curves.png")
        batch, length, width = self.depth["shape"]
        plots.draw_memory(
            folder / "memory_depth.png",
            self.depth,
            f"measured by saved-tensor hooks, {batch} sequence of {length} tokens, width {width}; carries and"
            " checksums included",
        )
        self.outcome.written.append("memory_depth.png")
        drifts = {
            name: (f.float_drift, f.exact_drift) for name, f in self.findings.items() if f.reconstruction
        }
        if drifts:
            plots.draw_reconstruction(
                folder / "reconstruction.png",
                drifts,
                f"lines: the same trained weights in float32 states; validation text, {settings.layers}"
                f" layers, width {settings.width}",
            )
            self.outcome.written.append("reconstruction.png")
