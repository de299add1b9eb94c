"""How ``revstep bench frontier`` measures: peaks one way after the other, seconds in interleaved rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

from revstep.errors import ConfigError

from ..bench.front import Progress
from ..bench.peaks import PROMPT, by_allocator, by_process

#: How a step is timed: in interleaved rounds, or once, while its bytes are counted, where one step takes
#: long enough.
ROUNDS_OF_STEPS, ONCE = "rounds", "once"
#: Who counts the bytes: every allocation of torch's, which keeps a record of each operator until the step is
#: over; or the kernel, the pages of the process.
ALLOCATOR, PROCESS = "allocator", "process"


def _nothing() -> None:
    pass


def count(case: Any, found: Any, names: list[str], kept: Progress, say: Callable[[str], None]) -> set[str]:
    """The peak of each, after a step that is not counted; a way of the compiler's that it refuses is left
    out with its reason. Returns those that have run.
    """
    clock, ran = clock_of(case), set()
    for name in names:
        if name in kept.memory or name in kept.skipped:
            continue
        # A graph that was compiled for few tokens is another one.
        step, warm = found.steps[name], (found.steps if "compiled" in name else found.small)[name]
        try:
            start = clock()
            warm(_nothing)
            first = clock() - start
            ran.add(name)
        except Exception as error:
            if not name.startswith("compiled"):
                raise
            kept.skipped[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            kept.write()
            say(f"{name}: left out, {kept.skipped[name]}")
            continue
        gc.collect()
        start = clock()
        kept.memory[name] = _counted(case, step)
        if case.timing == ONCE:
            kept.seconds[name] = [clock() - start]
        kept.write()
        say(f"{name}: {kept.memory[name]['peak'] / 1e6:,.0f} MB at its peak; first step {first:.1f} s")
    return ran


def _counted(case: Any, step: Callable[[Callable[[], None]], Any]) -> dict[str, int]:
    if case.counted == ALLOCATOR:
        return dict(by_allocator(step))
    peak = by_process(step, prompt=True)
    if peak is None:
        raise ConfigError(
            "counted is 'process', which works on Linux where freed memory goes back to the kernel at once:"
            f" start the command with {PROMPT}=65536 in its environment, or leave out --counted"
        )
    return {"peak": peak}


def time_rounds(
    case: Any,
    found: Any,
    names: list[str],
    kept: Progress,
    rounds: int,
    warm: set[str],
    say: Callable[[str], None],
) -> None:
    """A step of each a round, the order turned by one each round; what was timed already is not again."""
    clock = clock_of(case)
    done = min((len(kept.seconds.get(n, [])) for n in names), default=rounds)
    for name in [n for n in names if n not in warm]:  # in a run that goes on
        (found.steps if "compiled" in name else found.small)[name](_nothing)
    for r in range(done, rounds):
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            own = kept.seconds.setdefault(name, [])
            if len(own) > r:
                continue
            gc.collect()
            start = clock()
            found.steps[name](_nothing)
            own.append(clock() - start)
            kept.write()
        say(f"round {r + 1} of {rounds}")


def clock_of(case: Any) -> Callable[[], float]:
    """Processor time where one thread does the work, which others on the machine disturb less."""
    return time.process_time if case.threads == 1 else time.perf_counter
