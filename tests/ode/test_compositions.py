"""Compositions: the registry's data hold what they claim, and each kind of wrong data is refused by name."""

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest

from revstep.errors import ConfigError
from revstep.ode import compositions
from revstep.ode.compositions import Composition, Splitting
from revstep.ode.compositions._base import FreeAlgebra, odd_algebra

ALL = compositions.available()
COMPOSED = {name: c for name, c in ALL.items() if isinstance(c, Composition)}
SPLIT = {name: c for name, c in ALL.items() if isinstance(c, Splitting)}
EPS = 2.0**-52


def _flow(k: np.ndarray, c: float) -> np.ndarray:
    """exp(c K) for a nilpotent K with K K = 0."""
    return np.eye(len(k)) + c * k


def _step(composition, h: float) -> np.ndarray:
    """The step on q' = p, p' = -q: a product of shears."""
    drift, kick = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [-1.0, 0.0]])
    m = np.eye(2)
    for k, a in enumerate(composition.full_a()):
        m = _flow(drift, a * h) @ m
        if k < composition.stages:
            m = _flow(kick, composition.full_b()[k] * h) @ m
    return m


@pytest.mark.parametrize("name", ALL)
def test_the_full_lists_are_palindromes_that_sum_to_one(name):
    a, b = ALL[name].full_a(), ALL[name].full_b()
    assert len(a) == len(b) + 1 == ALL[name].stages + 1
    assert a == a[::-1] and b == b[::-1]
    for full in (a, b):
        assert abs(math.fsum(full) - 1) <= EPS * max(4, math.fsum(map(abs, full)))


@pytest.mark.parametrize("name", ALL)
def test_the_order_is_seen_on_the_oscillator(name):
    """Independent of the algebra: the local error of one step falls with h**(order + 1)."""
    composition = ALL[name]
    exact = [np.array([[math.cos(h), math.sin(h)], [-math.sin(h), math.cos(h)]]) for h in (0.5, 0.25)]
    big, small = (
        float(np.abs(_step(composition, h) - e).max()) for h, e in zip((0.5, 0.25), exact, strict=True)
    )
    # Below order 8 the errors are far above the rounding of some 40 products of matrices of norm 3; at order
    # 8 the smaller one is still 1e3 times that.
    assert small > 1e3 * EPS / 3 or composition.order == 8
    assert math.log2(big / max(small, EPS)) > composition.order + 1 - 0.75


def test_registered_families_are_there():
    assert {
        "verlet",
        "yoshida4",
        "yoshida6",
        "yoshida8",
        "suzuki4",
        "suzuki_umeno8",
        "kahan_li6",
        "kahan_li8",
        "blanes_moan4",
        "blanes_moan6",
    } <= set(ALL)
    assert list(ALL) == sorted(ALL) and all(ALL[name].name == name for name in ALL)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no composition 'yoshida5'.*kahan_li6.*yoshida8"):
        compositions.get("yoshida5")
    assert compositions.get("suzuki4") is ALL["suzuki4"]


def test_a_name_used_twice_is_refused(monkeypatch):
    yoshida = importlib.import_module("revstep.ode.compositions.families")
    monkeypatch.setattr(
        yoshida, "TWICE", Composition("suzuki4", 4, ALL["suzuki4"].gammas, "a second file"), raising=False
    )
    compositions._found.cache_clear()
    try:
        with pytest.raises(ConfigError, match="two compositions are called 'suzuki4'"):
            compositions.available()
    finally:
        compositions._found.cache_clear()


# ---- what must be refused ----


def _nudged(half: tuple[float, ...], k: int, delta: float, weight: int = 2) -> tuple[float, ...]:
    """Coefficient k changed by delta, the last one by what keeps the sum (``weight``: how often k counts for
    one of the last).
    """
    return (*half[:k], half[k] + delta, *half[k + 1 : -1], half[-1] - weight * delta)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("delta", [1e-3, 1e-10])
