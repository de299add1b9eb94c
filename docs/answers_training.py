"""Answers about a training step: time, memory, batches, other libraries, the price of exactness."""

from __future__ import annotations

from answers import Answer, by_name, read, span

from revstep._values import size


def _step() -> Answer:
    files = ("trunk", "trunk_retained", "trunk_bf16_retained")
    runs = [by_name(read(name)["measurements"]) for name in files]
    first, names = runs[0], ("plain", "checkpoint", "reversible", "reversible, keep=1")
    rows = []
    for name in names:
        memory = first[name]["memory"]
        ratios = [run[name]["ratios"].get("plain", 1.0) for run in runs]
        rows.append((name, *(f"{r:.2f}" for r in ratios), size(memory["kept"]), size(memory["peak"])))
    ratio = {(n, to): span(run[n]["ratios"][to] for run in runs) for n in names[2:] for to in names[:2]}
    kept, peak = ({n: first[n]["memory"][what] for n in names} for what in ("kept", "peak"))
    text = (
        f"In these three runs a reversible training step took {ratio['reversible', 'plain']} times as long as"
        f" a plain one, and {ratio['reversible', 'checkpoint']} times as long as a checkpointed one. With the"
        f" graph of the last layer kept (`keep=1`) these ratios were {ratio['reversible, keep=1', 'plain']}"
        f" and {ratio['reversible, keep=1', 'checkpoint']}. In float32 the reversible step kept"
        f" {kept['plain'] / kept['reversible']:.0f} times fewer bytes than the plain step and"
        f" {kept['checkpoint'] / kept['reversible']:.1f} times fewer than the checkpointed one. Its peak was"
        f" {peak['reversible'] / peak['plain']:.2f} of the plain step's and"
        f" {peak['reversible'] / peak['checkpoint']:.2f} times the checkpointed step's."
    )
    header = (
        "training step",
        "time / plain, float32",
        "float32, retained",
        "bfloat16, retained",
        "kept, float32",
        "peak, float32",
    )
    return Answer(text, header, rows, files)


def _keep() -> Answer:
    files = ("keep", "keep_retained")
    runs = [by_name(read(name)["measurements"]) for name in files]
    rows, peaks = [], {}
    for name, m in runs[0].items():
        memory = m["memory"]
        if name.startswith("keep="):
            peaks[int(name.removeprefix("keep="))] = memory["peak"]
        ratios = (f"{run[name]['ratios'].get('plain', 1.0):.2f}" for run in runs)
        rows.append(
            (f"`{name}`" if "=" in name else name, *ratios, size(memory["kept"]), size(memory["peak"]))
        )
    free = max(k for k, peak in peaks.items() if peak <= 1.01 * peaks[0])
    layers = read("keep")["case"]["layers"]
    text = f"Keeping the graphs of the last {free} of {layers} layers did not raise the peak of the step."
    return Answer(
        text, ("training step", "time / plain", "time / plain, retained", "kept", "peak"), rows, files
    )


_WAYS = ("plain", "checkpoint", "reversible")
_GROWTH = {
    "depth": ("paper_depth", "layers"),
    "length": ("paper_length", "tokens"),
    "batch-size": ("paper_batch_size", "sequences"),
}


def _growth() -> Answer:
    rows, grown, last = [], {}, {}
    for part, (name, unit) in _GROWTH.items():
        data = read(name)["parts"][part]
        found = {(m["x"], m["way"]): m for m in data["rows"]}
        ends = min(data["values"]), max(data["values"])
        for x in ends:
            kept, peak = ([found[x, way]["memory"][what] for way in _WAYS] for what in ("kept", "peak"))
            time = found[x, "reversible"]["ratios"]["plain"]
            rows.append(
                (
                    f"{x:,} {unit if x > 1 else unit.rstrip('s')}",
                    *map(size, kept),
                    *map(size, peak),
                    f"{time:.2f}",
                )
            )
        grown[part] = [
            found[ends[1], w]["memory"]["kept"] / found[ends[0], w]["memory"]["kept"] for w in _WAYS
        ]
        last[part] = {w: found[ends[1], w]["memory"] for w in _WAYS}
    deep, long = last["depth"], last["length"]
    growth = [f"{r:.0f} times" if r > 1.01 else "not at all" for r in grown["depth"]]
    layer = {row["what"]: row["bytes"] for row in read("paper_depth")["parts"]["depth"]["layer"]}
    depths = read("paper_depth")["parts"]["depth"]["values"]
    text = (
        f"From {min(depths)} to {max(depths)} layers, what is kept grew {growth[0]} in the plain network,"
        f" {growth[1]} under checkpointing, and {growth[2]} in the reversible one. At the greatest depth the"
        f" reversible network kept {deep['plain']['kept'] / deep['reversible']['kept']:,.0f} times fewer"
        f" bytes than the plain one, and {deep['checkpoint']['kept'] / deep['reversible']['kept']:.0f} times"
        f" fewer than under checkpointing. One layer more kept {layer['Midpoint']:,.0f} bytes with Midpoint,"
        f" and {layer['Blend(c=0.5)']:,.0f} with Blend and c = 1/2, which adds its carry. At the greatest"
        f" length the reversible network kept {long['plain']['kept'] / long['reversible']['kept']:.0f} times"
        f" fewer bytes than the plain one, and {long['checkpoint']['kept'] / long['reversible']['kept']:.1f}"
        " times fewer than under checkpointing. Its peak there was"
        f" {long['reversible']['peak'] / long['plain']['peak']:.2f} of the plain network's and"
        f" {long['reversible']['peak'] / long['checkpoint']['peak']:.2f} of the checkpointed one's."
    )
    header = (
        "network",
        *(f"{what}, {way}" for what in ("kept", "peak") for way in _WAYS),
        "time, reversible / plain",
    )
    return Answer(text, header, rows, [name for name, _ in _GROWTH.values()])


