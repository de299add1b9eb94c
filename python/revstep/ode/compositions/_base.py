"""What a composition or a splitting is: half a palindrome of coefficients as data, whose order is proved in a
free associative algebra when it is defined.
"""

from __future__ import annotations

import abc
import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ...errors import ConfigError

# ------------------------------------------------------------------------------------------------------------
# The truncated free associative algebra: products of exponentials of weighted letters, with the rounding
# bound of each coefficient.

EPS = float(np.finfo(np.float64).eps)


class FreeAlgebra:
    """Words over weighted letters up to a total weight; a series is the array of its words' coefficients.

    Args:
        weights: letter -> weight (>= 1).
        top: words of a larger weight are cut off.
    """

    def __init__(self, weights: dict[str, int], top: int):
        self.letters = tuple(weights)
        words, total = [()], [0]
        # Grows while it is read: breadth first, so a prefix stands before its extensions.
        for k, word in enumerate(words):
            for letter, weight in weights.items():
                if total[k] + weight <= top:
                    words.append((*word, letter))
                    total.append(total[k] + weight)
        index = {word: k for k, word in enumerate(words)}
        cuts = [(index[word[:k]], index[word[k:]]) for word in words for k in range(len(word) + 1)]
        self.words, self.weight = words, np.array(total)
        self._prefix, self._suffix = np.array(cuts).T
        self._starts = np.cumsum([0] + [len(word) + 1 for word in words[:-1]])
        self._counts = np.array([[word.count(letter) for letter in self.letters] for word in words])
        self._inverse_factorial = np.array([1.0 / math.factorial(len(word)) for word in words])

    def exponential(self, coefficients: dict[str, float]) -> np.ndarray:
        """``exp(sum of coefficient * letter)``; letters left out have coefficient 0."""
        values = np.array([coefficients.get(letter, 0.0) for letter in self.letters])
        return np.prod(values**self._counts, axis=1) * self._inverse_factorial

    def multiply(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.add.reduceat(left[self._prefix] * right[self._suffix], self._starts)

    def product(self, factors: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
        """The product of the factors' exponentials, and a bound on the rounding error of each coefficient.

        The majorant M is the same product with absolute values: every coefficient is a sum of products of at
        most ``top`` coefficients, and M the sum of their sizes. A coefficient given to half an ulp, its power
        and the factorial put a relative error of at most (top + 3) eps on a word of one exponential, one
        multiplication adds the product and a sum of at most top + 1 terms: (top + 2) eps. So n factors give n
        (2 top + 5) eps M (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3; eps is twice the
        unit roundoff, which pays for the terms of second order).
        """
        one = np.zeros(len(self.words))
        one[0] = 1.0
        value, majorant = one, one
        for factor in factors:
            value = self.multiply(value, self.exponential(factor))
            majorant = self.multiply(
                majorant, self.exponential({letter: abs(c) for letter, c in factor.items()})
            )
        return value, len(factors) * (2 * int(self.weight.max()) + 5) * EPS * majorant


@lru_cache(maxsize=16)
def odd_algebra(top: int) -> FreeAlgebra:
    """Letters X1, X3, X5, ... of weights 1, 3, 5, ...: a symmetric method of order 2 is exp(h X1 + h^3 X3 +
    h^5 X5 + ...).
    """
    return FreeAlgebra({f"X{k}": k for k in range(1, top + 1, 2)}, top)


@lru_cache(maxsize=16)
def two_letter_algebra(top: int) -> FreeAlgebra:
    """Letters A and B of weight 1: the flows of the two parts of a split field."""
    return FreeAlgebra({"A": 1, "B": 1}, top)


# ------------------------------------------------------------------------------------------------------------
# What a composition is: half a palindrome of coefficients, proved to have its order when it is defined.


class _Palindrome(abc.ABC):
    """What both kinds share: the checks, and the constant of the leading error term."""

    name: str
    order: int
    source: str

    @abc.abstractmethod
    def full_a(self) -> tuple[float, ...]:
        """Coefficients of A over a whole step, one more than of B: the step is A B A ... B A."""

    @abc.abstractmethod
    def full_b(self) -> tuple[float, ...]:
        """Coefficients of B over a whole step."""

    @property
    def stages(self) -> int:
        """Evaluations of B's field a step; of A's as many, where the last of a step serves the next."""
        return len(self.full_b())

    def _check_head(self, *halves: tuple[str, object]) -> None:
        where = f"{type(self).__name__} {self.name!r}"
        if (
            not isinstance(self.name, str)
            or not self.name
            or not isinstance(self.source, str)
            or not self.source
        ):
            raise ConfigError(
                f"{where}: got name {self.name!r}, source {self.source!r}, expected two non-empty strings:"
                " say where the numbers come from"
            )
        if (
            isinstance(self.order, bool)
            or not isinstance(self.order, int)
            or self.order < 2
            or self.order % 2
        ):
            raise ConfigError(
                f"{where}: got order {self.order!r}, expected an even integer >= 2: a symmetric method has no"
                " odd order"
            )
        for label, half in halves:
            if (
                not isinstance(half, tuple)
                or not half
                or not all(isinstance(x, float) and math.isfinite(x) for x in half)
            ):
                raise ConfigError(
                    f"{where}: got {label} = {half!r}, expected a non-empty tuple of finite floats"
                )

    def _check_sum(self, label: str, full: tuple[float, ...]) -> None:
        total = math.fsum(full)
        # Each coefficient is a number rounded to half an ulp of itself, so their exact sum is off by at most
        # eps/2 sum |c|; twice that, and 4 ulp of the 1.
        bound = EPS * max(4.0, math.fsum(map(abs, full)))
        if not abs(total - 1.0) <= bound:
            raise ConfigError(
                f"{self.name}: the sum of {label} is {total!r}, expected 1 within {bound:.1e}: check the"
                f" coefficients against {self.source}"
            )

    def _check_order(
        self, algebra: FreeAlgebra, factors: list[dict[str, float]], target: dict[str, float]
    ) -> None:
        """The product of the factors equals exp(target) on every word up to weight ``order``, and not on all
        of weight ``order + 1``.
        """
        value, bound = algebra.product(factors)
        expected = algebra.exponential(target)
        bad = ~(np.abs(value - expected) <= bound)
        within = np.flatnonzero(bad & (algebra.weight <= self.order))
        if within.size:
            k = int(within[0])
            raise ConfigError(
                f"{self.name} is not of order {self.order}: the coefficient of {' '.join(algebra.words[k])}"
                f" is {value[k]:.17g}, expected {expected[k]:.17g} within {bound[k]:.1e}: a coefficient is"
                f" wrong (check them against {self.source}), or the order is lower"
            )
        if not (bad & (algebra.weight == self.order + 1)).any():
            raise ConfigError(
                f"{self.name} claims order {self.order}, but every condition of order {self.order + 1} holds"
                " too: claim its true order"
            )

    def error_constant(self) -> float:
        """Norm over the words of length order + 1 in A and B of the step minus exp(A + B): the size of the
        leading error term for h = 1.
        """
        algebra = two_letter_algebra(self.order + 1)
        residual = algebra.product(_alternating(self.full_a(), self.full_b()))[0] - algebra.exponential(
            {"A": 1.0, "B": 1.0}
        )
        return float(np.linalg.norm(residual[algebra.weight == self.order + 1]))

    def efficiency(self) -> float:
        """``stages * error_constant ** (1 / order)``: evaluations for one unit of error to first
        approximation; less is better among methods of one order.
        """
        return self.stages * self.error_constant() ** (1.0 / self.order)


@dataclass(frozen=True)
class Composition(_Palindrome):
    """``S(gamma_1 h) S(gamma_2 h) ... S(gamma_2 h) S(gamma_1 h)`` of a symmetric method S of order 2 (for two
    flows: Strang's A/2 B A/2).

    Args:
        name: registry key.
        order: even; proved for every symmetric S of order 2, not for Strang splitting alone.
        gammas: the first half, centre last; the rest is its mirror image, so a full list cannot be
            asymmetric.
        source: paper, and table or method name in it.

    Raises:
        ConfigError: no finite floats, a sum other than 1, an order condition that fails (the first is named),
            or an order that is higher than claimed.
    """

    name: str
    order: int
    gammas: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        self._check_head(("gammas", self.gammas))
        full = self.full_gammas()
        self._check_sum("gammas", full)
        self._check_sum("a", self.full_a())
        top = self.order + 1
        powers = range(1, top + 1, 2)
        self._check_order(
            odd_algebra(top), [{f"X{k}": gamma**k for k in powers} for gamma in full], {"X1": 1.0}
        )

    @classmethod
    def from_full(cls, name: str, order: int, gammas: tuple[float, ...], source: str) -> Composition:
        """From all coefficients of the step. Raises ConfigError, naming the composition and the pair, when
        they are no palindrome of odd length.
        """
        return cls(name, order, _half(name, "gammas", gammas, odd=True), source)

    def full_gammas(self) -> tuple[float, ...]:
        """All coefficients, the palindrome written out."""
        return _mirror(self.gammas, odd=True)

    def full_a(self) -> tuple[float, ...]:
        gammas = (0.0, *self.full_gammas(), 0.0)
        return tuple((left + right) / 2 for left, right in itertools.pairwise(gammas))

    def full_b(self) -> tuple[float, ...]:
        return self.full_gammas()


@dataclass(frozen=True)
class Splitting(_Palindrome):
    """``A(a_1 h) B(b_1 h) A(a_2 h) ... B(b_1 h) A(a_1 h)``: a palindrome for two flows, not made of steps of
    Strang splitting.

    Args:
        name: registry key.
        order: even; proved for any two flows (no use is made of [B, [B, [B, A]]] = 0, so it is not for
            second-order equations only).
        a: first half of the coefficients of the flow A. The middle one is the last of the list, a or b, that
            has an odd number of coefficients in all; the other list is mirrored whole.
        b: first half of the coefficients of the flow B.
        source: paper, and table or method name in it.

    Raises:
        ConfigError: as :class:`Composition`.
    """

    name: str
    order: int
    a: tuple[float, ...]
    b: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        self._check_head(("a", self.a), ("b", self.b))
        if len(self.a) - len(self.b) not in (0, 1):
            raise ConfigError(
                f"{self.name}: got halves of {len(self.a)} a and {len(self.b)} b, expected as many a as b, or"
                " one more: A stands at both ends"
            )
        self._check_sum("a", self.full_a())
        self._check_sum("b", self.full_b())
        self._check_order(
            two_letter_algebra(self.order + 1),
            _alternating(self.full_a(), self.full_b()),
            {"A": 1.0, "B": 1.0},
        )

    @classmethod
    def from_full(
        cls, name: str, order: int, a: tuple[float, ...], b: tuple[float, ...], source: str
    ) -> Splitting:
        """From all coefficients of the step. Raises ConfigError, naming the composition and the pair, when a
        or b is no palindrome.
        """
        if len(a) != len(b) + 1:
            raise ConfigError(
                f"{name}: got {len(a)} a and {len(b)} b, expected one more a than b: the step starts and ends"
                " with A"
            )
        odd = len(a) % 2 == 1
        return cls(name, order, _half(name, "a", a, odd), _half(name, "b", b, not odd), source)

    def full_a(self) -> tuple[float, ...]:
        return _mirror(self.a, odd=len(self.a) == len(self.b) + 1)

    def full_b(self) -> tuple[float, ...]:
        return _mirror(self.b, odd=len(self.a) == len(self.b))


def _mirror(half: tuple[float, ...], odd: bool) -> tuple[float, ...]:
    return half + (half[-2::-1] if odd else half[::-1])


def _half(name: str, label: str, full: tuple[float, ...], odd: bool) -> tuple[float, ...]:
    if len(full) % 2 != odd:
        raise ConfigError(
            f"{name}: got {len(full)} coefficients {label}, expected an {'odd' if odd else 'even'} number"
        )
    for k, (left, right) in enumerate(zip(full, full[::-1], strict=True)):
        if left != right:
            raise ConfigError(
                f"{name} is no palindrome: {label}[{k}] = {left!r}, but {label}[{len(full) - 1 - k}] ="
                f" {right!r}: a symmetric step reads the same from both ends"
            )
    return tuple(full[: (len(full) + 1) // 2])


def _alternating(a: tuple[float, ...], b: tuple[float, ...]) -> list[dict[str, float]]:
    return [factor for k, x in enumerate(a) for factor in ({"A": x}, *({"B": y} for y in b[k : k + 1]))]
