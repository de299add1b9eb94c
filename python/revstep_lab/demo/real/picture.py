"""The picture: the loss on its way down with the four that count, and what a step holds each way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...drawing import INK, PALETTE, SOFT, figure, label_ends, save

WORDS = {
    "plain": "plain, before",
    "converted": "converted",
    "trained": "as trained",
    "deployed": "deployed, plain",
}


def draw(path: Path, document: dict[str, Any]) -> None:
    """Write the picture of a run's document."""
    title = f"{document['model']} fine-tuned reversibly, deployed as the plain model"
    where = document["environment"]
    what = f"LoRA on {document['text']}; {document['steps']} steps"
    subtitle = f"{what}; {where['device']}, torch {where['torch']}, {where['date']}"
    fig, (left, right) = figure(2, 12.4, 4.4, 1.9, title, subtitle)
    _losses(left, document)
    _memory(right, document["memory"])
    save(fig, path)


def _losses(ax: Any, document: dict[str, Any]) -> None:
    losses, found = document["training_loss"], document["losses"]
    window = max(1, len(losses) // 10)
    smooth = [float(np.mean(losses[max(0, i + 1 - window) : i + 1])) for i in range(len(losses))]
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=SOFT, linewidth=0.7, alpha=0.5)
    ax.plot(steps, smooth, color=INK, linewidth=1.8)
    ends = []
    for (name, words), colour in zip(WORDS.items(), PALETTE):
        at = 0 if name in ("plain", "converted") else len(losses)
        ax.plot([at], [found[name]], marker="o", color=colour, zorder=4)
        ends.append((at, found[name], f"{words}: {found[name]:.4f}", colour))
    ax.set_xlabel("step", color=INK, fontsize=9)
    ax.set_ylabel("loss, nats a token", color=INK, fontsize=9)
    ax.set_title("training loss, and held-out losses as dots", fontsize=9.5, color=INK, loc="left")
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    label_ends(ax, ends, size=8.5)


def _memory(ax: Any, memory: dict[str, Any]) -> None:
    names = list(memory)
    peaks = [memory[name]["peak"] / 1e6 for name in names]
    ax.bar(range(len(names)), peaks, width=0.55, color=[SOFT, PALETTE[4], PALETTE[0]])
    for i, (name, peak) in enumerate(zip(names, peaks)):
        ax.text(
            i,
            peak,
            f"{peak:,.0f} MB\n{memory[name]['seconds']:.1f} s",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, 1.2 * max(peaks))
    ax.set_ylabel("peak of one step above the weights, MB", color=INK, fontsize=9)
    ax.set_title("memory of one training step", fontsize=9.5, color=INK, loc="left")
