"""Fields given as C function pointers, so that the compiled loop never touches Python."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ConfigError
from .native import USER, Native

SIGNATURE = "void (double, double *, double *, long, void *)"
#: As a ctypes type: ``@CFUNCTYPE`` for a Python callback, ``library.f`` with these argtypes otherwise.
CFUNCTYPE = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double), ctypes.c_long, ctypes.c_void_p)
_EQUATIONS = ("first", "second", "separable")


class CompiledField:
    """A field of the user's own in C: ``void f(double t, const double *x, double *out, long n, void *user)``.

    ``n`` is the number of components of one system, and ``out`` must be written in full; the function is called from several threads
    at once, without the GIL, for one system at a time. In fixed point it must give the same bits for the same x, or nothing can be undone.

    Args:
        pointers: f, or (F, G) of a separable field: each a ``scipy.LowLevelCallable``, a ctypes function, a ``numba.cfunc`` (anything with
            ``.address``) or an address.
        equation: ``"first"`` y' = f(t, y), ``"second"`` q'' = f(t, q), ``"separable"`` q' = F(t, p), p' = G(t, q).
        dim: components of one system; the last axis of the state.
        user_data: passed on as ``user``: an address, a ctypes object or an array; kept alive. A LowLevelCallable brings its own.
        python: the same field as f(t, x) on tensors, or a pair, for loops and gradients in Python. Without it the pointer itself is called.

    Raises:
        ConfigError: an object without an address, or one whose signature is known and another.
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
    ):
        if equation not in _EQUATIONS:
            raise ConfigError(f"equation is {equation!r}, expected one of {_EQUATIONS}")
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ConfigError(f"dim is {dim!r}, expected the number of components of one system")
        # A LowLevelCallable is a tuple too.
        given = pointers if type(pointers) in (tuple, list) else (pointers,)
        wanted = 2 if equation == "separable" else 1
        if len(given) != wanted:
            raise ConfigError(f"{len(given)} function(s) for a field of equation {equation!r}, expected {wanted}")
        addresses, datas = zip(*(_address(p) for p in given))
        data = _user_data(user_data)
        datas = tuple(d if d else data for d in datas)
        self.equation, self.dim = equation, dim
        self.energy = energy
        functions = (0, 1) if equation == "separable" else (0, 0)
        self._native = Native(USER, (), functions, _pair(addresses), _pair(datas), (given, user_data))
        self._python = None if python is None else (python if isinstance(python, tuple) else (python,))
        if self._python is not None and len(self._python) != wanted:
            raise ConfigError(f"python has {len(self._python)} function(s), expected {wanted}")

    def compiled(self) -> Native:
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
            rows, out = values.reshape(-1, self.dim), np.empty(values.shape).reshape(-1, self.dim)
            for source, target in zip(rows, out):
                function(float(t), _doubles(source), _doubles(target), self.dim, user)
            result = out.reshape(values.shape)
            return x.new_tensor(result) if tensor else result

        return call


def _doubles(row: np.ndarray) -> Any:
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_double))


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[-1]


def _plain(signature: str) -> str:
    return signature.replace("const", "").replace(" ", "")


def _address(given: Any) -> tuple[int, int]:
    """``(function, user data)`` as addresses, 0 for no user data."""
    if type(given).__module__.startswith("scipy.") and type(given).__name__ == "LowLevelCallable":
        if _plain(given.signature) != _plain(SIGNATURE):
            raise ConfigError(f"the LowLevelCallable has the signature {given.signature!r}, expected {SIGNATURE!r}")
        return _capsule(tuple.__getitem__(given, 0))
    if isinstance(given, ctypes._CFuncPtr):
        types = given.argtypes
        if types is not None and (given.restype is not None or tuple(map(_name, types)) != tuple(map(_name, CFUNCTYPE._argtypes_))):
            raise ConfigError(f"the ctypes function returns {given.restype} and takes {types}, expected {SIGNATURE!r}: set restype and argtypes")
        return _positive(ctypes.cast(given, ctypes.c_void_p).value), 0
    if hasattr(given, "address"):
        arguments = getattr(getattr(given, "_sig", None), "args", None)
        if arguments is not None and len(arguments) != 5:
            raise ConfigError(f"the cfunc takes {len(arguments)} arguments, expected {SIGNATURE!r}")
        return _positive(given.address), 0
    if isinstance(given, int) and not isinstance(given, bool):
        return _positive(given), 0
    raise ConfigError(f"got {type(given).__name__}, expected a scipy.LowLevelCallable, a ctypes function, a numba.cfunc or an address")


def _name(kind: Any) -> str:
    """Of a ctypes type, pointers to double and to void being what they are."""
    return getattr(kind, "__name__", str(kind))


def _positive(address: Any) -> int:
    if not isinstance(address, int) or address <= 0:
        raise ConfigError(f"the function's address is {address!r}, expected one that is not null")
    return address


def _capsule(capsule: Any) -> tuple[int, int]:
    api = ctypes.pythonapi
    name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))(capsule)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))(capsule, name)
    context = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyCapsule_GetContext", api))(capsule)
    return _positive(pointer), context or 0


def _user_data(given: Any) -> int:
    if given is None:
        return 0
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, ctypes.c_void_p):
        return given.value or 0
    if isinstance(given, ctypes._Pointer):
        return ctypes.cast(given, ctypes.c_void_p).value or 0
    if isinstance(given, (ctypes.Structure, ctypes.Array, ctypes._SimpleCData)):
        return ctypes.addressof(given)
    if isinstance(given, np.ndarray):
        return given.ctypes.data
    raise ConfigError(f"user_data is {type(given).__name__}, expected an address, a ctypes object or an array")
