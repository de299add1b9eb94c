"""The start of an integration as the steps hold it, whatever the caller gave: arrays, lists, tensors, pairs
of them, real or complex; and whether a run drew random numbers since it started.
"""

from __future__ import annotations

import inspect
import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._recurrence.ambient import Generators, same_states
from ..errors import ConfigError

# ------------------------------------------------------------------------------------------------------------
# Random numbers drawn during a run, by the generators that every function can reach.


class Draws:
    """The global generators of torch, NumPy and Python as they are at construction."""

    def __init__(self, devices: Sequence[torch.device]):
        self._torch = Generators(devices)
        self._before = self._states()

    def _states(self) -> tuple[list[Tensor], bytes, tuple]:
        # Bytes, because NumPy's state is a nested dictionary with an array in it.
        global_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that fields may draw from
        return self._torch.get(), pickle.dumps(global_state), random.getstate()

    def moved(self) -> list[str]:
        """Whose generators are not where they were: of ``"torch"``, ``"NumPy"``, ``"random"``."""
        (torch_before, *before), (torch_now, *now) = self._before, self._states()
        alike = (same_states(torch_before, torch_now), *(a == b for a, b in zip(before, now)))
        return [name for name, same in zip(("torch", "NumPy", "random"), alike) if not same]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes (NaN is NaN, and -0 is not 0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return not a.numel() or torch.equal(*(x.detach().reshape(-1).view(torch.uint8) for x in (a, b)))


# ------------------------------------------------------------------------------------------------------------
# What a start is: arrays, lists, tensors, pairs of them, real or complex, and the same form for what comes
# back.
#
# Inside, a state is real: a complex number is a pair of floats along a last axis of two, so that the steps,
# the formats and the gradients know nothing of it.

_ACCEPTED = (
    "a NumPy array, a torch tensor, a number or a list of numbers (real or complex), or a tuple of two of"
    " them for (q0, v0) or (q0, p0)"
)
#: NumPy's kinds that become float64 (or stay floats, or complex) without losing anything.
_NUMBERS = "iufc"


@dataclass(frozen=True)
class Start:
    """A start in the form in which the steps hold it.

    Args:
        parts: one tensor, or two of one shape, dtype and device; real, with a last axis of two where
            ``complex``.
        pair: y0 was a tuple of two.
        from_numpy: fields get NumPy arrays and results are NumPy arrays.
        complex: y0 is complex.
        numbers: y0 was a tuple of two plain numbers.
    """

    parts: tuple[Tensor, ...]
    pair: bool
    from_numpy: bool
    complex: bool
    numbers: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one part, as the caller sees it."""
        shape = tuple(self.parts[0].shape)
        return shape[:-1] if self.complex else shape

    def outward(self, x: Tensor) -> Tensor:
        """The caller's tensor of an inner one."""
        return torch.view_as_complex(x.contiguous()) if self.complex else x

    def inward(self, value: Any, x: Tensor, what: str = "the field") -> Tensor:
        """The inner tensor of a value that stands for ``x``. Raises ConfigError for another kind or shape."""
        # Of one member, where the error of a batch looks at it.
        shape = tuple(x.shape[:-1] if self.complex else x.shape)
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{what} returned {_kind(value)}, expected a tensor of the state's shape {shape}"
            )
        if value.is_complex() and not self.complex:
            raise ConfigError(
                f"{what} returned complex values ({value.dtype}), but y0 is real ({x.dtype}): give y0 as a"
                " complex tensor or array, whose real and imaginary parts are then both integrated"
            )
        if tuple(value.shape) != shape:
            raise ConfigError(
                f"{what} returned {tuple(value.shape)}, expected a tensor of the state's shape {shape}"
            )
        if not self.complex:
            return value
        return torch.view_as_real(
            value.resolve_conj() if value.is_complex() else torch.complex(value, value * 0)
        )

    def function(self, f: Callable[..., Any], args: Sequence[Any], on_tensors: bool) -> Callable[..., Tensor]:
        """``f(t, x, *args)`` of the caller's as a function of inner tensors."""
        without_time = isinstance(f, nn.Module) and _takes_the_state_alone(f, len(args))
        on_arrays = self.from_numpy and not on_tensors and not isinstance(f, nn.Module)
        return _Function(replace(self, parts=()), f, without_time, on_arrays)

    def _array(self, value: Any, dtype: np.dtype) -> np.ndarray:
        """The field's value as an array of the state's dtype, always a copy."""
        given = _plain_array(value, "the field's value")
        if given.dtype.kind == "c" and not self.complex:
            raise ConfigError(
                f"the field returned complex values ({given.dtype}), but y0 is real ({dtype}): give y0 as a"
                " complex array, whose real and imaginary parts are then both integrated"
            )
        return np.array(given, dtype=dtype)


