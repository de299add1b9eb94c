"""Answers about kernels and about integrating equations."""

from __future__ import annotations

import re

from answers import Answer, by_name, met, read, span

#: Groups of kernels, by how their names begin.
KERNELS = {
    "step": "makes a step",
    "inverse": "undoes a step",
    "encode": "turns numbers into a state",
    "decode": "turns a state into numbers",
    "checksum": "sums up a state",
    "gradient": "gradient of a step",
}


def _kernels() -> Answer:
    data = read("kernels")
    found: dict[str, dict[int, list[float]]] = {}
    large = []
    for g in data["goals"]:
        if m := re.fullmatch(r"(\w+).*, (\d+) threads?: bandwidth / copy, .*", g["what"]):
            found.setdefault(m[1], {}).setdefault(int(m[2]), []).append(g["value"])
            large.append(g)
    calls: dict[str, list[float]] = {}
    for row in read("kernels_calls")["overhead"]:
        calls.setdefault(re.split(r"\W", row["kernel"])[0], []).append(row["of_add"])
    threads = data["case"]["thread_counts"]
    rows = [
        (KERNELS[name], *(span(values[n]) for n in threads), span(calls[name], "{:.1f}"))
        for name, values in found.items()
    ]
    step = read("overhead")
    text = (
        f"On large tensors the kernels moved {span(g['value'] for g in large)} times as many bytes a second"
        f" as a copy; {met(large)} figures reach the goal of {large[0]['goal']:g}. A call on 64 elements took"
        f" {span((r for name in found for r in calls[name]), '{:.0f}')} times as long as `torch.add`. In a"
        f" training step of {step['case']['layers']} layers of width {step['case']['width']}, all that only"
        f" revstep runs took {100 * step['beside']:.2f} % of the time."
    )
    header = (
        "kernel",
        *(f"bandwidth / copy, {n} thread{'s' * (n > 1)}" for n in threads),
        "a call on 64 elements / `torch.add`",
    )
    return Answer(text, header, rows, ("kernels", "kernels_calls", "overhead"))


def _integrations() -> Answer:
    """Two bodies in the table, the pendulums in a sentence."""
    parts = read("ode_batches")["parts"]
    part, pendulums = parts["two-body"], parts["pendulums"]["goals"]
    rows = []
    for m in part["rows"]:
        back = "bit for bit" if m["differing"] == 0 else f"off by {m['difference']:.1e}"
        rows.append(
            (m["name"], f"{m['steps_per_second'] / 1e6:.2f}", f"{m['energy_error_at_end']:.1e}", back)
        )
    ratio, trip = [g["value"] for g in part["goals"] if "REBOUND" in g["what"]], part["there_and_back"]
    joint, apart = (
        [g["value"] for g in pendulums if way in g["what"]] for way in (", joint / ", ", one by one / ")
    )
    text = (
        f"`verlet` in floating point made {ratio[0]:.1f} times as many steps a second as REBOUND's leapfrog,"
        f" and `kahan_li6` in exact states {ratio[1]:.1f} times as many as JANUS of order 6. After"
        f" {trip['steps']:,} exact steps there and as many back, {trip['differing']} components of the start"
        f" differed. scipy's `solve_ivp` took {span(joint, '{:.1f}')} times as long as revstep"
        f" for a step of a pendulum when one call integrated a thousand pendulums, and"
        f" {span(apart, '{:,.0f}')} times as long when it was called for each."
    )
    return Answer(
        text,
        ("two bodies", "million steps/s", "energy error at the end", "start, after the way back"),
        rows,
        ("ode_batches",),
    )


def _neural_field() -> Answer:
    data = read("ode_neural")["parts"]["neural-field"]["steps"]
    ends = min(data, key=int), max(data, key=int)
    runs = [by_name(data[steps]) for steps in ends]
    rows = [
        (
            name,
            *(f"{1e3 * run[name]['p50']:,.0f}" for run in runs),
            *("not seen" if (n := run[name]["bytes_kept"]) is None else f"{n:,}" for run in runs),
        )
        for name in runs[0]
    ]
    last = runs[1]
    ours, stored, adjoint = (
        last[name] for name in ("revstep midpoint", "torchdiffeq midpoint", "torchdiffeq midpoint, adjoint")
    )
    text = (
        f"With {int(ends[1]):,} steps, `midpoint` kept {stored['bytes_kept'] / ours['bytes_kept']:,.0f} times"
        f" fewer bytes than torchdiffeq's stored graph and took {ours['ratios']['torchdiffeq midpoint']:.1f}"
        " times as long. Beside torchdiffeq's adjoint method it kept"
        f" {ours['bytes_kept'] / adjoint['bytes_kept']:.1f} times as many bytes, and took"
        f" {ours['ratios']['torchdiffeq midpoint, adjoint']:.2f} times as long."
    )
    header = (
        "method",
        *(f"ms, {int(n):,} steps" for n in ends),
        *(f"bytes kept, {int(n):,} steps" for n in ends),
    )
    return Answer(text, header, rows, ("ode_neural",))


ANSWERS = {"kernels": _kernels, "integrations": _integrations, "neural-field": _neural_field}
