"""Fields given as C function pointers, so that the compiled loop never touches Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ConfigError
from .callbacks import UNWRITTEN, Catcher, unwritten
from .equations import declared
from .native import USER, Native
from .signatures import CFUNCTYPE, SIGNATURE, address_of, user_data_of

__all__ = ["CFUNCTYPE", "SIGNATURE", "CompiledField"]

_EQUATIONS = ("first", "second", "separable")


class CompiledField:
    """A field of the user's own in C: ``void f(double t, const double *x, double *out, long n, void *user)``.

    ``n`` is the number of components of one system, and ``out`` must be written in full; the function is called from several threads
    at once, without the GIL, for one system at a time. In fixed point it must give the same bits for the same x, or nothing can be undone.
    A function that raises (a Python callback, numba with its default error model) or leaves part of ``out`` unwritten ends the run
    with a CallbackError; a KeyboardInterrupt in it ends the run as itself.

    Args:
        pointers: f, or (F, G) of a separable field: each a ``scipy.LowLevelCallable``, a ctypes function, a ``numba.cfunc`` (anything with
            ``.address``) or an address.
        equation: ``"first"`` y' = f(t, y), ``"second"`` q'' = f(t, q), ``"separable"`` q' = F(t, p), p' = G(t, q).
        dim: components of one system; the last axis of the state.
        user_data: passed on as ``user``: an address, a ctypes object, a C-contiguous array of float64 or of a structured dtype, a
            contiguous float64 tensor on the CPU; kept alive. A LowLevelCallable brings its own.
        python: the same field as f(t, x) on tensors, or a pair, for loops and gradients in Python. Without it the pointer itself is called.
        energy: ``energy(y)`` or ``energy(q, v)`` / ``energy(q, p)``.
        interval: ``(a, b)``, the times at which the function can be asked; None: those of each run.

    Raises:
        ConfigError: an object without an address, or one whose signature is known and another, or data that C would misread.
    """

    event_dims = 1

    def __init__(
        self,
        pointers: Any,
        *,
        equation: str,
        dim: int,
        user_data: Any = None,
        python: Callable | tuple[Callable, Callable] | None = None,
        energy: Callable | None = None,
        interval: tuple[float, float] | None = None,
    ):
        if equation not in _EQUATIONS:
            raise ConfigError(f"equation is {equation!r}, expected one of {_EQUATIONS}")
        if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or dim < 1:
            raise ConfigError(f"dim is {dim!r}, expected the number of components of one system")
        dim = int(dim)
        # A LowLevelCallable is a tuple too.
        given = pointers if type(pointers) in (tuple, list) else (pointers,)
        wanted = 2 if equation == "separable" else 1
        if len(given) != wanted:
            raise ConfigError(f"{len(given)} function(s) for a field of equation {equation!r}, expected {wanted}")
        addresses, datas = zip(*(address_of(p) for p in given))
        data = user_data_of(user_data)
        datas = tuple(d if d else data for d in datas)
        self.equation, self.dim = equation, dim
        self.energy, self.interval = energy, declared(interval)
        functions = (0, 1) if equation == "separable" else (0, 0)
        self._native = Native(USER, (), functions, _pair(addresses), _pair(datas), (given, user_data))
        self._python = None if python is None else (python if isinstance(python, tuple) else (python,))
        if self._python is not None and len(self._python) != wanted:
            raise ConfigError(f"python has {len(self._python)} function(s), expected {wanted}")

    def compiled(self) -> Native:
        """What the compiled loop needs to know of it."""
        return self._native

    def check_event(self, event: tuple[int, ...]) -> None:
        """Raises ConfigError unless one system has ``dim`` components."""
        if event != (self.dim,):
            raise ConfigError(f"the state's last axis is {event[0]}, expected dim = {self.dim} components of one system")

    def functions(self) -> tuple[Callable, ...]:
        """The functions on tensors or arrays."""
        if self._python is not None:
            return self._python
        return tuple(self._caller(k) for k in range(2 if self.equation == "separable" else 1))

    def _caller(self, k: int) -> Callable:
        function, user = CFUNCTYPE(self._native.pointers[k]), self._native.user_data[k] or None

        def call(t: Any, x: Any) -> Any:
            tensor = hasattr(x, "detach")
            values = np.ascontiguousarray(x.detach().cpu().numpy() if tensor else x, dtype=np.float64)
            out = np.full(values.shape, UNWRITTEN[0])
            self._call_rows(function, user, float(t), values.reshape(-1, self.dim), out.reshape(-1, self.dim))
            return x.new_tensor(out) if tensor else out

        return call

    def _call_rows(self, function: Any, user: Any, t: float, rows: np.ndarray, outs: np.ndarray) -> None:
        """Ask for every system. Raises as the compiled loop does."""
        with Catcher() as caught:
            for k, (source, target) in enumerate(zip(rows, outs)):
                function(t, _doubles(source), _doubles(target), self.dim, user)
                left = target.view(np.uint64) == UNWRITTEN.view(np.uint64)
                if caught.exception is None and not left.any():
                    continue
                where = f"t = {t:.6g}" + (f", system {k} of {len(rows)}" if len(rows) > 1 else "")
                caught.raise_caught(where, -1, t, k)
                raise unwritten(where, int(left.argmax()), self.dim, -1, t, k)


def _doubles(row: np.ndarray) -> Any:
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_double))


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[-1]
