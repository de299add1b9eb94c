"""Fields of the compiled loop: what the loop needs to know of a field, and :class:`CompiledField`, a field
given as C functions whose types are compared with what will be passed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, UnsupportedError
from ._callbacks import UNWRITTEN, Catcher, unwritten
from ._equations import declared

__all__ = [
    "CFUNCTYPE", "FPUT", "HARMONIC", "HENON_HEILES", "IDENTITY", "KEPLER", "LINEAR", "LOTKA_VOLTERRA",
    "LOTKA_VOLTERRA_LOG", "NUMBA", "N_BODY", "PENDULUM", "SIGNATURE", "USER", "VAN_DER_POL", "CompiledField",
    "Native", "plain",
]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# What the compiled loop needs to know of a field.

#: The fields that csrc/ode/fields.hpp has, by the number they have there.
(
    USER,
    HARMONIC,
    PENDULUM,
    KEPLER,
    HENON_HEILES,
    FPUT,
    N_BODY,
    LOTKA_VOLTERRA,
    VAN_DER_POL,
    LINEAR,
    LOTKA_VOLTERRA_LOG,
) = range(11)
#: In place of a function, in Python and in csrc: Phi(t, x) = x, the other slot itself.
IDENTITY = -1


@dataclass(frozen=True)
class Native:
    """A field of the compiled loop.

    Attributes:
        number: which; ``USER`` for pointers.
        params: its parameters, in the order of fields.hpp.
        functions: what a micro-step's functions 0 and 1 are: a function of the compiled field, or
            ``IDENTITY``.
        pointers, user_data: addresses, for ``USER``.
        alive: objects that must live as long as the addresses are used.
    """

    number: int
    params: tuple[float, ...] = ()
    functions: tuple[int, int] = (0, 0)
    pointers: tuple[int, int] = (0, 0)
    user_data: tuple[int, int] = (0, 0)
    alive: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple:
        """Addresses mean nothing in another process."""
        if any(self.pointers):
            raise TypeError(
                "a field given by the address of a C function cannot be pickled: make it anew where it is"
                " used"
            )
        return Native, (self.number, self.params, self.functions)


def plain(number: int, params: tuple[float, ...], equation: str) -> Native:
    """A built-in field with one function; of a separable one T = p**2 / 2, so that F is the identity."""
    return Native(
        number, tuple(float(x) for x in params), (IDENTITY, 0) if equation == "separable" else (0, 0)
    )


# ------------------------------------------------------------------------------------------------------------
# C functions and data as a compiled loop can take them: what is known of their types is compared with what
# will be passed.

SIGNATURE = "void (double, double *, double *, long, void *)"
#: As a ctypes type: ``@CFUNCTYPE`` for a Python callback, ``library.f`` with these argtypes otherwise.
CFUNCTYPE = ctypes.CFUNCTYPE(
    None,
    ctypes.c_double,
    ctypes.POINTER(ctypes.c_double),
    ctypes.POINTER(ctypes.c_double),
    ctypes.c_long,
    ctypes.c_void_p,
)
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
    raise ConfigError(
        f"got {type(given).__name__}, expected a scipy.LowLevelCallable, a ctypes function, a numba.cfunc or"
        " an address"
    )


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
        names = (
            "nothing yet"
            if types is None
            else f"({', '.join(getattr(t, '__name__', str(t)) for t in types)})"
        )
        name = getattr(returned, "__name__", str(returned))
        raise ConfigError(
            f"the ctypes function returns {name} and takes {names}, expected {SIGNATURE!r}: set restype and"
            " argtypes"
        )


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
    if (
        returned != "none"
        or t != "float64"
        or x not in doubles
        or out not in doubles
        or n != size
        or not user.endswith("*")
    ):
        got = f"({', '.join(arguments)}) -> {returned}"
        raise ConfigError(
            f"the cfunc has the signature {got}, expected {NUMBA!r}: compile it with numba.cfunc({NUMBA!r})"
        )


def _positive(address: Any) -> int:
    if not isinstance(address, int) or not 0 < address < 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)):
        raise ConfigError(f"the function's address is {address!r}, expected one that is not null")
    return address


def _capsule(capsule: Any) -> tuple[int, int]:
    api = ctypes.pythonapi
    name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))(capsule)
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", api)
    )(capsule, name)
    context = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyCapsule_GetContext", api))(capsule)
    return _positive(pointer), context or 0


# ---- User data: what a C function gets as its last argument ----


def user_data_of(given: Any) -> int:
    """The address of what the function gets as ``user``, 0 for nothing.

    Raises:
        ConfigError: it has none, or C would read other numbers there than Python shows.
    """
    if given is None:
        return 0
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        if not 0 <= given < 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)):
            raise ConfigError(
                f"user_data is {given}, expected an address, which is not negative, or what lies there"
            )
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
    structured = kind.names is not None and kind.isnative and not kind.hasobject
    if (
        isinstance(given, np.ma.MaskedArray)
        or not (numbers or structured)
        or not given.flags.c_contiguous
        or not given.flags.aligned
    ):
        form = "a contiguous" if given.flags.c_contiguous else f"strides {given.strides}, a non-contiguous"
        masked = " masked" if isinstance(given, np.ma.MaskedArray) else ""
        raise ConfigError(
            f"user_data is {form}{masked} array of {kind.str if kind.names is None else kind} in shape"
            f" {given.shape}, expected a C-contiguous one of native float64 (or of a structured dtype), which"
            " is what C reads there: pass np.ascontiguousarray(..., dtype=np.float64), or data.ctypes.data"
            " where the function expects just these bytes, and keep the array alive"
        )
    return given.ctypes.data


def _tensor(given: torch.Tensor) -> int:
    plain = given.layout == torch.strided and given.device.type == "cpu" and given.dtype == torch.float64
    if not plain or given.requires_grad or given.is_neg() or not given.is_contiguous():
        grad = ", requires_grad" if given.requires_grad else ""
        raise ConfigError(
            f"user_data is a tensor of {given.dtype} on {given.device} in shape {tuple(given.shape)}{grad},"
            " expected a contiguous float64 tensor on the CPU without a gradient: pass"
            " tensor.detach().to('cpu', torch.float64).contiguous()"
        )
    return given.data_ptr()


# ---- Fields given as C function pointers, so that the compiled loop never touches Python ----

_EQUATIONS = ("first", "second", "separable")


class CompiledField:
    """A field of the user's own in C: ``void f(double t, const double *x, double *out, long n, void *user)``.

    ``n`` is the number of components of one system, and ``out`` must be written in full; the function is
    called from several threads at once, without the GIL, for one system at a time. In fixed point it must
    give the same bits for the same x, or nothing can be undone. A function that raises (a Python callback,
    numba with its default error model) or leaves part of ``out`` unwritten ends the run with a CallbackError;
    a KeyboardInterrupt in it ends the run as itself.

    Args:
        pointers: f, or (F, G) of a separable field: each a ``scipy.LowLevelCallable``, a ctypes function, a
            ``numba.cfunc`` (anything with ``.address``) or an address.
        equation: ``"first"`` y' = f(t, y), ``"second"`` q'' = f(t, q), ``"separable"`` q' = F(t, p), p' =
            G(t, q).
        dim: components of one system; the last axis of the state.
        user_data: passed on as ``user``: an address, a ctypes object, a C-contiguous array of float64 or of a
            structured dtype, a contiguous float64 tensor on the CPU; kept alive. A LowLevelCallable brings
            its own.
        python: the same field as f(t, x) on tensors, or a pair, for loops and gradients in Python. Without it
            the pointer itself is called.
        energy: ``energy(y)`` or ``energy(q, v)`` / ``energy(q, p)``.
        interval: ``(a, b)``, the times at which the function can be asked; None: those of each run.

    Raises:
        ConfigError: an object without an address, or one whose signature is known and another, or data that C
            would misread.
    """

    event_dims = 1

    def __init__(
        self,
        pointers: Any,
        *,
        equation: str,
        dim: int,
        user_data: Any = None,
        python: Callable[..., Any] | tuple[Callable[..., Any], Callable[..., Any]] | None = None,
        energy: Callable[..., Any] | None = None,
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
            raise ConfigError(
                f"{len(given)} function(s) for a field of equation {equation!r}, expected {wanted}"
            )
        addresses, datas = zip(*(address_of(p) for p in given))
        data = user_data_of(user_data)
        datas = tuple(d if d else data for d in datas)
        self.equation = equation
        self.dim = dim
        self.energy = energy
        self.interval = declared(interval)
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
            raise ConfigError(
                f"the state's last axis is {event[0]}, expected dim = {self.dim} components of one system"
            )

    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The functions on tensors or arrays."""
        if self._python is not None:
            return self._python
        return tuple(self._caller(k) for k in range(2 if self.equation == "separable" else 1))

    def _caller(self, k: int) -> Callable:
        function, user = CFUNCTYPE(self._native.pointers[k]), self._native.user_data[k] or None

        def call(t: Any, x: Any) -> Any:
            tensor = hasattr(x, "detach")
            if np.iscomplexobj(x) if not tensor else x.is_complex():
                raise UnsupportedError(f"{_OF_REAL} has no complex values: {_PYTHON}")
            if tensor and x.requires_grad and torch.is_grad_enabled():
                raise UnsupportedError(f"{_OF_REAL} has no derivative: {_PYTHON}")
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


_OF_REAL = "a C function of float64 numbers, and so this CompiledField,"
_PYTHON = "give the same function of tensors as well, CompiledField(..., python=f)"


def _doubles(row: np.ndarray) -> Any:
    return row.ctypes.data_as(ctypes.POINTER(ctypes.c_double))


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[-1]