def _batch() -> Answer:
    """What the largest batches are, and in the table how fast each form trains at its own."""
    batches = {
        (r["size"], r["way"], r["chunked"]): r["batch"] for r in read("paper_batch")["parts"]["batch"]["rows"]
    }
    sizes = dict.fromkeys(size for size, _, _ in batches)
    beside = {
        way: span((batches[size, "reversible", True] / batches[(size, *way)] for size in sizes), "{:.1f}")
        for way in (("standard", False), ("standard", True), ("checkpoint", True))
    }
    found = {(m["layers"], m["name"]): m for m in read("paper_throughput")["parts"]["throughput"]["rows"]}
    rows, ratios = [], {"standard": [], "checkpoint": []}
    for layers in dict.fromkeys(depth for depth, _ in found):
        cells = [
            f"{m['batch']}: {m['samples_per_second']:.1f}"
            for m in (found[layers, way] for way in ("standard", "checkpoint", "reversible"))
        ]
        for way, values in ratios.items():
            values.append(1 / found[layers, "reversible"]["ratios"][way])
        rows.append((str(layers), *cells, *(f"{values[-1]:.2f}" for values in ratios.values())))
    text = (
        f"With the loss in chunks, the reversible network trained batches {beside['standard', False]} times"
        f" as large as the plain network with whole logits, {beside['standard', True]} times as large as the"
        f" plain network with the same loss, and {beside['checkpoint', True]} times as large as checkpointing"
        " with the same loss. In another measurement each form trained at its own largest batch. There the"
        f" reversible network trained {span(ratios['standard'])} times as many samples a second as the plain"
        f" one, and {span(ratios['checkpoint'])} times as many as checkpointing."
    )
    header = (
        "layers",
        *(f"{way}, batch: samples/s" for way in ("plain", "checkpointed", "reversible")),
        "reversible / plain",
        "reversible / checkpointed",
    )
    return Answer(text, header, rows, ("paper_batch", "paper_throughput"))


_OURS = {
    "coupling": "revstep, exact",
    "coupling, keep=1": "revstep, exact, `keep=1`",
    "coupling, float state": "revstep, float state",
}


def _peers() -> Answer:
    found = {
        m["name"]: m
        for m in read("peers")["measurements"]
        if m["network"] == "coupling" and "stored" not in m["name"]
    }
    others = [name for name in found if name not in _OURS]
    rows = [
        (
            _OURS.get(name, name),
            f"{m['ratios'].get('coupling', 1.0):.2f}",
            size(m["memory"]["kept"]),
            size(m["memory"]["peak"]),
            f"{m['gradient_off']:.1e}",
        )
        for name, m in found.items()
    ]
    own, kept = found["coupling"], found["coupling, keep=1"]
    peaks = [100 * (found[name]["memory"]["peak"] / own["memory"]["peak"] - 1) for name in others]
    text = (
        f"The exact coupling of revstep took {span((own['ratios'][name] for name in others), '{:.3f}')} times"
        " as long as the others; with the graph of its last layer kept,"
        f" {span((kept['ratios'][name] for name in others), '{:.3f}')} times. Every other library's peak was"
        f" higher, by {span(peaks, '{:.0f}')} %."
    )
    return Answer(
        text, ("implementation", "time / revstep, exact", "kept", "peak", "gradient off"), rows, ("peers",)
    )


def _exactness() -> Answer:
    states = [g["value"] for g in read("price")["goals"]]
    files = ("price_checks", "price_checks_bf16")
    runs = [by_name(read(name)["checks"]["measurements"]) for name in files]
    rows = [(f"exact states / float states, {len(states)} schemes", span(states, "{:.3f}"), "-")]
    rows += [
        (f"`{what}` / `checks=False`", *(f"{run[what]['ratios']['checks=False']:.3f}" for run in runs))
        for what in runs[0]
        if what != "checks=False"
    ]
    checked = [run["checks=True"]["ratios"]["checks=False"] for run in runs]
    text = (
        f"A training step in exact states took {span(states, '{:.3f}')} times as long as the same step in"
        f" float states. With the default checks it took {span(checked, '{:.3f}')} times as long as without"
        " any."
    )
    return Answer(
        text,
        ("ratio of times of one training step", *(read(name)["case"]["dtype"] for name in files)),
        rows,
        ("price", *files),
    )


ANSWERS = {
    "step": _step,
    "keep": _keep,
    "growth": _growth,
    "batch": _batch,
    "peers": _peers,
    "exactness": _exactness,
}
