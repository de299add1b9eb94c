"""The parts of ``python -m revstep_lab.gpu`` that no other command has: each a function that returns a result
with goals, run in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revstep import ReversibleStack, ops
from revstep._specs import parse_scheme
from revstep.ops import reference

from .bench.peaks import by_allocator
from .bench.runner import environment, goal

#: Shapes of a kernel's operands: below a vector, tails, several blocks.
SHAPES = ((1,), (31,), (5, 33), (3, 4097), (1 << 16,), (7, 1 << 17))
STATES = (torch.int32, torch.int64, torch.float32, torch.float64)
VALUES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STEPS = (
    (1.0, 0.0, 0.5),
    (-1.0, 0.5, 1.25),
    (0.5, 0.5, 1.5),
    (0.0625, 0.9375, 1.0625),
    (-0.00390625, 1.0, 0.5),
)
SCHEMES = ("midpoint", "blend:c=0.0625", "leapfrog", "bdia:c=0.5", "hamiltonian")
#: Of the pretrained model: tokens of a sequence, rank of the adapters, timed steps.
TOKENS, RANK, TIMED = 4096, 8, 5
#: Peak of a reversible step of the model beside checkpointing's, and its time.
PEAK, TIME = 0.40, 1.0


# ---- kernels ----


def _operands(
    state: torch.dtype, value: torch.dtype, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(len(shape) + sum(shape))
    pair = [torch.randn(shape, generator=g) for _ in range(2)]
    pair = [x.to(state) if state.is_floating_point else (x * 2**20).round().to(state) for x in pair]
    return pair[0], pair[1], torch.randn(shape, generator=g).to(value)


def _calls(state: torch.dtype, value: torch.dtype, shape: tuple[int, ...], on: Callable) -> Iterator[Tensor]:
    """All that the operators return for one kind of operands, where ``on`` puts them."""
    prev, cur, f = (on(t) for t in _operands(state, value, shape))
    choice = on(torch.arange(shape[0], dtype=torch.uint8) % 2)
    for numbers, view in itertools.product(STEPS, (None, value)):
        about = (*numbers, 20, view)
        step = ops.step(prev, cur, f, *about)
        yield from (*step, *ops.inverse(step[1], cur, f, step[2], *about))
        rows = choice, [0.5, 0.5, 1.0]
        step = ops.step(prev, cur, f, *about, *rows)
        yield from (*step, *ops.inverse(step[1], cur, f, step[2], *about, *rows))
    yield from ops.encode(f, state, 20, value)
    yield ops.decode(prev, 20, value)
    yield ops.checksum(prev)
    yield from ops.scale(f, [2.0, 0.25, -1.0], torch.float32)
    yield torch.as_tensor(ops.fingerprint(f, 1, 3), dtype=torch.int64)


def _expected(state: torch.dtype, value: torch.dtype, shape: tuple[int, ...], device: str) -> list[Tensor]:
    """The CPU's kernels; in a rehearsal, where those are what is tested, the reference."""
    if device != "cpu":
        return list(_calls(state, value, shape, lambda t: t))
    real = {name: getattr(ops, name) for name in ("step", "inverse", "encode", "decode", "checksum")}
    try:
        for name in real:
            setattr(ops, name, getattr(reference, name))
        return [torch.as_tensor(t) for t in _calls(state, value, shape, lambda t: t)]
    finally:
        for name, function in real.items():
            setattr(ops, name, function)


def agree(settings: argparse.Namespace) -> dict[str, Any]:
    """Numbers of comparisons and of tensors with another bit."""
    shapes = SHAPES[:3] if settings.small else SHAPES
    compared, other, where = 0, 0, []
    for state, value, shape in itertools.product(STATES, VALUES, shapes):
        found = _calls(state, value, shape, lambda t: t.to(settings.device))
        for got, expected in zip(found, _expected(state, value, shape, settings.device), strict=True):
            compared += 1
            if not _same(got.cpu(), expected):
                other += 1
                where.append(f"{state}, {value}, {shape}")
    return {
        "compared": compared,
        "differing": sorted(set(where)),
        "goals": [goal(f"of {compared:,} tensors of kernels, with another bit", other, 0, False)],
    }


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.numel() == 0 or torch.equal(*(_bytes(t) for t in (a, b)))


def _bytes(t: Tensor) -> Tensor:
    return torch.empty(t.numel(), dtype=t.dtype).copy_(t.reshape(-1)).view(torch.uint8)


# ---- stacks ----


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.first, self.second = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.second(nn.functional.dropout(nn.functional.gelu(self.first(self.norm(x))), 0.1))


