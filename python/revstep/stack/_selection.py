"""What a stack keeps so that it need not be computed twice: as many layers' graphs as a memory budget holds,
and the outputs of chosen operators.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext

from .._recurrence.ambient import Generators, same_states
from ..errors import ConfigError, ReconstructionError, UnsupportedError
from ._modes import ThreadedMode
from ._saved import Looker, address, components

# ------------------------------------------------------------------------------------------------------------
# How many layers' graphs a memory budget holds.


def budget_bytes(budget: int | float, device: torch.device) -> int:
    """The budget in bytes, now: a fraction is of what is free on ``device``.

    Raises:
        ConfigError: a fraction on a device that does not say what is free.
    """
    return budget if isinstance(budget, int) else int(budget * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: for an accelerator with what torch's allocator holds unused; for the
    CPU within the cgroup's limit.
    """
    if device.type == "cpu":
        found = [n for n in (_available(), _below_cgroup_limit()) if n is not None]
        if found:
            return min(found)
    elif hasattr(module := getattr(torch, device.type, None), "mem_get_info"):
        return (
            module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)
        )
    raise ConfigError(
        f"memory_budget is a fraction, but this system does not say how much memory is free on {device}: give"
        " it in bytes"
    )


def _available(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        return next(
            int(line.split()[1]) * 1024
            for line in path.read_text().splitlines()
            if line.startswith("MemAvailable:")
        )
    except (OSError, StopIteration):
        return None


def _below_cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
    return None


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address and bytes of every storage behind these tensors, which are alive."""
    behind = [part.untyped_storage() for t in tensors for part in components(t)]
    return {storage.data_ptr(): storage.nbytes() for storage in behind}


# ------------------------------------------------------------------------------------------------------------
# Outputs of chosen operators that are kept from the forward pass and handed out in the re-evaluation, instead
# of being computed twice.
#
# The choice has the form of torch's selective checkpointing
# (``torch.utils.checkpoint.create_selective_checkpoint_contexts``). The dispatch modes are ours, because a
# layer may be evaluated again more than once here (``retain_graph``, a node that asks twice).

#: What ``scaled_dot_product_attention`` becomes, by device and backend; the math backend has no operator of
#: its own.
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


class Policy:
    """Which operators' outputs are kept: ``may(op)`` says whether any of an operator's may be, the
    call itself whether this one is.
    """

    def __init__(
        self,
        choose: Callable[[OpOverload, Any, tuple, dict], bool],
        among: frozenset[OpOverload] | None = None,
    ):
        self._choose = choose
        self._among = among

    def may(self, op: OpOverload) -> bool:
        return self._among is None or op in self._among

    def __call__(self, op: OpOverload, out: Any, args: tuple, kwargs: dict) -> bool:
        return self._choose(op, out, args, kwargs)


def policy_of(save_ops: Any) -> Policy | None:
    """``save_ops`` as a function of (operator, its output, args, kwargs) that says whether the output is
    kept.

    Raises:
        ConfigError: neither None, "attention", a sequence of OpOverloads, nor a function.
    """
    if save_ops is None:
        return None
    if save_ops == "attention":
        return _among(
            [getattr(torch.ops.aten, name).default for name in _ATTENTION if hasattr(torch.ops.aten, name)]
        )
    if (
        isinstance(save_ops, Sequence)
        and not isinstance(save_ops, str)
        and all(isinstance(op, OpOverload) for op in save_ops)
    ):
        return _among(save_ops)
    if callable(save_ops) and not isinstance(save_ops, OpOverloadPacket):
        return _by_function(save_ops)
    raise ConfigError(
        f"save_ops is {save_ops!r}, expected 'attention', a list of operators such as"
        " [torch.ops.aten.mm.default], or a policy function as for"
        " torch.utils.checkpoint.create_selective_checkpoint_contexts"
    )


def _among(ops: Sequence[OpOverload]) -> Policy:
    chosen = frozenset(ops)
    return Policy(lambda op, out, args, kwargs: op in chosen, chosen)


def _by_function(function: Callable) -> Policy:
    shows_output = "op_output" in inspect.signature(SelectiveCheckpointContext).parameters

    def policy(op: OpOverload, out: Any, args: tuple, kwargs: dict) -> bool:
        context = SelectiveCheckpointContext(
            is_recompute=False, **({"op_output": out} if shows_output else {})
        )
        answer = function(context, op, *args, **kwargs)
        return (
            answer
            if isinstance(answer, bool)
            else answer in (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)
        )

    return Policy(policy)


class SavedOutput(NamedTuple):
    """One output: as the operator returned it, its tensors' versions, and their fingerprints."""

    out: Any
    versions: list[int]
    bits: list


class _Calls(ThreadedMode):
    """Tells calls apart by operator and by what goes in: signature and fingerprint of each tensor, and
    which of the block's weights it is.

    Never by their number alone: autocast's cache leaves out casts in one evaluation that it makes in the
    other. Calls that are the same in all of this are counted, in their order.
    """

    def __init__(self, looker: Looker, leaves: set[int]):
        super().__init__()
        self._looker = looker
        self._leaves = leaves
        self._calls: Counter = Counter()

    def _key(self, func: Any, args: tuple, kwargs: dict) -> tuple:
        flat, spec = tree_flatten((args, kwargs))
        key = func, spec, tuple(map(self._of, flat))
        self._calls[key] += 1
        return (*key, self._calls[key])

    def _of(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return type(leaf), leaf if leaf.__hash__ is not None else repr(leaf)
        at = address(leaf)
        bits = self._looker.whole(leaf)
        own = (at, leaf.storage_offset()) if at in self._leaves else None
        strides = leaf.stride() if at else None
        return leaf.shape, leaf.dtype, leaf.device, strides, own, None if holds_tensors(bits) else bits


class KeepOutputs(_Calls):
    """Within it the outputs that the policy chooses are kept, in ``outputs``.

    A call that drew random numbers is not: computed again, it moves the generators on for what
    draws after it. Nor is one that wrote to what it was given, for that is to be written again;
    nor memory nobody has written to.
    """

    def __init__(self, policy: Policy, generators: Generators, looker: Looker, leaves: set[int]):
        super().__init__(looker, leaves)
        self.policy = policy
        self.outputs: dict = {}
        self._generators = generators

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        before = self._generators.get() if torch.Tag.nondeterministic_seeded in func.tags else None
        # before the call: an operator may write to what it is given
        key = self._key(func, args, kwargs) if self.policy.may(func) and _worth_keeping(func) else None
        out = func(*args, **kwargs)
        if key is None or not self.policy(func, out, args, kwargs):
            return out
        if before is None or same_states(before, self._generators.get()):
            bits = [self._looker.whole(t) for t in _tensors(out)]
            self.outputs[key] = SavedOutput(_alias(out), _versions(out), bits)
        return out


class ReuseOutputs(_Calls):
    """Within it the calls that were kept return what was kept."""

    def __init__(self, outputs: dict, name: str, looker: Looker, leaves: set[int], layer: int = -1):
        super().__init__(looker, leaves)
        self._outputs = outputs
        self._name = name
        self._layer = layer
        self._functions = {key[0] for key in outputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        saved = self._outputs.get(self._key(func, args, kwargs or {})) if func in self._functions else None
        if saved is None:
            return func(*args, **(kwargs or {}))
        if _versions(saved.out) != saved.versions:
            raise UnsupportedError(
                f"{self._name} changed the output of {func} in place, but save_ops keeps it: use the "
                "out-of-place operation after it"
            )  # fmt: skip
        pairs = zip(saved.bits, _tensors(saved.out))
        if any(not holds_tensors(a) and a != self._looker.whole(t) for a, t in pairs):
            raise ReconstructionError(
                f"{self._name}: the output of {func} that save_ops keeps was changed since the forward pass: "
                "by an operation in place on it or a view of it (use the out-of-place one after it), or "
                "memory was written to", self._layer,
            )  # fmt: skip
        return _alias(saved.out)


def fingerprints(outputs: dict, looker: Looker) -> tuple[list, list]:
    """Of all kept outputs: as they were when they were kept, and now."""
    before = [bits for one in outputs.values() for bits in one.bits]
    return before, [looker.whole(t) for one in outputs.values() for t in _tensors(one.out)]


@functools.cache
def _worth_keeping(op: OpOverload) -> bool:
    return not op._schema.is_mutable and not op._schema.name.startswith(("aten::empty", "aten::new_empty"))


def nbytes(outputs: dict) -> int:
    """Bytes of all kept outputs."""
    return sum(t.numel() * t.element_size() for one in outputs.values() for t in _tensors(one.out))


def _tensors(out: Any) -> list[Tensor]:
    return [t for t in tree_leaves(out) if isinstance(t, Tensor)]


def holds_tensors(bits: Any) -> bool:
    """Whether a fingerprint is one that a device still computes."""
    return isinstance(bits, Tensor) or (isinstance(bits, tuple) and any(isinstance(b, Tensor) for b in bits))


def _alias(out: Any) -> Any:
    # Fresh tensors without autograd data, as the operator itself would return; they share memory and version
    # counter with what the block gets.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tree_map_only(Tensor, Tensor.detach, out)


def _versions(out: Any) -> list[int]:
    return [0 if t.is_inference() else t._version for t in _tensors(out)]
