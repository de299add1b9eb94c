"""Hugging Face models, reversible: ``convert`` one in place, train it with the tools it is trained with,
``revert`` it to deploy.

    from revstep import hf
    hf.convert(model, calibration=token_ids)      # the same class, parameters and state_dict
    ...                                           # Trainer, accelerate, peft as before
    hf.revert(model)                              # the plain model

Names are imported on first use: transformers is only needed by what uses it.
"""

from __future__ import annotations

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

__all__, __getattr__, __dir__ = late(__name__, _HOMES)