def test_one_wrong_coefficient_is_refused_whatever_it_is(name, delta):
    for label in ("gammas",) if name in COMPOSED else ("a", "b"):
        half = getattr(ALL[name], label)
        for k in range(len(half)):
            with pytest.raises(ConfigError, match=rf"{name}: the sum of {label} is"):
                replace(ALL[name], **{label: (*half[:k], half[k] + delta, *half[k + 1 :])})


@pytest.mark.parametrize("name", [name for name, c in COMPOSED.items() if len(c.gammas) > 1])
@pytest.mark.parametrize("digit", [3, 6, 10])
def test_a_wrong_digit_with_the_sum_kept_is_refused(name, digit):
    """An order condition fails: the first is X3, d(sum gamma^3) = 6 (gamma_k^2 - gamma_last^2) delta, far
    above its bound of some 1e-13.
    """
    half = ALL[name].gammas
    for k in range(len(half) - 1):
        with pytest.raises(
            ConfigError, match=rf"{name} is not of order {ALL[name].order}: the coefficient of X"
        ):
            replace(ALL[name], gammas=_nudged(half, k, 10.0**-digit))


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("digit", [3, 6, 10])
def test_a_wrong_digit_of_a_splitting_with_the_sum_kept_is_refused(name, digit):
    centre_a = len(SPLIT[name].a) == len(SPLIT[name].b) + 1
    for label, weight in (("a", 2 if centre_a else 1), ("b", 1 if centre_a else 2)):
        half = getattr(SPLIT[name], label)
        for k in range(len(half) - 1):
            with pytest.raises(
                ConfigError,
                match=rf"{name} is not of order {SPLIT[name].order}: the coefficient of [AB ]+ is",
            ):
                replace(SPLIT[name], **{label: _nudged(half, k, 10.0**-digit, weight)})


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_order_is_refused(name):
    composition = ALL[name]
    with pytest.raises(ConfigError, match=rf"{name} is not of order {composition.order + 2}"):
        replace(composition, order=composition.order + 2)
    if composition.order > 2:
        with pytest.raises(
            ConfigError,
            match=(
                rf"{name} claims order {composition.order - 2}, but every condition of order"
                rf" {composition.order - 1} holds too"
            ),
        ):
            replace(composition, order=composition.order - 2)


