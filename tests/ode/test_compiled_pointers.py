"""Fields given as C function pointers, in every way they can be given."""

import ctypes
import gc
import shutil
import subprocess
import weakref

import numpy as np
import pytest
import scipy
import torch

from revstep.errors import ConfigError
from revstep.ode import _compiled, methods
from revstep.ode._compiled import CompiledField
from revstep.ode._functions import CFUNCTYPE, SIGNATURE

H, STEPS = 1 / 64, 20

SOURCE = """
void driven(double t, const double *x, double *out, long n, void *user) {
    const double k = user ? *(const double *)user : 1.0;
    for (long i = 0; i < n; ++i) out[i] = -k * x[i] + 0.5 * t * x[(i + 1) % n];
}
void drift(double t, const double *p, double *out, long n, void *user) {
    for (long i = 0; i < n; ++i) out[i] = 0.5 * p[i];
}
"""


def driven(t, x, k=1.0):
    return -k * x + 0.5 * t * torch.roll(x, -1, -1)


@CFUNCTYPE
def callback(t, x, out, n, user):
    k = ctypes.cast(user, ctypes.POINTER(ctypes.c_double))[0] if user else 1.0
    for i in range(n):
        out[i] = -k * x[i] + 0.5 * t * x[(i + 1) % n]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("pointers")
    (folder / "field.c").write_text(SOURCE)
    subprocess.run(
        [
            compiler,
            "-O2",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-o",
            folder / "field.so",
            folder / "field.c",
        ],
        check=True,
    )
    found = ctypes.CDLL(str(folder / "field.so"))
    for f in (found.driven, found.drift):
        f.restype, f.argtypes = None, CFUNCTYPE._argtypes_
    return found


def run(field, slots=None, scheme="verlet", **options):
    q = torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3)
    slots = (q.clone(), q.flip(0).clone()) if slots is None else slots
    method = methods.resolve(scheme, H, None)
    ran = _compiled.run(
        field.compiled(),
        lambda n: method.micros(n, field.equation),
        slots,
        h=H,
        steps=STEPS,
        period=method.period,
        **options,
    )
    assert ran.bad_step == -1
    return slots


def expected(k=1.0):
    """The same field through another door: as a second-order function of tensors in Python."""
    q = torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3)
    v = q.flip(0).clone()
    for n in range(STEPS):
        q = q + 0.5 * H * v
        v = v + H * driven((n + 0.5) * H, q, k)
        q = q + 0.5 * H * v
    return q, v


def ways(library):
    address = ctypes.cast(library.driven, ctypes.c_void_p).value
    yield "ctypes function of a library", library.driven
    yield "ctypes callback", callback
    yield "address", address
    yield "LowLevelCallable", scipy.LowLevelCallable(library.driven)
    yield "LowLevelCallable of a callback", scipy.LowLevelCallable(callback)


def test_every_kind_of_pointer_gives_the_same(library):
    for name, pointer in ways(library):
        slots = run(CompiledField(pointer, equation="second", dim=3))
        assert all(torch.equal(a, b) for a, b in zip(slots, expected())), name


def test_user_data_arrives(library):
    k = 2.5
    given = [np.array([k]), ctypes.c_double(k), (ctypes.c_double * 1)(k)]
    given += [ctypes.pointer(given[1]), ctypes.cast(given[2], ctypes.c_void_p), ctypes.addressof(given[1])]
    for data in given:
        slots = run(CompiledField(library.driven, equation="second", dim=3, user_data=data))
        assert all(torch.equal(a, b) for a, b in zip(slots, expected(k))), type(data)
    low = scipy.LowLevelCallable(library.driven, ctypes.cast(given[2], ctypes.c_void_p))
    assert torch.equal(run(CompiledField(low, equation="second", dim=3))[0], expected(k)[0])
    assert not torch.equal(expected(k)[0], expected()[0])


def test_numba_cfunc():
    numba = pytest.importorskip("numba", reason="numba is not installed")
    kinds = numba.types
    signature = kinds.void(
        kinds.float64,
        kinds.CPointer(kinds.float64),
        kinds.CPointer(kinds.float64),
        kinds.int64,
        kinds.voidptr,
    )

    @numba.cfunc(signature)
    def field(t, x, out, n, user):
        for i in range(n):
            out[i] = -x[i] + 0.5 * t * x[(i + 1) % n]

    torch.testing.assert_close(run(CompiledField(field, equation="second", dim=3))[0], expected()[0])


