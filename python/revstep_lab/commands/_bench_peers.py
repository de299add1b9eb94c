"""``revstep bench peers``: a training step beside torch's checkpointing and beside packages that reverse a coupling of the same halves."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

NAME = "peers"
HELP = "a training step beside torch.utils.checkpoint (block, every k-th, segments, selective), revlib, memcnn, RevTorch and the Reformer's layers"
EXAMPLES = """
revstep bench peers --json peers.json --csv figures.csv
"""
ROUNDS = 9
OPTIONS = _bench_trunk.OPTIONS


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import TrunkCase, run_peers

    result = run_peers(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    off = ("gradient off", lambda m: "0" if m["gradient_off"] == 0 else f"{m['gradient_off']:.1e}")
    return [_bench_trunk.steps_table(result, ("plain", "checkpoint", "coupling"), (off,))]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])
