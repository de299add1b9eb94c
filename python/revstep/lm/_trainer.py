"""Training from a config, in a folder or in none. A run is its ``TrainConfig``: stopped and resumed, it gives
the same losses and weights, bit for bit.

That holds on one machine with one torch version, device and thread count; on CUDA also with deterministic
kernels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._files import kept_if_done
from .._locks import only_writer
from .._options import SAME_BITS
from ..errors import ConfigError, RevstepError
from ._checkpoint import Checkpoint, CheckpointError, checkpoints, load_checkpoint, outline, stored_config
from ._config import TrainConfig
from ._data import Corpus, prepare
from ._parallel import Engine, start
from ._run import Run
from ._session import Result
from ._sizes import refuse_beyond_memory

#: What may differ between a checkpoint and the run that goes on from it. Everything else would make it
#: another run.
MAY_CHANGE = SAME_BITS | {
    "steps",
    "eval_every",
    "eval_batches",
    "save_every",
    "progress",
    "device",
    "parallel",
    "out",
    "on_bad_step",
    "max_bad_steps",
    "min_headroom",
}
#: What may change to save a run that could not go on, with a warning: from there on it is not the run it was,
#: and not one started like this either.
MAY_BEND = frozenset({"state", "lr", "min_lr", "clip"})


def train(
    config: TrainConfig,
    *,
    resume: bool | str = False,
    stop_at: int | None = None,
    corpus: Corpus | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Train a model as ``config`` says. Seeds torch's global generators.

    With ``config.parallel`` every process of a group calls this with the same arguments; ``out`` is a folder
    that all of them see.

    Args:
        config: the run. ``config.out`` gets ``data/``, ``log.jsonl`` and the newest checkpoint.
        resume: go on from the checkpoint in ``config.out``; "auto": if there is one, else start.
        stop_at: stop, with a checkpoint, once this many steps are done in all; the schedule still ends at
            ``config.steps``.
        corpus: tokens made before with ``prepare``, to share among runs without ``out``; default:
            ``config.data``.
        on_step: called with each step's log entry, on every process.

    Raises:
        ConfigError: a value that cannot be used, or more than this machine can hold; a folder that already
            holds a run, or that another run writes into; a checkpoint of another run.
        ParallelError: another process has ended.
        CheckpointError: a checkpoint cannot be written or read.
        LogError: the log cannot be written.
        DivergedError: the loss or its gradient is not finite.
        HeadroomError: the states near the end of their range; the checkpoint is written.
        ReconstructionError: a rebuilt state differs (reversible trunks).
        StateOverflowError: a state leaves its format (reversible trunks).
    """
    if resume and not config.out:
        raise ConfigError("nothing to resume from: out is empty; give the folder of a run")
    out = Path(config.out) if config.out else None
    with start(config.parallel, config.device, config.batch) as engine, contextlib.ExitStack() as stack:
        refuse_beyond_memory(config, engine.size == 1 and engine.device.type == "cpu")
        if resume and resume != "auto" and not checkpoints(out):
            load_checkpoint(out)  # says what there is instead of one
        if out is not None:
            engine.first(lambda: stack.enter_context(only_writer(out)))
        saved = (
            engine.first(lambda: load_checkpoint(out), outline)
            if resume and (resume != "auto" or checkpoints(out))
            else None
        )
        if saved is not None:
            _check_same_run(config, saved)
        elif out is not None and checkpoints(out):
            raise ConfigError(
                f"{out} already holds a run ({checkpoints(out)[-1].name}); go on with --resume, or choose"
                " another --out"
            )
        if corpus is not None and out is not None:
            raise ConfigError(
                "corpus and out exclude each other: a run folder keeps its own data; set out='' or leave"
                " corpus out"
            )
        data = contextlib.nullcontext() if out is None or engine.rank else kept_if_done(out / "data")
        with data:  # a run that is refused here leaves nothing behind
            if corpus is None:
                corpus = _corpus(config, out, saved is not None, engine, stack)
            refuse_beyond_memory(
                config, engine.size == 1 and engine.device.type == "cpu", corpus.tokenizer.vocab
            )
            run = Run(config, corpus, engine)
            if saved is not None:
                _restored(run, saved)
        return run.go(out, config.steps if stop_at is None else min(stop_at, config.steps), on_step)


def _restored(run: Run, saved: Checkpoint) -> None:
    """Put ``saved`` back. Raises CheckpointError where it is of another shape than its config says."""
    try:
        run.restore(saved)
    except (RevstepError, MemoryError):
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if run.engine.size > 1:
            raise  # it may be of the connection to the others
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the checkpoint {saved.path} does not fit the run that it says it is of ({said}); restore it"
            " from a"
            " copy, or start again in another folder"
        ) from error


def resume(
    out: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    stop_at: int | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Go on with the run in ``out``, as configured there; ``changes`` may name what ``MAY_CHANGE`` and
    ``MAY_BEND`` list.

    Raises:
        ConfigError: and the others, as ``train``.
    """
    stored = {name: value for name, value in stored_config(out).items() if name != "vocab"}
    return train(
        TrainConfig.from_dict({**stored, "out": str(out), **(changes or {})}),
        resume=True,
        stop_at=stop_at,
        on_step=on_step,
    )


def _corpus(
    config: TrainConfig, out: Path | None, made: bool, engine: Engine, stack: contextlib.ExitStack
) -> Corpus:
    """Prepared by the first process, opened by all."""
    if out is None:
        folder = engine.first(
            lambda: Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revstep-")))
        )
    else:
        folder = out / "data"
    corpus = engine.first(
        lambda: Corpus.open(folder) if made else _prepare(folder, config), outline=lambda _: None
    )
    return Corpus.open(folder) if corpus is None else corpus


def _prepare(folder: Path, config: TrainConfig) -> Corpus:
    return prepare(
        folder,
        config.data,
        tokenizer=config.tokenizer,
        extensions=config.extensions,
        max_bytes=config.max_bytes,
    )


def _check_same_run(config: TrainConfig, saved: Checkpoint) -> None:
    stored = TrainConfig.from_dict({name: value for name, value in saved.config.items() if name != "vocab"})
    # There the budget decides about tiles, and tiles about last bits.
    may_change = MAY_CHANGE - ({"keep", "memory_budget"} if stored.tile == "auto" else set())
    for spec in dataclasses.fields(TrainConfig):
        mine, theirs = getattr(config, spec.name), getattr(stored, spec.name)
        if mine != theirs and spec.name in MAY_BEND:
            warnings.warn(
                f"{spec.name} changes from {theirs!r} to {mine!r} at step {saved.step}: the run goes on, but"
                " not bit for bit",
                UserWarning,
                stacklevel=4,
            )
        elif mine != theirs and spec.name not in may_change:
            raise ConfigError(
                f"{spec.name} is {mine!r}, but the run in {config.out} has {theirs!r}; leave it out to go on"
                " with that run, or choose another --out"
            )
