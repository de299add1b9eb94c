"""Outputs of chosen operators that are kept from the forward pass and handed out in the re-evaluation, instead of being computed twice.

The choice has the form of torch's selective checkpointing (``torch.utils.checkpoint.create_selective_checkpoint_contexts``). The dispatch
modes are ours, because a layer may be evaluated again more than once here (``retain_graph``, a node that asks twice).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import CheckpointPolicy, SelectiveCheckpointContext

from ..errors import ConfigError
from .replay import Generators, same_states

#: What ``scaled_dot_product_attention`` becomes, by device and backend; the math backend has no operator of its own.
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip

Policy = Callable[[OpOverload, Any, tuple, dict], bool]


def policy_of(save_ops: Any) -> Policy | None:
    """``save_ops`` as a function of (operator, its output, args, kwargs) that says whether the output is kept.

    Raises:
        ConfigError: neither None, "attention", a sequence of OpOverloads, nor a function.
    """
    if save_ops is None:
        return None
    if save_ops == "attention":
        return _among([getattr(torch.ops.aten, name).default for name in _ATTENTION if hasattr(torch.ops.aten, name)])
    if isinstance(save_ops, Sequence) and not isinstance(save_ops, str) and all(isinstance(op, OpOverload) for op in save_ops):
        return _among(save_ops)
    if callable(save_ops) and not isinstance(save_ops, OpOverloadPacket):
        return _by_function(save_ops)
    raise ConfigError(
        f"save_ops is {save_ops!r}, expected 'attention', a list of operators such as [torch.ops.aten.mm.default], or a policy function "
        "as for torch.utils.checkpoint.create_selective_checkpoint_contexts"
    )


def _among(ops: Sequence[OpOverload]) -> Policy:
    chosen = frozenset(ops)
    return lambda op, out, args, kwargs: op in chosen


def _by_function(function: Callable) -> Policy:
    shows_output = "op_output" in inspect.signature(SelectiveCheckpointContext).parameters

    def policy(op: OpOverload, out: Any, args: tuple, kwargs: dict) -> bool:
        context = SelectiveCheckpointContext(is_recompute=False, **({"op_output": out} if shows_output else {}))
        answer = function(context, op, *args, **kwargs)
        return answer if isinstance(answer, bool) else answer in (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)

    return policy


class Keep(TorchDispatchMode):
    """Within it the outputs that the policy chooses are kept, in ``kept``: by operator and the number of its call.

    A call that drew random numbers is not: computed again, it moves the generators on for what draws after it.
    """

    def __init__(self, policy: Policy, generators: Generators):
        super().__init__()
        self.policy, self.kept, self._generators = policy, {}, generators
        self._calls: Counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        before = self._generators.get() if torch.Tag.nondeterministic_seeded in func.tags else None
        out = func(*args, **kwargs)
        if self.policy(func, out, args, kwargs) and (before is None or same_states(before, self._generators.get())):
            self.kept[func, self._calls[func]] = [_alias(out), _versions(out)]
        self._calls[func] += 1
        return out


class Reuse(TorchDispatchMode):
    """Within it the calls that were kept return what was kept."""

    def __init__(self, kept: dict, name: str):
        super().__init__()
        self._kept, self._name = kept, name
        self._calls: Counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        call = func, self._calls[func]
        self._calls[func] += 1
        if call not in self._kept:
            return func(*args, **(kwargs or {}))
        out, versions = self._kept[call]
        if _versions(out) != versions:
            raise RuntimeError(f"{self._name} changed the output of {func} in place, but save_ops keeps it: use the out-of-place operation after it")
        return _alias(out)


def nbytes(kept: dict) -> int:
    """Bytes of all kept outputs."""
    return sum(t.numel() * t.element_size() for out, _ in kept.values() for t in tree_leaves(out) if isinstance(t, Tensor))


def _alias(out: Any) -> Any:
    # Fresh tensors without autograd data, as the operator itself would return; they share memory and version counter with what the block gets.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tree_map_only(Tensor, Tensor.detach, out)


def _versions(out: Any) -> list[int]:
    return [0 if t.is_inference() else t._version for t in tree_leaves(out) if isinstance(t, Tensor)]
