"""The rules one block must keep, looked at on the block alone: it is a function of its input, its weights and
torch's random numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...stack._arguments import increment
from . import _depth
from ._load import Finding, caught, finding

Maker = Callable[[], nn.Module]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: A block whose output contains its input this nearly once (small and large inputs alike) is taken to be x +
#: f(x).
SKIP, SKIPS = 0.1, "skip connection"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN counts as equal to the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(t.detach().contiguous().view(_BITS[t.element_size()]) for t in (a, b)))


def evaluate(block: nn.Module, x: Tensor, seed: int = 0, grad: bool = True) -> tuple[Any, Tensor]:
    """The block's increment as a stack would get it, and the input tensor it was given."""
    with torch.random.fork_rng(), torch.set_grad_enabled(grad):
        torch.manual_seed(seed)
        # No leaf: a write to it is then the block's business, not an error of torch.
        given = x.detach().clone().requires_grad_(grad).clone()
        return increment(block(given))[0], given


def behaviour(make: Maker, x: Tensor, part: str = "") -> list[Finding]:
    """All rules of one module; ends after the first ones that make the others meaningless."""
    found: list[Finding] = []
    for rules in _RULES:
        for check, rule in rules.items():
            said: list[str] = []
            with caught(said.append):
                result = rule(make, x)
                found += result if isinstance(result, list) else [result]
            found += [_raised(check, words) for words in said]
        if not all(f.ok for f in found):
            break
    return [Finding(f"{part}: {f.check}" if part else f.check, f.result, f.advice) for f in found]


def _runs(make: Maker, x: Tensor) -> Finding:
    check, claim = "shape", "returns a tensor of the input's shape, alone or at the head of a tuple"
    said: list[str] = []
    with caught(said.append):
        y, _ = evaluate(make(), x)
    if said:
        accept = f"the block must accept {tuple(x.shape)} {x.dtype} as its only argument"
        advice = f"{accept}, or give another input with --shape or example_input()"
        return finding(check, claim, False, f"raised {said[0]}", advice)
    if not isinstance(y, Tensor):
        advice = "return the increment f(x), or a tuple of it and then auxiliary tensors"
        got = "an empty list or tuple" if isinstance(y, (tuple, list)) and not y else type(y).__name__
        return finding(check, claim, False, f"returned {got}", advice)
    if y.shape != x.shape or not y.is_floating_point():
        return finding(
            check,
            claim,
            False,
            f"returned {tuple(y.shape)} {y.dtype} for {tuple(x.shape)}",
            "the increment is added to the state: return the input's shape",
        )
    if not bool(torch.isfinite(y).all()):
        return finding(
            check,
            claim,
            False,
            f"{int((~torch.isfinite(y)).sum())} of {y.numel()} values are NaN or infinite",
            "look at the block's weights and its input",
        )
    return finding(check, claim, True, f"{tuple(y.shape)} {y.dtype}")


def _input_untouched(make: Maker, x: Tensor) -> Finding:
    check, claim = "in-place write", "leaves its input as it was"
    for grad in (True, False):
        _, given = evaluate(make(), x, grad=grad)
        changed = int((given.detach() != x).sum())
        if given._version or changed:
            why = f"wrote to its input ({changed} of {x.numel()} values differ afterwards)"
            return finding(
                check,
                claim,
                False,
                why,
                "backward rebuilds states from the one you write to: use x = x + ... instead of x += ...,"
                " x.add_, or inplace=True layers on x",
            )
    return finding(check, claim, True)


def _differentiable(make: Maker, x: Tensor) -> Finding:
    check, claim = "gradient", "its output depends differentiably on its input"
    y, given = evaluate(make(), x)
    if not y.requires_grad:
        advice = (
            "something cuts the graph (detach(), numpy, no_grad, inference_mode): keep to torch operations on"
            " the input"
        )
        return finding(check, claim, False, "the output has no graph", advice)
    (g,) = torch.autograd.grad(y.sum(), given, allow_unused=True)
    if g is None:
        return finding(
            check,
            claim,
            False,
            "no gradient reaches the input",
            "the block ignores its input or cuts the graph (detach(), numpy, no_grad)",
        )
    return finding(check, claim, True)


# ---- the same input again ----


def _seeded(block: nn.Module, x: Tensor) -> Tensor:
    """With Python's and NumPy's global generators at a fixed place too."""
    python = random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002 - the global one is what a block would use
    try:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return evaluate(block, x)[0]
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _determinism(make: Maker, x: Tensor) -> list[Finding]:
    block = make()
    before = _memory(block)
    first, again = evaluate(block, x)[0], evaluate(block, x)[0]
    others = [evaluate(make(), x)[0] for _ in range(3)]
    fresh_agree = all(same_bits(first, other) for other in others)
    same = same_bits(first, again)
    hidden = fresh_agree and not same
    foreign = not same and not hidden and same_bits(_seeded(make(), x), _seeded(make(), x))
    differ = max(int((first != t).sum()) for t in (again, *others))
    changed = _changed(before, _memory(block)) if hidden else ""
    out = [
        finding(
            "hidden state",
            "gives the same bits when evaluated a second time",
            not hidden,
            f"the second evaluation differs in {differ} of {x.numel()} values{changed}" if hidden else "",
            (
                "the output may depend only on the input, arguments, parameters and torch's global"
                " generators: take counters, caches, running statistics and private generators out of the"
                " block, or pass them as arguments"
                if hidden
                else ""
            ),
        ),
        finding(
            "foreign random numbers",
            "draws random numbers from torch's generators only",
            not foreign,
            "outputs differ unless Python's random and NumPy's generators are put back" if foreign else "",
            (
                "a stack replays torch's generators and no others: draw with torch.rand, torch.randint or"
                " nn.Dropout"
                if foreign
                else ""
            ),
        ),
        finding(
            "determinism",
            "gives the same bits for the same input and generator state",
            hidden or foreign or (same and fresh_agree),
            (
                ""
                if hidden or foreign or (same and fresh_agree)
                else (
                    f"outputs differ in {differ} of {x.numel()} values though torch's generators were put"
                    " back"
                )
            ),
            (
                ""
                if hidden or foreign or (same and fresh_agree)
                else (
                    "a kernel is not deterministic (torch.use_deterministic_algorithms(True) names it), or"
                    " the block reads state outside itself: a clock, a global variable, a generator of its"
                    " own without a seed"
                )
            ),
        ),
    ]
    if all(f.ok for f in out):
        out.append(_replay(make, x))
    return out


