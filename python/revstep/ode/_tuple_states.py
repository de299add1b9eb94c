"""States that are tuples of tensors of any shapes, held as one vector while they are integrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

#: The dtypes a state may have: those torch does arithmetic in.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def check_parts(y0: tuple) -> tuple[Tensor, ...]:
    """The parts of a tuple state.

    Raises:
        ConfigError: no part at all, or a part that is no dense floating or complex tensor.
    """
    if not y0:
        raise ConfigError("y0 is an empty tuple, expected a tensor or a tuple of tensors")
    for i, part in enumerate(y0):
        check_part(part, f"part {i} of y0")
    return tuple(y0)


def check_part(part: Any, name: str) -> None:
    """Raises ConfigError unless ``part`` is a dense tensor of a dtype that can be integrated."""
    if not isinstance(part, Tensor):
        hint = "write torch.as_tensor(...)"
        if isinstance(part, list):
            hint = "write tuple(y0) for a tuple of parts, or torch.tensor(y0) for one array"
        raise ConfigError(f"{name} is {type(part).__name__}, expected a tensor: {hint}")
    if part.dtype not in DTYPES or part.layout != torch.strided:
        expected = "a dense tensor of a floating or complex dtype: convert it, with .double() for one"
        raise ConfigError(f"{name} is {part.dtype} ({part.layout}), expected {expected}")


def check_value(value: Any, like: Tensor, name: str) -> Tensor:
    """What the field returned for a state ``like``, or for one part of it.

    Raises:
        ConfigError: not a tensor, of another shape, or complex where the state is real.
    """
    if not isinstance(value, Tensor):
        raise ConfigError(f"{name} is {type(value).__name__}, expected a tensor of shape {tuple(like.shape)}")
    if value.shape != like.shape:
        expected = f"{tuple(like.shape)}, that of the state: no axis is added or spread"
        raise ConfigError(f"{name} has shape {tuple(value.shape)}, expected {expected}")
    if value.dtype.is_complex and not like.dtype.is_complex:
        todo = "start from a complex y0, or return a real value"
        raise ConfigError(f"{name} is {value.dtype}, but the state is {like.dtype}: {todo}")
    if value.dtype == torch.bool:
        raise ConfigError(f"{name} is torch.bool, expected a number of {like.dtype}: write value.to(y.dtype)")
    return value


def check_values(values: Any, parts: Sequence[Tensor]) -> tuple:
    """What the field returned for a tuple state, as a tuple of as many parts."""
    if not isinstance(values, (tuple, list)) or len(values) != len(parts):
        got = f"{len(values)} parts" if isinstance(values, (tuple, list)) else type(values).__name__
        expected = f"a tuple of {len(parts)} tensors, one for each part of y0"
        raise ConfigError(f"the field returned {got}, expected {expected}")
    return tuple(values)


class Flat:
    """The parts of a tuple state side by side in one vector.

    Args:
        parts: tensors of any shapes, of one dtype and on one device.

    Raises:
        ConfigError: parts of several dtypes or on several devices.
    """

    def __init__(self, parts: Sequence[Tensor]):
        self.shapes = [p.shape for p in parts]
        self.sizes = [p.numel() for p in parts]
        self.dtype, self.device = parts[0].dtype, parts[0].device
        for i, p in enumerate(parts):
            if p.dtype != self.dtype or p.device != self.device:
                got = f"part {i} of y0 is {p.dtype} on {p.device}, part 0 {self.dtype} on {self.device}"
                expected = "one dtype and one device: write part.to(...) before the start"
                raise ConfigError(f"{got}, expected {expected}")

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """(N,) of the parts."""
        return torch.cat([p.reshape(-1) for p in parts])

    def unpack(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The parts of (..., N), each (..., *shape)."""
        pieces = vector.split(self.sizes, dim=-1)
        return tuple(p.reshape((*vector.shape[:-1], *shape)) for p, shape in zip(pieces, self.shapes))

    def value(self, values: Any) -> Tensor:
        """(N,) of what the field returned.

        Raises:
            ConfigError: another number of parts, or a part of another shape or dtype than the state's.
        """
        flat = []
        for i, (value, shape) in enumerate(zip(check_values(values, self.shapes), self.shapes)):
            name = f"part {i} of the field's value"
            like = torch.empty(shape, dtype=self.dtype, device="meta")
            value = check_value(value, like, name)
            if not shape and value.dtype == torch.float64 and not self.dtype.is_complex:
                value = value.to(self.dtype)  # a number (no axis) that meets the clock is float64, as that is
            if value.dtype != self.dtype:
                expected = f"{self.dtype}, the dtype of the state: write value.to(y[{i}].dtype)"
                raise ConfigError(f"{name} is {value.dtype}, expected {expected}")
            flat.append(value.reshape(-1))
        return torch.cat(flat)

    def scale(self, scale: Any) -> Any:
        """Units of the vector: a number as it is, a tuple with one entry for each part spread over its
        components."""
        if not isinstance(scale, tuple):
            return scale
        if len(scale) != len(self.shapes):
            expected = f"one unit, or {len(self.shapes)}: one for each part of y0"
            raise ConfigError(f"options['scale'] has {len(scale)} entries, expected {expected}")
        units = [torch.as_tensor(s, dtype=torch.float64) for s in scale]
        return torch.cat([unit.expand(shape).reshape(-1) for unit, shape in zip(units, self.shapes)])

    def field(self, f: Callable) -> Callable:
        """``f(t, parts) -> parts`` as a function of the vector; a module where ``f`` is one, so that its
        parameters are found."""
        if isinstance(f, nn.Module):
            return _OnVector(f, self)

        def on_vector(t: Tensor, y: Tensor) -> Tensor:
            return self.value(f(t, self.unpack(y)))

        return on_vector


class _OnVector(nn.Module):
    def __init__(self, f: nn.Module, flat: Flat):
        super().__init__()
        self.f = f
        self.flat = flat

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.flat.value(self.f(t, self.flat.unpack(y)))
