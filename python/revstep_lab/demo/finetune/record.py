"""What is drawn and written of the worked example ``revstep demo --hf``: two figures, tables, goals and a
verdict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ... import tables
from ...drawing import INK, PALETTE, SOFT, figure, label_ends, save

# ---- The two figures: what the dial costs, and fine-tuning curves ----

#: Schemes on the dial, by c.
POINTS = {"Blend, c = 1/8": 1 / 8, "Blend, c = 1/4": 1 / 4, "Blend, c = 1/2": 1 / 2, "Midpoint, h = 1": 1.0}
#: Up to this change, either way, the axis is linear; beyond it logarithmic.
LINEAR = 1e-3


def draw_dial(path: Path, families: dict[str, Any], subtitle: str) -> None:
    """Change of the loss against c, for each family and start."""
    fig, (ax,) = figure(1, 8.6, 4.8, 2.3, "A trained network run as Blend(c), without retraining", subtitle)
    ends = []
    for (name, family), colour in zip(families.items(), PALETTE):
        for start, style in (("repeat", "-"), ("euler", (0, (5, 2)))):
            points = sorted(
                (POINTS[r["scheme"]], r["change"])
                for r in family["dial"]
                if r["scheme"] in POINTS and r["start"] == start
            )
            x, y = zip(*points)
            ax.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=4, zorder=3)
            ends.append((x[-1], y[-1], f"{NAMES[name]}, start {start}", colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=LINEAR)
    ax.set_xticks(
        list(POINTS.values()), ["c = 1/8\n3 bits", "1/4\n2 bits", "1/2\n1 bit", "1: Midpoint\n0 bits"]
    )
    ax.minorticks_off()
    for bound in (0.005, 0.015):
        ax.axhline(bound, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.text(
            0.01,
            bound,
            f"{bound:.1%}",
            fontsize=8,
            color=SOFT,
            va="bottom",
            transform=ax.get_yaxis_transform(),
        )
    low, high = (
        min(r["change"] for f in families.values() for r in f["dial"]),
        max(r["change"] for f in families.values() for r in f["dial"]),
    )
    ticks = [
        t
        for t in (-0.1, -0.01, -LINEAR, 0.0, LINEAR, 0.01, 0.1, 1.0)
        if min(low, -LINEAR) <= t <= max(high, 0.02)
    ]
    ax.set_yticks(ticks, [f"{100 * t:+.3g} %" if t else "0" for t in ticks])
    ax.set_ylim(1.2 * ticks[0], 1.6 * max(high, 0.02))
    ax.set_ylabel("change of the loss", color=INK, fontsize=9)
    ax.set(xlim=ax.get_xlim())
    label_ends(ax, ends)
    save(fig, path)


def draw_curves(path: Path, families: dict[str, Any], subtitle: str) -> None:
    """Training loss of full fine-tuning, one panel a family: plain and reversible on the same rows."""
    fig, axes = figure(
        len(families),
        5.7 * len(families),
        4.4,
        1.9,
        "Fine-tuning on another text: the same weights, rows and order",
        subtitle,
    )
    for ax, (name, family) in zip(axes, families.items()):
        ends, shown = (
            [],
            [r for r in family["tuned"] if r["adapting"] == "full" and r["method"] != "checkpoint"],
        )
        for r, colour in zip(shown, (INK, *PALETTE)):
            y = _smooth(r["training_loss"], max(1, len(r["training_loss"]) // 8))
            plain = r["method"] == "plain"
            ax.plot(
                np.arange(1, len(y) + 1),
                y,
                color=colour,
                linewidth=3.0 if plain else 1.5,
                alpha=0.35 if plain else 1.0,
                zorder=2 if plain else 3,
            )
            ends.append((len(y), y[-1], f"{r['method']}\n{r['deployed']:.3f} deployed", colour))
        ax.set_title(NAMES[name], fontsize=9.5, color=INK, loc="left")
        ax.set_xlabel("step", color=INK, fontsize=9)
        ax.set_ylabel("training loss, nats a token", color=INK, fontsize=9)
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fixed: labels are placed by them
        label_ends(ax, ends, size=8.5)
    save(fig, path)


def _smooth(values: list[float], window: int) -> np.ndarray:
    """Trailing mean."""
    return np.array([np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])


# ---- Rows, the verdict and Markdown, all from the same numbers ----

#: What is aimed at on the dial and after fine-tuning: label -> largest relative change of the loss. The
#: dial's is that of the better start.
DIAL = {"Blend, c = 1/4": 0.005, "Blend, c = 1/2": 0.015}
TUNED = {"Blend, c = 1/4": 0.005, "Blend, c = 1/2": 0.005, "BDIA": 0.005}
NAMES = {"gpt2": "GPT-2", "llama": "Llama"}


def goals(families: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with what was measured: ``{"family", "goal", "bound", "measured", "met"}``. The dial's is the
    better start's.
    """
    found = []
    for family, f in families.items():
        for label, bound in DIAL.items():
            change = min(r["change"] for r in f["dial"] if r["scheme"] == label)
            found.append(_goal(family, f"{label}: loss against the original, no retraining", bound, change))
        plain = {r["adapting"]: r["deployed"] for r in f["tuned"] if r["method"] == "plain"}
        for r in f["tuned"]:
            if r["method"] in TUNED:
                found.append(
                    _goal(
                        family,
                        f"{r['method']}, {r['adapting']}: deployed loss against plain fine-tuning's",
                        TUNED[r["method"]],
                        r["deployed"] / plain[r["adapting"]] - 1,
                    )
                )
    return found