@pytest.mark.parametrize("name", COMPOSED)
def test_a_list_that_is_no_palindrome_is_refused_by_name(name):
    full = COMPOSED[name].full_gammas()
    assert Composition.from_full(name, COMPOSED[name].order, full, "here") == replace(
        COMPOSED[name], source="here"
    )
    if len(full) > 1:
        with pytest.raises(ConfigError, match=rf"{name} is no palindrome: gammas\[0\]"):
            Composition.from_full(name, COMPOSED[name].order, (full[len(full) // 2], *full[1:]), "here")
        with pytest.raises(
            ConfigError, match=rf"{name}: got {len(full) - 1} coefficients gammas, expected an odd number"
        ):
            Composition.from_full(name, COMPOSED[name].order, full[1:], "here")


@pytest.mark.parametrize("name", SPLIT)
def test_a_splitting_that_is_no_palindrome_is_refused_by_name(name):
    s = SPLIT[name]
    a, b = s.full_a(), s.full_b()
    assert Splitting.from_full(name, s.order, a, b, "here") == replace(s, source="here")
    with pytest.raises(ConfigError, match=rf"{name} is no palindrome: a\[0\]"):
        Splitting.from_full(name, s.order, (a[1], a[0], *a[2:]), b, "here")
    with pytest.raises(ConfigError, match=rf"{name} is no palindrome: b\[0\]"):
        Splitting.from_full(name, s.order, a, (b[1], b[0], *b[2:]), "here")
    with pytest.raises(ConfigError, match="expected one more a than b"):
        Splitting.from_full(name, s.order, a, b[1:], "here")


def test_from_full_gives_the_mirrored_splitting_of_an_even_number_of_drifts():
    kinds = {"verlet": ((0.5, 0.5), (1.0,)), "two verlets": ((0.25, 0.5, 0.25), (0.5, 0.5))}
    for name, (a, b) in kinds.items():
        s = Splitting.from_full(name, 2, a, b, "here")
        assert s.full_a() == a and s.full_b() == b


BAD_HEADS = {
    "odd order": (dict(order=3), "expected an even integer"),
    "order True": (dict(order=True), "expected an even integer"),
    "no source": (dict(source=""), "say where the numbers come from"),
    "no name": (dict(name=""), "expected two non-empty strings"),
    "NaN": (dict(gammas=(math.nan, 1.0)), "expected a non-empty tuple of finite floats"),
    "list": (dict(gammas=[1.0]), "expected a non-empty tuple of finite floats"),
    "none": (dict(gammas=()), "expected a non-empty tuple of finite floats"),
    "integer": (dict(gammas=(1,)), "expected a non-empty tuple of finite floats"),
}


@pytest.mark.parametrize("change, message", BAD_HEADS.values(), ids=BAD_HEADS)
def test_incomplete_data_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(ALL["verlet"], **change)


def test_halves_of_the_wrong_lengths_are_refused():
    with pytest.raises(ConfigError, match="bad: got halves of 3 a and 1 b"):
        Splitting("bad", 2, (0.25, 0.25, 0.0), (1.0,), "here")


# ---- the algebra itself ----


def test_the_algebra_multiplies_like_matrices():
    """A representation: letters as nilpotent 4 x 4 matrices, where words of length 4 vanish; the series
    evaluated there is the product of exponentials.
    """
    rng = np.random.default_rng(0)
    letters = {letter: np.triu(rng.standard_normal((4, 4)), 1) for letter in "AB"}
    algebra = FreeAlgebra({"A": 1, "B": 1}, 3)
    factors = [{"A": 0.3, "B": -0.7}, {"A": 1.1}, {"B": 0.4}]
    value, bound = algebra.product(factors)
    series = sum(
        c * np.linalg.multi_dot([np.eye(4), np.eye(4), *(letters[x] for x in word)])
        for word, c in zip(algebra.words, value, strict=True)
    )
    product = np.eye(4)
    for factor in factors:
        x = sum(c * letters[letter] for letter, c in factor.items())
        product = product @ (np.eye(4) + x + x @ x / 2 + x @ x @ x / 6)
    assert np.abs(series - product).max() < 1e-13 and (bound > 0).all() and bound.max() < 1e-13


def test_the_number_of_words_is_that_of_the_compositions_into_odd_parts():
    algebra = odd_algebra(9)
    assert [int((algebra.weight == k).sum()) for k in range(10)] == [1, 1, 1, 2, 3, 5, 8, 13, 21, 34]


def test_more_stages_buy_a_smaller_error():
    """The reason for Kahan-Li and Blanes-Moan, and an anchor for the figures in the guide."""
    for better, worse in [
        ("suzuki4", "yoshida4"),
        ("blanes_moan4", "suzuki4"),
        ("kahan_li6", "yoshida6"),
        ("blanes_moan6", "kahan_li6"),
        ("kahan_li8", "yoshida8"),
    ]:
        assert (
            ALL[better].error_constant() < ALL[worse].error_constant()
            and ALL[better].efficiency() < ALL[worse].efficiency()
        )


#: Words times factors of all checks. One composition of 17 stages to order 9 in the algebra of two letters,
#: in place of the one of odd letters, would be more.
MOST_WORK = 15_000


def test_what_importing_checks_is_little(monkeypatch):
    """Counted, not timed: the coefficients of words that are computed when the data are imported, over all
    compositions. Some microseconds each.
    """
    counted = []
    real = FreeAlgebra.product

    def product(self, factors):
        counted.append(len(factors) * len(self.words))
        return real(self, factors)

    monkeypatch.setattr(FreeAlgebra, "product", product)
    for one in ALL.values():
        replace(one)
    assert len(counted) >= len(ALL)  # every one is checked
    assert sum(counted) < MOST_WORK < 17 * len(FreeAlgebra({"A": 1, "B": 1}, 9).words)
