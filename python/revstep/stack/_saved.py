"""What autograd saves inside a block, as the forward pass and as the re-evaluation see it: looks at the saved
tensors, their differences, and the operators that saved them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from ..ops import few, fingerprint, sparse

# ------------------------------------------------------------------------------------------------------------
# What a tensor consists of: the strided tensors with memory of their own behind it.

wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def components(t: Tensor) -> Iterator[Tensor]:
    """``t`` itself where it is an ordinary tensor; what it wraps (a DTensor, a quantised weight, a tensor of
    a transform); indices and values.
    """
    if wrapped(t):
        yield from components(torch._C._functorch.get_unwrapped(t))
    elif hasattr(t, "__tensor_flatten__"):
        for name in t.__tensor_flatten__()[0]:
            # beside tensors some name the mesh of devices they lie on
            if isinstance(inner := getattr(t, name), Tensor):
                yield from components(inner)
    elif t.layout == torch.strided:
        yield t
    elif t.layout == torch.sparse_coo:
        yield from (t._indices(), t._values())
    elif t.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (t.crow_indices(), t.col_indices(), t.values())
    elif t.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (t.ccol_indices(), t.row_indices(), t.values())


# ------------------------------------------------------------------------------------------------------------
# What autograd saved inside a block, as the forward pass saw it and as the re-evaluation sees it.
#
# A gradient is made of the saved tensors. A checksum of the state does not see those that stand behind a zero
# (the A of a fresh LoRA pair, whose B is 0) or beside the state (auxiliary outputs), so each of them is
# compared by itself: its signature; its version, where it is the same memory both times (as torch does for
# what it saved); and a fingerprint of its bits. Which tensors are the caller's (parameters, buffers,
# arguments) is told by their storage. A storage that is gone gives its address to the next one, so a weak
# reference keeps the address, not the memory, of each until the layer has been compared.

_SEEDS = 2**32 - 1
#: Types of tensors that are nothing but their memory, unless a transform has wrapped them.
_ORDINARY = frozenset({Tensor, torch.nn.Parameter})
_DIMS = 15  # of the kernels, less one for the halves of a complex number


class Look(NamedTuple):
    """One saved tensor.

    Attributes:
        storage: address of its storage object, 0 where it has none; version: how often that was written to.
        bits: its fingerprint, None where none was taken.
        leaf: it is a parameter or a buffer of the block, of which the fingerprint takes
            little: its version watches it too.
        reserved: a weak reference to the storage: while it is held, no other storage has that address.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    storage: int = 0
    version: int = 0
    bits: Any = None
    leaf: bool = False
    reserved: StorageWeakRef | None = None

    @property
    def signature(self) -> tuple:
        return self[:3]


class Looker:
    """How closely saved tensors are looked at, the same in both evaluations of a pass.

    Args:
        checks: False: signatures alone; True: fingerprints of some of a tensor's
            memory; ``"all"``: of all of it.
        bits: whether bits must agree at all (not in float states, whose rebuilt values drift).
        seed: which part of the memory.
    """

    __slots__ = ("_every", "bits", "checks", "seed")

    def __init__(self, checks: bool | str, bits: bool, seed: int):
        self.checks = checks
        self.bits = bits
        self.seed = seed
        self._every = _all if checks == "all" else None

    def look(self, t: Tensor, index: int, leaves: set[int]) -> Look:
        """In the forward pass, at saved tensor ``index``. ``leaves``: addresses of the
        storages of parameters and buffers.
        """
        if not self.checks:
            return Look(t.shape, t.dtype, t.device)
        if type(t) in _ORDINARY and t.layout is torch.strided and not wrapped(t):  # address(), in fewer calls
            behind = t.untyped_storage()
            storage = behind._cdata
        else:
            storage = address(t)
            behind = t.untyped_storage() if storage else None
        leaf = storage in leaves
        reserved = None if leaf or not storage else StorageWeakRef(behind)
        return self._look(t, index, storage, leaf, reserved)

    def look_again(self, t: Tensor, index: int, before: Look | None) -> Look:
        """In the re-evaluation, in the same way as ``before``."""
        if not self.checks:
            return Look(t.shape, t.dtype, t.device)
        return self._look(t, index, address(t), before is not None and before.leaf)

    def _look(
        self, t: Tensor, index: int, storage: int, leaf: bool, reserved: StorageWeakRef | None = None
    ) -> Look:
        bits, version = None, 0 if t.is_inference() else t._version
        if self.bits:  # other lines of each tensor, so that several that hold one change do not all miss it
            every = self._every or (few if leaf else sparse)
            seed = (self.seed + index) & _SEEDS
            ordinary = storage and type(t) in _ORDINARY and t.ndim <= _DIMS
            bits = fingerprint(t, every(t.nbytes), seed) if ordinary else self._parts(t, every, seed)
        return Look(t.shape, t.dtype, t.device, storage, version, bits, leaf, reserved)

    def whole(self, t: Tensor) -> Any:
        """Fingerprint of all of a tensor: of what is small, or is nobody else's to
        watch. None where none is taken.
        """
        return self._parts(t, _all, 0) if self.checks and self.bits else None

    def _parts(self, t: Tensor, every: Callable[[int], int], seed: int) -> Any:
        parts = [fingerprint(p, every(p.nbytes), seed) for p in plain(t)]
        return parts[0] if len(parts) == 1 else tuple(parts) or None


