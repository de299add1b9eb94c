"""What a start is: lists are arrays, tuples are pairs, complex states are integrated whole, anything else is
refused.
"""

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import _starts

H_TWO_LEVEL = np.array([[0.3, 0.8 - 0.2j], [0.8 + 0.2j, -0.5]])


def schroedinger(t, y):
    return -1j * (y @ H_TWO_LEVEL.T)


def exactly(psi, t):
    values, vectors = np.linalg.eigh(H_TWO_LEVEL)
    return vectors @ (np.exp(-1j * values * t) * (vectors.conj().T @ psi))


ONE_STEP = [n for n, m in ode.available().items() if "first" in m.equations and m.rotations]


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_complex_state_is_integrated_and_undone_exactly(name):
    psi = np.array([1.0, 0.5j])
    runs = [ode.integrate(schroedinger, psi, scheme=name, h=h, t1=1.0) for h in (1 / 64, 1 / 128)]
    errors = [np.abs(run.ys[-1] - exactly(psi, 1.0)).max() for run in runs]
    order = ode.available()[name].claims("first").order
    assert errors[1] <= errors[0] / 2.0 ** (order - 0.5) + 1e-13
    assert runs[0].ys.dtype == np.complex128 and runs[0].reverse().exact
    assert np.array_equal(runs[0].reverse().ys[-1], psi)


def test_a_lost_imaginary_part_is_seen(monkeypatch):
    """The mutant, as it was: the real part alone is integrated."""
    monkeypatch.setattr(
        _starts.Start, "_array", lambda self, value, dtype: np.array(np.real(value), dtype=dtype)
    )
    run = ode.integrate(schroedinger, np.array([1.0, 0.5j]), scheme="kahan_li6", h=1 / 64, t1=1.0)
    assert np.abs(run.ys[-1] - exactly(np.array([1.0, 0.5j]), 1.0)).max() > 0.1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_gradients_are_those_of_stored_steps(dtype):
    """Reversible Euler by hand, in complex numbers and with autograd's own graph."""
    matrix = torch.tensor(H_TWO_LEVEL, dtype=dtype, requires_grad=True)
    psi = torch.tensor([1.0, 0.5j], dtype=dtype, requires_grad=True)
    field = lambda t, y: -1j * (matrix @ y)  # noqa: E731
    run = ode.integrate(field, psi, scheme="reversible_euler", h=0.05, steps=10)
    got = torch.autograd.grad(run.ys[-1].abs().square()[0], (matrix, psi))
    y = z = psi
    for _ in range(10):
        y = 0.5 * y + 0.5 * z + 0.05 * field(0.0, z)
        z = z + 0.05 * field(0.0, y)
    expected = torch.autograd.grad(y.abs().square()[0], (matrix, psi))
    eps = torch.finfo(dtype).eps
    assert all((a - b).abs().max() <= 64 * eps * b.abs().max() for a, b in zip(got, expected))
    assert run.reverse().exact


def test_complex_pairs_and_odeint():
    q, v = np.array([1 + 1j]), np.array([0.0])
    run = ode.integrate(lambda t, q: -q, (q, v), h=0.01, t1=1.0)
    assert run.ys.dtype == run.velocities.dtype == np.complex128
    assert abs(run.ys[-1, 0] - (1 + 1j) * np.cos(1)) < 1e-12 and run.reverse().exact
    psi = torch.tensor([1.0, 0.5j], dtype=torch.complex128)
    found = ode.odeint(
        lambda t, y: -1j * (torch.tensor(H_TWO_LEVEL) @ y), psi, torch.linspace(0, 1, 33).double()
    )
    assert np.abs(found[-1].numpy() - exactly(psi.numpy(), 1.0)).max() < 1e-6


@pytest.mark.parametrize(
    "name", [n for n, m in ode.available().items() if not m.rotations and "first" in m.equations]
)
def test_two_step_schemes_refuse_complex_starts(name):
    with pytest.raises(revstep.ConfigError, match=r"y0 is complex, and .* take 'reversible_rk4'"):
        ode.integrate(schroedinger, np.array([1.0, 0.5j]), scheme=name, h=0.1, steps=2)


def test_a_real_start_with_complex_values_is_refused_by_name():
    for y0, field in (
        (np.ones(1), lambda t, y: 1j * y),
        (torch.ones(1, dtype=torch.float64), lambda t, y: 1j * y),
        ((np.ones(1), np.ones(1)), lambda t, q: 1j * q),
    ):
        with pytest.raises(
            revstep.ConfigError, match=r"the field returned complex values .* give y0 as a complex"
        ):
            ode.integrate(field, y0, h=0.1, steps=2)


