"""What the built-in fields share."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import ConfigError
from .._functions import Native, plain


@dataclass(frozen=True)
class BuiltIn(abc.ABC):
    """A field with its formula in Python and in csrc/ode/fields.hpp, the same operations in the same order.

    The formulas take torch tensors and NumPy arrays whose last ``event_dims`` axes are one system; leading
    axes are a batch. With + - * / and sqrt only, NumPy and C++ give the same bits; so does torch, but where
    its vectorised square root is not correctly rounded.

    Every field has an attribute ``equation``, one of ``kinds``.

    Attributes:
        kinds: equations it can be used as; the first is the default of ``equation``. ``"separable"`` has unit
            masses, T = p**2 / 2, so F(t, p) = p and momenta are velocities.
        event_dims: trailing axes of the state that are one system.
        number: of the compiled field.
    """

    kinds: ClassVar[tuple[str, ...]]
    autonomous: ClassVar[bool] = True
    event_dims: ClassVar[int] = 1
    number: ClassVar[int]

    @abc.abstractmethod
    def force(self, t: Any, x: Any) -> Any:
        """The right-hand side: f of y' = f(t, y) or q'' = f(t, q), G of a separable field."""

    @abc.abstractmethod
    def params(self) -> tuple[float, ...]:
        """In the order of fields.hpp."""

    def check_event(self, event: tuple[int, ...]) -> None:  # noqa: B027  (most fields take any)
        """Raises ConfigError when these trailing axes are not one system."""

    def functions(self) -> tuple[Callable[..., Any], ...]:
        """``(f,)``, or ``(F, G)`` of a separable field."""
        return (_itself, self.force) if self.equation == "separable" else (self.force,)

    def compiled(self) -> Native:
        return plain(self.number, self.params(), self.equation)

    def integrals(self) -> dict[str, Callable[..., Any]]:
        """First integrals by name: functions of ``(q, v)``, or of ``(y)`` for first-order fields."""
        return {}

    def _check_equation(self) -> None:
        if self.equation not in self.kinds:
            raise ConfigError(
                f"{type(self).__name__} equation is {self.equation!r}, expected one of {self.kinds}"
            )

    def _wrong(self, event: tuple[int, ...], expected: str) -> ConfigError:
        return ConfigError(f"a system of {type(self).__name__} has shape {tuple(event)}, expected {expected}")


def _itself(t: Any, p: Any) -> Any:
    return p


def number(name: str, value: Any, positive: bool = False) -> float:
    """A finite float, as the parameter it is."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.floating, np.integer))
        or not math.isfinite(value)
        or (positive and value <= 0)
    ):
        raise ConfigError(f"{name} is {value!r}, expected a {'positive' if positive else 'finite'} number")
    return float(value)


def sqrt(x: Any) -> Any:
    return torch.sqrt(x) if isinstance(x, torch.Tensor) else np.sqrt(x)


def sin(x: Any) -> Any:
    return torch.sin(x) if isinstance(x, torch.Tensor) else np.sin(x)


def cos(x: Any) -> Any:
    return torch.cos(x) if isinstance(x, torch.Tensor) else np.cos(x)


def exp(x: Any) -> Any:
    return torch.exp(x) if isinstance(x, torch.Tensor) else np.exp(x)


def log(x: Any) -> Any:
    return torch.log(x) if isinstance(x, torch.Tensor) else np.log(x)


def stack(parts: list) -> Any:
    """Along a new last axis."""
    return torch.stack(parts, -1) if isinstance(parts[0], torch.Tensor) else np.stack(parts, -1)


def added(parts: list) -> Any:
    """Sum from the first on, in order."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def components(x: Any) -> list:
    return [x[..., i] for i in range(x.shape[-1])]
