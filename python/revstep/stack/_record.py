"""What a forward pass keeps of a step, and what its re-evaluation is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..schemes._base import Coefficients, RowCoefficients
from . import _arguments, _selection
from ._audit import Audit
from ._members import Members
from ._report import layer_name
from ._saved import Difference, Look, Looker
from ._surroundings import ModuleRecord


@dataclass(slots=True)
class StepRecord:
    """What re-evaluating one block needs beside its input."""

    coefficients: Coefficients | RowCoefficients
    args: tuple
    kwargs: dict
    carry: Tensor | None = None  # known once the step has been taken
    rng: list[Tensor] | None = None
    outputs: dict = field(default_factory=dict)  # of operators, see :mod:`._selection`
    leaves: set[int] = field(default_factory=set)  # where some are: storages of parameters and buffers
    buffers: list[int] = field(default_factory=list)
    exchanged: dict[int, Tensor | None] = field(default_factory=dict)  # buffers that it replaced by others
    # Buffers as the evaluation found them, where its result depends on them.
    before: dict[int, Tensor] = field(default_factory=dict)
    slots: list[Look] = field(default_factory=list)
    aux: list = field(default_factory=list)  # fingerprints of what the block returned beside its increment
    copies: list = field(default_factory=list)  # fingerprints of the generator record and the choice of rows
    mode: bool = False  # a dispatch mode was in force, under which some functions of torch take another way
    modules: Sequence[ModuleRecord] = ()
    flags: tuple[bool, ...] = ()  # requires_grad of the parameters
    input_needs_grad: bool = False

    def fingerprints(self, looker: Looker) -> list:
        """Of what is kept of the step and no checksum of a state answers for."""
        choice = () if isinstance(self.coefficients, Coefficients) else (self.coefficients.choice,)
        return [looker.whole(t) for t in (*(self.rng or ()), *self.before.values(), *choice)]

    def nbytes(self) -> int:
        """Bytes kept beside the checksum: carry, generator record, buffers, outputs of chosen operators."""
        tensors = (t for t in (*(self.rng or ()), *self.before.values(), self.carry) if t is not None)
        return _selection.nbytes(self.outputs) + sum(t.numel() * t.element_size() for t in tensors)


def compare_outputs(record: StepRecord, aux: Any, step: int, audit: Audit, looker: Looker) -> None:
    """What block ``step`` returned beside its increment, against what it returned in the forward pass.

    Raises:
        NonDeterministicBlockError: other tensors than then, at once or when the audit reads them.
    """
    name = layer_name(step, audit.halves)
    layer = step // audit.halves
    now = [looker.whole(t) for t in tree_leaves(aux) if isinstance(t, Tensor)]
    if len(now) != len(record.aux):
        raise _arguments.changed_count(name, layer, len(record.aux), len(now))
    for i, (before, after) in enumerate(zip(record.aux, now)):
        if isinstance(after, Tensor):  # on a device: compared when the pass waits for it anyway
            audit.compare_later(step, -1 - i, before, after)
        elif before != after:
            raise _arguments.changed_aux(name, layer, i)


def refuse(
    record: StepRecord,
    block: Members,
    step: int,
    audit: Audit,
    differences: Sequence[Difference],
    count: int,
    found: dict,
) -> None:
    """Raise for the first saved tensor that differs, unless all that do are free to.

    Args:
        differences: of the saved tensors, in the order in which autograd saved them.
        count: how many it saved.
        found: saved tensor -> operator that reads it; an operator may be free to read other bits.
    """
    name = layer_name(step, audit.halves)
    layer = step // audit.halves
    free = {index for index, operator in found.items() if operator.free}
    real = [d for d in differences if d.kind == "signature" or d.index not in free]
    if audit.poisoned:  # the values are those of nothing; the work must still be the same
        real = [d for d in real if d.kind == "signature"]
    if real:
        audit.settle()  # where checksums are deferred, a state that differs is the earlier cause
        raise _arguments.differs(name, layer, real[0], len(real), found, block, record)
    if count != len(record.slots):
        raise _arguments.fewer(name, layer, len(record.slots), count)