def test_lists_are_arrays_and_tuples_are_pairs():
    decay = lambda t, y: -0.5 * y  # noqa: E731
    for y0 in ([1.0, 2.0], [1, 2], [[1.0, 2.0], [3.0, 4.0]], [1.0], 1.0, [1.0, 2.0, 3.0], np.float32(1.0)):
        run = ode.integrate(decay, y0, h=0.1, steps=10)
        assert run.equation == "first" and np.allclose(run.ys[-1], np.array(y0) * np.exp(-0.5), atol=1e-6)
    pair = ode.integrate(decay, ([1.0], [0.0]), h=0.1, steps=10)
    assert pair.equation == "second" and pair.velocities is not None


@pytest.mark.parametrize(
    "y0, message",
    [
        ((1.0, 2.0), "a tuple of two numbers"),
        ((1.0, 2.0, 3.0), "a tuple of 3"),
        ((), "a tuple of 0"),
        ([], "an empty list"),
        ("ab", "y0 is str"),
        (None, "y0 is NoneType"),
        ({"a": 1.0}, "y0 is dict"),
        (np.array(["1"]), "dtype <U1"),
        (np.array([1.0], dtype=object), "dtype object"),
        (np.array([True]), "dtype bool"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), "masked values"),
        (np.zeros(2, dtype=[("x", "f8")]), "dtype"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "dtype datetime64"),
        (np.ones(2, dtype=np.longdouble), "wider than the states"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8"),
        (torch.ones(2).to_sparse(), "layout"),
        (torch.tensor([True]), "torch.bool"),
        ((np.ones(2), torch.ones(2)), "two tensors, or two arrays"),
        ((np.ones(2), np.ones(3)), "expected the same"),
        ((np.ones(2), np.ones(2, dtype=np.float32)), "expected the same"),
        (np.array([1.0, np.nan]), "not finite"),
        ([[1.0], [1.0, 2.0]], "makes no array"),
    ],
)
def test_what_is_no_start_is_refused(y0, message):
    with pytest.raises(revstep.ConfigError, match=message):
        ode.integrate(lambda t, y: -y, y0, h=0.1, steps=2)


def test_arrays_as_files_give_them():
    q, p = np.array([0.9, 0.0]), np.array([0.0, 1.1])
    expected = ode.integrate(ode.fields.Kepler(), (q, p), h=0.01, steps=50).ys
    table = np.zeros(2, dtype=[("q", "f8"), ("i", "i4"), ("p", "f8")])
    table["q"], table["p"] = q, p
    read_only = q.copy()
    read_only.flags.writeable = False
    given = [(q.astype(">f8"), p.astype(">f8")), (table["q"], table["p"]), (read_only, p), (q[::-1][::-1], p)]
    for y0 in [*given, (np.ma.array(q), np.ma.array(p))]:
        assert np.array_equal(ode.integrate(ode.fields.Kepler(), y0, h=0.01, steps=50).ys, expected)


class Both(torch.nn.Module):
    def forward(self, t, y, weight=1.0):
        return -y * weight


class Alone(torch.nn.Module):
    def forward(self, y, mask=None):
        assert mask is None
        return -y


class AloneWithArgument(torch.nn.Module):
    def forward(self, state, weight):
        return -state * weight


@pytest.mark.parametrize(
    "module, args",
    [
        (Both(), ()),
        (Both(), (1.0,)),
        (Alone(), ()),
        (AloneWithArgument(), (1.0,)),
        (torch.nn.Sequential(Alone()), ()),
        (torch.compile(Alone(), backend="eager"), ()),
    ],
)
def test_modules_are_called_by_their_signature(module, args):
    run = ode.integrate(module, torch.ones(2, dtype=torch.float64), h=0.01, t1=1.0, args=args)
    assert torch.allclose(run.ys[-1], torch.full((2,), np.exp(-1.0), dtype=torch.float64), atol=1e-8)


def test_second_order_in_the_velocity_is_named():
    damped = lambda t, q, v: -q - 0.1 * v  # noqa: E731
    for field in (damped, ode.SecondOrder(damped)):
        with pytest.raises(revstep.ConfigError, match=r"f\(t, q, v\), but q'' = f\(t, q\) knows no velocity"):
            ode.integrate(field, (np.ones(1), np.zeros(1)), h=0.1, steps=2)
    # A third parameter that args= fills is another thing.
    ode.integrate(lambda t, q, k: -k * q, (np.ones(1), np.zeros(1)), h=0.1, steps=2, args=(2.0,))
