"""``plan``: what a training step will hold and how long it will take beside the plain one, before the machine
is bought.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .._specs import parse_scheme, parse_state
from .._values import parse_bytes, parse_length
from ..errors import ConfigError
from ..ops import carry_bits
from ..schemes import Scheme
from ..schemes._base import RowCoefficients
from ._meter import why_not
from ._modes import MODES, QUANTISED, Reversible, Static, peak, static
from ._probe import Probe, Sample
from ._source import find_source
from ._text import advice, shortage, table

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Row:
    """One way to train: bytes a GPU at the plan's batch, and how far the memory goes.

    Attributes:
        mode: plain, checkpointed (every layer recomputed from its input) or reversible.
        chunked: with the chunked loss.
        parameters: what a GPU holds of them.
        gradients: what a GPU holds of them.
        optimizer: its state.
        engine: DDP's buckets, FSDP's gathered layers.
        activations: saved tensors of the layers, their checkpoints, or the graphs of kept layers, when the
            loss is computed.
        states: two states, carries and checksums.
        block: the largest layer's graph.
        head: vocabulary head and loss, with their gradients.
        outside: embedding output, rotary tables, masks.
        peak: largest sum of what is alive at one moment (not the sum of the columns).
        moment: which moment that is.
        largest_batch: sequences a GPU that fit (between powers of two by interpolation, never too many); None
            without ``memory``.
        short: bytes missing for one sequence, 0 if it fits.
        step_time: predicted time of a step at the same batch beside plain's.
        keep: layers whose graph can be kept in the memory at the plan's batch (reversible, with ``memory``).
        keep_step_time: the time of a step with them.
    """

    mode: str
    chunked: bool
    parameters: float
    gradients: float
    optimizer: float
    engine: float
    activations: float
    states: float
    block: float
    head: float
    outside: float
    peak: float
    moment: str
    largest_batch: int | None
    short: float
    step_time: float
    keep: int | None = None
    keep_step_time: float | None = None


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

    def to_dict(self) -> dict:
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
    share = 1 - _share(headroom)
    memory = None if memory is None else int(parse_bytes(memory) * share)
    sequence = parse_length(sequence)
    for name, value in (("batch", batch), ("chunk", chunk), ("tile", 1 if tile is None else tile)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a whole number, at least 1")
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
    probe = Probe(source, sequence, held, compute, trainable, chunk, packed is not None, tile)
    fixed = static(probe.weights, optimizer, world, engine, packed, held.itemsize, fused_step)
    no_chunk = why_not(probe.model)
    maker = _Rows(probe, fixed, bits, state_bytes, memory, batch, accumulate)
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
    )


class _Rows:
    """Rows of one plan, from one probe."""

    def __init__(
        self,
        probe: Probe,
        fixed: Static,
        bits: tuple[int, ...],
        state_bytes: int,
        memory: int | None,
        batch: int,
        accumulate: bool,
    ):
        self.probe = probe
        self.fixed = fixed
        self.bits = bits
        self.state_bytes = state_bytes
        self.memory = memory
        self.batch = batch
        self.accumulate = accumulate

    def advice(self, model: str = "MODEL") -> str:
        """One sentence: what reversible training saves here, and the command for it; ``model`` as the command
        takes it.
        """
        return advice(self, model)

    def row(self, mode: str, chunked: bool) -> Row:
        sample = self.probe.at(self.batch)
        at = peak(mode, sample, self.fixed, self._rev(0), chunked, self.accumulate)
        largest = (
            None
            if self.memory is None
            else largest_batch(lambda b: self._peak(mode, b, chunked), self.memory)
        )
        short = 0.0 if largest is None or largest else self._peak(mode, 1, chunked) - self.memory
        depth = len(sample.layers)
        keep = None
        if mode == "reversible" and self.memory is not None and at.peak <= self.memory:
            keep = max(k for k in range(depth + 1) if self._peak(mode, self.batch, chunked, k) <= self.memory)
        fixed = self.fixed
        return Row(
            mode,
            chunked,
            fixed.parameters + fixed.buffers,
            fixed.gradients,
            fixed.optimizer,
            fixed.engine,
            at.activations,
            at.states,
            at.block,
            at.head,
            at.outside,
            at.peak,
            at.moment,
            largest,
            short,
            step_time(sample, 0 if mode == "plain" else depth),
            keep,
            None if keep is None else step_time(sample, depth - keep),
        )

    def _rev(self, keep: int) -> Reversible:
        return Reversible(self.state_bytes, self.bits, keep)

    def _peak(self, mode: str, batch: int, chunked: bool, keep: int = 0) -> float:
        sample = self.probe.at(batch) if batch == self.batch else self.probe.near(batch)
        return peak(mode, sample, self.fixed, self._rev(keep), chunked, self.accumulate).peak


def step_time(sample: Sample, again: int) -> float:
    """(forward + backward + the forward pass of the first ``again`` layers once more) / (forward + backward),
    in operations of matrix products and attention. A prediction: memory-bound operations, kernels and the
    recurrence's own step (a few bytes an element) are not in it."""
    plain = sum(sample.operations) + sum(sum(layer.operations) for layer in sample.layers)
    return 1 + sum(layer.operations[0] for layer in sample.layers[:again]) / plain


def largest_batch(needed: Callable[[int], float], memory: float) -> int:
    """The largest whole number with ``needed(batch) <= memory``, ``needed`` growing nearly in proportion; 0
    if there is none.
    """
    if needed(1) > memory:
        return 0
    # 8: nearly every search asks it, and answers are remembered.
    fits = 1
    fails = math.inf
    low = needed(1)
    guess = 8
    while fails - fits > 1:
        level = needed(guess)
        slope = max((level - low) / (guess - fits), 1.0)
        if level <= memory:
            fits, low = guess, level
        else:
            fails = guess
        # Secant; it verifies its own answer and the next one.
        guess = fits + max(1, min(int((memory - low) / slope), 64 * fits))
        if guess >= fails:
            guess = max(fits + 1, int(fails) - 1) if guess == fails else (fits + int(fails)) // 2
    return fits


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
