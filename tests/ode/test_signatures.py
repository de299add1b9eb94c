"""What is accepted as a C function and its data: signatures that are known, arrays as C reads them."""

import ctypes
import types

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.errors import CallbackError, ConfigError
from revstep.ode._functions import CFUNCTYPE, CompiledField

Y = (np.array([1.0, 0.5]), np.zeros(2))
LOOPS = ["compiled", "python"]


@CFUNCTYPE
def spring(t, x, out, n, user):
    for i in range(n):
        out[i] = -x[i]


def solve(function, **options):
    field = CompiledField(function, equation="second", dim=2)
    return ode.integrate(field, Y, **{"scheme": "verlet", "h": 0.01, "steps": 100, **options})


# ---- signatures
# -----------------------------------------------------------------------------------------------

D, P, L, V = ctypes.c_double, ctypes.POINTER(ctypes.c_double), ctypes.c_long, ctypes.c_void_p
CTYPES = {
    "float t": (None, ctypes.c_float, P, P, L, V),
    "int n": (None, D, P, P, ctypes.c_int, V),
    "float x": (None, D, ctypes.POINTER(ctypes.c_float), P, L, V),
    "int out": (None, D, P, ctypes.POINTER(ctypes.c_long), L, V),
    "pointers of pointers": (None, D, ctypes.POINTER(P), P, L, V),
    "returns": (D, D, P, P, L, V),
    "returns int": (ctypes.c_int, D, P, P, L, V),
    "four": (None, D, P, P, L),
    "six": (None, D, P, P, L, V, V),
    "none": (None,),
    "five doubles": (None, D, D, D, D, D),
    "user by value": (None, D, P, P, L, L),
    "order": (None, P, D, P, L, V),
}


@pytest.mark.parametrize("kind", CTYPES.values(), ids=CTYPES)
def test_a_ctypes_function_of_another_signature(kind):
    function = ctypes.CFUNCTYPE(*kind)(lambda *args: 0)
    with pytest.raises(
        ConfigError, match=r"the ctypes function returns .* and takes .*expected 'void \(double, double \*"
    ):
        CompiledField(function, equation="second", dim=2)


def test_a_library_function_that_returns_something():
    process = ctypes.CDLL(None)
    CompiledField(process.abs, equation="second", dim=2)  # nothing is known of it
    process.labs.restype = ctypes.c_double
    with pytest.raises(ConfigError, match="returns c_double and takes nothing yet"):
        CompiledField(process.labs, equation="second", dim=2)


@pytest.mark.parametrize(
    "kind", [(None, D, P, P, L, P), (None, D, V, V, L, V), (None, D, P, P, L, ctypes.POINTER(ctypes.c_int))]
)
def test_pointers_may_be_called_otherwise(kind):
    CompiledField(ctypes.CFUNCTYPE(*kind)(lambda *args: None), equation="second", dim=2)


GOOD = ("float64", "float64*", "float64*", f"int{8 * ctypes.sizeof(L)}", "void*")
NUMBA = {
    "float32": ("float32", "float32*", "float32*", "int32", "void*"),
    "int n": (*GOOD[:3], "int32", "void*"),
    "unsigned n": (*GOOD[:3], "uint64", "void*"),
    "five doubles": ("float64",) * 5,
    "complex": ("float64", "complex128*", "complex128*", GOOD[3], "void*"),
    "an array": ("float64", "array(float64, 1d, C)", "float64*", GOOD[3], "void*"),
    "user by value": (*GOOD[:4], "int64"),
    "four": GOOD[:4],
    "six": (*GOOD, "void*"),
}


def stub(arguments, returned="none"):
    """What numba.cfunc is, where numba is not."""
    signature = types.SimpleNamespace(args=arguments, return_type=returned)
    return types.SimpleNamespace(address=ctypes.cast(spring, V).value, _sig=signature)


@pytest.mark.parametrize("arguments", NUMBA.values(), ids=NUMBA)
def test_a_cfunc_of_another_signature(arguments):
    with pytest.raises(
        ConfigError, match=r"the cfunc (has the signature .*numba.cfunc|takes \d arguments, expected)"
    ):
        CompiledField(stub(arguments), equation="second", dim=2)


def test_cfuncs_that_fit_and_one_that_returns():
    for user in ("void*", "float64*", "int32*"):
        assert np.array_equal(solve(stub((*GOOD[:4], user))).ys, solve(spring).ys)
    with pytest.raises(ConfigError, match="-> float64, expected 'void"):
        CompiledField(stub(GOOD, "float64"), equation="second", dim=2)


def test_numba_itself():
    numba = pytest.importorskip("numba", reason="numba is not installed")
    good = "void(float64, CPointer(float64), CPointer(float64), int64, voidptr)"

    @numba.cfunc(good)
    def pole(t, x, out, n, user):
        for i in range(n):
            out[i] = 1.0 / (x[i] - x[i]) if t > 0.5 else -x[i]

    @numba.cfunc(good, error_model="numpy")
    def infinite(t, x, out, n, user):
        for i in range(n):
            out[i] = 1.0 / (x[i] - x[i]) if t > 0.5 else -x[i]

    for loop in LOOPS:
        with pytest.raises(
            CallbackError, match=r"step 50, t = 0\.505: the callback raised ZeroDivisionError"
        ):
            solve(pole, loop=loop)
        with pytest.raises(revstep.StateOverflowError, match="step 50"):
            solve(infinite, loop=loop)
    floats = numba.cfunc("void(float32, CPointer(float32), CPointer(float32), int32, voidptr)")(
        lambda t, x, out, n, user: None
    )
    doubles = numba.cfunc("float64(float64, float64, float64, float64, float64)")(lambda a, b, c, d, e: 1.0)
    for function in (floats, doubles):
        with pytest.raises(ConfigError, match="the cfunc has the signature"):
            CompiledField(function, equation="second", dim=2)


