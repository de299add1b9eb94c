"""A micro-step's Phi and its gradient as lists of torch's operators, captured once and replayed without the
Python of the field and without autograd.

The operators are those that the field and autograd call, in their order: a replay has the bits of an
evaluation, and who replays compares the two before it relies on that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import RevstepError
from ._starts import same_bits

#: Phi(times, x, args) -> value; ``times`` are those of the stages of a Runge-Kutta increment, or one.
Phi = Callable[[Sequence[Tensor], Tensor, Sequence[Tensor]], Tensor]

_aten = torch.ops.aten
#: Operators that return what they are given, where nobody records a graph and nobody writes in place.
_SAME = (_aten.detach.default, _aten.alias.default)
#: Python functions of torch that call an operator with fewer detours than the operator's own object does.
_SHORTER: dict[Any, Callable] = {
    getattr(getattr(_aten, name), overload): getattr(torch, name)
    for name, overload in (
        ("addmm", "default"), ("mm", "default"), ("bmm", "default"), ("t", "default"), ("tanh", "default"),
        ("sin", "default"), ("cos", "default"), ("exp", "default"), ("neg", "default"),
        ("sigmoid", "default"), ("relu", "default"), ("mul", "Tensor"), ("add", "Tensor"),
        ("sub", "Tensor"), ("div", "Tensor"), ("sum", "dim_IntList"), ("transpose", "int"),
    )
}  # fmt: skip


class NotCapturedError(RevstepError):
    """A field that cannot be replayed; the message says why, as a clause."""


@dataclass(frozen=True)
class Captured:
    """The operators of one Phi, in four parts, each a function of tensors.

    Attributes:
        constants: tensors that the field reached by itself (weights, buffers), in the order in which
            ``prepare`` takes them, before the arguments.
        prepare: ``(*constants, *arguments) -> kept``: what depends on nothing else, once a walk.
        clocks: for each time ``(*kept, t) -> told``: what depends on nothing but that time beside. Times of
            which the field makes the same share one function.
        value: ``(*kept, *told of each time, x) -> value``.
        joint: ``(*kept, *told of each time, x, cotangent) -> (value, g_x, *g_tensors)``, None where nothing
            arrives; itself None where no gradient was captured.
    """

    constants: tuple[Tensor, ...]
    prepare: Callable[..., tuple[Tensor, ...]]
    clocks: tuple[Callable[..., tuple[Tensor, ...]], ...]
    value: Callable[..., Tensor]
    joint: Callable[..., tuple[Tensor | None, ...]] | None

    def keep(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What ``prepare`` makes of the constants as they are now, and of these arguments."""
        return self.prepare(*(c.detach() for c in self.constants), *(a.detach() for a in arguments))

    def run(
        self, function: Callable, arguments: Sequence[Tensor], times: Sequence[Tensor], *rest: Tensor
    ) -> Any:
        """``value`` or ``joint`` with nothing computed before."""
        kept = self.keep(arguments)
        told = [x for clock, t in zip(self.clocks, times) for x in clock(*kept, t)]
        return function(*kept, *told, *rest)


