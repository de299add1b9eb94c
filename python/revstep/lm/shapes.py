"""Shapes of the models: what a GPT and a Llama are made of, as data, validated when made. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .values import flag, number, whole


@dataclass(frozen=True)
class ModelConfig:
    """What every model here has.

    Attributes:
        vocab: number of token ids.
        context: longest sequence.
        layers, width, heads: blocks, channels, attention heads (width must be a multiple of heads).
        dropout: probability, in the embedding, the attention weights and the output of both halves.
        loss_chunk: rows of logits held at once by the loss; 0 computes all logits (plain cross entropy), "auto" picks a number.
        tied: the token embedding is also the head; False gives the head a matrix of its own, ``vocab * width`` parameters more.

    Raises:
        ConfigError: a value that cannot be used.
    """

    vocab: int
    context: int = 256
    layers: int = 6
    width: int = 256
    heads: int = 4
    dropout: float = 0.0
    loss_chunk: int | str = "auto"
    tied: bool = True

    def __post_init__(self) -> None:
        for name, least in (("vocab", 2), ("context", 1), ("layers", 0), ("width", 1), ("heads", 1)):
            whole(name, getattr(self, name), least)
        number("dropout", self.dropout, 0.0, 1.0, open_high=True)
        flag("tied", self.tied)
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}; choose heads that divide the width")
        if self.loss_chunk != "auto":
            whole("loss_chunk (or 'auto')", self.loss_chunk, 0)


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """Shape of the GPT in ``gpt.py``: learned positions, an MLP of four times the width."""


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Shape of the Llama in ``llama.py``.

    Attributes:
        kv_heads: heads of keys and values, each shared by heads / kv_heads heads of queries; 0: as many as heads.
        hidden: channels inside the SwiGLU; 0: 8/3 of the width, rounded up to a multiple of 64, so that its three matrices weigh
            as much as the two of an MLP of four times the width.
        rope_theta: base of the rotary frequencies; larger for longer contexts.
        norm_eps: added to the mean square in RMSNorm.

    Raises:
        ConfigError: as ``ModelConfig``; also heads that are not a multiple of kv_heads, or an odd number of channels a head (rotary
            positions turn pairs of them).
    """

    kv_heads: int = 0
    hidden: int = 0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("kv_heads", self.kv_heads, 0)
        whole("hidden", self.hidden, 0)
        number("rope_theta", self.rope_theta, 1.0, open_low=True)
        number("norm_eps", self.norm_eps, 0.0, open_low=True)
        if self.heads % self.groups:
            raise ConfigError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; choose kv_heads that divide the heads, or 0 for as many")
        if self.head_width % 2:
            raise ConfigError(
                f"a head has {self.head_width} channels (width {self.width}, heads {self.heads}); rotary positions turn pairs: make width / heads even"
            )

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Channels a head."""
        return self.width // self.heads

    @property
    def mlp_width(self) -> int:
        """Channels inside the SwiGLU."""
        return self.hidden or 64 * -(-8 * self.width // 192)


#: The models by name, as ``TrainConfig.model`` and ``--model`` know them.
SHAPES = {"gpt": GPTConfig, "llama": LlamaConfig}
