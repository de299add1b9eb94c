"""AdamW with decay on matrices only, and its schedule: linear warm-up, then a cosine down to ``min_lr``."""

from __future__ import annotations

import math

import torch
from torch import nn

from .config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups: weights of two or more dimensions decay, biases and LayerNorms do not."""
    parameters = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale the gradients so that their norm is at most ``limit`` (0: leave them) -> the norm before, of all processes' shards where they are sharded."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a DTensor; its module takes half a second to import
    nn.utils.clip_grads_with_norm_(parameters, limit or math.inf, norm)
    return float(norm)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step ``step`` (0-based): up to ``lr`` over ``warmup`` steps, ``min_lr`` at ``steps``. A pure function, so resuming keeps it."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))
