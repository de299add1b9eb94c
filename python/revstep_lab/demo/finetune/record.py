"""Rows, the verdict and Markdown, all from the same numbers."""

from __future__ import annotations

from typing import Any

from ... import markdown

#: What is aimed at on the dial and after fine-tuning: label -> largest relative change of the loss. The dial's is that of the better start.
DIAL = {"Blend, c = 1/4": 0.005, "Blend, c = 1/2": 0.015}
TUNED = {"Blend, c = 1/4": 0.005, "Blend, c = 1/2": 0.005, "BDIA": 0.005}
NAMES = {"gpt2": "GPT-2", "llama": "Llama"}


def goals(families: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with what was measured: ``{"family", "goal", "bound", "measured", "met"}``. The dial's is the better start's."""
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
    runs = [r for f in families.values() for r in (*f["tuned"], f["distilled"]) if r.get("scheme") not in ("plain", "checkpoint")]
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
    return markdown.table(["run as", "start repeat", "change", "start euler", "change", "carry bits"], rows)


def tuned_table(family: dict[str, Any]) -> str:
    """Each fine-tuning beside plain fine-tuning of the same kind."""
    plain = {r["adapting"]: r for r in family["tuned"] if r["method"] == "plain"}
    ratio = {r["method"]: f"{r['ratio']:.2f}" for r in family["speed"]}
    rows = []
    for r in family["tuned"]:
        at = plain[r["adapting"]]
        rows.append([
            r["adapting"], r["method"], f"{r['converted']:.4f}", f"{r['as_trained']:.4f}", f"{r['deployed']:.4f}", percent(r["deployed"] / at["deployed"] - 1),
            f"{r['kept_for_backward']['total'] / 1e6:.2f} MB", f"{at['kept_for_backward']['total'] / r['kept_for_backward']['total']:.1f}",
            ratio[r["method"]] if r["adapting"] == "full" else "", f"{r['tokens_per_second']:,.0f}", f"{r['states_bit_equal']:,} of {r['states_rebuilt']:,}" if r["states_rebuilt"] else "-",
        ])  # fmt: skip
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
    return markdown.table(head, rows)


def goals_table(found: list[dict[str, Any]]) -> str:
    rows = [[NAMES[g["family"]], g["goal"], f"at most {percent(g['bound'])}", percent(g["measured"]), "yes" if g["met"] else "NO"] for g in found]
    return markdown.table(["model", "goal", "", "measured", "met"], rows)


def page(document: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = []
    for name, family in document["families"].items():
        parts += [f"## {NAMES[name]}: run as another recurrence, without retraining", dial_table(family)]
        parts += [f"## {NAMES[name]}: fine-tuned on another text", tuned_table(family)]
    return "\n\n".join([*parts, "## Goals", goals_table(document["goals"])]) + "\n"


def summary(document: dict[str, Any]) -> str:
    """The verdict, in words, from the numbers."""
    found, runs = document["goals"], [r for f in document["families"].values() for r in f["tuned"] if r["states_rebuilt"]]
    states = sum(r["states_rebuilt"] for r in runs) + sum(f["distilled"]["states_rebuilt"] for f in document["families"].values())
    first = (
        f"All {states:,} states rebuilt in training are the forward pass's, bit for bit." if document["exact"] else "NOT every state was rebuilt bit for bit."
    )
    missed = [f"{NAMES[g['family']]} {g['goal']} {percent(g['measured'])} (goal {percent(g['bound'])})" for g in found if not g["met"]]
    second = f"{len(found) - len(missed)} of {len(found)} goals are met" + (f"; missed: {'; '.join(missed)}." if missed else ".")
    return f"{first} {second}"


def percent(change: float) -> str:
    return f"{change:+.2%}".replace("%", " %")
