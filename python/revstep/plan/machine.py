"""Who holds what of the parameters, gradients and optimiser state: one GPU, or N of them with DDP or FSDP2."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .probe import Weights

#: Bytes an optimiser keeps for a trainable element, in units of the parameter's own width: torch's optimisers keep their moments in the
#: parameters' dtype.
OPTIMIZERS = {"adamw": 2, "momentum": 1, "sgd": 0}
ENGINES = ("ddp", "fsdp")
#: Bits of an element of packed weights, and how many elements share a float32 scale (None: a row of outputs does), as
#: bitsandbytes packs them. Packed are the frozen linear layers inside the decoder layers; embeddings, norms, the head and
#: adapters stay as they are. To compute, a layer's largest linear weight exists unpacked for a moment.
QUANTISED = {"int8": (8, None), "int4": (4, 64)}


@dataclass(frozen=True)
class Static:
    """Bytes a GPU holds whatever the batch.

    Attributes:
        parameters: its own (FSDP: its share). optimizer: its state. buffers: of the model.
        gradients: when backward is done (FSDP: its share). layer_gradients: of each layer. outside_gradients: of embeddings, norm and head.
        engine: DDP: gradient buckets, as large as the gradients (``gradient_as_bucket_view=False``, the default). FSDP2: what is gathered at once:
            the parameters outside the layers, which stay, and of the largest layer: its parameters, those of the next one on their way, the flat buffer
            they arrive in, and the flat buffer its gradients are reduced in.
    """

    parameters: float
    optimizer: float
    buffers: float
    gradients: float
    layer_gradients: tuple[float, ...]
    outside_gradients: float
    engine: float

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
    weights: Weights, optimizer: str, world: int, engine: str, packed: str | None = None, itemsize: int = 0
) -> Static:  # fmt: skip
    """Bytes on each of ``world`` GPUs. ``packed``: int8 or int4, instead of ``itemsize`` bytes an element.

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
    return Static(
        parameters=parameters * share, optimizer=OPTIMIZERS[optimizer] * gradients * share, buffers=float(weights.buffers),
        gradients=gradients * share, layer_gradients=layers, outside_gradients=weights.outside[True] * training, engine=extra,
    )  # fmt: skip
