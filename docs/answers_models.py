"""Answers about losses: pretrained models converted and fine-tuned, small models trained here; and the
summary of the page.
"""

from __future__ import annotations

from typing import Any

from answers import FOLDER, Answer, by_name, hundreds, percent, read, span

from revstep._values import size

#: What ``--model`` was given as -> the model's name; another is shown as it was given.
MODELS = {"": "SmolLM2-135M", "smollm2": "SmolLM2-135M", "gemma3": "Gemma 3 270M"}


def _dial() -> Answer:
    files = ("dial", "dial_gemma")
    runs = [by_name(read(name)["rows"]) for name in files]
    names = ("c = 1/4 in every layer", "c = 1/16 in every layer", "by layer, 4 bits", "by layer, the default")
    rows = []
    for name in names:
        cells = []
        for run in runs:
            other = run[name]["other"]
            cells += [f"{run[name]['bits']:.2f}", f"{other['divergence']:.4f}", percent(other["change"])]
        rows.append((name, *cells))
    default = [run[names[-1]] for run in runs]
    first, second = (MODELS[read(name)["case"]["model"]] for name in files)
    divergence, change = ([d["other"][what] for d in default] for what in ("divergence", "change"))
    text = (
        f"Converted as by default and not trained, {first} differed from the original by {divergence[0]:.4f}"
        f" nats a token, and {second} by {divergence[1]:.4f}, on text that the choice was not made on. Their"
        f" losses changed by {percent(change[0])} and {percent(change[1])}. This took"
        f" {default[0]['bits']:.2f} and {default[1]['bits']:.2f} carry bits an element and layer."
    )
    header = ["run as"]
    for model in (first, second):
        header += [f"{model}: bits a layer", "divergence", "change of the loss"]
    return Answer(text, header, rows, files)


def pretrained(part: str) -> dict[str, dict[str, Any]]:
    """Name -> content of every file of ``revstep bench pretrained`` in docs/benchmarks that has measured this
    part.
    """
    found = {path.stem: read(path.stem) for path in sorted(FOLDER.glob("*.json"))}
    return {name: data for name, data in found.items() if data.get("bench") == "pretrained" and data[part]}


def _about(data: dict[str, Any]) -> str:
    case = data["case"]
    trains = f"LoRA of rank {case['rank']}" if case["adapting"] == "LoRA" else "all weights"
    inside = " stepped inside backward" if case.get("optimizer") == "fused-step" else ""
    return f"{MODELS.get(case['model'], case['model'])}, {trains}{inside}"


def _spread(to_plain: dict[str, Any]) -> str:
    change = percent(to_plain["mean"] - 1)
    return change if to_plain["sd"] is None else f"{change} ({100 * to_plain['sd']:.2f})"


def _tuned() -> Answer:
    """Every pretrained model and method: what it reached, and what a training step of it cost."""
    losses, costs = pretrained("losses"), pretrained("costs")
    cells: dict[tuple[str, str], dict[str, str]] = {}
    said = []
    for data in losses.values():
        about, case, ends = _about(data), data["case"], []
        for row in data["losses"]:
            if row["name"] != "plain" and "deployed" in row:
                ends.append(hundreds(row["to_plain"]["deployed"]["mean"] - 1))
                cells.setdefault((about, row["name"]), {})["deployed"] = _spread(row["to_plain"]["deployed"])
        if ends:
            over = f"over {len(case['seeds'])} seeds" if len(case["seeds"]) > 1 else "with one seed"
            said.append(
                f"{about}: after {case['steps']} steps of {case['batch']} x {case['context']} tokens, {over},"
                " the deployed losses of the reversible ways were"
                f" {span(ends, '{:+.2f}')} % from plain fine-tuning's."
            )
    for data in costs.values():
        found, about = by_name(data["costs"]), _about(data)
        others = [name for name in ("plain", "checkpointing") if name in found]
        for name, row in found.items():
            cell = cells.setdefault((about, name), {})
            cell |= {to: f"{row['ratios'].get(to, 1.0):.2f}" for to in others} | {"peak": size(row["peak"])}
            if "checkpointing" in others:
                cell["beside"] = f"{row['peak'] / found['checkpointing']['peak']:.2f}"
        if len(found) > len(others) == 2:
            said.append(_step_cost(data, found, others))
    keys = ("deployed", "plain", "checkpointing", "peak", "beside")
    ordered = sorted(cells, key=lambda key: (key[0], key[1] != "plain", key[1] != "checkpointing"))
    rows = [(*key, *(cells[key].get(k, "-") for k in keys)) for key in ordered]
    header = (
        "model, and what trains",
        "method",
        "deployed loss, from plain's (sd)",
        "time / plain",
        "time / checkpointing",
        "peak",
        "peak / checkpointing",
    )
    return Answer(" ".join(said), header, rows, list(dict.fromkeys([*losses, *costs])))