def _all(nbytes: int) -> int:
    return 1


def address(t: Tensor) -> int:
    """Of the storage object behind ``t``; 0 for a tensor that has none of its own (sparse, a wrapper)."""
    if wrapped(t) or (type(t) is not Tensor and hasattr(t, "__tensor_flatten__")):
        return 0
    return t.untyped_storage()._cdata if t.layout == torch.strided else 0


def plain(t: Tensor) -> Iterator[Tensor]:
    """What ``t`` consists of, as far as a fingerprint can be taken of it."""
    return (part for part in components(t) if part.device.type != "meta" and part.ndim <= _DIMS)


def addresses(tensors: Iterable[Tensor]) -> set[int]:
    """The storages behind these tensors."""
    return {address(t) for t in tensors} - {0}


class Difference(NamedTuple):
    """Saved tensor ``index`` is not what it was. ``kind``: "signature", "version" or "bits"."""

    index: int
    kind: str
    before: Look | None
    now: Look


def compare(
    index: int, before: Look | None, now: Look, moved: set[int], unread: set[int]
) -> Difference | None:
    """What differs; bits that a device still computes are left to the end of the pass.

    Args:
        before: None: the forward pass saved fewer tensors.
        moved: storages of buffers that the evaluation itself writes to: their
            version is another one by right.
        unread: those among them whose value does not enter the gradient (batch norm's running statistics).
    """
    if before is None or before.signature != now.signature:
        return Difference(index, "signature", before, now)
    if before.storage and before.storage == now.storage:
        if now.storage in unread:
            return None
        if before.version != now.version and now.storage not in moved:
            return Difference(index, "version", before, now)
    numbers = before.bits if isinstance(before.bits, tuple) else (before.bits,)
    if any(isinstance(b, Tensor) for b in numbers):
        return None
    return Difference(index, "bits", before, now) if before.bits != now.bits else None


# ---- names ----

#: Saved tensors whose content is unspecified or does not enter the gradient: part of the node's name (after a
#: space: how it begins), beginning of the attribute.
UNSPECIFIED = (
    ("BatchNorm", "reserve"), ("BatchNorm", "result3"), ("Mkldnn", "workspace"), ("MkldnnRnn", "result3"),
    ("CudnnRnn", "reserve"), ("CudnnRnn", "result3"), ("CudnnRnn", "result4"), ("DotProduct", "philox"),
    ("DotProduct", "rng_state"), ("DotProduct", "unused"),
    ("RreluWithNoise", "noise"),  # saved before the operator has filled it
    (" CtcLoss", "result1"),  # not all of it is written; cuDNN's saves a gradient under that name
)  # fmt: skip


class Token:
    """What stands for a saved tensor in the graph of a re-evaluation, which is dropped at once:
    its place among the saved ones.

    ``asked``: one list for all of them, in which those are noted that the graph asks for.
    """

    __slots__ = ("asked", "held", "index")

    def __init__(self, index: int, held: Tensor, asked: list[int]):
        self.index = index
        self.held = held
        self.asked = asked


class Operator(NamedTuple):
    """Which node saved a tensor, under which name. ``free``: its content may differ,
    see :data:`UNSPECIFIED`.
    """

    node: str
    attribute: str
    free: bool

    def __str__(self) -> str:
        return f"{self.attribute} of {self.node}"


class _Naming(threading.local):
    """``active``: this thread asks a graph for names, and no placeholder may be rebuilt for it."""

    active = False


naming = _Naming()


def operators(outputs: Any, asked: list[int]) -> dict[int, Operator]:
    """``index -> operator`` of the saved tensors in the graph behind ``outputs``. For
    messages: walks the whole graph.
    """
    naming.active = True
    try:
        return _walk(outputs, asked)
    finally:
        naming.active = False


def _walk(outputs: Any, asked: list[int]) -> dict[int, Operator]:
    found: dict[int, Operator] = {}
    tensors = (t for t in tree_leaves(outputs) if isinstance(t, Tensor))
    nodes = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set()
    while nodes and len(seen) < 100_000:  # a block that keeps a graph leads to others
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        nodes += [n for n, _ in node.next_functions if n is not None]
        for name in dir(node):
            if not (name.startswith("_saved_") or name == "saved_tensors"):
                continue
            asked.clear()
            try:
                getattr(node, name)
            except RuntimeError:  # let go already, written to since, or a placeholder of another graph
                continue
            for index in asked:
                found.setdefault(index, _operator(node, name.removeprefix("_saved_")))
    return found


def _operator(node: Any, attribute: str) -> Operator:
    kind = node.name()
    statistics = "BatchNorm" in kind and attribute.startswith("running_")
    statistics = statistics and bool(getattr(node, "_saved_training", True))
    free = any(part in f" {kind}" and attribute.startswith(name) for part, name in UNSPECIFIED)
    return Operator(kind, attribute, statistics or free)
