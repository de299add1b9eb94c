"""What a run needs at least, refused before anything is written where this machine cannot hold it."""

from __future__ import annotations

import os
from pathlib import Path

from .._values import shown, size
from ..errors import ConfigError
from ._config import ModelConfig, TrainConfig

#: Bytes of a block's modules in Python, at least.
_BLOCK = 20_000


def memory_here() -> int | None:
    """Bytes that a process can have here at most: the machine's memory and swap, or what it is limited to;
    None where the system does not say.
    """
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = dict(line.split(":", 1) for line in lines)
        limits.append(sum(int(found[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal")))
    except (OSError, ValueError, KeyError):
        names = os.sysconf_names if hasattr(os, "sysconf") else {}
        if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        pass
    else:
        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [soft] * (soft != resource.RLIM_INFINITY)
    return min((limit for limit in limits if limit > 0), default=None)


def parameters(shape: ModelConfig) -> int:
    """The elements of the matrices of a model, without building it."""
    groups, width = getattr(shape, "groups", shape.heads), shape.width
    attention = 2 * width * width + 2 * width * (width // shape.heads) * groups
    mlp = 3 * width * shape.mlp_width if hasattr(shape, "mlp_width") else 8 * width * width
    positions = 0 if hasattr(shape, "mlp_width") else shape.context * width
    return shape.vocab * width * (1 if shape.tied else 2) + positions + shape.layers * (attention + mlp)


def refuse_beyond_memory(config: TrainConfig, here_alone: bool, vocab: int = 256) -> None:
    """Raises ConfigError where the weights, or the tokens and states of a batch, cannot fit into this
    machine, whatever else it holds.

    Args:
        config: the run.
        here_alone: it trains on the CPU in this process; otherwise only what passes through this process's
            memory on its way counts.
        vocab: of the tokenizer, at least.
    """
    here = memory_here()
    if here is None:
        return
    refuse_model_beyond_memory(config.shape(vocab), here_alone)
    states = 8 * config.width if here_alone else 0
    for needed, what, smaller in (
        (
            config.batch * config.context * (16 + states),
            f"a batch of {shown(config.batch)} rows of {shown(config.context)} tokens takes",
            "--batch or --context",
        ),
        (config.batch * config.eval_batches * 16, "a validation takes", "--eval-batches or --batch"),
    ):
        _refuse(needed, here, what, smaller)


def refuse_model_beyond_memory(shape: ModelConfig, trained: bool) -> None:
    """Raises ConfigError where the weights of a model cannot fit into this machine.

    Args:
        shape: of the model.
        trained: on the CPU: with gradients and two moments of the optimiser.
    """
    here = memory_here()
    if here is None:
        return
    count = parameters(shape)
    needed = count * 4 * (4 if trained else 1) + shape.layers * _BLOCK
    what = f"the model has {float(min(count, 10**30)):.3g} parameters, which take"
    _refuse(needed, here, what, "--width, --layers or --context")


def _refuse(needed: int, here: int, what: str, smaller: str) -> None:
    if needed > here:
        raise ConfigError(
            f"{what} at least {size(float(min(needed, 10**30)))}, and this machine has {size(here)}: choose"
            " a smaller"
            f" {smaller}"
        )