def _step_cost(data: dict[str, Any], found: dict[str, dict], others: list[str]) -> str:
    case, ours = data["case"], [row for name, row in found.items() if not name.startswith(tuple(others))]
    ratio = {to: span(row["ratios"][to] for row in ours) for to in others}
    peaks = {to: span(row["peak"] / found[to]["peak"] for row in ours) for to in others}
    return (
        f"{_about(data)}, {case['timed_batch']} x {case['timed_context']:,} tokens, on"
        f" {data['environment']['device']}: a reversible training step took {ratio['plain']} times as long as"
        f" a plain one and {ratio['checkpointing']} times as long as a checkpointed one. Its peak above the"
        f" weights was {peaks['plain']} of the plain step's and {peaks['checkpointing']} of the checkpointed"
        " step's."
    )


#: Scheme -> its name where networks are trained from the start, and where they are fine-tuned.
SCHEMES = {
    "`Blend`, c = 1/4": ("", "Blend, c = 1/4"),
    "`Blend`, c = 1/2": ("blend", "Blend, c = 1/2"),
    "`BDIA`": ("bdia", "BDIA"),
    "`Hamiltonian`": ("hamiltonian", ""),
    "`Leapfrog`": ("leapfrog", ""),
    "`Midpoint`": ("midpoint", "Midpoint"),
    "`MidpointBlend`": ("midpoint_blend", ""),
}


def _schemes() -> Answer:
    """Every scheme's loss beside plain training's: from the start, and after fine-tuning a plain model."""
    start, tuned = by_name(read("quality")["measurements"]), by_name(read("finetune")["measurements"])
    plain, rows = start["plain"], []
    for name, (first, second) in SCHEMES.items():
        m = start.get(first)
        lower = sum(loss < other for loss, other in zip(m["losses"], plain["losses"])) if m else 0
        cells = (
            [f"{m['difference']:+.3f} ({m['standard_error']:.3f})", f"{lower} of {len(m['losses'])}"]
            if m
            else ["-", "-"]
        )
        for adapting in ("full", "LoRA"):
            t = tuned.get(f"{second}, {adapting}")
            cells.append(
                f"{t['difference']['mean']:+.4f} ({t['difference']['standard_error']:.4f})" if t else "-"
            )
        rows.append((name, *cells))
    exact, noise = [m for m in start.values() if m["exact"] and "bf16" not in m["name"]], start["plain:bf16"]
    beside = [loss - other for loss, other in zip(noise["losses"], plain["losses"])]
    of = {
        way: [m["ratios"][f"ordinary, {name.split(', ')[-1]}"] for name, m in tuned.items() if way(name)]
        for way in (_checkpointed, _reversible)
    }
    text = (
        "Rounding alone moves these losses: plain training under bfloat16 autocast ended"
        f" {span(beside, '{:+.2f}')} nats from plain training, from seed to seed. An exact training step took"
        f" {span(m['ratios']['plain'] for m in exact)} times as long as a plain one. In fine-tuning it took"
        f" {span(of[_reversible])} times as long, and with checkpointing {span(of[_checkpointed])} times."
    )
    header = (
        "scheme",
        "from the start: loss minus plain's (se)",
        "seeds below plain",
        "fine-tuned in full: minus ordinary (se)",
        "by LoRA (se)",
    )
    return Answer(text, header, rows, ("quality", "finetune"))