def test_low_level_callables():
    scipy = pytest.importorskip("scipy", reason="scipy is not installed")
    for kind in [(None, D, P, P, L, V), (None, D, P, P, L, P)]:
        CompiledField(
            scipy.LowLevelCallable(ctypes.CFUNCTYPE(*kind)(lambda *a: None)), equation="second", dim=2
        )
    for kind in [
        (None, D, P, P, ctypes.c_int, V),
        (D, D, P, P, L, V),
        (None, D, P, P, L),
        (None, D, P, P, V, L),
    ]:
        with pytest.raises(ConfigError, match="the LowLevelCallable has the signature"):
            CompiledField(
                scipy.LowLevelCallable(ctypes.CFUNCTYPE(*kind)(lambda *a: None)), equation="second", dim=2
            )


# ---- user data
# ------------------------------------------------------------------------------------------------

K = np.array([[1.0, 9.0], [4.0, 9.0]])
RECORD = np.dtype([("k", np.float64, 2), ("n", np.int32)])
REFUSED = {
    "strided": K[:, 0],
    "reversed": K[0][::-1],
    "transposed": K.T,
    "Fortran order": np.asfortranarray(K),
    "int64": np.array([1, 4]),
    "float32": np.array([1, 4], dtype=np.float32),
    "float128": np.array([1, 4], dtype=np.longdouble),
    "complex": np.array([1.0, 4.0], dtype=np.complex128),
    "bool": np.array([True, False]),
    "other byte order": np.array([1.0, 4.0]).astype(np.dtype(np.float64).newbyteorder()),
    "objects": np.array([1.0, 4.0], dtype=object),
    "masked": np.ma.masked_array([1.0, 4.0], [False, True]),
    "records, strided": np.zeros(4, RECORD)[::2],
    "records, other byte order": np.zeros(2, RECORD.newbyteorder()),
    "records with objects": np.zeros(2, [("k", object)]),
    "a field of records": np.zeros(4, RECORD)["k"],
    "unaligned": np.zeros(17, np.uint8)[1:].view(np.float64),
    "list": [1.0, 4.0],
    "tuple": (1.0, 4.0),
    "float": 1.0,
    "number of NumPy": np.float64(1.0),
    "bytes": b"12345678",
    "bool value": True,
    "negative": -1,
    "dict": {},
    "float32 tensor": torch.ones(2),
    "strided tensor": torch.ones(2, 2, dtype=torch.float64)[:, 0],
    "tensor of integers": torch.ones(2, dtype=torch.int64),
    "tensor with a gradient": torch.ones(2, dtype=torch.float64, requires_grad=True),
    "sparse tensor": torch.eye(2, dtype=torch.float64).to_sparse(),
    "meta tensor": torch.ones(2, dtype=torch.float64, device="meta"),
    "negated tensor": torch.ones(1, dtype=torch.complex128).conj().imag,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_user_data_that_c_would_misread(data):
    with pytest.raises(ConfigError, match=r"user_data is .*expected"):
        CompiledField(spring, equation="second", dim=2, user_data=data)


def test_user_data_as_c_reads_it():
    def stiffness(t, x, out, n, user):
        k = ctypes.cast(user, P)
        for i in range(n):
            out[i] = -k[i] * x[i]

    function, record = CFUNCTYPE(stiffness), np.zeros(1, RECORD)
    record["k"] = [1.0, 4.0]
    good = np.array([1.0, 4.0])
    read_only = good.copy()
    read_only.flags.writeable = False
    given = [
        good,
        read_only,
        np.ascontiguousarray(K[:, 0]),
        good.reshape(1, 2),
        record,
        record.view(np.recarray),
        torch.from_numpy(good),
    ]
    given += [
        torch.tensor([1.0, 4.0], dtype=torch.float64),
        good.ctypes.data,
        np.intp(good.ctypes.data),
        (D * 2)(1.0, 4.0),
    ]
    for data in given:
        field = CompiledField(function, equation="second", dim=np.int64(2), user_data=data)
        run = ode.integrate(field, (np.ones(2), np.zeros(2)), scheme="kahan_li6", h=0.01, steps=100)
        assert np.abs(run.ys[-1] - [np.cos(1.0), np.cos(2.0)]).max() < 1e-12, type(data)
    kept = CompiledField(
        function, equation="second", dim=2, user_data=torch.tensor([1.0, 4.0], dtype=torch.float64) * 1.0
    )
    junk = [np.full(2, 77.0) for _ in range(1000)]
    run = ode.integrate(kept, (np.ones(2), np.zeros(2)), scheme="kahan_li6", h=0.01, steps=100)
    assert len(junk) == 1000 and np.abs(run.ys[-1] - [np.cos(1.0), np.cos(2.0)]).max() < 1e-12


@pytest.mark.parametrize("dim", [0, -1, True, 2.0, "2", None, np.float64(2)])
def test_dim_is_a_number_of_components(dim):
    with pytest.raises(ConfigError, match="expected the number of components"):
        CompiledField(spring, equation="second", dim=dim)
