"""``plan``: what a training step will hold and how long it will take beside the plain one, before the machine
is bought.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .._imports import foreign
from .._specs import parse_scheme, parse_state
from .._values import LONGEST, parse_bytes, parse_length, shown
from ..errors import ConfigError
from ..ops import carry_bits
from ..schemes import Scheme
from ..schemes._base import RowCoefficients
from ..stack._tiles import TILES
from ._choice import Point, fastest, nothing_fits
from ._meter import has_mlps, why_not
from ._modes import MODES, QUANTISED, static
from ._probe import Probe
from ._rows import Row, Rows
from ._source import find_source
from ._text import advice, choice, shortage, table

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Plan:
    """The rows of a plan and what they were made for; bytes throughout.

    Attributes:
        model: its name.
        layers: decoder layers.
        parameters: elements of all weights.
        trainable: elements of those that train.
        sequence: tokens a sequence.
        batch: sequences a GPU in the columns of bytes.
        settings: the other arguments of ``plan``, by name.
        logits: bytes of one tensor of all logits at ``batch``.
        memory: of one GPU, less the headroom; None when not given.
        rows: one for each way to train.
        no_chunk: why there are no rows with a chunked loss, or None.
        points: every way to train at ``batch``, with any number of kept layers and with the optimiser's step
            behind or inside backward; with ``memory`` and no tile given, also with MLPs by tiles.
    """

    model: str
    layers: int
    parameters: int
    trainable: int
    sequence: int
    batch: int
    settings: dict[str, Any]
    memory: int | None
    logits: int
    rows: tuple[Row, ...]
    no_chunk: str | None
    points: tuple[Point, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def table(self) -> str:
        """The rows as text, with a line before them that says what they are for."""
        return table(self)

    def shortage(self) -> str | None:
        """A sentence when not even one sequence fits in any mode: what is short, by how much, what to do;
        else None.
        """
        return shortage(self)

    def advice(self, model: str = "MODEL") -> str:
        """One sentence: what reversible training saves here, and the command for it; ``model`` as the command
        takes it.
        """
        return advice(self, model)

    def fastest(self) -> str | None:
        """One sentence: the fastest way to train that fits the plan's memory at its batch, and its options;
        what the smallest needs where nothing fits. None without memory.
        """
        return choice(self)

    def choose(self, memory: str | int | None = None, fused_step: bool = False) -> Point:
        """The fastest predicted point that fits.

        Args:
            memory: bytes that the step may hold, ``"4GB"`` or a number; None: the plan's own, less its
                headroom.
            fused_step: the optimiser may step inside backward, which the training loop has to do; False: as
                the plan was asked.

        Returns:
            The point; of two that are as fast the one without a fused step, then without tiles.

        Raises:
            ConfigError: no memory is given, here or to the plan; nothing fits: says what the smallest needs.
        """
        budget = self.memory if memory is None else parse_bytes(memory)
        if budget is None:
            raise ConfigError("the plan has no memory: expected choose(memory=...) or plan(..., memory=...)")
        asked = self.settings["fused_step"]
        allowed = [p for p in self.points if p.fused_step == asked or fused_step]
        found = fastest(allowed, budget)
        if found is None:
            raise ConfigError(nothing_fits(allowed, budget, self.batch))
        return found

    def row(self, mode: str, chunked: bool = False) -> Row:
        """Raises ConfigError when there is no such row."""
        for row in self.rows:
            if row.mode == mode and row.chunked == chunked:
                return row
        raise ConfigError(
            f"the plan has no row {mode!r} with chunked={chunked}; it has"
            f" {[(r.mode, r.chunked) for r in self.rows]}"
        )


def plan(
    model: Any,
    *,
    sequence: int | str,
    batch: int = 1,
    memory: str | int | None = None,
    dtype: str = "bfloat16",
    weights: str | None = None,
    optimizer: str = "adamw",
    trainable: str = "all",
    scheme: str | Scheme = "blend:c=0.0625",
    state: str = "fixed32",
    chunk: int = 1024,
    world: int = 1,
    engine: str = "ddp",
    accumulate: bool = False,
    fused_step: bool = False,
    tile: int | None = None,
    offload_carries: bool = False,
    device: str = "cuda",
    headroom: float = 0.05,
) -> Plan:
    """Predict the peak memory of a training step (forward, backward, optimiser step; the second one, so that
    the optimiser has its state).

    The architecture's own forward and backward pass are run on shapes alone (no weights, no memory), which
    gives the bytes of every phase; :mod:`._modes` has the sums. Not counted: the CUDA context, fragmentation,
    the allocator's rounding, libraries' workspaces: ``headroom`` is for them.

    Args:
        model: a name of ``revstep.plan.PUBLIC`` such as ``"llama3-8b"``, a path to a config.json, to its
            folder or to a GGUF file, a dict with a config.json's contents, a transformers config or model.
        sequence: tokens a sequence, a number or ``"8k"`` (8 x 1024).
        batch: sequences a GPU in the columns of bytes.
        memory: of one GPU: bytes, ``"80GB"`` (10**9) or ``"80GiB"`` (2**30). None: no largest batch.
        dtype: of the computation: bfloat16, float16 or float32.
        weights: dtype of the parameters; None: those of a given model, else ``dtype``. Float32 weights with
            a narrower ``dtype`` are autocast. "int8" and "int4": a frozen base whose layers' linear weights
            are packed (see :mod:`._modes`).
        optimizer: adamw (two moments in the weights' dtype), momentum or sgd; its step is fused, without
            temporaries.
        trainable: "all", "lora:r=8" (PEFT's own targets for the architecture) or
            "lora:r=8,targets=all-linear".
        scheme: of the reversible rows.
        state: of the reversible rows.
        chunk: rows of logits that the chunked loss holds at once.
        world: number of GPUs; all numbers are those of one of them.
        engine: "ddp" or "fsdp" (FSDP2, a group a layer).
        accumulate: gradients of an earlier micro-batch (or of zero_grad(set_to_none=False)) are there when
            the step begins.
        fused_step: the optimiser steps inside backward (:func:`revstep.fused_step`), so that gradients do not
            exist all at once. Not with ``accumulate`` or several GPUs.
        tile: tokens of a tile, by which the reversible rows take their MLPs; None: whole.
        offload_carries: carries of the reversible rows wait in host memory: they are no bytes of the device's
            but for two steps' (:class:`~revstep.StackOptions`). Not on a CPU, whose memory is the host's.
        device: "cuda" or "cpu": decides which loss in chunks runs, torch's or revstep's own, which hold
            different bytes.
        headroom: share of ``memory`` that is not planned for: a convention, not a measurement.

    Raises:
        ConfigError: an argument that cannot be used; a model that cannot be built or has no decoder layers;
            nothing to train.
    """
    if fused_step and (accumulate or world != 1):
        got = "accumulate" if accumulate else f"world = {world}"
        raise ConfigError(
            f"fused_step and {got}: every backward pass of one process is a step there, drop one"
        )
    if device not in ("cuda", "cpu"):
        raise ConfigError(f"device is {device!r}, expected 'cuda' or 'cpu'")
    if offload_carries and device == "cpu":
        raise ConfigError(
            "offload_carries and device = 'cpu': the carries would wait in the memory that is planned, drop"
            " one"
        )
    share = 1 - _share(headroom)
    memory = None if memory is None else int(parse_bytes(memory) * share)
    sequence = parse_length(sequence)
    given_tile = 1 if tile is None else tile
    for name, value in (("batch", batch), ("chunk", chunk), ("tile", given_tile), ("world", world)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST:
            raise ConfigError(
                f"{name} is {shown(value)}, expected a whole number, at least 1 and at most 2**40"
            )
    source = find_source(model)
    given = "" if source.dtype is None else str(source.dtype).removeprefix("torch.")
    packed = weights if weights in QUANTISED else None
    if packed and (trainable == "all" or (world > 1 and engine == "fsdp")):
        why = "how FSDP gathers them is not known here: plan ddp"
        if trainable == "all":
            why = "they cannot be trained: plan LoRA on top"
        raise ConfigError(f"weights are {packed}, and {why}")
    held, compute = _precision(dtype, dtype if packed else weights or given or dtype)
    bits, state_bytes = _states(scheme, state, source.layers)
    with foreign(
        lambda said: ConfigError(
            f"{source.name} cannot be planned with {sequence} tokens: {said}; see its config"
        )
    ):
        probe = Probe(source, sequence, held, compute, trainable, chunk, packed is not None, tile, device)
    fixed, stepped = (
        static(probe.weights, optimizer, world, engine, packed, held.itemsize, inside)
        for inside in (False, True)
    )
    ends = ((True, stepped),) if fused_step else ((False, fixed), (True, stepped))
    if accumulate or world > 1:  # every backward pass of one process would be a step
        ends = ((False, fixed),)
    no_chunk = why_not(probe.model)
    maker = Rows(probe, ends[0][1], bits, state_bytes, memory, batch, accumulate, offload_carries)
    rows = tuple(
        maker.row(mode, chunked) for chunked in ((False,) if no_chunk else (False, True)) for mode in MODES
    )
    settings = {
        "dtype": dtype,
        "weights": packed or str(held).removeprefix("torch."),
        "optimizer": optimizer,
        "trainable": trainable,
        "scheme": str(scheme),
        "state": state,
        "chunk": chunk,
        "world": world,
        "engine": engine if world > 1 else None,
        "accumulate": accumulate,
        "fused_step": fused_step,
        "tile": tile,
        "offload_carries": offload_carries,
        "device": device,
        "headroom": headroom,
    }
    total = [probe.weights.total(training) for training in (False, True)]
    return Plan(
        source.name,
        source.layers,
        *total,
        sequence,
        batch,
        settings,
        memory,
        probe.at(batch).logits,
        rows,
        no_chunk,
        maker.points(not no_chunk, ends, _tiles(probe, tile, memory, batch * sequence)),
    )


def _tiles(probe: Probe, given: int | None, memory: int | None, tokens: int) -> tuple[int | None, ...]:
    """Those that the points have: the given one, or none and, with a memory to fit, some that are tried."""
    if given is not None or memory is None or not has_mlps(probe.model):
        return (given,)
    return (None, *(size for size in TILES if size < tokens))


def _share(headroom: float) -> float:
    if isinstance(headroom, bool) or not isinstance(headroom, (int, float)) or not 0 <= headroom < 1:
        raise ConfigError(f"headroom is {headroom!r}, expected a share of the memory, 0 <= headroom < 1")
    return headroom


def _precision(dtype: str, weights: str) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of parameters, autocast dtype or None)."""
    for name, value in (("dtype", dtype), ("weights", weights)):
        if value not in DTYPES:
            more = f" (weights also {', '.join(QUANTISED)})"
            raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(DTYPES)}{more}")
    if dtype == weights:
        return DTYPES[weights], None
    if weights != "float32":
        raise ConfigError(
            f"dtype {dtype} on {weights} weights: expected the same, or a narrower dtype on float32 weights,"
            " which is autocast"
        )
    return DTYPES[weights], DTYPES[dtype]


def _states(scheme: str | Scheme, state: str, layers: int) -> tuple[tuple[int, ...], int]:
    """Carry bits an element of every step, and bytes an element of a state."""
    if isinstance(scheme, str):
        spec = parse_scheme(scheme)
        if not spec.reversible:
            raise ConfigError(
                f"scheme is {scheme!r}, expected a reversible one such as blend:c=0.0625; the plain and"
                " checkpointed modes are planned beside it"
            )
        scheme = spec.make()
    fmt = parse_state(state).make()
    scheme.check_depth(layers * scheme.halves)
    drawn = scheme.draw(layers * scheme.halves, scheme.recommended_start, 1, True)
    pairs = [(c.first, c.second) if isinstance(c, RowCoefficients) else (c,) for c in drawn]
    bits = tuple(max(carry_bits(c.alpha) for c in pair) if fmt.exact else 0 for pair in pairs)
    return bits, fmt.dtype.itemsize
