"""What the compiled loop needs to know of a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: The fields that csrc/ode/fields.hpp has, by the number they have there.
USER, HARMONIC, PENDULUM, KEPLER, HENON_HEILES, FPUT, N_BODY, LOTKA_VOLTERRA, VAN_DER_POL, LINEAR, LOTKA_VOLTERRA_LOG = range(11)
#: In place of a function, in Python and in csrc: Phi(t, x) = x, the other slot itself.
IDENTITY = -1


@dataclass(frozen=True)
class Native:
    """A field of the compiled loop.

    Attributes:
        number: which; ``USER`` for pointers.
        params: its parameters, in the order of fields.hpp.
        functions: what a micro-step's functions 0 and 1 are: a function of the compiled field, or ``IDENTITY``.
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
            raise TypeError("a field given by the address of a C function cannot be pickled: make it anew where it is used")
        return Native, (self.number, self.params, self.functions)


def plain(number: int, params: tuple[float, ...], equation: str) -> Native:
    """A built-in field with one function; of a separable one T = p**2 / 2, so that F is the identity."""
    return Native(number, tuple(float(x) for x in params), (IDENTITY, 0) if equation == "separable" else (0, 0))