def capture(
    phi: Phi, times: Sequence[Tensor], x: Tensor, arguments: Sequence[Tensor], leaves: Sequence[Tensor] | None
) -> Captured:
    """Trace Phi, and its vector-Jacobian product where there are ``leaves``.

    Args:
        phi: what is traced; it is called once, with tensors that have no values.
        times, x: what it is called with, 0-d float64 and the state's view.
        arguments: tensors among the field's further arguments. Those that require a gradient are
            differentiated.
        leaves: of the run's graph, differentiated after the arguments; None: values alone.

    Raises:
        NotCapturedError: it asks for a value on the way (a branch, ``float(t)``, NumPy), writes in place,
            draws random numbers, or does what torch's tracer cannot follow.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a second, and loads torch._dynamo

    function = _plain(phi) if leaves is None else _joint(phi, [a.requires_grad for a in arguments], leaves)
    given = [[t.detach() for t in times], x.detach(), [a.detach() for a in arguments]]
    if leaves is not None:
        given.append(torch.zeros_like(x))
    try:
        traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    except NotCapturedError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise NotCapturedError(f"torch cannot trace it ({type(error).__name__}: {text[:160]})") from error
    found = _built(traced, len(times), len(arguments), leaves is not None)
    if leaves is not None:
        _compare_gradients(found, function, times, x, arguments)
    return found


def _compare_gradients(
    found: Captured, function: Callable, times: Sequence[Tensor], x: Tensor, arguments: Sequence[Tensor]
) -> None:
    """Raises NotCapturedError unless the replay gives the bits of autograd, on numbers that differ."""
    cotangent = ((torch.arange(x.numel(), device=x.device) % 13 - 6) / 8).to(x.dtype).reshape(x.shape)
    expected = function([t.clone() for t in times], x.detach(), list(arguments), cotangent)
    got = found.run(found.joint, arguments, times, x, cotangent)
    for a, b in zip(expected, got):
        if (a is None) != (b is None) or (a is not None and not same_bits(a, b)):
            raise NotCapturedError("its operators, replayed, give other gradients than autograd")


def _plain(phi: Phi) -> Callable:
    def run(times: list, x: Tensor, arguments: list) -> tuple[Tensor, ...]:
        return (phi(times, x, arguments).detach(),)

    return run


def _joint(phi: Phi, wanted: Sequence[bool], leaves: Sequence[Tensor]) -> Callable:
    """As backward evaluates and differentiates: see :mod:`._gradient`."""

    def run(times: list, x: Tensor, arguments: list, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            own = [a.detach().requires_grad_() if w else a for a, w in zip(arguments, wanted)]
            value = phi(times, x, own)
            if not value.requires_grad:
                raise NotCapturedError("nothing that requires a gradient acts on its value")
            inputs = [x, *(a for a, w in zip(own, wanted) if w), *leaves]
            found = torch.autograd.grad(value, inputs, cotangent.to(value.dtype), allow_unused=True)
        return value.detach(), *found

    return run


# ---- From the trace to functions: what depends on weights alone apart, detours out ----


def _built(traced: fx.GraphModule, times: int, arguments: int, joint: bool) -> Captured:
    graph = traced.graph
    _check(graph)
    _shorten(graph)
    places = [n for n in graph.nodes if n.op == "placeholder"]
    clock_nodes, x_node = places[:times], places[times]
    argument_nodes, rest = places[times + 1 : times + 1 + arguments], places[times + 1 + arguments :]
    constants = [n for n in graph.nodes if n.op == "get_attr"]
    output = next(n for n in graph.nodes if n.op == "output").args[0]
    results = list(output) if isinstance(output, (tuple, list)) else [output]
    moving = [*clock_nodes, x_node, *rest]
    still = set(graph.nodes) - _depend_on(graph, moving)
    kept = _handed_on(graph, still, results)
    prepare = _function(graph, [*constants, *argument_nodes], kept)
    clocks: dict[str, Callable] = {}
    told: list[fx.Node] = []
    of_time = []
    for t in clock_nodes:
        others = _depend_on(graph, [n for n in moving if n is not t])
        handed = _handed_on(graph, _depend_on(graph, [t]) - others, results)
        function = _function(graph, [*kept, t], handed)
        of_time.append(clocks.setdefault(function.__self__.code, function))
        told += handed
    value = _function(graph, [*kept, *told, x_node], results[0])
    both = _function(graph, [*kept, *told, x_node, *rest], results) if joint else None
    tensors = tuple(_attribute(traced, n.target) for n in constants)
    return Captured(tensors, prepare, tuple(of_time), value, both)


def _check(graph: fx.Graph) -> None:
    """Raises NotCapturedError for operators whose replay would be something else than an evaluation."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            raise NotCapturedError(f"it calls {node.target}, which is no operator of torch's")
        if node.target._schema.is_mutable:
            raise NotCapturedError(f"it writes in place ({node.target})")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise NotCapturedError(f"it draws random numbers ({node.target})")


def _shorten(graph: fx.Graph) -> None:
    """Leave out operators that return what they are given, and pairs of transpositions."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = node.args[0] if node.args else None
        if node.target in _SAME:
            node.replace_all_uses_with(source)
        elif node.target is _aten.t.default and source.target is _aten.t.default:
            node.replace_all_uses_with(source.args[0])
        else:
            continue
        graph.erase_node(node)


def _depend_on(graph: fx.Graph, roots: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(roots)
    for node in graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _handed_on(graph: fx.Graph, own: set[fx.Node], results: Sequence[Any]) -> list[fx.Node]:
    """Those of ``own`` that others use, or that are results."""
    return [
        n for n in graph.nodes
        if n in own and n.op != "output" and (n in results or any(user not in own for user in n.users))
    ]  # fmt: skip


def _function(graph: fx.Graph, inputs: Sequence[fx.Node], results: Any) -> Callable:
    """The nodes between ``inputs`` and ``results``, one or a list of them, as a function.

    Equal nodes make equal code, whatever they were called.
    """
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for k, node in enumerate(inputs):
        env[node] = new.placeholder(f"a{k}")
    for node in graph.nodes:
        if node in env or node.op != "call_function" or not all(s in env for s in node.all_input_nodes):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.target is _aten.view.default:
            env[node] = new.call_method("view", args)
        else:
            env[node] = new.call_function(_SHORTER.get(node.target, node.target), args, kwargs)
    new.output(fx.map_arg(tuple(results) if isinstance(results, list) else results, env.__getitem__))
    new.eliminate_dead_code()
    return fx.GraphModule({}, new).forward


def _attribute(module: fx.GraphModule, path: str) -> Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