def _goal(family: str, goal: str, bound: float, measured: float) -> dict[str, Any]:
    return {"family": family, "goal": goal, "bound": bound, "measured": measured, "met": measured <= bound}


def exact(families: dict[str, Any]) -> bool:
    """Was every state of every reversible run rebuilt bit for bit?"""
    runs = [
        r
        for f in families.values()
        for r in (*f["tuned"], f["distilled"])
        if r.get("scheme") not in ("plain", "checkpoint")
    ]
    return bool(runs) and all(r["states_rebuilt"] == r["states_bit_equal"] > 0 for r in runs)


def dial_table(family: dict[str, Any]) -> str:
    """Loss of each scheme with both starts, and of the distilled Midpoint."""
    by: dict[str, dict[str, Any]] = {}
    for r in family["dial"]:
        by.setdefault(r["scheme"], {})[r["start"]] = r
    rows = [["the original", f"{family['original']:.4f}", "", f"{family['original']:.4f}", "", "-"]]
    for label, starts in by.items():
        row = [label]
        for start in ("repeat", "euler"):
            row += [f"{starts[start]['loss']:.4f}", percent(starts[start]["change"])]
        rows.append([*row, str(starts["repeat"]["carry_bits"])])
    d = family["distilled"]
    rows.append([f"{d['scheme']}, {d['steps']} steps", f"{d['loss']:.4f}", percent(d["change"]), "", "", "0"])
    return tables.table(["run as", "start repeat", "change", "start euler", "change", "carry bits"], rows)


def tuned_table(family: dict[str, Any]) -> str:
    """Each fine-tuning beside plain fine-tuning of the same kind."""
    plain = {r["adapting"]: r for r in family["tuned"] if r["method"] == "plain"}
    ratio = {r["method"]: f"{r['ratio']:.2f}" for r in family["speed"]}
    rows = []
    for r in family["tuned"]:
        at = plain[r["adapting"]]
        rows.append(
            [
                r["adapting"],
                r["method"],
                f"{r['converted']:.4f}",
                f"{r['as_trained']:.4f}",
                f"{r['deployed']:.4f}",
                percent(r["deployed"] / at["deployed"] - 1),
                f"{r['kept_for_backward']['total'] / 1e6:.2f} MB",
                f"{at['kept_for_backward']['total'] / r['kept_for_backward']['total']:.1f}",
                ratio[r["method"]] if r["adapting"] == "full" else "",
                f"{r['tokens_per_second']:,.0f}",
                f"{r['states_bit_equal']:,} of {r['states_rebuilt']:,}" if r["states_rebuilt"] else "-",
            ]
        )
    head = [
        "",
        "method",
        "before",
        "as trained",
        "deployed",
        "against plain",
        "kept for backward",
        "times less",
        "time of a step / plain",
        "tokens/s",
        "states bit-equal",
    ]
    return tables.table(head, rows)


def goals_table(found: list[dict[str, Any]]) -> str:
    rows = [
        [
            NAMES[g["family"]],
            g["goal"],
            f"at most {percent(g['bound'])}",
            percent(g["measured"]),
            "yes" if g["met"] else "NO",
        ]
        for g in found
    ]
    return tables.table(["model", "goal", "", "measured", "met"], rows)


def page(document: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = []
    for name, family in document["families"].items():
        parts += [f"## {NAMES[name]}: run as another recurrence, without retraining", dial_table(family)]
        parts += [f"## {NAMES[name]}: fine-tuned on another text", tuned_table(family)]
    return "\n\n".join([*parts, "## Goals", goals_table(document["goals"])]) + "\n"


def summary(document: dict[str, Any]) -> str:
    """The verdict, in words, from the numbers."""
    found, runs = (
        document["goals"],
        [r for f in document["families"].values() for r in f["tuned"] if r["states_rebuilt"]],
    )
    states = sum(r["states_rebuilt"] for r in runs) + sum(
        f["distilled"]["states_rebuilt"] for f in document["families"].values()
    )
    first = (
        f"All {states:,} states rebuilt in training are the forward pass's, bit for bit."
        if document["exact"]
        else "NOT every state was rebuilt bit for bit."
    )
    missed = [
        f"{NAMES[g['family']]} {g['goal']} {percent(g['measured'])} (goal {percent(g['bound'])})"
        for g in found
        if not g["met"]
    ]
    second = f"{len(found) - len(missed)} of {len(found)} goals are met" + (
        f"; missed: {'; '.join(missed)}." if missed else "."
    )
    return f"{first} {second}"


def percent(change: float) -> str:
    return f"{change:+.2%}".replace("%", " %")
