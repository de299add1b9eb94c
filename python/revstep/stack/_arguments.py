"""The arguments and results of a block that is evaluated twice, and the errors of a re-evaluation that was
not that of the forward pass.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map, tree_map_only

from ..errors import NonDeterministicBlockError, ReconstructionError, UnsupportedError
from ._members import Members
from ._saved import Difference, Look, Operator, address
from ._surroundings import ModuleRecord, replaced

# ------------------------------------------------------------------------------------------------------------
# What a block is given and what it returns. Arguments of a block that is evaluated twice: what can be read
# only once is refused, what can be emptied is copied for each evaluation.

_COPIED = (set, bytearray)
_CONTAINERS = (list, dict, set, bytearray, deque, defaultdict, OrderedDict)


def fresh(tree: Any) -> Any:
    """The same leaves in new containers, so that an evaluation that takes something out of one
    does not take it from the next.
    """
    if not _holds_containers(tree):
        return tree
    return tree_map(lambda leaf: leaf.copy() if isinstance(leaf, _COPIED) else leaf, tree)


def _holds_containers(tree: Any) -> bool:
    values = tree.values() if isinstance(tree, dict) else tree
    return any(isinstance(v, _CONTAINERS) or (isinstance(v, tuple) and _holds_containers(v)) for v in values)


def refuse_iterators(name: str, args: tuple, kwargs: dict) -> None:
    """An iterator is used up by the first evaluation of the first block.

    Raises:
        UnsupportedError: an argument, or something in one, is an iterator; it is named.
    """
    plain = (Tensor, bool, int, float, str, torch.Size)
    if all(v is None or isinstance(v, plain) for v in (*args, *kwargs.values())):
        return  # nearly always
    for path, leaf in tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, Iterator) and not isinstance(leaf, Tensor):
            where = f"argument {path[1].idx}" if path[0].idx == 0 else f"argument {path[1].key!r}"
            inside = keystr(path[2:])
            raise UnsupportedError(
                f"{where} of {name}{f' (at {inside})' if inside else ''} is a {type(leaf).__name__}, which "
                "can be read only once; a block is evaluated again in backward: pass a list or a tensor, and "
                "let each block take its own entry by its depth"
            )


class Detached:
    """Arguments of the blocks of one pass without their graphs. Layers that are given one tensor share one
    copy.
    """

    def __init__(self) -> None:
        # The tensor is held, so that its id stays its own.
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tree: Any) -> Any:
        if not tree:
            return type(tree)()  # not the caller's, who may fill it

        def detach(t: Tensor) -> Tensor:
            if id(t) not in self._copies:
                self._copies[id(t)] = t, t.detach().requires_grad_(t.requires_grad)
            return self._copies[id(t)][1]

        return fresh(tree_map_only(Tensor, detach, tree))

    def clear(self) -> None:
        self._copies.clear()


def increment(out: Any) -> tuple[Any, tuple]:
    """What a block returned: the increment, and the rest."""
    return (out[0], tuple(out[1:])) if isinstance(out, (tuple, list)) and out else (out, ())


# ------------------------------------------------------------------------------------------------------------
# The errors of a re-evaluation that was not that of the forward pass: which layer, which tensor, and what is
# likely to have happened.

_STRUCTURE = (
    "likely causes: control flow that depends on random numbers or hidden state, a forward hook that removed "
    "itself, a table that the block computed once and keeps with its graph (compute it before the stack and "
    "pass it as an argument), another kernel choice, a weight that parametrize.cached() shares between "
    "layers, save_ops with a policy that does not answer the same twice"
)
_VALUES = (
    "likely causes: random numbers from elsewhere than torch's generators, hidden state (a counter, a cache, "
    "an adapter or a flag switched between forward and backward), its weights or inputs changed between "
    "forward and backward, another kernel, or a kernel that is not deterministic "
    "(torch.use_deterministic_algorithms(True) names it). The rebuilt state need not show it: a gate that is "
    "zero hides it from the state, not from the gradient"
)


def out_of_memory(error: Exception) -> bool:
    """An error that says nothing about the block."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "out of memory" in text or "can't allocate memory" in text