def read(y0: Any) -> Start:
    """The start that ``y0`` is.

    A tuple of two is a pair; a list, of whatever length, is one array.

    Raises:
        ConfigError: anything else than numbers, a tuple of another length, parts that do not fit together, or
            values that are not finite.
    """
    pair = isinstance(y0, tuple)
    if pair and len(y0) != 2:
        raise ConfigError(
            f"y0 is a tuple of {len(y0)}, expected {_ACCEPTED}: join the parts of y' = f(t, y) in one array "
            "(np.concatenate, torch.cat), or call odeint with FirstOrder(f), which takes a tuple state"
        )
    given = list(y0) if pair else [y0]
    tensors = [isinstance(p, Tensor) for p in given]
    if pair and tensors[0] != tensors[1]:
        raise ConfigError(
            f"the parts of y0 are {_kind(given[0])} and {_kind(given[1])}, expected the same: two tensors, or"
            " two arrays"
        )
    names = ("the first part of y0", "the second part of y0") if pair else ("y0",)
    parts = [_tensor(p, name) for p, name in zip(given, names)]
    if pair and parts[0].is_complex() != parts[1].is_complex():
        parts = [p if p.is_complex() else torch.complex(p, torch.zeros_like(p)) for p in parts]
    _check_parts(parts)
    is_complex = parts[0].is_complex()
    if is_complex:
        parts = [torch.view_as_real(p.resolve_conj()) for p in parts]
    numbers = pair and all(isinstance(p, (int, float, complex)) for p in given)
    return Start(tuple(parts), pair, not tensors[0], is_complex, numbers)


def _check_parts(parts: Sequence[Tensor]) -> None:
    a, b = parts[0], parts[-1]
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        raise ConfigError(
            f"the parts of y0 are {tuple(a.shape)} {a.dtype} {a.device} and {tuple(b.shape)} {b.dtype}"
            f" {b.device}, expected the same"
        )
    if not all(bool(torch.isfinite(p.detach()).all()) for p in parts):
        raise ConfigError("y0 has values that are not finite")


def _tensor(given: Any, name: str) -> Tensor:
    if isinstance(given, Tensor):
        if given.layout != torch.strided or given.is_nested:
            raise ConfigError(
                f"{name} is a tensor of layout {given.layout}, expected a dense one: call .to_dense()"
            )
        if given.dtype.is_floating_point and given.element_size() == 1:
            raise ConfigError(
                f"{name} is {given.dtype}, in which nothing can be added: give float32 or float64"
            )
        if given.dtype == torch.bool or given.is_quantized:
            raise ConfigError(
                f"{name} is {given.dtype}, expected numbers: real or complex floats, or integers"
            )
        if given.dtype == torch.complex32:
            raise ConfigError(f"{name} is {given.dtype}, expected complex64 or complex128")
        given = given.resolve_neg().resolve_conj()  # kernels read memory
        return given if given.dtype.is_floating_point or given.is_complex() else given.to(torch.float64)
    if isinstance(given, (list, tuple)) and not len(given):
        raise ConfigError(f"{name} is an empty {type(given).__name__}, expected at least one number")
    array = _plain_array(given, name)
    if array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise ConfigError(
            f"{name} is {array.dtype}, wider than the states can hold: give .astype(np.float64) or"
            " complex128, which rounds it"
        )
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _plain_array(given: Any, name: str) -> np.ndarray:
    """Numbers as an array. Raises ConfigError for anything else: strings, objects, dates, masked values,
    records.
    """
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ConfigError(
            f"{name} is a masked array with masked values, which have no value: fill or drop them"
        )
    if isinstance(given, (str, bytes, dict, set)) or given is None:
        raise ConfigError(f"{name} is {_kind(given)}, expected {_ACCEPTED}")
    try:
        array = np.asarray(given)
    except Exception as error:  # ragged lists, objects with an __array__ that fails
        raise ConfigError(
            f"{name} is {_kind(given)} that makes no array ({error}), expected {_ACCEPTED}"
        ) from error
    if array.dtype.kind not in _NUMBERS:
        raise ConfigError(f"{name} is {_kind(given)} of dtype {array.dtype}, expected {_ACCEPTED}")
    return array


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array {value.shape}"
    return type(value).__name__


@dataclass(frozen=True)
class _Function:
    """A function of the caller's as one of inner tensors."""

    form: Start
    f: Callable[..., Any]
    without_time: bool
    on_arrays: bool

    def __call__(self, t: Tensor, x: Tensor, *args: Any) -> Tensor:
        form = self.form
        outer = form.outward(x)
        if self.on_arrays:
            array = outer.detach().numpy()
            array.flags.writeable = False  # the step still needs it
            value: Any = torch.from_numpy(form._array(self.f(float(t), array, *args), array.dtype))
        elif self.without_time:
            value = self.f(outer, *args)
        else:
            value = _told(self.f, t, outer, args)
        return form.inward(value, x)


def _told(f: Callable[..., Any], t: Tensor, x: Tensor, args: Sequence[Any]) -> Any:
    """``f(t, x, *args)``. Raises ConfigError where t, joined with a state of less than float64, gave a wrong
    dtype.
    """
    try:
        return f(t, x, *args)
    except RuntimeError as error:
        words = str(error)
        if (
            type(error) is not RuntimeError
            or x.dtype == torch.float64
            or "dtype" not in words
            or "ouble" not in words
        ):
            raise
        raise ConfigError(
            f"the field raised {words!r}; t is a float64 tensor whatever the dtype of the state, which is"
            f" {x.dtype}: write t.to(y.dtype) where the field joins the two"
        ) from error


def _takes_the_state_alone(module: nn.Module, args: int) -> bool:
    """Whether a module's forward has room for the state alone, so that it is called without the time."""
    forward = getattr(module, "_orig_mod", module).forward  # torch.compile's wrapper takes anything
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters) or not places:
        return False
    required = sum(p.default is p.empty for p in places)
    return required <= 1 + args and places[0].name not in ("t", "time")
