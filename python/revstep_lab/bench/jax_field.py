"""The gradient of the neural field by diffrax: the same weights, the same start, compiled once by XLA. Its LeapfrogMidpoint is our midpoint."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: A call returns the gradients of the mean square of y(1), with respect to y(0) and the parameters, when they are there.
Call = Callable[[], Any]


def calls(diffrax: ModuleType, net: nn.Module, y: Tensor, steps: int) -> dict[str, tuple[Call, int]]:
    """``(call, bytes of XLA's temporaries)`` by name: checkpointed (the default: at most sqrt(2 steps) states), all states kept, or integrated backwards."""
    import jax

    def field(t: Any, y: Any, weights: list) -> Any:
        first, bias, second, offset = weights
        return (jax.numpy.tanh(y @ first.T + bias) @ second.T + offset) * (1 + 0.5 * jax.numpy.sin(t))

    checkpointed = diffrax.RecursiveCheckpointAdjoint
    rows = {
        "diffrax LeapfrogMidpoint": (diffrax.LeapfrogMidpoint(), checkpointed()),
        "diffrax LeapfrogMidpoint, all states": (diffrax.LeapfrogMidpoint(), checkpointed(checkpoints=steps)),
        "diffrax LeapfrogMidpoint, backsolve": (diffrax.LeapfrogMidpoint(), diffrax.BacksolveAdjoint()),
        "diffrax ReversibleHeun": (diffrax.ReversibleHeun(), checkpointed()),
    }
    weights = [jax.numpy.asarray(p.detach().numpy()) for p in net.parameters()]
    start = jax.numpy.asarray(y.detach().numpy())

    def prepared(solver: Any, adjoint: Any) -> tuple[Call, int]:
        def loss(y: Any, weights: list) -> Any:
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(field), solver, 0.0, 1.0, 1 / steps, y, args=weights, adjoint=adjoint, max_steps=steps,
                stepsize_controller=diffrax.ConstantStepSize(),
            )  # fmt: skip
            return jax.numpy.mean(found.ys[-1] ** 2)

        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(start, weights).compile()
        return lambda: jax.block_until_ready(program(start, weights)), program.memory_analysis().temp_size_in_bytes

    return {name: prepared(solver, adjoint) for name, (solver, adjoint) in rows.items()}


def as_tensors(gradients: Any) -> list[Tensor]:
    """What a call returned, as :func:`.neural_field.gradients` gives it."""
    of_start, of_weights = gradients
    return [torch.from_numpy(np.array(g)) for g in (of_start, *of_weights)]