def stacks(settings: argparse.Namespace) -> dict[str, Any]:
    """Training steps whose every state is rebuilt: how many were, and how many bit for bit; gradients beside
    those of the same states with every graph kept.
    """
    width, layers, steps = (16, 3, 1) if settings.small else (256, 12, 3)
    rebuilt = exact = far = 0
    for text, dtype in itertools.product(SCHEMES, (None, torch.bfloat16)):
        torch.manual_seed(0)
        scheme = parse_scheme(text).make()
        two = scheme.halves == 2
        blocks = [(Block(width), Block(width)) if two else Block(width) for _ in range(layers)]
        found = []
        for keep in (0, layers):
            stack = ReversibleStack(blocks, scheme, keep=keep).to(settings.device)
            for step in range(steps):
                stack.zero_grad()
                torch.manual_seed(step)
                x = torch.randn(4, 8 * width, width, device=settings.device, requires_grad=True)
                with torch.autocast(settings.device, dtype or torch.bfloat16, enabled=dtype is not None):
                    y = stack(x)
                y.float().square().mean().backward()
                if not keep:
                    rebuilt += stack.report.layers
                    exact += stack.report.matched
            found.append([x.grad, *(p.grad for p in stack.parameters())])
        far += sum(not _same(a.cpu(), b.cpu()) for a, b in zip(*found, strict=True))
    return {
        "rebuilt": rebuilt,
        "goals": [
            goal(f"of {rebuilt:,} rebuilt states, with another bit", rebuilt - exact, 0, False),
            goal("gradients that differ from those with every graph kept", far, 0, False),
        ],
    }


# ---- a pretrained model ----


def model(settings: argparse.Namespace) -> dict[str, Any]:
    """Peak and time of LoRA steps of SmolLM2: plain, checkpointed, reversible; losses before and after."""
    from revstep import hf
    from revstep.hf._finetune import add_lora

    tokens = 64 if settings.small else TOKENS
    torch.manual_seed(0)
    made, words = _smollm2(settings)
    made = hf.chunk_loss(add_lora(made, RANK, targets="all-linear").to(settings.device).train())
    ids = torch.randint(0, made.config.vocab_size, (1, tokens), device=settings.device)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-5, fused=True)
    losses: dict[str, float] = {}

    def step(name: str, between: Callable[[], None] = lambda: None) -> None:
        with torch.autocast(settings.device, torch.bfloat16):
            loss = made(input_ids=ids, labels=ids, use_cache=False).loss
        between()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses[name] = float(loss.detach())

    found, report = {}, None
    for name in ("plain", "checkpoint", "reversible"):
        if name == "checkpoint":
            made.gradient_checkpointing_enable({"use_reentrant": False})
        if name == "reversible":
            made.gradient_checkpointing_disable()
            hf.convert(
                made, "blend:c=0.0625", calibration=ids[:, :512], tile=256 if not settings.small else 16
            )
        step(name)
        begin = time.perf_counter()
        for _ in range(1 if settings.small else TIMED):
            step(name)
        _wait(settings.device)
        seconds = (time.perf_counter() - begin) / (1 if settings.small else TIMED)
        peak = by_allocator(lambda between, name=name: step(name, between), settings.device)["peak"]
        found[name] = {"seconds": seconds, "peak": peak, "loss": losses[name]}
        if name == "reversible":
            report = hf.conversion(made).report
    ours, other = found["reversible"], found["checkpoint"]
    return {
        "model": words,
        "tokens": tokens,
        "ways": found,
        "goals": [
            goal("states that were not rebuilt bit for bit", report.layers - report.matched, 0, False),
            goal("LoRA step, peak / checkpointing's", ours["peak"] / other["peak"], PEAK, False),
            goal("LoRA step, time / checkpointing's", ours["seconds"] / other["seconds"], TIME, False),
        ],
    }


def _smollm2(settings: argparse.Namespace) -> tuple[nn.Module, str]:
    import transformers

    if settings.model:
        from revstep.hf import _sources

        return _sources.load(settings.model)[0].float(), Path(settings.model).name
    sizes = {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    }  # fmt: skip
    if settings.small:
        sizes |= {"vocab_size": 256, "hidden_size": 36, "intermediate_size": 96, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(**sizes, max_position_embeddings=8192)
    return transformers.LlamaForCausalLM(config), "SmolLM2's config with random weights"


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ---- NVIDIA's memory checker ----


def memcheck(settings: argparse.Namespace) -> dict[str, Any]:
    """The kernels of small operands under compute-sanitizer: errors it reports."""
    tool = shutil.which("compute-sanitizer")
    words = [
        tool,
        "--error-exitcode",
        "7",
        sys.executable,
        "-m",
        "revstep_lab._gpu_parts",
        "agree",
        "--small",
    ]
    done = subprocess.run(
        [*words, "--device", settings.device, "--json", "/dev/null"], capture_output=True, text=True
    )
    said = (done.stdout + done.stderr)[-1500:]
    if done.returncode not in (0, 7):
        raise RuntimeError(f"compute-sanitizer ended with {done.returncode}: {said}")
    wrong = int(done.returncode == 7)
    return {"said": said, "goals": [goal("runs in which compute-sanitizer found an error", wrong, 0, False)]}


PARTS = {"agree": agree, "stacks": stacks, "model": model, "memcheck": memcheck}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m revstep_lab._gpu_parts")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", required=True)
    parser.add_argument("--json", required=True)
    parser.add_argument("--model")
    parser.add_argument("--small", action="store_true")
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    result = PARTS[settings.part](settings)
    record = {"environment": environment(settings.device), **result}
    Path(settings.json).write_text(json.dumps(record), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