def _checkpointed(name: str) -> bool:
    return name.startswith("checkpointing")


def _reversible(name: str) -> bool:
    return not name.startswith(("checkpointing", "ordinary"))


def _demo() -> Answer:
    data = read("demo")
    return Answer(f"{data['summary']}", data["table"]["header"], data["table"]["rows"], ("demo",))


def _summary() -> Answer:
    """What was measured, in a few sentences for each kind of reader; their files are named where the tables
    are.
    """
    return Answer("\n".join((_for_tuning(), _for_networks(), _for_equations())), (), (), ())


def _for_tuning() -> str:
    data, tuned = read("pretrained_costs_smollm2_lora"), read("pretrained_smollm2_lora")
    costs, case = by_name(data["costs"]), data["case"]
    ours = [m for name, m in costs.items() if not name.startswith(("plain", "checkpointing"))]
    change = by_name(tuned["losses"])["Blend, c by layer"]["to_plain"]["deployed"]
    return (
        "- **You fine-tune a pretrained language model.** A LoRA training step of SmolLM2-135M with"
        f" {case['timed_batch']} x {case['timed_context']:,} tokens held at most"
        f" {size(max(m['peak'] for m in ours))} above the weights. The plain step held"
        f" {size(costs['plain']['peak'])}, and the checkpointed one {size(costs['checkpointing']['peak'])}."
        f" The reversible step took {span(m['ratios']['plain'] for m in ours)} times as long as the plain"
        f" one, and {span(m['ratios']['checkpointing'] for m in ours)} times as long as the checkpointed one."
        f" After {tuned['case']['steps']} steps the deployed loss differed by {percent(change['mean'] - 1)}"
        f" from plain fine-tuning's, with a standard deviation of {100 * change['sd']:.2f} % over the seeds."
    )


def _for_networks() -> str:
    trunks = [
        by_name(read(name)["measurements"]) for name in ("trunk", "trunk_retained", "trunk_bf16_retained")
    ]
    ratio = {to: span(run["reversible"]["ratios"][to] for run in trunks) for to in ("plain", "checkpoint")}
    part = read("paper_depth")["parts"]["depth"]
    kept = {(m["x"], m["way"]): size(m["memory"]["kept"]) for m in part["rows"]}
    low, high = min(part["values"]), max(part["values"])
    again = "as much" if kept[low, "reversible"] == kept[high, "reversible"] else kept[high, "reversible"]
    return (
        f"- **You train a deep network of your own.** With the scheme Midpoint, a small network of {low}"
        f" layers kept {kept[low, 'reversible']} between the forward and the backward pass, and one of {high}"
        f" layers kept {again}. Plain training kept {kept[low, 'plain']} and {kept[high, 'plain']}. In a"
        f" larger network, a reversible training step took {ratio['plain']} times as long as a plain one, and"
        f" {ratio['checkpoint']} times as long as a checkpointed one."
    )


def _for_equations() -> str:
    parts = read("ode_neural")["parts"]
    bodies = read("ode_batches")["parts"]["two-body"]
    rebound = [g["value"] for g in bodies["goals"] if "REBOUND" in g["what"]]
    steps = max(parts["neural-field"]["steps"], key=int)
    field = by_name(parts["neural-field"]["steps"][steps])
    ours, stored = field["revstep midpoint"], field["torchdiffeq midpoint"]
    return (
        f"- **You integrate equations.** On two bodies, the compiled loops made {span(rebound, '{:.1f}')}"
        " times as many steps a second as REBOUND's, and in exact states they returned to the start bit for"
        f" bit. The gradient through {int(steps):,} steps of a neural field kept {size(ours['bytes_kept'])},"
        f" where torchdiffeq's stored graph kept {size(stored['bytes_kept'])}. It took"
        f" {ours['ratios']['torchdiffeq midpoint']:.1f} times as long."
    )


ANSWERS = {"summary": _summary, "dial": _dial, "fine-tuned": _tuned, "schemes": _schemes, "demo": _demo}
