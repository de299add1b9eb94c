"""What came of a run, in words and numbers."""

from __future__ import annotations

from typing import Any

from revstep.hf.finetune import four_losses


def memory_table(memory: dict[str, Any]) -> str:
    """Peaks and times of a step, each beside plain's."""
    plain = memory["plain"]
    lines = ["one training step    peak above the weights    time"]
    for way, found in memory.items():
        less = "" if way == "plain" else f"  {plain['peak'] / found['peak']:.1f} times less"
        slower = "" if way == "plain" else f"  {found['seconds'] / plain['seconds']:.2f} x plain"
        lines.append(f"  {way:16} {found['peak'] / 1e6:10,.0f} MB{less:16} {found['seconds']:8.2f} s{slower}")
    return "\n".join(lines)


def summary(document: dict[str, Any]) -> str:
    """All of it for a terminal, the verdict first."""
    sample = document["sample"]
    return "\n\n".join(
        [
            verdict(document),
            four_losses(document["losses"]),
            memory_table(document["memory"]),
            f"before: {sample['before']!r}\nafter:  {sample['after']!r}",
        ],
    )


def verdict(document: dict[str, Any]) -> str:
    """One sentence on what held and what did not."""
    losses = document["losses"]
    mb = {way: f"{found['peak'] / 1e6:,.0f}" for way, found in document["memory"].items()}
    apart = losses["deployed"] / losses["trained"] - 1
    if not document["exact"]:
        return f"NOT everything held: {document['states']}; please report it with {document['file']}"
    return (
        f"{document['model']} learned {document['text']} in {document['steps']} steps: every one of the "
        f"{document['states_rebuilt']:,} hidden states that backward rebuilt has the bits of the forward pass, a "
        f"step held {mb['reversible']} MB instead of {mb['plain']} (checkpointed {mb['checkpointed']}), and deployed "
        f"as the plain model its loss is {apart:+.2%} from that as trained"
    )
