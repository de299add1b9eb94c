"""Hugging Face models, reversible: ``convert`` one in place, train it with the tools it is trained with, ``revert`` it to deploy.

    from revstep import hf
    hf.convert(model, calibration=token_ids)      # the same class, parameters and state_dict
    ...                                           # Trainer, accelerate, peft as before
    hf.revert(model)                              # the plain model

Names are imported on first use: transformers is only needed by what uses it.
"""

from __future__ import annotations

from ..late import late

_HOMES = {
    "convert": "converting", "revert": "converting", "conversion": "installing", "from_pretrained": "loading",
    "Conversion": "layer_steps", "Adapter": "adapters", "Calibration": "calibrate", "mean_loss": "calibrate",
    "chunk_loss": "loss", "unchunk_loss": "loss", "distillation_loss": "distill", "Distiller": "distill", "distillation_trainer": "distill",
}  # fmt: skip

__all__, __getattr__, __dir__ = late(__name__, _HOMES)
