"""A small pre-norm transformer block with everything real ones have that can break reconstruction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """``Attn(LN p)``: causal SDPA, two heads."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.qkv, self.out, self.dropout = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width), dropout

    def forward(self, p: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(p)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)  # (B, 2, T, C/2) each
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return F.dropout(self.out(a), self.dropout, self.training)


class MLP(nn.Module):
    """``MLP(LN p)``."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.up, self.down, self.dropout = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width), dropout

    def forward(self, p: Tensor) -> Tensor:
        return F.dropout(self.down(F.gelu(self.up(self.norm(p)))), self.dropout, self.training)


class Block(nn.Module):
    """The increment ``f(p) = a + MLP(p + a), a = Attn(p)`` (Gal et al. 2512.02056, 2.5), or the halves (attention, MLP)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.attention, self.mlp = Attention(width, dropout), MLP(width, dropout)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        return self.attention, self.mlp

    def forward(self, p: Tensor) -> Tensor:
        a = self.attention(p)
        return a + self.mlp(p + a)


def example_blocks(layers: int, width: int = 32, dropout: float = 0.1, scale: float = 4.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Block]:
    """``layers`` blocks, GPT-2 initialisation (std 0.02) times ``scale``; 4 to 8 resembles trained weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [Block(width, dropout) for _ in range(layers)]
        for block in blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02 * scale)
                    nn.init.zeros_(module.bias)
    return [b.to(dtype) for b in blocks]


def example_input(width: int = 32, batch: int = 2, length: int = 9, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Standard normal hidden states (batch, length, width)."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
