"""C functions and data as a compiled loop can take them: what is known of their types is compared with what will be passed."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError

SIGNATURE = "void (double, double *, double *, long, void *)"
#: As a ctypes type: ``@CFUNCTYPE`` for a Python callback, ``library.f`` with these argtypes otherwise.
CFUNCTYPE = ctypes.CFUNCTYPE(None, ctypes.c_double, ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double), ctypes.c_long, ctypes.c_void_p)
#: The same in numba's words; the size of a C long differs between systems.
NUMBA = f"void(float64, CPointer(float64), CPointer(float64), int{8 * ctypes.sizeof(ctypes.c_long)}, voidptr)"


def address_of(given: Any) -> tuple[int, int]:
    """``(function, user data)`` as addresses, 0 for no user data.

    Raises:
        ConfigError: it has no address, or its signature is known and another.
    """
    if type(given).__module__.startswith("scipy.") and type(given).__name__ == "LowLevelCallable":
        _check_text(given.signature)
        return _capsule(tuple.__getitem__(given, 0))
    if isinstance(given, ctypes._CFuncPtr):
        _check_ctypes(given)
        return _positive(ctypes.cast(given, ctypes.c_void_p).value), 0
    if hasattr(given, "address"):
        signature = getattr(given, "_sig", None)
        if signature is not None:
            _check_numba(signature)
        return _positive(given.address), 0
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        return _positive(int(given)), 0
    raise ConfigError(f"got {type(given).__name__}, expected a scipy.LowLevelCallable, a ctypes function, a numba.cfunc or an address")


def _check_text(signature: Any) -> None:
    """Of a LowLevelCallable; ``user`` may be any pointer."""
    if not isinstance(signature, str) or not _same_text(signature):
        raise ConfigError(f"the LowLevelCallable has the signature {signature!r}, expected {SIGNATURE!r}")


def _same_text(signature: str) -> bool:
    plain = signature.replace("const", "").replace(" ", "")
    expected = SIGNATURE.replace(" ", "")
    head, _, user = plain.rpartition(",")
    return head == expected.rpartition(",")[0] and user.endswith("*)")


def _check_ctypes(given: Any) -> None:
    types, returned = given.argtypes, given.restype
    # A function of a library returns int and takes anything until it is told otherwise.
    untold = types is None and returned is ctypes.c_int
    right = returned is None and (types is None or (len(types) == 5 and all(map(_fits, types, range(5)))))
    if not untold and not right:
        names = "nothing yet" if types is None else f"({', '.join(getattr(t, '__name__', str(t)) for t in types)})"
        name = getattr(returned, "__name__", str(returned))
        raise ConfigError(f"the ctypes function returns {name} and takes {names}, expected {SIGNATURE!r}: set restype and argtypes")


def _fits(kind: Any, place: int) -> bool:
    if place == 0:
        return kind is ctypes.c_double
    if place == 3:
        return kind is ctypes.c_long
    if kind is ctypes.c_void_p:
        return True
    pointer = isinstance(kind, type) and issubclass(kind, ctypes._Pointer)
    return pointer and (place == 4 or kind._type_ is ctypes.c_double)


def _check_numba(signature: Any) -> None:
    arguments = [str(a) for a in signature.args]
    if len(arguments) != 5:
        raise ConfigError(f"the cfunc takes {len(arguments)} arguments, expected {SIGNATURE!r}")
    t, x, out, n, user = arguments
    returned = str(getattr(signature, "return_type", "none"))
    doubles = ("float64*", "void*")
    size = f"int{8 * ctypes.sizeof(ctypes.c_long)}"
    if returned != "none" or t != "float64" or x not in doubles or out not in doubles or n != size or not user.endswith("*"):
        got = f"({', '.join(arguments)}) -> {returned}"
        raise ConfigError(f"the cfunc has the signature {got}, expected {NUMBA!r}: compile it with numba.cfunc({NUMBA!r})")


def _positive(address: Any) -> int:
    if not isinstance(address, int) or not 0 < address < 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)):
        raise ConfigError(f"the function's address is {address!r}, expected one that is not null")
    return address


def _capsule(capsule: Any) -> tuple[int, int]:
    api = ctypes.pythonapi
    name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))(capsule)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", api))(capsule, name)
    context = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyCapsule_GetContext", api))(capsule)
    return _positive(pointer), context or 0


# ---- user data ------------------------------------------------------------------------------------------------


def user_data_of(given: Any) -> int:
    """The address of what the function gets as ``user``, 0 for nothing.

    Raises:
        ConfigError: it has none, or C would read other numbers there than Python shows.
    """
    if given is None:
        return 0
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        if not 0 <= given < 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)):
            raise ConfigError(f"user_data is {given}, expected an address, which is not negative, or what lies there")
        return int(given)
    if isinstance(given, ctypes.c_void_p):
        return given.value or 0
    if isinstance(given, ctypes._Pointer):
        return ctypes.cast(given, ctypes.c_void_p).value or 0
    if isinstance(given, (ctypes.Structure, ctypes.Union, ctypes.Array, ctypes._SimpleCData)):
        return ctypes.addressof(given)
    if isinstance(given, np.ndarray):
        return _array(given)
    if isinstance(given, torch.Tensor):
        return _tensor(given)
    raise ConfigError(
        f"user_data is {type(given).__name__}, expected an address, a ctypes object, or an array of float64: "
        "np.array(..., dtype=np.float64) makes one of a list"
    )


def _array(given: np.ndarray) -> int:
    kind = given.dtype
    numbers = kind == np.float64 and kind.isnative
    record = kind.names is not None and kind.isnative and not kind.hasobject
    if isinstance(given, np.ma.MaskedArray) or not (numbers or record) or not given.flags.c_contiguous or not given.flags.aligned:
        form = "a contiguous" if given.flags.c_contiguous else f"strides {given.strides}, a non-contiguous"
        masked = " masked" if isinstance(given, np.ma.MaskedArray) else ""
        raise ConfigError(
            f"user_data is {form}{masked} array of {kind.str if kind.names is None else kind} in shape {given.shape}, expected a C-contiguous "
            "one of native float64 (or of a structured dtype), which is what C reads there: pass np.ascontiguousarray(..., "
            "dtype=np.float64), or data.ctypes.data where the function expects just these bytes, and keep the array alive"
        )
    return given.ctypes.data


def _tensor(given: torch.Tensor) -> int:
    plain = given.layout == torch.strided and given.device.type == "cpu" and given.dtype == torch.float64
    if not plain or given.requires_grad or given.is_neg() or not given.is_contiguous():
        grad = ", requires_grad" if given.requires_grad else ""
        raise ConfigError(
            f"user_data is a tensor of {given.dtype} on {given.device} in shape {tuple(given.shape)}{grad}, expected a contiguous float64 tensor "
            "on the CPU without a gradient: pass tensor.detach().to('cpu', torch.float64).contiguous()"
        )
    return given.data_ptr()
