"""Hugging Face models, reversible: ``convert`` one in place, train it with the tools it is trained with,
``revert`` it to deploy.

    from revstep import hf
    hf.convert(model, calibration=token_ids)      # the same class, parameters and state_dict
    ...                                           # Trainer, accelerate, peft as before
    hf.revert(model)                              # the plain model

Names are imported on first use: transformers is only needed by what uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._imports import late

_HOMES = {
    "convert": "_convert",
    "revert": "_convert",
    "conversion": "_install",
    "from_pretrained": "_convert",
    "Conversion": "_layer_steps",
    "Adapter": "adapters",
    "Calibration": "_calibrate",
    "mean_loss": "_calibrate",
    "chunk_loss": "_loss",
    "unchunk_loss": "_loss",
    "distillation_loss": "_distill",
    "Distiller": "_distill",
    "distillation_trainer": "_distill",
    "load": "_sources",
    "FineTune": "_finetune",
    "Tuned": "_finetune",
    "finetune": "_finetune",
    "both_losses": "_calibrate",
    "add_lora": "._models.layers",
    "merge_lora": "._models.layers",
}

if TYPE_CHECKING:  # what a type checker sees of it; .ci/typed.py compares the names
    from .._models.layers import add_lora as add_lora
    from .._models.layers import merge_lora as merge_lora
    from ._calibrate import Calibration as Calibration
    from ._calibrate import both_losses as both_losses
    from ._calibrate import mean_loss as mean_loss
    from ._convert import convert as convert
    from ._convert import from_pretrained as from_pretrained
    from ._convert import revert as revert
    from ._distill import Distiller as Distiller
    from ._distill import distillation_loss as distillation_loss
    from ._distill import distillation_trainer as distillation_trainer
    from ._finetune import FineTune as FineTune
    from ._finetune import Tuned as Tuned
    from ._finetune import finetune as finetune
    from ._install import conversion as conversion
    from ._layer_steps import Conversion as Conversion
    from ._loss import chunk_loss as chunk_loss
    from ._loss import unchunk_loss as unchunk_loss
    from ._sources import load as load
    from .adapters import Adapter as Adapter
else:
    __all__, __getattr__, __dir__ = late(__name__, _HOMES)
