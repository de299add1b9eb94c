"""Peak memory of a training step in each mode, plain, checkpointed and reversible: who holds what of the
weights, gradients and optimiser state, and the largest of the moments of a measured step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ConfigError
from ._meter import Head
from ._probe import Sample, Weights

# ------------------------------------------------------------------------------------------------------------
# Who holds what of the parameters, gradients and optimiser state: one GPU, or N of them with DDP or FSDP2.

#: Bytes an optimiser keeps for a trainable element, in units of the parameter's own width: torch's optimisers
#: keep their moments in the parameters' dtype.
OPTIMIZERS = {"adamw": 2, "momentum": 1, "sgd": 0}
ENGINES = ("ddp", "fsdp")
#: Bits of an element of packed weights, and how many elements share a float32 scale (None: a row of outputs
#: does), as bitsandbytes packs them. Packed are the frozen linear layers inside the decoder layers;
#: embeddings, norms, the head and adapters stay as they are. To compute, a layer's largest linear weight
#: exists unpacked for a moment.
QUANTISED = {"int8": (8, None), "int4": (4, 64)}


@dataclass(frozen=True)
class Static:
    """Bytes a GPU holds whatever the batch.

    Attributes:
        parameters: its own (FSDP: its share). optimizer: its state. buffers: of the model.
        gradients: when backward is done (FSDP: its share). layer_gradients: of each layer. outside_gradients:
            of embeddings, norm and head.
        engine: DDP: gradient buckets, as large as the gradients (``gradient_as_bucket_view=False``, the
            default). FSDP2: what is gathered at once: the parameters outside the layers, which stay, and of
            the largest layer: its parameters, those of the next one on their way, the flat buffer they arrive
            in, and the flat buffer its gradients are reduced in.
        stepped_head: with a step inside backward, the gradient of a head with a matrix of its own, which is
            gone when the layers' backward pass begins. No other gradient lasts then, either.
    """

    parameters: float
    optimizer: float
    buffers: float
    gradients: float
    layer_gradients: tuple[float, ...]
    outside_gradients: float
    engine: float
    stepped_head: float = 0.0

    @property
    def total(self) -> float:
        """What is there before a step begins."""
        return self.parameters + self.optimizer + self.buffers + self.engine


def packed_bytes(weights: Weights, packed: str) -> float:
    """Bytes of the packed linear weights with their scales."""
    bits, block = QUANTISED[packed]
    scales = weights.linear.rows if block is None else weights.linear.elements / block
    return weights.linear.elements * bits / 8 + 4 * scales


def static(
    weights: Weights, optimizer: str, world: int, engine: str, packed: str | None = None, itemsize: int = 0,
    fused: bool = False,
) -> Static:  # fmt: skip
    """Bytes on each of ``world`` GPUs. ``packed``: int8 or int4, instead of ``itemsize`` bytes an element.
    ``fused``: the optimiser steps inside backward.

    Raises:
        ConfigError: unknown optimiser or engine, or no GPU.
    """
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer is {optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    if isinstance(world, bool) or not isinstance(world, int) or world < 1:
        raise ConfigError(f"world is {world!r}, expected a number of GPUs, at least 1")
    share = 1 / world if engine == "fsdp" else 1.0
    every, training = weights.width
    layers = tuple(trainable * training * share for _, trainable in weights.layers)
    gradients = weights.total(True) * training
    if world == 1:
        extra = 0.0
    elif engine == "ddp":
        extra = gradients
    else:
        largest, largest_training = max(weights.layers)
        extra = weights.outside[0] * every + 3 * largest * every + largest_training * training
    parameters = weights.total(False) * every
    if packed is not None:
        parameters += packed_bytes(weights, packed) - weights.linear.elements * itemsize
    if fused:
        return Static(
            parameters=parameters,
            optimizer=OPTIMIZERS[optimizer] * gradients,
            buffers=float(weights.buffers),
            gradients=0.0,
            layer_gradients=tuple(0.0 for _ in layers),
            outside_gradients=weights.outside[True] * training,
            engine=0.0,
            stepped_head=weights.head * training,
        )
    return Static(
        parameters=parameters * share,
        optimizer=OPTIMIZERS[optimizer] * gradients * share,
        buffers=float(weights.buffers),
        gradients=gradients * share,
        layer_gradients=layers,
        outside_gradients=weights.outside[True] * training,
        engine=extra,
    )


# ------------------------------------------------------------------------------------------------------------
# Peak memory of a training step in each mode, as the largest of the moments at which it can occur.
#
# All of it is composed of two things: what a GPU holds whatever the batch (:class:`Static`) and one measured
# step (:mod:`._probe`). Notation: S static bytes, A what is alive outside the layers, a_k what layer k saves,
# f_k and b_k the peaks of its forward and backward pass above what is alive before them, g_k its gradients, h
# and h* the peaks of the loss's forward and backward pass (with the head), h' what they leave, x one hidden
# state, L layers.
#
#     plain         loss:            S + A + sum_j a_j + max(h, h*)
#                   backward of k:   S + A + sum_{j<=k} a_j + h' + sum_{j>k} g_j + b_k
#     checkpointed  loss:            S + A + L x + max(sum c_j + h, h*)
#                   backward of k:   S + A + k x + h' + sum_{j>k} g_j + max(f_k, a_k + b_k)
#     reversible    loss:            S + A + R + C + K + max(sum c_j + h, h*)
#                   backward of k:   S + A + R + C_k + K_k + h' + sum_{j>k} g_j + 2 x
#                                    + max(f_k, a_k + s E, a_k + b_k)   (kept ones: as plain)
#
#     R = 2 s E + 8 (L + 2): two states of E elements and s bytes, checksums
#     C = L E bits / 8: carries; C_k: those at or below k, a layer's own being let go once its states are
#         rebuilt; of carries that wait in host memory the last two steps' at most, the one that is read and
#         the one that sets out
#     2 x: the rebuilt state's float view, and the gradient of the second state (x at the first layer, whose
#         two states are one input and have one gradient); s E: a third state, while one
#         is being rebuilt; the first one is let go as soon as the first layer is evaluated again
#     K = sum of a_j over the kept layers, K_k those of them at or below k
#
# c_j: under autocast the narrow copies of weights, which the cache of the surrounding autocast holds until
# the forward pass ends. Then, in every mode, the embedding's backward pass and the optimiser step (all
# gradients; a fused step adds nothing).
#
# With ``accumulate`` the gradients of an earlier micro-batch are there from the start, and the new ones come
# on top layer by layer.

MODES = ("plain", "checkpointed", "reversible")


@dataclass(frozen=True)
class Reversible:
    """What decides about the states: bytes an element of a state, carry bits an element of each step, steps a
    layer, kept layers, whether carries wait in host memory.
    """

    state_bytes: int
    carry_bits: tuple[int, ...]
    keep: int = 0
    offload: bool = False

    def states(self, elements: int, layers: int) -> float:
        """R of the equations above; kept layers have no checksums."""
        return 2 * self.state_bytes * elements + 8 * (
            len(self.carry_bits) * (layers - self.keep) // layers + 2
        )

    def carries(self, elements: int, layers: int, of: int) -> float:
        """Bytes on the device of the carries of the first ``of`` layers."""
        there = self.carry_bits[: len(self.carry_bits) * of // layers]
        return elements * sum(there[-2:] if self.offload else there) / 8


@dataclass(frozen=True)
class Peak:
    """Bytes of one mode at one batch size.

    Attributes:
        peak: the largest. moment: when.
        activations: kept for backward by the layers when the loss is computed: saved tensors, checkpoints, or
            kept graphs.
        states: the reversible recurrence's own: two states, carries, checksums.
        block: one layer's graph. head: vocabulary head and loss. outside: embeddings, tables, masks.
    """

    peak: float
    moment: str
    activations: float
    states: float
    block: float
    head: float
    outside: float


def peak(mode: str, s: Sample, fixed: Static, rev: Reversible, chunked: bool, accumulate: bool) -> Peak:
    """The peak of ``mode`` for one measured step. ``chunked``: with the chunked loss."""
    head = s.chunked if chunked and s.chunked is not None else s.head
    depth = len(s.layers)
    activations = _activations(mode, s, rev)
    rebuilds = mode == "reversible" and rev.keep < depth
    states = rev.states(s.elements, depth) if rebuilds else 0.0
    base = (
        fixed.total
        + s.outside
        + states
        + (s.edge if mode == "plain" else 0)
        + (fixed.gradients if accumulate else 0.0)
    )
    moments = dict(_moments(mode, s, fixed, rev, activations, base, head, accumulate))
    moment = max(moments, key=lambda name: moments[name])
    states += rev.carries(s.elements, depth, depth - rev.keep) if rebuilds else 0.0
    return Peak(
        moments[moment],
        moment,
        sum(activations),
        states,
        max(s.rebuilt(k).saved if rebuilds else layer.saved for k, layer in enumerate(s.layers)),
        float(head.peak),
        float(s.outside),
    )


def _activations(mode: str, s: Sample, rev: Reversible) -> list[float]:
    """What each layer leaves alive until its own backward pass."""
    if mode == "plain":
        return [float(layer.saved) for layer in s.layers]
    if mode == "checkpointed":
        return [float(s.hidden)] * len(s.layers)
    first = len(s.layers) - rev.keep
    return [float(layer.saved) if k >= first else 0.0 for k, layer in enumerate(s.layers)]


def _moments(
    mode: str,
    s: Sample,
    fixed: Static,
    rev: Reversible,
    activations: list[float],
    base: float,
    head: Head,
    accumulate: bool,
) -> Iterator[tuple[str, float]]:
    depth = len(s.layers)
    rebuilt = {"plain": 0, "checkpointed": depth, "reversible": depth - rev.keep}[mode]
    cached = sum(layer.casts for layer in s.layers[:rebuilt])
    carries = [rev.carries(s.elements, depth, k) if mode == "reversible" else 0.0 for k in range(depth + 1)]
    yield "loss", base + sum(activations) + carries[rebuilt] + max(cached + head.forward, head.backward)
    level = base + sum(activations) + head.left - fixed.stepped_head
    third = rev.state_bytes * s.elements
    for k in range(depth - 1, -1, -1):
        layer = s.layers[k]
        if k >= rebuilt:
            top = layer.backward + carries[rebuilt]
        elif mode == "checkpointed":
            top = max(layer.forward, layer.saved + layer.backward) - s.hidden
        else:
            layer = s.rebuilt(k)
            top = (2 if k else 1) * s.hidden + max(
                max(layer.forward, layer.saved + third) + carries[k + 1],
                layer.saved + layer.backward + carries[k] - (0 if k else third),
            )
        yield f"backward of layer {k}", level + top
        level += (0.0 if accumulate else fixed.layer_gradients[k]) - activations[k]
    level -= third if mode == "reversible" and rebuilt else 0
    yield "backward of the embedding", level + s.embed
    yield "optimiser step", fixed.total + fixed.gradients
