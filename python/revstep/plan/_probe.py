"""The measurement behind a plan: one training step of the architecture, on shapes alone, with its bytes told
apart by phase.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .._models.layers import decoder_layers
from ..errors import ConfigError
from ._meter import Head, Meter, autocast, by_tiles, chunked_head
from ._source import Source, build, weightless
from ._weights import Linear as Linear
from ._weights import Weights as Weights
from ._weights import count, kind_of


@dataclass(frozen=True)
class Layer:
    """One decoder layer at one batch size; bytes, and floating point operations.

    Attributes:
        saved: what its forward pass leaves alive for backward: distinct storages, parameters not counted;
            with its output, without what layers share (rotary tables, masks). Under autocast with the narrow
            copies of its weights.
        forward: peak above the bytes alive before it, in forward. backward: the same in backward, its own
            graph and gradients so far included among what was alive, its parameters' new gradients among what
            comes on top.
        casts: of ``saved``, the part that does not depend on the batch: weights in autocast's dtype.
        operations: (forward, backward).
    """

    saved: int
    forward: int
    backward: int
    casts: int
    operations: tuple[float, float]


@dataclass(frozen=True)
class Sample:
    """A training step at one batch size.

    Attributes:
        batch: sequences.
        layers: a :class:`Layer` for every decoder layer of the full model.
        hidden: bytes of one hidden state. elements: its elements.
        outside: bytes alive before the first layer: token ids, embedding output, rotary tables, masks. edge:
            what the first and last layers of a stored trunk save more than others of their kind (less, where
            nothing below needs a gradient).
        head: final norm, vocabulary head and loss.
        logits: bytes of one (batch, sequence, vocabulary) tensor in the head's dtype.
        embed: peak above what is alive when the first layer's backward is done.
        chunked: the head by the loss in chunks, None where it cannot serve this model.
        operations: (forward, backward) of all that is outside the layers.
        tiled: the layers, their MLPs by tiles; None: whole. Their bytes alone count.
    """

    batch: int
    layers: tuple[Layer, ...]
    hidden: int
    elements: int
    outside: int
    edge: int
    head: Head
    logits: int
    embed: int
    chunked: Head | None
    operations: tuple[float, float]
    tiled: tuple[Layer, ...] | None = None

    def rebuilt(self, layer: int) -> Layer:  # as backward evaluates it again
        return (self.tiled or self.layers)[layer]


class Probe:
    """Builds the architecture once, at full depth and at the few layers that are measured, and measures batch
    sizes when asked.

    Args:
        source: what to plan.
        sequence: tokens a sequence.
        weights: dtype of the parameters.
        compute: autocast dtype, or None for none.
        trainable: as in :func:`._source.adapted`.
        chunk: rows of logits held at once by the chunked loss.
        packed: frozen linear weights are packed, and one at a time is unpacked to compute with it.
        tile: tokens of a tile of the MLPs, None for whole ones.

    Attributes:
        weights: elements of the full model.
        model: the few layers that are measured.

    Layers that look alike (same parameters, same entries in the config's per-layer lists) are measured once,
    in the middle of a model deep enough to hold each kind there; the rest are copies of the measurement.
    Nothing is allocated: shapes only, on the CPU's kernels, whose fused attention (where the architecture has
    it) saves query, key, value, output and log-sum-exp as the GPU's flash kernels do.
    """

    def __init__(
        self,
        source: Source,
        sequence: int,
        weights: torch.dtype,
        compute: torch.dtype | None,
        trainable: str,
        chunk: int,
        packed: bool = False,
        tile: int | None = None,
        device: str = "cuda",
    ):
        self.device = device
        self.source = source
        self.sequence = sequence
        self.compute = compute
        self.chunk = chunk
        self.tile = tile
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._samples: dict[int, Sample] = {}
        self._tiled: dict[tuple[int, int], tuple[Layer, ...]] = {}
        self._heads: dict[int, Head] = {}
        config = source.config
        depth = source.layers
        limit = (
            getattr(config, "max_position_embeddings", None)
            if getattr(config, "model_type", "") == "gpt2"
            else None
        )
        if limit is not None and sequence > limit:
            raise ConfigError(
                f"sequence is {sequence}, the model has {limit} learned positions; plan for at most that"
            )
        full = build(config, depth, weights, trainable, source.frozen)
        layers = decoder_layers(full)[1]
        self.weights = count(full, layers)
        if not self.weights.total(True):
            raise ConfigError("every parameter is frozen: plan a model with something to train")
        self._unpacked = self.weights.linear.largest * weights.itemsize if packed else 0
        kinds = [kind_of(config, i, layer) for i, layer in enumerate(layers)]
        # The first layer is special (what is below it may need no gradient), so a kind is measured where it
        # occurs next.
        first = {kind: i for i, kind in reversed(list(enumerate(kinds))) if i > 0} or {kinds[0]: 0}
        self._depth = min(depth, max(3, max(first.values()) + 2))
        with self._fake:
            self.model = weightless(
                full
                if self._depth == depth
                else build(config, self._depth, weights, trainable, source.frozen)
            )
        self._copied_from = (
            list(range(depth)) if self._depth == depth else [first.get(kind, 0) for kind in kinds]
        )

    def at(self, batch: int, tile: int | None = None) -> Sample:
        """The step with ``batch`` sequences; ``tile``: tokens of a tile, where none was given."""
        tile = tile or self.tile
        sample = self._whole(batch)
        if not tile:
            return sample
        if (batch, tile) not in self._tiled:
            self._tiled[batch, tile] = self._measure(batch, tile).layers
        return replace(sample, tiled=self._tiled[batch, tile])

    def _whole(self, batch: int) -> Sample:
        if batch not in self._samples:
            sample = self._measure(batch)
            # What autocast copied does not grow with the batch: the intercept of two measurements.
            if self.compute is not None:
                more = self._measure(batch + 1).layers
                layers = (
                    replace(a, casts=max(0, a.saved - batch * (b.saved - a.saved)))
                    for a, b in zip(sample.layers, more)
                )
                sample = replace(sample, layers=tuple(layers))
            self._samples[batch] = sample
        return self._samples[batch]

    def near(self, batch: int) -> Sample:
        """As :meth:`at`, between two powers of two on the line between their measurements: for searches.

        Bytes are sums and maxima of terms in proportion to the batch, so the line is exact where one term
        stays the largest, and above the truth elsewhere (a maximum is convex).
        """
        low = 1 << (batch.bit_length() - 1)
        if batch in (low, 3):
            return self.at(batch)
        return _between(self.at(low), self.at(2 * low), batch / low - 1)

    def _measure(self, batch: int, tile: int | None = None) -> Sample:
        meter = Meter()
        model = self.model
        shapes = {}
        layers = decoder_layers(model)[1]
        head = model.get_output_embeddings()
        # Real: the model asks it whether anything is padded.
        mask = torch.ones(batch, self.sequence, dtype=torch.bool)
        with self._fake:
            ids = torch.zeros(batch, self.sequence, dtype=torch.long)
            for t in (*model.parameters(), *model.buffers()):
                meter.hold(t)
            base = meter.live
            meter.hold(ids)
            hooks = [
                h
                for k, layer in enumerate(layers)
                for h in _watch(layer, k, k == self._depth - 1, meter, shapes)
            ]
            hooks.append(head.register_forward_pre_hook(lambda *_: meter.mark("norm")))
            try:
                with meter, by_tiles(layers, tile) if tile else nullcontext():
                    with autocast(self.compute):
                        loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
                    meter.mark("loss")
                    loss.backward()
                    meter.mark("end")
                del loss
                chunked = chunked_head(model, batch * self.sequence, self.chunk, self.device, self._heads)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                raise ConfigError(
                    f"{type(model).__name__} cannot be run on shapes alone in {head.weight.dtype}: {reason};"
                    " try the dtype it is trained in (grouped experts need bfloat16)"
                ) from error
            finally:
                for hook in hooks:
                    hook.remove()
                model.zero_grad(set_to_none=True)
        shapes["logits"] = (
            batch * self.sequence * head.weight.shape[0] * (self.compute or head.weight.dtype).itemsize
        )
        return self._arrange(
            batch,
            {name: _Mark(live - base, peak - base, flops) for name, live, peak, flops in meter.marks},
            shapes,
            chunked,
        )

    def _arrange(
        self, batch: int, marks: dict[str, _Mark], shapes: dict[str, int], chunked: Head | None
    ) -> Sample:
        depth = self._depth
        end = marks["end"]
        forward = [*(marks[f"forward {k}"] for k in range(depth)), marks["head"]]
        # A layer below the first one that trains has no backward pass of its own: it ends with the step.
        backward = [marks.get("embed", end), *(marks.get(f"backward {k}", end) for k in range(depth))]
        found = [_layer(forward[k], forward[k + 1], backward[k + 1], backward[k]) for k in range(depth)]
        if self._unpacked:  # nothing of it is saved: autograd keeps the packed weight
            found = [
                replace(x, forward=x.forward + self._unpacked, backward=x.backward + self._unpacked)
                for x in found
            ]
        layers = tuple(found[i] for i in self._copied_from)
        start, norm, loss, top = marks["head"], marks["norm"], marks["loss"], backward[-1]
        inside = [sum(layer.operations[way] for layer in found) for way in (0, 1)]
        if chunked is not None:  # the final norm's own part comes on top
            chunked = replace(
                chunked,
                forward=chunked.forward + norm.live - start.live,
                backward=chunked.backward + norm.live - start.live,
            )
        return Sample(
            batch=batch,
            layers=layers,
            hidden=shapes["bytes"],
            elements=shapes["elements"],
            outside=forward[0].live,
            edge=sum(x.saved for x in found) - sum(x.saved for x in layers[:depth]),
            head=Head(loss.peak - start.live, top.peak - start.live, top.live - start.live),
            logits=shapes["logits"],
            embed=max(0, end.peak - backward[0].live) if "embed" in marks else 0,
            chunked=chunked,
            operations=(loss.flops - inside[0], end.flops - loss.flops - inside[1]),
        )


def _between(a: Any, b: Any, share: float) -> Any:
    """``a + share (b - a)``, field by field."""
    if is_dataclass(a):
        return replace(
            a, **{f.name: _between(getattr(a, f.name), getattr(b, f.name), share) for f in fields(a)}
        )
    if isinstance(a, tuple):
        return tuple(_between(x, y, share) for x, y in zip(a, b))
    return a if a is None else a + share * (b - a)


class _Mark(NamedTuple):
    live: int
    peak: int
    flops: float


def _layer(before: _Mark, after: _Mark, upper: _Mark, lower: _Mark) -> Layer:
    return Layer(
        after.live - before.live,
        after.peak - before.live,
        max(0, lower.peak - upper.live),
        0,
        (after.flops - before.flops, lower.flops - upper.flops),
    )


def _watch(layer: nn.Module, index: int, last: bool, meter: Meter, shapes: dict[str, int]) -> list[Any]:
    """Hooks that mark where the layer's forward pass begins, where the trunk ends, and where its backward
    pass begins and the trunk's ends.
    """

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        meter.mark(f"forward {index}")
        x = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor))
        shapes.update(bytes=x.numel() * x.element_size(), elements=x.numel())
        if index == 0 and x.requires_grad:
            x.register_hook(lambda _: meter.mark("embed"))

    def after(module: nn.Module, args: tuple, out: Any) -> None:
        y = out if isinstance(out, Tensor) else out[0]
        if y.requires_grad:
            y.register_hook(lambda _: meter.mark(f"backward {index}"))
        if last:
            meter.mark("head")

    return [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
