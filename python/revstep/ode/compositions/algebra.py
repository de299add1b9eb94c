"""The truncated free associative algebra: products of exponentials of weighted letters, with the rounding bound of each coefficient."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

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
        for k, word in enumerate(words):  # grows while it is read: breadth first, so a prefix stands before its extensions
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

        The majorant M is the same product with absolute values: every coefficient is a sum of products of at most ``top`` coefficients, and M the sum
        of their sizes. A coefficient given to half an ulp, its power and the factorial put a relative error of at most (top + 3) eps on a word of one
        exponential, one multiplication adds the product and a sum of at most top + 1 terms: (top + 2) eps. So n factors give n (2 top + 5) eps M
        (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3; eps is twice the unit roundoff, which pays for the terms of second order).
        """
        one = np.zeros(len(self.words))
        one[0] = 1.0
        value, majorant = one, one
        for factor in factors:
            value = self.multiply(value, self.exponential(factor))
            majorant = self.multiply(majorant, self.exponential({letter: abs(c) for letter, c in factor.items()}))
        return value, len(factors) * (2 * int(self.weight.max()) + 5) * EPS * majorant


@lru_cache(maxsize=16)
def odd_algebra(top: int) -> FreeAlgebra:
    """Letters X1, X3, X5, ... of weights 1, 3, 5, ...: a symmetric method of order 2 is exp(h X1 + h^3 X3 + h^5 X5 + ...)."""
    return FreeAlgebra({f"X{k}": k for k in range(1, top + 1, 2)}, top)


@lru_cache(maxsize=16)
def two_letter_algebra(top: int) -> FreeAlgebra:
    """Letters A and B of weight 1: the flows of the two parts of a split field."""
    return FreeAlgebra({"A": 1, "B": 1}, top)