def _replay(make: Maker, x: Tensor) -> Finding:
    """Dropout and its like: other numbers from another generator state, the same from the same (measured
    above).
    """
    draws = not same_bits(evaluate(make(), x, seed=0)[0], evaluate(make(), x, seed=1)[0])
    return finding(
        "random numbers",
        "random numbers are replayed",
        True,
        "draws some (dropout, say): replayed bit for bit from torch's generators" if draws else "draws none",
    )


def _memory(block: nn.Module) -> dict[str, Any]:
    """What a module could remember: buffers, parameters, plain attributes, generators; as values that can be
    compared.
    """
    out: dict[str, Any] = {}
    for prefix, module in block.named_modules():
        for name, value in {**vars(module), **module._buffers, **module._parameters}.items():
            where = f"{prefix}.{name}" if prefix else name
            if isinstance(value, torch.Generator):
                out[where] = value.get_state().clone()
            elif isinstance(value, Tensor):
                out[where] = value.detach().clone()
            elif isinstance(value, (int, float, str, bool, type(None))) and name != "training":
                out[where] = value
            elif isinstance(value, (list, dict, set)) and not name.startswith("_"):
                out[where] = len(value)
    return out


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    def same(a: Any, b: Any) -> bool:
        return (
            same_bits(a, b)
            if isinstance(a, Tensor) and isinstance(b, Tensor)
            else type(a) is type(b) and a == b
        )

    names = [n for n in after if n not in before or not same(before[n], after[n])]
    return (
        f"; it changed its own {', '.join(names)}"
        if names
        else "; what it remembers lies outside its attributes"
    )


def _grad_mode(make: Maker, x: Tensor) -> Finding:
    with_grad, without = evaluate(make(), x)[0], evaluate(make(), x, grad=False)[0]
    ok = same_bits(with_grad, without)
    differ = int((with_grad != without).sum())
    return finding(
        "grad mode",
        "gives the same bits with and without gradients",
        ok,
        "" if ok else f"{differ} of {x.numel()} values differ under no_grad",
        (
            ""
            if ok
            else (
                "training and inference would be different networks (a stack re-evaluates in the mode it"
                " trained in, so its gradients stay right): do not branch on torch.is_grad_enabled() or"
                " x.requires_grad, and pin the kernel, for example with torch.nn.attention.sdpa_kernel"
            )
        ),
    )


def _skip(make: Maker, x: Tensor) -> Finding:
    """Does the output contain the input once? ``<f(x), x> / <x, x>`` is 1 plus noise for x + f(x), at the
    input's size and at 64 times it.
    """
    shares = []
    for factor in (1.0, 64.0):
        given = x * factor
        y = evaluate(make(), given)[0].detach().double()
        shares.append(float((y * given.double()).sum() / given.double().square().sum().clamp_min(1e-300)))
    suspect = all(abs(s - 1.0) < SKIP for s in shares)
    why = f"the input's share in the output is {shares[0]:.2f}, and {shares[1]:.2f} at 64 times its size"
    advice = (
        "the output looks like x + f(x): a reversible scheme adds the state itself, so return f(x) "
        "without the outer skip connection; or take such blocks as they are with ReversibleStack(..., "
        "residual=True) or revstep.from_residual(block), and check them with --residual"
    )
    return finding(SKIPS, "returns the increment f(x)", not suspect, why, advice if suspect else "")


_RULES: tuple[dict[str, Callable[[Maker, Tensor], Finding | list[Finding]]], ...] = (
    {"shape": _runs},
    {"in-place write": _input_untouched},
    {"gradient": _differentiable, "determinism": _determinism},
    {"grad mode": _grad_mode, SKIPS: _skip, _depth.CHECK: _depth.outside},
)


def _raised(check: str, words: str) -> Finding:
    """A rule that could not be looked at, because the block raised on the way."""
    claims = {"gradient": "can be differentiated", _depth.CHECK: _depth.CLAIM}
    claim = claims.get(check, "can be evaluated again and again, with and without gradients")
    advice = (
        "the block runs once and not again: it must allow being evaluated a second time and "
        "differentiated; a block that differentiates inside its own forward pass needs keep= in a stack"
    )
    return finding(check, claim, False, f"raised {words}", advice)
