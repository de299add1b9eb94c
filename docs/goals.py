"""The goals of the benchmarks page, each beside what the files in docs/benchmarks say: the worst and the best
of each, met or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from revstep_lab.tables import table as markdown

DOCS = Path(__file__).resolve().parent
PAGE = "benchmarks.md"
BEGIN, END = "<!-- goals, from docs/benchmarks, by docs/generate.py -->", "<!-- /goals -->"
NOT_MEASURED = "not measured"


def parts_of(data: dict) -> list[dict]:
    """What has goals in a file: its parts, or the result itself, and what stands beside it there."""
    beside = [data[part] for part in ("checks", "against") if part in data]
    return [*data["parts"].values(), *beside] if "parts" in data else [data, *beside]


def _goals(name: str, pattern: str, folder: Path) -> list[float]:
    """Values of the goals of one file whose text the pattern matches."""
    data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    found = [g["value"] for part in parts_of(data) for g in part["goals"] if re.fullmatch(pattern, g["what"])]
    if not found:
        raise ValueError(f"docs/benchmarks/{name}.json has no goal {pattern!r}")
    return found


#: What, where measured, bound, whether at least, (file, pattern of its goals)...
ROWS: tuple[tuple[str, str, float, bool, tuple[tuple[str, str], ...]], ...] = (
    (
        "exact reversible step, `keep=1` / plain step, 12 layers",
        "CPU, float32",
        1.25,
        False,
        (
            ("trunk", "reversible, keep=1 / plain"),
            ("trunk_retained", "reversible, keep=1 / plain"),
            ("peers", "time, reversible midpoint, keep=1 / plain"),
        ),
    ),
    (
        "exact reversible step, `keep=1` / plain step, 12 layers",
        "CPU, bfloat16",
        1.35,
        False,
        (("trunk_bf16_retained", "reversible, keep=1 / plain"),),
    ),
    ("exact reversible step, `keep=1` / plain step, 12 layers", "GPU, bfloat16", 1.30, False, ()),
    (
        "exact reversible step, `keep=1` / torch checkpoint of every block",
        "CPU",
        1.08,
        False,
        (
            ("trunk", "reversible, keep=1 / checkpoint"),
            ("trunk_retained", "reversible, keep=1 / checkpoint"),
            ("trunk_bf16_retained", "reversible, keep=1 / checkpoint"),
            ("peers", "time, reversible midpoint, keep=1 / checkpoint"),
        ),
    ),
    *(
        (f"coupling / {peer}, time", "CPU", 1.0, False, (("peers", rf"time, coupling(, keep=1)? / {peer}"),))
        for peer in ("revlib", "memcnn", "RevTorch", "Reformer layers")
    ),
    (
        "coupling / each of them, peak of the allocator",
        "CPU",
        1.0,
        False,
        (("peers", "peak by the allocator, .*"),),
    ),
    (
        "bytes kept for backward by a layer more, Midpoint",
        "CPU",
        8,
        False,
        (("paper_depth", "bytes kept for backward by a layer more, Midpoint"),),
    ),
    (
        "largest batch, reversible and chunked loss / standard",
        "CPU, a twelfth of GPT-2's width, 128 tokens",
        10,
        True,
        (("paper_batch", "largest batch, .*"),),
    ),
    (
        "largest batch, reversible and chunked loss / standard, GPT-2 small and large, 1,024 tokens",
        "H200",
        10,
        True,
        (),
    ),
    (
        "throughput at the largest batch, 96 layers, reversible / standard",
        "CPU, width 64, 64 tokens",
        2.01,
        True,
        (("paper_throughput", "throughput at the largest batch, 96 layers, reversible / standard"),),
    ),
    (
        "throughput at the largest batch, 16 to 96 layers, reversible / checkpoint",
        "CPU, width 64, 64 tokens",
        1.0,
        True,
        (("paper_throughput", "throughput at the largest batch, .*, reversible / checkpoint"),),
    ),
    ("throughput at the largest batch, width 512, 96 layers, reversible / standard", "H200", 2.01, True, ()),
    (
        "step kernels and their inverses / copy, n >= 2^22",
        "CPU, 1 thread",
        0.90,
        True,
        (("kernels", "(step|inverse).*1 thread:.*"),),
    ),
    (
        "step kernels and their inverses / copy, n >= 2^22",
        "CPU, 2 threads",
        0.90,
        True,
        (("kernels", "(step|inverse).*2 threads:.*"),),
    ),
    (
        "encode, decode, checksum, gradient / copy, n >= 2^22",
        "CPU, 1 thread",
        0.90,
        True,
        (("kernels", "(encode|decode|checksum|gradient).*1 thread:.*"),),
    ),
    (
        "encode, decode, checksum, gradient / copy, n >= 2^22",
        "CPU, 2 threads",
        0.90,
        True,
        (("kernels", "(encode|decode|checksum|gradient).*2 threads:.*"),),
    ),
    ("all kernels / copy", "GPU", 0.90, True, ()),
    (
        "a call on 64 elements, dearest operator / torch.add",
        "CPU",
        1.5,
        False,
        (("kernels", "a call on 64 elements.*"),),
    ),
    (
        "growth of step time with depth 8 to 256: off a line by",
        "CPU",
        0.05,
        False,
        (("paper_depth", "time of the reversible step against depth.*"),),
    ),
    (
        "share of the step outside the blocks",
        "CPU",
        0.03,
        False,
        (("overhead", "share of the step in the profile's parts"),),
    ),
    (
        "divergence of a converted SmolLM2-135M from the original, the default, nats a token on unseen text",
        "CPU",
        0.004,
        False,
        (("dial", "divergence of the default on the other text, nats"),),
    ),
    ("the same at 3.8 carry bits a layer", "CPU", 0.010, False, (("dial", "divergence at 3.8 bits .*"),)),
    ("the same at 3.5 carry bits a layer", "CPU", 0.010, False, (("dial", "divergence at 3.5 bits .*"),)),
    (
        "divergence of a converted Gemma 3 270M from the original, the default, nats a token on unseen text",
        "CPU",
        0.004,
        False,
        (("dial_gemma", "divergence of the default on the other text, nats"),),
    ),
    (
        "Gemma 3 270M: the same at 3.8 carry bits a layer",
        "CPU",
        0.010,
        False,
        (("dial_gemma", "divergence at 3.8 bits .*"),),
    ),
    (
        "Gemma 3 270M: the same at 3.5 carry bits a layer",
        "CPU",
        0.010,
        False,
        (("dial_gemma", "divergence at 3.5 bits .*"),),
    ),
    (
        "deployed loss of SmolLM2-135M fine-tuned by LoRA, c by layer at 4 bits / plain fine-tuning",
        "CPU, 3 seeds",
        1.002,
        False,
        (("pretrained_smollm2_lora", "c by layer, 4 bits: deployed loss / plain's"),),
    ),
    (
        "a LoRA step of SmolLM2-135M, c by layer / checkpointing: seconds",
        "CPU, 1 thread",
        1.00,
        False,
        (("pretrained_costs_smollm2_lora", "c by layer, 4 bits: seconds of a step / checkpointing's"),),
    ),
    (
        "the same: peak of the allocator",
        "CPU",
        0.60,
        False,
        (("pretrained_costs_smollm2_lora", "c by layer, 4 bits: peak of the allocator / checkpointing's"),),
    ),
    (
        "a LoRA step of SmolLM2-135M, c by layer, MLPs by tiles / checkpointing: seconds",
        "CPU, 1 thread",
        1.00,
        False,
        (("pretrained_costs_smollm2_lora_tiles", ".*MLPs by tiles: seconds of a step / checkpointing's"),),
    ),
    (
        "the same: peak of the allocator",
        "CPU",
        0.40,
        False,
        (("pretrained_costs_smollm2_lora_tiles", ".*MLPs by tiles: peak of the allocator .*"),),
    ),
    (
        "SmolLM2-135M, all weights stepped inside backward, MLPs by tiles / checkpointing: seconds",
        "CPU, 1 thread",
        1.00,
        False,
        (("pretrained_costs_smollm2_full_fused", ".*MLPs by tiles: seconds of a step / checkpointing's"),),
    ),
    (
        "the same: peak of the allocator",
        "CPU",
        0.55,
        False,
        (("pretrained_costs_smollm2_full_fused", ".*MLPs by tiles: peak of the allocator .*"),),
    ),
    (
        "the same, the head's gradient last (in ours alone): peak of the allocator",
        "CPU",
        0.55,
        False,
        (("pretrained_costs_smollm2_full_fused_last", ".*gradient last: peak of the allocator .*"),),
    ),
    (
        "SmolLM2-135M, all weights, an ordinary optimiser, head's gradient last (in ours alone) /"
        " checkpointing: peak of the allocator",
        "CPU",
        0.95,
        False,
        (("pretrained_costs_smollm2_full_last", ".*gradient last: peak of the allocator .*"),),
    ),
    (
        "96 layers on 64 x 32 states: share of the step outside the blocks (1.15 times them: 0.13)",
        "CPU, 1 thread",
        0.13,
        False,
        (("overhead_small", "share of the step outside the blocks, measured"),),
    ),
    (
        "SmolLM2-135M, LoRA, one sequence of 16,384 tokens, 4 carry bits: peak / plain's",
        "CPU, both by plan",
        1 / 30,
        False,
        (("frontier_lora_16k", "16,384 tokens, LoRA: least peak of ours at 4 bits / plain's, both by plan"),),
    ),
    (
        "plain's peak by plan, off the allocator's by",
        "CPU, SmolLM2-135M, LoRA",
        0.05,
        False,
        (("frontier_lora_1k", ".*plan off by"), ("frontier_lora_2k", ".*plan off by")),
    ),
    (
        "fixed point / float state, every scheme",
        "CPU",
        1.02,
        False,
        (("price", ".*fixed point / float state"),),
    ),
    (
        "exact step, `checks=True` / `checks=False`, 12 layers",
        "CPU, float32",
        1.01,
        False,
        (("price_checks", "checks=True / checks=False.*"),),
    ),
    (
        "exact step, `checks=True` / `checks=False`, 12 layers",
        "CPU, bfloat16",
        1.01,
        False,
        (("price_checks_bf16", "checks=True / checks=False.*"),),
    ),
    (
        "exact step, this build / revstep 0.1.0, 12 layers",
        "CPU",
        1.02,
        False,
        tuple((name, "this build / the other build.*") for name in ("price_checks", "price_checks_bf16")),
    ),
    (
        "steps a second on two bodies, `verlet` in floating point / REBOUND's leapfrog",
        "CPU, 1 thread",
        3.0,
        True,
        (("ode_batches", ".* / REBOUND leapfrog"),),
    ),
    (
        "steps a second on two bodies, `kahan_li6` exact / REBOUND's JANUS of order 6",
        "CPU, 1 thread",
        2.5,
        True,
        (("ode_batches", ".* / REBOUND JANUS, order 6"),),
    ),
    (
        "components of the start that a million exact steps and as many back do not return",
        "CPU, 1 thread",
        0,
        False,
        (("ode", ".*components of the start that did not return.*"),),
    ),
    (
        "largest relative energy error in that run",
        "CPU, 1 thread",
        1e-12,
        False,
        (("ode", "kahan_li6, exact, .*: largest .*"),),
    ),
    (
        "a step of 1,000 pendulums, `solve_ivp` in one call / revstep, order 2, floats",
        "CPU, 1 thread",
        20.0,
        True,
        (("ode_batches", r".*, joint / revstep \w+ \(order 2\), float64"),),
    ),
    (
        "a step of 1,000 pendulums, `solve_ivp` in one call / revstep, orders 4 and 8, floats",
        "CPU, 1 thread",
        10.0,
        True,
        (("ode_batches", r".*, joint / revstep \w+ \(order [48]\), float64"),),
    ),
    (
        "a step of 1,000 pendulums, `solve_ivp` in one call / revstep, order 2, exact",
        "CPU, 1 thread",
        10.0,
        True,
        (("ode_batches", r".*, joint / revstep \w+ \(order 2\), exact"),),
    ),
    (
        "a step of 1,000 pendulums, `solve_ivp` in one call / revstep, orders 4 and 8, exact",
        "CPU, 1 thread",
        5.0,
        True,
        (("ode_batches", r".*, joint / revstep \w+ \(order [48]\), exact"),),
    ),
    (
        "a step of a pendulum, `solve_ivp` called for each / revstep",
        "CPU, 1 thread",
        20,
        True,
        (("ode_batches", ".*, one by one / revstep .*"),),
    ),
    (
        "bytes kept for the gradient of 1,024 steps / of 16, three methods",
        "CPU, 1 thread",
        1,
        False,
        (("ode", "bytes kept by .*"),),
    ),
    (
        "the gradient of a neural field, 64 steps, `midpoint` / torchdiffeq's midpoint",
        "CPU, 1 thread",
        0.9,
        False,
        (("ode_neural", "64 steps, revstep midpoint / .*"),),
    ),
    (
        "the same, `yoshida4` and `reversible_rk4` / torchdiffeq's stored rk4",
        "CPU, 1 thread",
        1.3,
        False,
        (("ode_neural", "64 steps, revstep (yoshida4|reversible_rk4) / .*"),),
    ),
    (
        "a run of the compiled loops, this build / revstep 0.1.0",
        "CPU, 1 thread",
        1.02,
        False,
        (("ode_against", "this build / the other build, (two bodies|pendulums|van der Pol), .*"),),
    ),
    (
        "the gradient of a neural field, this build / revstep 0.1.0",
        "CPU, 1 thread",
        1.05,
        False,
        (("ode_against", "this build / the other build, neural field, .*"),),
    ),
)


def verdict(values: list[float], bound: float, at_least: bool) -> str:
    """Met where the worst is."""
    if not values:
        return NOT_MEASURED
    good = [v >= bound if at_least else v <= bound for v in values]
    return "met" if all(good) else f"**met in {sum(good)} of {len(good)}**" if any(good) else "**not met**"


def table(folder: Path = DOCS / "benchmarks") -> str:
    rows = []
    for what, where, bound, at_least, sources in ROWS:
        values = [v for name, pattern in sources for v in _goals(name, pattern, folder)]
        ends = f"{min(values):.3g}" + (f" to {max(values):.3g}" if len(values) > 1 else "") if values else "-"
        # Short: the table is wide.
        files = ", ".join(f"[{k}](benchmarks/{name}.json)" for k, (name, _) in enumerate(sources, 1))
        rows.append(
            (
                what,
                where,
                f"{'>=' if at_least else '<='} {bound:g}",
                ends,
                verdict(values, bound, at_least),
                files,
            )
        )
    return markdown(("what", "where", "goal", "measured", "verdict", "files"), rows)


def with_goals(page: str, make: Callable[[], str] = table) -> str:
    """The page with its table renewed. Raises ValueError when the marks are not there once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"docs/{PAGE} needs the lines {BEGIN!r} and {END!r} once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{make()}\n\n{END}{rest.split(END)[1]}"
