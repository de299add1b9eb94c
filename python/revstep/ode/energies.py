"""A separable field from its two energies, differentiated by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .equations import SEPARABLE, Field
from .graph import walk

#: How far from a point an energy is asked once more, in units of 1 + |x|, to see whether it is constant.
_ASIDE = 2.0**-10


class FromEnergies(Field):
    """A separable Hamiltonian H = T(p) + V(q) from its two energies; the derivatives are torch's.

    The energies are functions of torch tensors, also where the start is NumPy. An energy that does not depend
    on its argument, or returns a number, has the derivative zero.

    Args:
        T: the kinetic energy, a function of a torch tensor that sums over nothing but one system: any shape
            in, a tensor out whose sum is differentiated, so that batches of independent systems work.
        V: the potential energy, likewise.

    Raises:
        ConfigError: T or V is no function. During a run: an energy that depends on its argument in a way that
            torch does not see (through NumPy, ``item()`` or ``detach()``), or is not a real number or tensor.
    """

    equation = SEPARABLE
    #: The functions take and return tensors, whatever the start is.
    on_tensors = True

    def __init__(self, T: Callable[[Tensor], Tensor], V: Callable[[Tensor], Tensor]):
        for name, f in (("T", T), ("V", V)):
            if not callable(f):
                raise ConfigError(f"{name} is {type(f).__name__}, expected a function of a tensor")
        self.T, self.V = T, V

    def functions(self) -> tuple[Callable, ...]:
        return (lambda t, p: _derivative("T", self.T, p)), (lambda t, q: -_derivative("V", self.V, q))

    def energy(self, q: Any, p: Any) -> Any:
        """T(p) + V(q), of tensors or of NumPy arrays."""
        if isinstance(q, Tensor):
            total = self.T(p) + self.V(q)
            return total if isinstance(total, Tensor) else torch.tensor(total, dtype=q.dtype, device=q.device)
        with torch.no_grad():
            total = self.T(torch.from_numpy(np.array(p))) + self.V(torch.from_numpy(np.array(q)))
        return np.asarray(total)


def _derivative(name: str, energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """dE/dx, with a graph where a gradient is asked for: of ``x``, or of something else that acts on E."""
    outer = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x if outer and x.requires_grad else _fresh(x)
        total = _total(name, energy, leaf)
        found = None
        if isinstance(total, Tensor) and total.requires_grad:
            graph = outer and (x.requires_grad or any(other is not leaf for other in walk(total)))
            found = torch.autograd.grad(total, leaf, create_graph=graph, allow_unused=True)[0]
        if found is None:
            _check_constant(name, energy, leaf, total)
    return torch.zeros_like(x, requires_grad=False) if found is None else found


def _fresh(x: Tensor) -> Tensor:
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _total(name: str, energy: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    """The sum of an energy. Raises ConfigError where it is nothing to differentiate."""
    try:
        value = energy(x)
    except RuntimeError as error:
        if "numpy()" not in str(error):
            raise
        raise ConfigError(
            f"{name} handed its argument to NumPy, expected operations of torch (torch.cos, not np.cos): "
            "energies are differentiated by torch, also where the start is NumPy"
        ) from error
    numbers = (int, float, np.floating, np.integer)
    if not isinstance(value, (Tensor, *numbers)) or (isinstance(value, Tensor) and value.is_complex()):
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{name} returned {what}, expected a tensor or a number, the energy")
    return value.sum() if isinstance(value, Tensor) else value


def _check_constant(name: str, energy: Callable[[Tensor], Tensor], x: Tensor, total: Any) -> None:
    """An energy on which torch sees no influence of its argument has the same value beside it.

    (Or it has a branch there, on the other side of which torch does see one.)
    """
    aside = (x.detach() + _ASIDE * (1 + x.detach().abs())).requires_grad_()
    beside = _total(name, energy, aside)
    if isinstance(beside, Tensor) and any(leaf is aside for leaf in walk(beside)):
        return
    here, there = (float(e.detach()) if isinstance(e, Tensor) else float(e) for e in (total, beside))
    if here != there:
        raise ConfigError(
            f"{name} changes with its argument, from {here!r} to {there!r} close by, but torch sees no "
            "influence of it: let it stay a tensor in the energy, without item(), float(), detach() or NumPy"
        )
