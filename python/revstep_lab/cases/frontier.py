"""``revstep bench frontier``: peak against step time of every way to train the same network: plain, torch's
checkpointing in several forms, torch's activation memory budget, a reversing package, and ours over keep,
bits, tiles and the fused step.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from revstep.errors import ConfigError
from revstep.hf._settings import quiet

from ..bench.front import NOISE, Progress, dominated
from ..bench.front import draw as draw_front
from ..bench.runner import environment, goal, summary
from ._frontier_measure import ALLOCATOR, ONCE, PROCESS, ROUNDS_OF_STEPS, count, time_rounds
from ._frontier_trunk import OFFLOADED, OURS, ways
from .pretrained import OPTIONS as PRETRAINED_OPTIONS
from .pretrained import load_pretrained
from .trunk import OPTIONS as TRUNK_OPTIONS
from .trunk import TrunkCase

# ------------------------------------------------------------------------------------------------------------
# What is measured.

#: A model of no pretrained weights.
TRUNK = "trunk"
#: Least peak of ours beside plain's, at so many tokens with LoRA; and how far off plan may be about plain.
TOKENS, TO_PLAIN, PLAN_OFF = 16384, 1 / 30, 0.05
PLAIN = "plain"
#: Tokens of a row of the text that a pretrained model reads.
ROW = 1024


@dataclass(frozen=True)
class FrontierCase:
    """A network and the ways to train it.

    Attributes:
        model: "trunk", or what ``revstep bench pretrained`` takes.
        adapting: of a pretrained model: "LoRA" (adapters on all linear layers) or "full".
        tokens: of the one sequence of a pretrained model's step.
        methods: ways that are measured; where neither these nor ``predicted`` are given, all.
        predicted: ways whose peak and time are ``revstep plan``'s.
        timing: "rounds" or "once".
        counted: bytes by torch's "allocator", or, for steps whose record of operators would not fit, by the
            "process": its resident pages.
        dtype: "float32", or "bfloat16" for autocast.
        rank: of the adapters.
        threads: of torch.
        trunk: sizes of the trunk.

    Raises:
        ConfigError: a value that cannot be used.
    """

    model: str = TRUNK
    adapting: str = "LoRA"
    tokens: int = 1024
    methods: tuple[str, ...] = ()
    predicted: tuple[str, ...] = ()
    timing: str = ROUNDS_OF_STEPS
    counted: str = ALLOCATOR
    dtype: str = "float32"
    rank: int = 8
    threads: int = 1
    trunk: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (
            ("adapting", ("LoRA", "full")),
            ("timing", (ROUNDS_OF_STEPS, ONCE)),
            ("counted", (ALLOCATOR, PROCESS)),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(known)}")
        if self.tokens < 2:
            raise ConfigError(f"tokens is {self.tokens}, expected at least 2")
        if self.predicted and self.model == TRUNK:
            raise ConfigError("predicted: revstep plan knows pretrained models, expected --model beside it")

    @property
    def short_name(self) -> str:
        return TRUNK if self.model == TRUNK else Path(self.model).name or "SmolLM2-135M"


class Ways:
    """All ways of a case: ``steps``, ``small`` (the same steps on few tokens), ``plan`` (what is predicted of
    those that plan knows), ``skipped``, ``about``.
    """

    def __init__(self, case: FrontierCase, load: Callable[[str], tuple[Any, Any]]):
        self.plan: dict[str, dict[str, float]] = {}
        self.planned: list[str] = []
        if case.model == TRUNK:
            trunk = TrunkCase(dtype=case.dtype, **case.trunk)
            self.steps, self.skipped = ways(trunk)
            self.small = self.steps
            self.about = (
                f"{trunk.layers} blocks, width {trunk.width}, {trunk.heads} heads, {trunk.batch} x"
                f" {trunk.length} tokens, {case.dtype}"
            )
            return
        from ..demo.real.settings import Settings, read
        from ._frontier_pretrained import Pretrained

        model, tokenizer = load(case.model)
        text = read(tokenizer, Settings(batch=1, context=min(case.tokens, ROW), held_out=1)).train.flatten()
        times = -(-case.tokens // len(text))  # a text that is shorter than the sequence is read again
        made = Pretrained(case, model, text.repeat(times)[None, : case.tokens].clone())
        self.steps, self.small, self.skipped = made.steps(), made.small(), made.skipped
        self.planned = made.planned()
        # A plan runs the model on shapes alone, once for each kind of way: of those that are asked for.
        self.plan = made.predicted((*case.methods, *case.predicted) or tuple(self.planned))
        trains = "all weights" if case.adapting == "full" else f"LoRA of rank {case.rank}"
        self.about = f"{case.short_name}, {made.about}, {trains}, 1 x {case.tokens:,} tokens, {case.dtype}"


def run_frontier(
    case: FrontierCase,
    load: Callable[[str], tuple[Any, Any]] = load_pretrained,
    resume: str = "",
    rounds: int = 3,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Peak and seconds of every way.

    Args:
        case: what is compared.
        load: gives (model, tokenizer) of ``case.model``.
        resume: a file that is whole after every point and every timed step, and from which it goes on. Empty:
            nothing is kept.
        rounds: of timed steps.
        say: gets a line a point.

    Returns:
        ``{"case", "about", "environment", "goals", "skipped", "measurements"}``, ready for JSON.

    Raises:
        ConfigError: an unknown way; a file of another case; a way to be predicted that plan does not know.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write lines of its own
    torch.set_num_threads(case.threads)
    with contextlib.nullcontext() if case.model == TRUNK else quiet():
        return _run(case, load, resume, rounds, say)


def _run(
    case: FrontierCase,
    load: Callable[[str], tuple[Any, Any]],
    resume: str,
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    found = Ways(case, load)
    names = _named(case, found)
    measured = [name for name in names if name not in case.predicted]
    about = {name: value for name, value in asdict(case).items() if name not in ("methods", "predicted")}
    kept = Progress(Path(resume) if resume else None, {**about, "model": case.short_name})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of float states and of compilers
        warm = count(case, found, measured, kept, say)
        measured = [name for name in measured if name not in kept.skipped]
        if case.timing == ROUNDS_OF_STEPS:
            time_rounds(case, found, measured, kept, rounds, warm, say)
    seconds = {name: kept.seconds[name][:rounds] for name in measured}
    rows = _rows(case, found, seconds, kept.memory)
    reasons = [{"what": what, "reason": reason} for what, reason in kept.skipped.items() if what in names]
    return {
        "case": {**asdict(case), "model": case.short_name},
        "about": found.about,
        "environment": environment(),
        "goals": goals(case, rows),
        "skipped": found.skipped + reasons,
        "measurements": rows,
    }


def _named(case: FrontierCase, found: Ways) -> list[str]:
    unknown = [n for n in case.methods if n not in found.steps]
    if unknown:
        planned = " to be measured" if unknown[0] in found.planned else ""
        raise ConfigError(
            f"method {unknown[0]!r} is not known{planned}, expected some of {'; '.join(found.steps)}"
        )
    unplanned = [n for n in case.predicted if n not in found.planned]
    if unplanned:
        raise ConfigError(f"plan does not know {unplanned[0]!r}, expected some of {'; '.join(found.planned)}")
    wanted = {*case.methods, *case.predicted} or set(found.steps)
    return [name for name in dict.fromkeys((*found.steps, *found.plan)) if name in wanted]


def _rows(
    case: FrontierCase, found: Ways, seconds: dict[str, list[float]], memory: dict[str, dict]
) -> list[dict]:
    """A measurement a way, those that are predicted last, with the names of those that dominate it."""
    rows = []
    for name in seconds:
        row = {**summary(name, seconds).to_dict(), "memory": memory[name], "peak": memory[name]["peak"]}
        rows.append({**row, "predicted": False, "plan": found.plan.get(name)})
    # A prediction is of time beside plain's, so seconds need one way that was measured and that plan knows.
    anchor = next((row for row in rows if row["plan"]), None)
    second = anchor["p50"] / anchor["plan"]["step_time"] if anchor else 1.0
    for name in case.predicted:
        plan = found.plan[name]
        time = second * plan["step_time"]
        rows.append(
            {
                "name": name,
                **dict.fromkeys(("p20", "p50", "p80"), time),
                "ratios": {},
                "peak": plan["peak"],
                "predicted": True,
                "plan": plan,
            }
        )
    for row in rows:
        others = {other["name"]: row["p50"] / other["p50"] for other in rows if other is not row}
        row["ratios"] = {**others, **row["ratios"]}
    by = dominated(rows)
    return [{**row, "dominated_by": by[row["name"]]} for row in rows]


def goals(case: FrontierCase, rows: list[dict]) -> list[dict]:
    """How right plan is about plain where plain was measured, and the least peak of ours at 4 carry bits
    beside plain's.
    """
    peaks = {row["name"]: row["peak"] for row in rows}
    plain = next((row for row in rows if row["name"] == PLAIN), None)
    # With 4 carry bits SmolLM2 ends where plain fine-tuning does. Fewer hold less, and change the loss.
    ours = [row for row in rows if row["name"].startswith(f"{OURS}, 4 bits")]
    away = [row["peak"] for row in ours if row["name"].endswith(OFFLOADED)]
    ours = [row for row in ours if not row["name"].endswith(OFFLOADED)]
    mine = [row["peak"] for row in ours if not row["predicted"]] or [row["peak"] for row in ours]
    found = []
    if plain and plain["plan"] and not plain["predicted"]:
        off = abs(plain["plan"]["peak"] / plain["peak"] - 1)
        found.append(goal(f"{case.tokens:,} tokens, plain's peak: plan off by", off, PLAN_OFF, False))
    if plain and mine and case.model != TRUNK and case.adapting == "LoRA" and case.tokens == TOKENS:
        both = all(row["predicted"] for row in ours)
        plans = "plain's by plan" if plain["predicted"] else "plain's"
        whose = f"{plans[:7]}, both by plan" if both and plain["predicted"] else plans
        what = f"{case.tokens:,} tokens, LoRA: least peak of ours at 4 bits / {whose}"
        found.append(goal(what, min(mine) / peaks[PLAIN], TO_PLAIN, False))
        if away:
            what = f"the same with carries in host memory, by plan / {plans}"
            found.append(goal(what, min(away) / peaks[PLAIN], TO_PLAIN, False))
    return found


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables, its goals and its picture.

NAME = "frontier"
HELP = (
    "peak against step time of every way to train one network: plain, checkpointing, torch's memory budget, a"
    " reversing package, ours over keep, bits, tiles and the fused step"
)
EXAMPLES = """
revstep bench frontier --resume points.json --json frontier.json
revstep bench frontier --model SMOLLM2 --tokens 1024 --resume points.json --json frontier_lora.json
revstep bench frontier --model SMOLLM2 --tokens 16384 --predicted plain 'ours, 4 bits, keep=0, tiles of 256'
"""
ROUNDS = 3
_SIZES = ("layers", "width", "heads", "batch", "length")
OPTIONS: dict[str, tuple[dict, str]] = {
    "model": (PRETRAINED_OPTIONS["model"][0], "trunk, or as of pretrained (default trunk)"),
    "adapting": (PRETRAINED_OPTIONS["adapting"][0], "of a pretrained model (default LoRA)"),
    "tokens": ({"type": int}, "of a pretrained model's step (default 1024)"),
    "methods": (PRETRAINED_OPTIONS["methods"][0], "ways to measure (default all)"),
    "predicted": ({"nargs": "+", "metavar": "METHOD"}, "ways that are planned and not measured"),
    "timing": (
        {"choices": (ROUNDS_OF_STEPS, ONCE)},
        "in rounds, or once, in the step whose bytes are counted (default rounds)",
    ),
    "counted": (
        {"choices": (ALLOCATOR, PROCESS)},
        "bytes by torch's allocator, or by the process where a step is long (default allocator)",
    ),
    "dtype": (TRUNK_OPTIONS["dtype"][0], TRUNK_OPTIONS["dtype"][1]),
    "resume": (PRETRAINED_OPTIONS["resume"][0], "points and timed steps are kept here and not done again"),
    **{name: TRUNK_OPTIONS[name] for name in _SIZES},
}
#: What the picture shows a peak against, for ``revstep bench --report``.
CURVES = ("time",)
CURVE = "peak"


def run(options: dict[str, Any], settings: Any) -> dict:
    resume = options.pop("resume", "")
    sizes = {name: options.pop(name) for name in _SIZES if name in options}
    if sizes and options.get("model", TRUNK) != TRUNK:
        raise ConfigError(f"--{next(iter(sizes))} is of the trunk, and --model is {options['model']!r}")
    case = FrontierCase(
        trunk=sizes, **{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}
    )
    result = run_frontier(
        case, load_pretrained, resume, settings.rounds, lambda line: print(line, flush=True)
    )
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    from revstep._values import size

    plain = next((row for row in result["measurements"] if row["name"] == PLAIN), None)
    planned = any(row["plan"] for row in result["measurements"])
    whose = "resident bytes of the process" if result["case"].get("counted") == PROCESS else "peak"
    title = (
        f"{result['about']}: forward, backward and AdamW; {whose} above the weights and the optimiser's"
        " state;"
        f" dominated: another way has no larger a peak and is no slower, times within {NOISE:.0%} counted as"
        " equal"
    )
    header = (
        "way",
        _unit(result, "s a step"),
        "p20 to p80",
        "/ plain",
        "peak",
        "/ plain's",
        *["plan's peak"] * planned,
        "",
    )
    rows = []
    for row in sorted(result["measurements"], key=lambda row: (row["p50"], row["peak"])):
        spread = f"{row['p20']:.3g} to {row['p80']:.3g}"
        cells = [
            row["name"],
            f"{row['p50']:.3g}",
            "predicted" if row["predicted"] else spread,
            f"{1.0 if row is plain else row['ratios'][PLAIN]:.3f}" if plain else "-",
            size(row["peak"]),
            f"1/{plain['peak'] / row['peak']:.1f}" if plain else "-",
        ]
        cells += [size(row["plan"]["peak"]) if row["plan"] else "-"] * planned
        rows.append((*cells, _mark(row)))
    return [(title, header, rows)]


def _mark(row: dict) -> str:
    first, *more = row["dominated_by"] or ("",)
    return first and f"dominated by {first}{f' and {len(more)} more' * bool(more)}"


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])


def _family(name: str) -> int:
    """Plain, checkpointing, compiled, coupling, ours."""
    starts = ("plain", "checkpoint", "compiled", "coupling", OURS)
    return next(i for i, start in enumerate(starts) if name.startswith(start))


def draw(path: Path, result: dict) -> list[Path]:
    """The picture beside the JSON file."""
    env = result["environment"]
    title = f"Peak against step time: {result['about']}"
    subtitle = f"{env['device']}, torch {env['torch']}, {env['date']}; {result['command']}"
    rows = [{**row, "seconds": row["p50"]} for row in result["measurements"]]
    unit = _unit(result, "seconds a step")
    return draw_front(path.with_name(f"{path.stem}-time.png"), title, subtitle, rows, _family, unit)


def _unit(result: dict, seconds: str) -> str:
    """Where nothing was measured there are no seconds, and plan's unit is the time of the plain step."""
    return "plain steps" if all(row["predicted"] for row in result["measurements"]) else seconds
