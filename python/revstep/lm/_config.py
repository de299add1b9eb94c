"""The configurations of language models and of their training as data, validated when made: the shapes of the
GPT and the Llama, and ``TrainConfig``, all that a training run is made of.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._options import STARTS, StackOptions
from .._specs import parse_scheme, parse_state
from .._values import flag, number, one_of, shown, whole
from ..errors import ConfigError

__all__ = [
    "BAD_STEPS", "DTYPES", "PARALLEL", "READOUTS", "SHAPES", "GPTConfig", "LlamaConfig", "ModelConfig",
    "TrainConfig",
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# Shapes of the models: what a GPT and a Llama are made of, as data, validated when made. Knows no torch.


@dataclass(frozen=True)
class ModelConfig:
    """What every model here has.

    Attributes:
        vocab: number of token ids.
        context: longest sequence.
        layers: blocks.
        width: channels, a multiple of ``heads``.
        heads: attention heads.
        dropout: probability, in the embedding, the attention weights and the output of both halves.
        loss_chunk: rows of logits held at once by the loss; 0 computes all logits (plain cross entropy),
            "auto" picks a number.
        tied: the token embedding is also the head; False gives the head a matrix of its own, ``vocab *
            width`` parameters more.

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
            raise ConfigError(
                f"width {self.width} is not a multiple of heads {self.heads}; choose heads that divide the"
                " width"
            )
        if self.loss_chunk != "auto":
            whole("loss_chunk (or 'auto')", self.loss_chunk, 0)


@dataclass(frozen=True)
class GPTConfig(ModelConfig):
    """Shape of :class:`~revstep.lm.GPT`: learned positions, an MLP of four times the width."""


@dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Shape of :class:`~revstep.lm.Llama`.

    Attributes:
        kv_heads: heads of keys and values, each shared by heads / kv_heads heads of queries; 0: as many as
            heads.
        hidden: channels inside the SwiGLU; 0: 8/3 of the width, rounded up to a multiple of 64, so that its
            three matrices weigh as much as the two of an MLP of four times the width.
        rope_theta: base of the rotary frequencies; larger for longer contexts.
        norm_eps: added to the mean square in RMSNorm.

    Raises:
        ConfigError: as ``ModelConfig``; also heads that are not a multiple of kv_heads, or an odd number of
            channels a head (rotary positions turn pairs of them).
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
            raise ConfigError(
                f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}; choose kv_heads that"
                " divide the heads, or 0 for as many"
            )
        if self.head_width % 2:
            raise ConfigError(
                f"a head has {self.head_width} channels (width {self.width}, heads {self.heads}); rotary"
                " positions turn pairs: make width / heads even"
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


# ------------------------------------------------------------------------------------------------------------
# What a training run is made of, as data: validated when made, and kept in every checkpoint as JSON.

DTYPES = ("float32", "bfloat16", "float16")
READOUTS = ("last", "mean")  # of a trunk
BAD_STEPS = ("stop", "skip")
PARALLEL = ("none", "ddp", "fsdp")
#: Ids of a tokenizer that is trained here: four times those of the largest that are published.
MOST_IDS = 1 << 20


@dataclass(frozen=True)
class TrainConfig(StackOptions):
    """A training run. Everything here decides the result; two runs with equal configs on one machine give
    equal bits.

    Attributes:
        data: files and folders; empty means the Python standard library's own sources on this machine.
        extensions: endings looked for in folders.
        max_bytes: stop reading text after this many bytes (0: no limit).
        tokenizer: "bytes" or "bpe:N" with N the vocabulary to train.
        val_fraction: share of the tokens, at the end, kept for validation.
        scheme: "plain" (residual, everything stored), "checkpoint" (residual, torch.utils.checkpoint per
            block), or a reversible scheme with options, e.g. "blend:c=0.25", "midpoint_blend:a=paper,seed=3".
        state: "fixed32[:frac_bits]", "fixed64[:frac_bits]", "float32", "float64"; used by reversible schemes
            only.
        start: "repeat" or "euler", as in :class:`~revstep.StackOptions`; this and the next six by keyword.
        readout: "last" or "mean".
        keep: layers at the end that keep their graphs, or "auto".
        memory_budget: for ``keep="auto"``: bytes, or a share of what is free.
        save_ops: "attention", or None for nothing.
        tile: tokens of a tile of the blocks' MLPs, of one or many rows; None: whole.
        offload_carries: carries wait in host memory for backward.
        checks: whether backward compares what it rebuilds.
        model: "gpt" or "llama". A checkpoint from before there was a choice has no such key and is a GPT.
        layers: blocks.
        width: channels C of the stream.
        heads: attention heads; they divide the width.
        context: longest sequence T, in tokens.
        dropout: probability in [0, 1), on the embedding, the attention's weights and output, and the MLP's
            output.
        loss_chunk: rows of logits held at once, "auto", or 0 for all.
        tied: the head is the token embedding's matrix.
        kv_heads: heads of keys and values, 0: as many as ``heads``. This and the next three are refused
            beside another model than "llama".
        hidden: channels inside the SwiGLU, 0: 8/3 of the width, rounded up to a multiple of 64.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square in RMSNorm.
        steps: optimiser steps of the whole run; the cosine ends here.
        batch: sequences of a micro-batch.
        accumulate: micro-batches of a step.
        lr: peak learning rate of AdamW.
        min_lr: learning rate at the end of the cosine, at most ``lr``.
        warmup: steps of linear warm-up.
        weight_decay: of matrices.
        beta1: of AdamW's first moment, in [0, 1).
        beta2: of its second moment, in [0, 1).
        clip: largest gradient norm; 0 turns clipping off.
        fused_step: the optimiser steps inside backward, so that gradients do not exist all at once
            (:func:`revstep.fused_step`). ``clip`` then takes the norm of the step before. Not with
            ``accumulate``, float16, several processes, or ``on_bad_step="skip"``.
        dtype: "float32", or autocast to "bfloat16" or "float16" (with a GradScaler); the weights stay
            float32.
        on_bad_step: of a step whose loss or gradient is not finite, or whose states leave their range: "stop"
            the run, or "skip" it, that is drop its gradients and go on. float16 has a GradScaler, which skips
            of its own.
        max_bad_steps: stop at so many skipped steps in a row.
        min_headroom: stop, with a checkpoint, before the largest state value times this leaves the format's
            range (0: do not). 2 by default: the room that the format advised next has at least, and more than
            states grow from one step to the next in training that is not diverging.
        eval_every: steps between validations, 0: only at the end.
        eval_batches: batches of a validation.
        save_every: steps between checkpoints, 0: only at the end.
        seed: of weights, dropout and batches.
        device: a torch device, or "auto" (cuda if there is one).
        parallel: "none", or what several processes under torchrun train with: "ddp" (each holds the model) or
            "fsdp" (each holds a part). ``batch`` is that of all together, drawn as in one process; each takes
            its rows.
        out: folder of the run ("": keep nothing).
        progress: show a progress bar on stderr.

    Raises:
        ConfigError: a value that cannot be used.
    """

    data: tuple[str, ...] = ()
    extensions: tuple[str, ...] = (".py", ".txt", ".md")
    max_bytes: int = 0
    tokenizer: str = "bpe:4096"
    val_fraction: float = 0.05
    scheme: str = "blend:c=0.25"
    state: str = "fixed32"
    start: str = "repeat"
    model: str = "gpt"
    layers: int = 6
    width: int = 256
    heads: int = 4
    context: int = 256
    dropout: float = 0.0
    loss_chunk: int | str = "auto"
    tied: bool = True
    kv_heads: int = 0
    hidden: int = 0
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    steps: int = 500
    batch: int = 8
    accumulate: int = 1
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    fused_step: bool = False
    dtype: str = "float32"
    on_bad_step: str = "stop"
    max_bad_steps: int = 10
    min_headroom: float = 2.0
    eval_every: int = 100
    eval_batches: int = 8
    save_every: int = 100
    seed: int = 0
    device: str = "auto"
    parallel: str = "none"
    out: str = "run"
    progress: bool = True

    def __post_init__(self) -> None:
        # Lists from JSON and single strings from callers become tuples, so that equal runs compare equal.
        for name in ("data", "extensions"):
            value = getattr(self, name)
            object.__setattr__(
                self,
                name,
                (
                    (str(value),)
                    if isinstance(value, str) or not isinstance(value, Iterable)
                    else tuple(map(str, value))
                ),
            )
        object.__setattr__(self, "out", str(self.out))
        for name, least in (("max_bytes", 0), ("steps", 1), ("batch", 1), ("accumulate", 1), ("warmup", 0)):
            whole(name, getattr(self, name), least)
        for name, least in (
            ("max_bad_steps", 1),
            ("eval_every", 0),
            ("eval_batches", 1),
            ("save_every", 0),
            ("seed", 0),
        ):
            whole(name, getattr(self, name), least)
        object.__setattr__(self, "save_ops", self.save_ops or None)  # "" in checkpoints of earlier versions
        if self.save_ops not in (None, "attention"):
            raise ConfigError(f"save_ops is {self.save_ops!r}; expected 'attention' or None")
        self.check()
        number("val_fraction", self.val_fraction, 0.0, 1.0, open_low=True, open_high=True)
        number("lr", self.lr, 0.0, open_low=True)
        number("min_lr", self.min_lr, 0.0, self.lr)
        number("weight_decay", self.weight_decay, 0.0)
        number("clip", self.clip, 0.0)
        number("min_headroom", self.min_headroom, 0.0)
        number("beta1", self.beta1, 0.0, 1.0, open_high=True)
        number("beta2", self.beta2, 0.0, 1.0, open_high=True)
        one_of("dtype", self.dtype, DTYPES)
        one_of("on_bad_step", self.on_bad_step, BAD_STEPS)
        one_of("parallel", self.parallel, PARALLEL)
        self._refuse_beside_fused_step()
        one_of("start", self.start, STARTS)
        one_of("readout", self.readout, READOUTS)
        parse_scheme(self.scheme)
        parse_state(self.state)
        kind, _, size = self.tokenizer.partition(":") if isinstance(self.tokenizer, str) else ("", "", "")
        ids = int(size) if kind == "bpe" and size.isdecimal() and len(size) < 10 else 0
        if self.tokenizer != "bytes" and not 256 < ids <= MOST_IDS:
            raise ConfigError(
                f"tokenizer is {shown(self.tokenizer)}; expected 'bytes' or 'bpe:N' with N above 256 and at"
                " most"
                f" {MOST_IDS}, e.g. bpe:4096"
            )
        one_of("model", self.model, SHAPES)
        self._refuse_what_the_model_lacks()
        self.shape(vocab=2)

    def _refuse_beside_fused_step(self) -> None:
        reasons = {
            "accumulate": (self.accumulate == 1, "every backward pass would be an optimiser step"),
            "dtype": (self.dtype != "float16", "gradients would be used with the loss's scale"),
            "parallel": (self.parallel == "none", "each process would step by the gradients of its own rows"),
            "on_bad_step": (
                self.on_bad_step != "skip",
                "when a bad gradient is found, others have been used: a step cannot be skipped as a whole",
            ),
        }
        for name, (fits, why) in reasons.items():
            if self.fused_step and not fits:
                raise ConfigError(f"fused_step and {name} = {getattr(self, name)}: {why}; drop one")

    def shape(self, vocab: int) -> ModelConfig:
        """The model's shape, once the tokenizer has said how many ids there are."""
        kind = SHAPES[self.model]
        return kind(
            vocab=vocab,
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(kind)
                if field.name != "vocab"
            },
        )

    def _refuse_what_the_model_lacks(self) -> None:
        taken = {field.name for field in dataclasses.fields(SHAPES[self.model])}
        others = {field.name for kind in SHAPES.values() for field in dataclasses.fields(kind)} - taken
        for field in dataclasses.fields(self):
            if field.name in others and getattr(self, field.name) != field.default:
                able = ", ".join(
                    name
                    for name, kind in SHAPES.items()
                    if field.name in {f.name for f in dataclasses.fields(kind)}
                )
                raise ConfigError(
                    f"{field.name} is {getattr(self, field.name)!r}, but model {self.model!r} has no"
                    f" {field.name}; leave it out, or choose model {able}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` takes them back."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: an unknown name (the nearest known one is offered) or a bad value.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ConfigError(
                    f"unknown training option {name!r}{f'; did you mean {near[0]!r}?' if near else ''}"
                    f" (known: {', '.join(sorted(known))})"
                )
        return cls(**values)