def differs(
    name: str, layer: int, d: Difference, count: int, found: dict[int, Operator], block: Members, record: Any
) -> ReconstructionError:
    """For the first of ``count`` saved tensors that are not what they were."""
    operator = f", {found[d.index]}" if d.index in found else ""
    more = f" (the first of {count} that differ)" if count > 1 else ""
    what = f"saved tensor {d.index}{operator}{more}"
    if d.kind == "signature":
        expected = f"only {len(record.slots)} tensors" if d.before is None else _shown(d.before)
        saved = f"saved tensor {d.index} as {_shown(d.now)}{operator}"
        text = f"{name}, evaluated again, {saved}, the forward pass saved {expected}; {_STRUCTURE}"
        return NonDeterministicBlockError(text, layer)
    held = block.name_of(d.now.storage) or block.name_of(d.before.storage)
    if d.kind == "version":
        read = f"a tensor of shape {tuple(d.now.shape)} that the block reads"
        whose = f"{held} of the block" if held else read
        return ReconstructionError(
            f"{name}, evaluated again in backward: its weights or inputs changed between forward and "
            f"backward: {whose} was changed in place (version {d.now.version}, it was {d.before.version}; "
            f"{what}). Call backward before the optimiser's step, load_state_dict or any in-place operation "
            "on them", layer,
        )  # fmt: skip
    if held:
        return ReconstructionError(
            f"{name}, evaluated again in backward: its weights or inputs changed between forward and "
            f"backward: {held} has other values ({what}). Call backward before they are changed",
            layer,
        )  # fmt: skip
    written = filter(None, (block.name_of(address(block.buffers[i])) for i in record.buffers))
    own = "".join(f"it writes to its own {buffer} each time, and must not read that; " for buffer in written)
    text = f"{name}, evaluated again in backward, computed other values: {what}, {_shown(d.now)}; {own}"
    return NonDeterministicBlockError(text + _VALUES, layer)


def fewer(name: str, layer: int, expected: int, got: int) -> NonDeterministicBlockError:
    text = f"{name} saved {expected} tensors for backward in the forward pass and {got} when evaluated again"
    return NonDeterministicBlockError(f"{text}; {_STRUCTURE}", layer)


def changed_count(name: str, layer: int, expected: int, got: int) -> NonDeterministicBlockError:
    text = f"{name} returned {expected} tensors beside its increment, and {got} when evaluated again"
    return NonDeterministicBlockError(f"{text}; {_STRUCTURE}", layer)


def changed_aux(name: str, layer: int, index: int) -> NonDeterministicBlockError:
    what = f"returned other values beside its increment: auxiliary tensor {index}"
    return NonDeterministicBlockError(f"{name}, evaluated again in backward, {what}; {_VALUES}", layer)


def raised(
    name: str, layer: int, error: Exception, differences: Sequence[Difference]
) -> NonDeterministicBlockError:
    """For an exception that only the re-evaluation raised."""
    first = ""
    if differences:
        d = differences[0]
        was = "nothing" if d.before is None else _shown(d.before)
        first = f" Before that it saved tensor {d.index} as {_shown(d.now)}, the forward pass saved {was}."
    return _also(type(error))(
        f"{name}, evaluated again in backward, raised {type(error).__name__}: {error}; the forward pass did "
        f"not.{first} {_STRUCTURE}; or an argument that the first evaluation used up: pass a list or a "
        "tensor, and let each block take its own entry by its depth", layer,
    )  # fmt: skip


@functools.cache
def _also(kind: type[Exception]) -> type[NonDeterministicBlockError]:
    """The error of a block that raised ``kind``: it is one too, for callers who expect that."""
    members = {
        "__str__": lambda self: self.args[0],
        "__reduce__": lambda self: (NonDeterministicBlockError, (self.args[0], self.layer)),
    }
    try:
        made = type(NonDeterministicBlockError.__name__, (NonDeterministicBlockError, kind), members)
        made("", 0)
    except TypeError:  # a class that cannot be combined with others, or made from a message
        return NonDeterministicBlockError
    return made


def replaced_module(name: str, layer: int, block: Members, before: Sequence[ModuleRecord]) -> None:
    """Raises ReconstructionError where a submodule of the block is another one than in the forward pass."""
    found = replaced(block.members, before)
    if found is not None:
        which, was, now = found
        raise ReconstructionError(
            f"{name}: its submodule {which!r} was {was} in the forward pass and is {now} now (the block was "
            "changed between forward and backward: replaced, merged or quantised). Call backward first, then "
            "change the block", layer,
        )  # fmt: skip


def _shown(look: Look) -> str:
    return f"{tuple(look.shape)} {look.dtype} on {look.device}"
