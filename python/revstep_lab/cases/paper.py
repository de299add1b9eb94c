"""``revstep bench paper``: the tables of arXiv 2512.02056 by real training steps: the largest batch that
trains (Table 3), the throughput at it (Table 4); time and memory against depth, length and batch.

On CUDA at the paper's sizes and within the card's memory, on a CPU at sizes a twelfth of them in width and
within a limit, so that the whole program runs anywhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from revstep.errors import ConfigError

from ..bench.runner import Measurement, environment, goal, measure, per
from ..bench.training import Model, OutOfMemory, Worker
from . import _growth as growth
from .trunk import TrunkCase

#: Row -> (scheme, chunked loss).
STANDARD, REVERSIBLE = "standard", "reversible"
WAYS = {STANDARD: "plain", "checkpoint": "checkpoint", REVERSIBLE: "midpoint"}
#: Largest batch, reversible with the chunked loss / standard, at least; throughput at 96 layers, reversible /
#: standard, at least.
BATCH, THROUGHPUT = 10.0, 2.01
#: (layers, width, heads) of GPT-2, and a twelfth of the width for a CPU.
SIZES = {"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20)}
SMALL_SIZES = {"small": (12, 64, 4), "medium": (24, 84, 4), "large": (36, 108, 4)}
DEPTHS = (16, 32, 64, 96)
#: Steps of a first try (the optimiser's state is there from the second on), and of the longer run that
#: confirms it.
TRY, RUN = 2, {"cpu": 8, "cuda": 100}
#: What was measured of the memory of a step.
BYTES = ("kept", "peak", "process")
#: A batch is found to within one part in so many.
PART = {"cpu": 8, "cuda": 32}


@dataclass(frozen=True)
class PaperCase:
    """What is measured.

    Args:
        parts: some of :data:`PARTS`. models: some of small, medium, large (Table 3).
        memory_limit: MB of one training process (0: on CUDA all that the card has, on a CPU 256 for Table 3
            and 192 for Table 4).
        most: batches above are not tried. dtype, device: as in TrunkCase.
    """

    parts: tuple[str, ...] = ("batch", "throughput", "depth", "length", "batch-size")
    models: tuple[str, ...] = ("small", "medium", "large")
    memory_limit: int = 0
    most: int = 4096
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, known in (("parts", PARTS), ("models", SIZES)):
            given = getattr(self, name)
            if not given or set(given) - set(known):
                raise ConfigError(
                    f"{name} are {', '.join(given) or 'none'}, expected some of {', '.join(known)}"
                )
        for name, least in (("memory_limit", 0), ("most", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {least}")
        TrunkCase(dtype=self.dtype, device=self.device)  # refuses others

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    def model(self, shape: tuple[int, int, int], length: int, limit: int, **more: Any) -> Model:
        layers, width, heads = shape
        megabytes = self.memory_limit or (limit if self.small else 0)
        return Model(
            layers,
            width,
            heads,
            4096 if self.small else 50257,
            length,
            dtype=self.dtype,
            device=self.device,
            limit=megabytes << 20,
            **more,
        )


class Tries:
    """Tries of one model. A process serves as long as it finds memory for ever larger batches; every other
    try has one of its own.
    """

    def __init__(self, model: Model):
        self.model, self._worker, self._last = model, None, 0

    def hold(self, batch: int, steps: int, vary: bool = False) -> bool:
        if self._worker is None or batch < self._last or vary:
            self.close()
            self._worker = Worker(self.model, torch.get_num_threads())
        self._last = batch
        try:
            self._worker.steps(batch, steps, vary)
        except OutOfMemory:
            self.close()
            return False
        return True

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def largest_batch(model: Model, most: int) -> dict:
    """``{"tried", "batch"}``: the largest batch of two steps, and the largest from there down that held for a
    longer run of steps of varying length.
    """
    tries, part, run = Tries(model), PART[model.device], RUN[model.device]
    try:
        tried = growth.largest(lambda batch: tries.hold(batch, TRY), most, part)
        return {
            "tried": tried,
            "batch": growth.confirmed(tried, lambda batch: tries.hold(batch, run, vary=True), part),
        }
    finally:
        tries.close()


def batch(case: PaperCase, rounds: int, memory: bool) -> dict:
    """Table 3."""
    rows, goals = [], []
    length = 128 if case.small else 1024
    for size in case.models:
        found = {}
        for way, scheme in WAYS.items():
            for chunked in (False, True):
                model = case.model(
                    (SMALL_SIZES if case.small else SIZES)[size], length, 256, scheme=scheme, chunked=chunked
                )
                found[way, chunked] = largest_batch(model, case.most)
                rows.append(
                    {
                        "size": size,
                        "way": way,
                        "chunked": chunked,
                        "model": asdict(model),
                        **found[way, chunked],
                    }
                )
        standard, ours = found[STANDARD, False]["batch"], found[REVERSIBLE, True]["batch"]
        goals.append(
            goal(
                f"largest batch, {size}, reversible and chunked loss / standard",
                ours / standard if standard else float("nan"),
                BATCH,
                True,
            )
        )
    return {"rows": rows, "goals": goals, "skipped": [], "run": RUN[case.device]}


def throughput(case: PaperCase, rounds: int, memory: bool) -> dict:
    """Table 4: samples a second of each way at its own largest batch, one step of each in turn."""
    length, rows, goals = (64 if case.small else 1024), [], []
    for layers in DEPTHS:
        models = {
            way: case.model((layers, 64 if case.small else 512, 8), length, 192, scheme=scheme)
            for way, scheme in WAYS.items()
        }
        batches = {way: largest_batch(model, case.most)["batch"] for way, model in models.items()}
        times = _in_turn(models, batches, rounds, PART[case.device])
        rates = {m.name: m.ratios for m in times}
        rows += [
            {**m.to_dict(), "layers": layers, "batch": batches[m.name], "samples_per_second": 1 / m.p50}
            for m in times
        ]
        for other, least in ((STANDARD, THROUGHPUT if layers == DEPTHS[-1] else 1.0), ("checkpoint", 1.0)):
            faster = rates[other][REVERSIBLE] if other in rates and REVERSIBLE in rates else float("nan")
            goals.append(
                goal(
                    f"throughput at the largest batch, {layers} layers, reversible / {other}",
                    faster,
                    least,
                    True,
                )
            )
    return {"rows": rows, "goals": goals, "skipped": [], "length": length}


def _in_turn(models: dict[str, Model], batches: dict[str, int], rounds: int, part: int) -> list[Measurement]:
    """Seconds a sample. A way that is out of memory here after all gets a smaller batch in ``batches``, and
    everything is timed again; without a batch it is left out.
    """
    while there := [way for way in models if batches[way]]:
        died: list[str] = []
        with contextlib.ExitStack() as stack:
            workers = {
                way: stack.enter_context(Worker(models[way], torch.get_num_threads())) for way in there
            }

            def step(way: str, workers: dict[str, Worker] = workers, died: list[str] = died) -> None:
                try:
                    workers[way].steps(batches[way], 1)
                except OutOfMemory:
                    died.append(way)
                    raise

            try:
                return per(
                    measure({way: partial(step, way) for way in there}, rounds, warmup=TRY),
                    {way: float(batches[way]) for way in there},
                )
            except OutOfMemory:
                batches[died[0]] -= max(1, batches[died[0]] // part)
    return []


def _trunk(case: PaperCase) -> TrunkCase:
    """Narrow, as what grows is looked at, not what the matrices cost."""
    if case.small:
        return TrunkCase(layers=8, width=64, heads=4, batch=2, length=64, dtype=case.dtype)
    return TrunkCase(layers=8, width=512, heads=8, batch=4, length=1024, dtype=case.dtype, device=case.device)


def depth(case: PaperCase, rounds: int, memory: bool) -> dict:
    return growth.depth(_trunk(case), (8, 16, 32, 64, 128, 256), rounds, memory)


def length(case: PaperCase, rounds: int, memory: bool) -> dict:
    values = (256, 1024, 4096, 8192) if case.small else (1024, 4096, 16384, 65536, 131072)
    return growth.against(replace(_trunk(case), batch=1), "length", values, rounds, memory)


def batch_size(case: PaperCase, rounds: int, memory: bool) -> dict:
    return growth.against(_trunk(case), "batch", (1, 4, 16, 64), rounds, memory)


PARTS: dict[str, Callable[[PaperCase, int, bool], dict]] = {
    "batch": batch, "throughput": throughput, "depth": depth, "length": length, "batch-size": batch_size,
}  # fmt: skip


def run_paper(
    case: PaperCase, rounds: int = 5, memory: bool = True, show: Callable[[dict], None] = lambda part: None
) -> dict:
    """Measure the parts of a case. Returns ``{"case", "rounds", "environment", "parts"}`` ready for JSON;
    ``show`` gets one with each part alone as it is done.
    """
    result: dict = {
        "case": asdict(case),
        "rounds": rounds,
        "environment": environment(case.device),
        "parts": {},
    }
    for name in case.parts:
        result["parts"][name] = PARTS[name](case, rounds, memory)
        show({**result, "parts": {name: result["parts"][name]}})
    return result


# ---- The case as ``revstep bench`` takes it: its name, its options, its tables and its goals ----

NAME = "paper"
HELP = (
    "the paper's tables: largest batch and throughput at it, time and memory against depth, length and batch"
)
EXAMPLES = """
revstep bench paper --json paper.json
revstep bench paper --device cuda --dtype bfloat16 --json paper_cuda.json
revstep bench paper --parts batch --models small --memory-limit 512
"""
ROUNDS = 5
#: Option -> (settings for argparse, help); the defaults are PaperCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "parts": (
        {"nargs": "+", "metavar": "PART"},
        "some of batch, throughput, depth, length, batch-size (default all)",
    ),
    "models": (
        {"nargs": "+", "metavar": "SIZE"},
        "some of small, medium, large for the largest batch (default all)",
    ),
    "memory-limit": (
        {"type": int},
        (
            "MB of a training process (default on cuda the card's, on cpu 256 for the batch and 192 for the"
            " throughput)"
        ),
    ),
    "most": ({"type": int}, "batches above are not tried (default 4096)"),
    "dtype": ({}, "float32, or bfloat16 for autocast (default float32)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def run(options: dict[str, Any], settings: Any) -> dict:
    case = PaperCase(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    )
    return run_paper(case, settings.rounds, settings.memory, settings.show)


def tables(result: dict) -> list[Table]:
    return [table for name, part in result["parts"].items() for table in _TABLES.get(name, _growth)(part)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows([g for part in result["parts"].values() for g in part["goals"]])


def _batch(part: dict) -> list[Table]:
    rows = []
    for row in part["rows"]:
        m = row["model"]
        shape = f"{row['size']}: {m['layers']} layers, width {m['width']}"
        limit = f"{m['limit'] >> 20} MB" if m["limit"] else "the card's"
        loss = "chunked" if row["chunked"] else "whole logits"
        rows.append((shape, limit, row["way"], loss, str(row["tried"]), str(row["batch"])))
    m = part["rows"][0]["model"]
    title = (
        f"Largest batch, {m['length']:,} tokens, {m['vocab']:,} ids, {m['dtype']}: of two steps, and"
        f" confirmed by {part['run']} steps of varying length"
    )
    return [(title, ("model", "memory", "step", "loss", "two steps", "confirmed"), rows)]


def _throughput(part: dict) -> list[Table]:
    rows = [
        (
            str(m["layers"]),
            m["name"],
            str(m["batch"]),
            f"{m['samples_per_second']:.1f}",
            f"{1 / m['p80']:.1f} to {1 / m['p20']:.1f}",
            f"{1 / m['ratios']['standard']:.2f}" if "standard" in m["ratios"] else "1.00",
            f"{1 / m['ratios']['checkpoint']:.2f}" if "checkpoint" in m["ratios"] else "1.00",
        )
        for m in part["rows"]
    ]
    title = f"Throughput at the largest batch, {part['length']:,} tokens, chunked loss"
    return [
        (title, ("layers", "step", "batch", "samples/s", "p20 to p80", "/ standard", "/ checkpoint"), rows)
    ]


def _growth(part: dict) -> list[Table]:
    from revstep._values import size

    memory = all("memory" in m for m in part["rows"])
    rows = []
    for m in part["rows"]:
        cells = [
            f"{m['x']:,}",
            m["way"],
            f"{m['p50'] * 1e3:.1f}",
            f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
            f"{m['ratios'].get('plain', 1.0):.2f}",
        ]
        measured = [m["memory"][k] for k in BYTES] if memory else []
        rows.append((*cells, *("-" if found is None else size(found) for found in measured)))
    header = (part["field"], "step", "ms", "p20 to p80", "/ plain", *(BYTES if memory else ()))
    found: list[Table] = [(f"Against {part['field']}", header, rows)]
    if "layer" in part:
        kept = [
            (row["what"], f"{row['bytes']:,.0f}", f"{row['tensors']:,.0f}", f"{row['expected']:,.0f}")
            for row in part["layer"]
        ]
        columns = ("stack", "reported", "of them made by operators", "expected")
        found.append(("Bytes that one layer more keeps for backward", columns, kept))
    return found


_TABLES = {"batch": _batch, "throughput": _throughput}