def test_an_object_with_an_address():
    """What numba.cfunc is, where numba is not."""

    class Stub:
        address = ctypes.cast(callback, ctypes.c_void_p).value

    assert torch.equal(run(CompiledField(Stub(), equation="second", dim=3))[0], expected()[0])
    Stub._sig = type("Signature", (), {"args": (1, 2)})
    with pytest.raises(ConfigError, match="takes 2 arguments"):
        CompiledField(Stub(), equation="second", dim=3)


def test_a_separable_field_has_two(library):
    field = CompiledField((library.drift, library.driven), equation="separable", dim=3)
    q = torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3)
    p = q.flip(0).clone()
    for n in range(STEPS):
        q = q + 0.5 * H * (0.5 * p)
        p = p + H * driven((n + 0.5) * H, q)
        q = q + 0.5 * H * (0.5 * p)
    slots = run(field)
    assert torch.equal(slots[0], q) and torch.equal(slots[1], p)


def test_a_first_order_field_undone_to_the_bit(library):
    field = CompiledField(library.driven, equation="first", dim=3)
    bits = (torch.full((3,), 50, dtype=torch.int32),) * 2
    start = torch.round(torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(4, 3) * 2.0**50).to(
        torch.int64
    )
    slots = run(field, (start.clone(), start.clone()), "midpoint", frac_bits=bits)
    assert not torch.equal(slots[0], start)
    run(field, slots, "midpoint", frac_bits=bits, position=STEPS, undo=True, threads=2)
    assert torch.equal(slots[0], start) and torch.equal(slots[1], start)


def test_the_pointer_serves_python_too(library):
    field = CompiledField(library.driven, equation="second", dim=3)
    x = torch.linspace(0.5, 1.5, 12, dtype=torch.float64).reshape(2, 2, 3)
    (f,) = field.functions()
    assert torch.equal(
        f(torch.tensor(0.3), x.float()), driven(float(torch.tensor(0.3)), x.float().double()).float()
    )
    assert torch.equal(f(0.3, x), driven(0.3, x)) and np.array_equal(
        f(0.3, x.numpy()), driven(0.3, x).numpy()
    )
    given = CompiledField(library.driven, equation="second", dim=3, python=driven)
    assert given.functions() == (driven,)


def test_what_is_pointed_at_is_kept_alive():
    k = (ctypes.c_double * 1)(2.5)
    seen = weakref.ref(k)
    field = CompiledField(
        CFUNCTYPE(lambda t, x, out, n, user: callback(t, x, out, n, user)),
        equation="second",
        dim=3,
        user_data=k,
    )
    del k
    gc.collect()
    assert seen() is not None and torch.equal(run(field)[0], expected(2.5)[0])
    del field
    gc.collect()
    assert seen() is None


OTHER = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(lambda x: x)
WRONG = {
    "nothing": (
        lambda: CompiledField(None, equation="first", dim=1),
        "got NoneType, expected a scipy.LowLevelCallable",
    ),
    "python": (lambda: CompiledField(lambda t, x: x, equation="first", dim=1), "got function"),
    "null": (lambda: CompiledField(0, equation="first", dim=1), "expected one that is not null"),
    "ctypes signature": (lambda: CompiledField(OTHER, equation="first", dim=1), "set restype and argtypes"),
    "signature": (
        lambda: CompiledField(scipy.LowLevelCallable(OTHER), equation="first", dim=1),
        r"has the signature 'double \(double\)'",
    ),
    "one of two": (
        lambda: CompiledField(callback, equation="separable", dim=1),
        "1 function.s. for a field of equation 'separable', expected 2",
    ),
    "two of one": (lambda: CompiledField((callback, callback), equation="second", dim=1), "expected 1"),
    "equation": (lambda: CompiledField(callback, equation="third", dim=1), "expected one of"),
    "dim": (lambda: CompiledField(callback, equation="first", dim=0), "number of components"),
    "user data": (
        lambda: CompiledField(callback, equation="first", dim=1, user_data="x"),
        "user_data is str",
    ),
    "shape": (
        lambda: _compiled.layout(CompiledField(callback, equation="first", dim=3), (5, 4)),
        "expected dim = 3",
    ),
    "python functions": (
        lambda: CompiledField(callback, equation="first", dim=3, python=(driven, driven)),
        "python has 2",
    ),
}


@pytest.mark.parametrize("make, message", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_signature_is_the_documented_one():
    assert SIGNATURE == scipy.LowLevelCallable(callback).signature
