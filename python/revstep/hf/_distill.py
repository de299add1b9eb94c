"""Distillation: a converted model learns to say what its original says.

    loss = weight * T^2 * mean_i KL(softmax(t_i / T) || softmax(s_i / T))
           + (1 - weight) * mean_i CE(s_i, label_{i+1})

over the tokens i that count. T^2 keeps the gradients' size independent of the temperature T.
Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network (2015), section 2.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._imports import require
from ..errors import ConfigError

__all__ = ["Distiller", "distillation_loss", "distillation_trainer"]

#: Elements (rows times vocabulary) of a softmax held at a time: 64 MiB in float32.
ELEMENTS = 1 << 24


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    labels: Tensor | None = None,
    temperature: float = 1.0,
    weight: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    """The loss above. Logits (..., T, V), ``labels`` (..., T) not yet shifted -> scalar, float32 (float64 for
    float64 logits).

    With ``labels``, position t counts where ``labels[t + 1]`` is not ``ignore_index``, in both terms;
    without, every position counts. No gradient reaches the teacher. The float32 softmaxes are made some rows
    at a time, and again in backward.

    Raises:
        ConfigError: shapes that do not fit, temperature not positive, weight outside [0, 1], weight below 1
            without labels.
    """
    _check_options(temperature, weight)
    if student_logits.shape != teacher_logits.shape or student_logits.ndim < 2:
        raise ConfigError(
            f"got logits of shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}; expected"
            " twice the same (..., T, V)"
        )
    if labels is not None and labels.shape != student_logits.shape[:-1]:
        raise ConfigError(
            f"got labels of shape {tuple(labels.shape)} for logits {tuple(student_logits.shape)}; expected"
            " one label a position, not shifted"
        )
    if labels is None and weight < 1.0:
        raise ConfigError(
            f"weight is {weight} and there are no labels; expected labels for the cross entropy, or weight=1:"
            " pass labels"
        )
    vocab = student_logits.shape[-1]
    # (N, V)
    student, teacher = (
        student_logits.reshape(-1, vocab),
        teacher_logits.detach().reshape(-1, vocab).to(student_logits.device),
    )
    if labels is None:
        targets = torch.zeros(len(student), dtype=torch.int64, device=student.device)
        ignore_index = -100
    else:
        # (N,), token t predicts t + 1.
        targets = F.pad(labels.to(student.device), (0, 1), value=ignore_index)[..., 1:].reshape(-1)
    rows = max(1, ELEMENTS // vocab)
    # split, not slices: its backward joins the gradients once, where each slice's would fill an (N, V) of
    # zeros.
    parts = zip(student.split(rows), teacher.split(rows), targets.split(rows))
    some = functools.partial(_some_rows, temperature=temperature, weight=weight, ignore_index=ignore_index)
    total = sum(checkpoint(some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts)
    return total / (targets != ignore_index).sum()


def _some_rows(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float, weight: float, ignore_index: int
) -> Tensor:
    """The sum of the loss over some rows: ``student`` and ``teacher`` (n, V), ``targets`` (n,)."""
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    student, teacher = student.to(wide), teacher.to(wide)
    own, given = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    # KL(teacher || student), (n,).
    divergence = F.kl_div(own, given, reduction="none", log_target=True).sum(-1)
    loss = weight * temperature**2 * torch.where(targets != ignore_index, divergence, 0.0).sum()
    if weight < 1.0:
        loss = loss + (1.0 - weight) * F.cross_entropy(
            student, targets, ignore_index=ignore_index, reduction="sum"
        )
    return loss


def _check_options(temperature: float, weight: float) -> None:
    if not (0.0 < temperature < math.inf):
        raise ConfigError(f"temperature is {temperature}; expected a positive number")
    if not 0.0 <= weight <= 1.0:
        raise ConfigError(f"weight is {weight}; expected a number from 0 (labels only) to 1 (teacher only)")


class Distiller:
    """The distillation loss of a model on a batch of inputs, beside a frozen ``teacher``.

    ``distiller(model, inputs)`` runs both on ``inputs`` (the teacher under no_grad) and returns the loss;
    ``inputs["labels"]``, where there, say which positions count and give the cross entropy of ``weight < 1``.
    A router loss of the student is added as its own forward would.

    Raises:
        ConfigError: options as in ``distillation_loss``. When it is called: a teacher in training mode, whose
            dropout would be learnt.
    """

    def __init__(
        self, teacher: nn.Module, *, temperature: float = 1.0, weight: float = 1.0, ignore_index: int = -100
    ):
        _check_options(temperature, weight)
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.ignore_index = ignore_index

    def __call__(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        if self.teacher.training:
            raise ConfigError(
                "the teacher is in training mode; expected its answers without dropout: call teacher.eval()"
            )
        questions = {
            name: value for name, value in inputs.items() if name not in ("labels", "num_items_in_batch")
        }
        with torch.no_grad():
            taught = self.teacher(**questions).logits
        outputs = model(**questions)
        options = {"temperature": self.temperature, "weight": self.weight, "ignore_index": self.ignore_index}
        loss = distillation_loss(outputs.logits, taught, labels=inputs.get("labels"), **options)
        router = outputs.get("aux_loss")
        if router is not None:
            loss = loss + _config(model).router_aux_loss_coef * router.to(loss.device)
        return (loss, outputs) if return_outputs else loss


def _config(model: nn.Module) -> Any:
    """The config of a model that may stand inside DistributedDataParallel."""
    return (model if hasattr(model, "config") else model.module).config.get_text_config()


@functools.cache
def distillation_trainer() -> type:
    """transformers' ``Trainer`` with one more argument, ``distiller``: its loss in training and evaluation.
    Made when asked for: transformers is optional.

    ``distillation_trainer()(model=student, args=..., train_dataset=..., distiller=Distiller(teacher))``
    """
    Trainer = require("transformers", "distillation with the Trainer", "hf").Trainer

    class DistillationTrainer(Trainer):
        loss_is_scaled_for_ga = (
            False  # ours is a mean over the batch: the Trainer divides by the accumulation steps
        )

        def __init__(self, *args: Any, distiller: Distiller, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.distiller = distiller
            distiller.teacher.to(self.args.device)

        def compute_loss(
            self,
            model: nn.Module,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            return self.distiller(model, inputs, return_outputs)

    return DistillationTrainer
