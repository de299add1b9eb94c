"""Bytes kept for backward against depth: plain, each block checkpointed, and each reversible scheme. Measured, not computed."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from revstep.errors import AmplificationWarning, ConfigError, RevstepError
from revstep.lm.device import autocast
from revstep.lm.model import Block, make_trunk

from .meter import kept_for_backward
from .settings import Settings

DEPTHS = (4, 8, 16, 32, 64)
#: Sequences and tokens of one: small, since the ratios do not depend on them.
SHAPE = (1, 64)
#: The block's weights, of nn.Linear's own initialisation, times this: 64 steps of Leapfrog add some 2000 increments up.
WEIGHTS = 0.1


def memory_by_depth(settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """``{"shape", "depths", "bytes": {trunk: [...]}, "failures": {trunk: why}}``; one block is used at every depth, so that only activations can grow.

    A scheme given with a list of coefficients has one depth only and is left out.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(*SHAPE, settings.width, generator=generator).to(device)
    block = Block(settings.model(vocab=2)).to(device)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(WEIGHTS)
    found: dict[str, list[int]] = {}
    failures: dict[str, str] = {}
    for name in ("plain", "checkpoint", *settings.reversible()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AmplificationWarning)
                trunks = [make_trunk([block] * layers, name) for layers in DEPTHS]
        except ConfigError:
            continue
        try:
            found[name] = [kept_for_backward(trunk, x, lambda: autocast(device, dtype)).total for trunk in trunks]
        except RevstepError as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return {"shape": [*SHAPE, settings.width], "depths": list(DEPTHS), "bytes": found, "failures": failures}
