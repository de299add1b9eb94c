"""What a model is tried on before it is converted: a small batch of what its config says that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._models.layers import unwrapped
from ..errors import UnsupportedError

__all__ = ["made_up", "main_input", "what_is_read"]


def main_input(model: nn.Module) -> str:
    """The name of the tensor that this transformers model, or the one in a peft model, is about."""
    return getattr(unwrapped(model), "main_input_name", "input_ids")


def made_up(inner: nn.Module) -> tuple[dict[str, Tensor], str]:
    """(arguments, what they are): two rows of five tokens (fewer, if the positions are) or two images etc.

    Raises:
        UnsupportedError: the config does not say.
    """
    main, text = main_input(inner), inner.config.get_text_config()
    device = next(inner.parameters()).device
    vocab = getattr(text, "vocab_size", None)
    what, shape = _sized(inner)
    if shape:
        values = torch.linspace(-1.0, 1.0, 2 * math.prod(shape), device=device).view(2, *shape)
        return {main: values.to(inner.dtype)}, what
    if main not in _SIZES and vocab:
        positions = getattr(text, "max_position_embeddings", None) or 5
        time = min(5, positions) if positions > 0 else 5  # XLNet says -1: as many as there are
        rows = 2 * (getattr(text, "num_codebooks", None) or 1)  # MusicGen: one of each for a sound
        return {"input_ids": torch.arange(rows * time, device=device).view(rows, time) % vocab}, "token ids"
    raise UnsupportedError(
        f"{type(inner).__name__} reads {main}, and its config does not say what to try it on; expected a "
        "model of token ids (config.vocab_size), of images or videos (config.image_size), or of sounds "
        "(config.conv_stride and conv_kernel; config.num_mel_bins and max_length or max_source_positions). "
        "Convert the model inside it that has the layers, or build a revstep.ReversibleStack over them"
    )


def what_is_read(model: nn.Module) -> str:
    """What a batch without token ids has rows of, in words."""
    return _sized(unwrapped(model))[0]


def _sized(inner: nn.Module) -> tuple[str, tuple[int, ...]]:
    """("images" etc., the shape of one by the config); ("rows", ()) where it does not say."""
    for what, sizes in _SIZES.get(main_input(inner), {}).items():
        shape = sizes(inner.config)
        if None not in shape:
            return what, shape
    return "rows", ()


def _image(config: Any) -> tuple[Any, ...]:
    if not hasattr(config, "image_size"):  # of a model made from one of images and text
        config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    pair = tuple(size) if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    return getattr(config, "num_channels", 3), *pair


def _video(config: Any) -> tuple[Any, ...]:
    return getattr(config, "num_frames", None), *_image(config)


def _waveform(config: Any) -> tuple[Any, ...]:
    """Samples that the convolutions before the layers make eight steps of."""
    strides, kernels = (getattr(config, name, None) for name in ("conv_stride", "conv_kernel"))
    if not (isinstance(strides, (tuple, list)) and isinstance(kernels, (tuple, list))):
        return (None,)
    length = 8 * (getattr(config, "squeeze_factor", None) or 1)  # of SEW, which pools them
    for stride, kernel in zip(reversed(strides), reversed(kernels)):
        length = (length - 1) * stride + kernel
    return (length,)


def _spectrogram(config: Any) -> tuple[Any, ...]:
    return getattr(config, "max_length", None), getattr(config, "num_mel_bins", None)


def _features(config: Any) -> tuple[Any, ...]:
    """As Whisper's encoder reads them: two columns a position."""
    positions = getattr(config, "max_source_positions", None)
    return getattr(config, "num_mel_bins", None), positions and 2 * positions


#: Main input -> {what it is: the shape of one of it, by the config; None where that does not say}.
_SIZES: dict[str, dict[str, Callable[[Any], tuple[Any, ...]]]] = {
    "pixel_values": {"videos": _video, "images": _image},
    "input_values": {"sounds": _waveform, "spectrograms": _spectrogram},
    "input_features": {"spectrograms": _features},
}
