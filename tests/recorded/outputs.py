"""Outputs of every part of the library as hashes of their bits.

Usage: python outputs.py            prints {"torch": canary, "own": {name: hash}, "on torch": {name: hash}} as
JSON
       python outputs.py --write    writes recorded.json: only for outputs that are new, or meant to change

Both run torch with ENVIRONMENT, in which most machines compute the same bits. ``own`` are outputs of our
kernels and of single sums and products, the same on every machine; ``on torch`` rest on torch's matrix
products and functions, and can be compared where the canary has the recorded bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import revstep
from revstep import hf, lm, ode
from revstep._specs import parse_scheme, parse_state

ENVIRONMENT = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
FILE = Path(__file__).with_name("recorded.json")
LAYERS, SHAPE = 5, (3, 4, 6)
STATES = ("fixed32", "fixed32:12", "fixed64", "float32", "float64")
SCHEMES = {
    "midpoint": {},
    "midpoint:h=1": {},
    "blend:c=0.25": {},
    "blend:c=0.5/-0.25/0.125/0.25/-0.5": {},
    "blend:c=0.3": {},
    "bdia:c=0.5,seed=3": {},
    "midpoint_blend:a=paper,seed=3": {},
    "midpoint_blend:a=0.8": {},
    "leapfrog:h=0.5": {},
    "hamiltonian": {},
    "hamiltonian:a=0.5,b=-1": {},
    "midpoint+euler": {"start": "euler"},
    "blend:c=0.25+euler": {"start": "euler"},
    "midpoint+mean": {"readout": "mean"},
    "hamiltonian+pair": {"readout": "pair"},
    "blend:c=0.25+keep": {"keep": 2},
    "leapfrog+keep": {"keep": 5},
}
#: Fields of polynomials and of square roots alone, whose bits no mathematics library decides.
BUILT_IN = ("Kepler", "HenonHeiles", "Fput", "LotkaVolterra")


def digest(*tensors: torch.Tensor) -> str:
    """A hash of dtypes, shapes and bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        tensor = torch.as_tensor(tensor).detach().contiguous()
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()[:16]


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Uniform in [-1, 1), by integers, so that no version of a random generator for floats decides."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-(2**20), 2**20, shape, generator=generator).to(torch.float64) / 2**20).to(dtype)


class Cubic(nn.Module):
    """w (x - x^3 / 4), element by element: products and sums alone, each rounded once on every machine."""

    def __init__(self, seed: int, dtype: torch.dtype):
        super().__init__()
        self.w = nn.Parameter(0.5 * seeded(*SHAPE, seed=seed, dtype=dtype))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.w * (x - 0.25 * (x * (x * x))) * scale


def stacks() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for name, options in SCHEMES.items():
        for state in STATES:
            scheme, fmt = parse_scheme(name.split("+")[0]).make(), parse_state(state).make()
            dtype = torch.float64 if state in ("fixed64", "float64") else torch.float32
            cubic = [Cubic(10 + i, dtype) for i in range(2 * LAYERS)]
            blocks = list(zip(cubic[::2], cubic[1::2])) if scheme.halves == 2 else cubic[:LAYERS]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stack = revstep.ReversibleStack(blocks, scheme, fmt, **options)
                x = seeded(*SHAPE, seed=1, dtype=dtype).requires_grad_()
                out = stack(x)
                outs = list(out) if isinstance(out, tuple) else [out]
                sum(
                    (o * seeded(*SHAPE, seed=2 + i, dtype=dtype)).sum() for i, o in enumerate(outs)
                ).backward()
            yield f"stack {name} {state}: output", outs
            yield (
                f"stack {name} {state}: gradients",
                [x.grad, *(p.grad for p in stack.parameters() if p.grad is not None)],
            )
            if stack.report is not None and stack.report.exact:
                yield (
                    f"stack {name} {state}: checksum",
                    [torch.tensor([stack.report.checksum & (2**62 - 1), stack.report.layers])],
                )


def smooth(t: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return w * (x - x * x * x) + 0.125 * t


def integrations() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for name, method in ode.available().items():
        for equation in method.equations:
            for state in (None, "float64"):
                y = [0.5 * seeded(2, 3, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2)]
                w = (1.0 + 0.25 * seeded(2, 3, seed=3, dtype=torch.float64)).requires_grad_()
                field = {
                    "first": smooth,
                    "second": ode.SecondOrder(smooth),
                    "separable": ode.Separable(smooth, smooth),
                }[equation]
                start = y[0] if equation == "first" else tuple(y)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fmt = None if state is None else parse_state(state).make()
                    solution = ode.integrate(
                        field, start, scheme=name, h=0.0625, steps=12, args=(w,), save_every=4, state=fmt
                    )
                    outs = [v for v in (solution.ys, solution.velocities, solution.momenta) if v is not None]
                    sum((o * o).sum() for o in outs).backward()
                where = f"integrate {name} {equation} {state or 'default'}"
                yield f"{where}: states", outs
                yield f"{where}: gradients", [v.grad for v in (*y, w) if v.grad is not None]


def orbits() -> Iterator[tuple[str, list[torch.Tensor]]]:
    starts = {
        "Kepler": ([0.9, 0.0], [0.0, 1.1]),
        "HenonHeiles": ([0.1, 0.2], [0.2, 0.0]),
        "Fput": ([0.1, 0.2, -0.1], [0.0, 0.1, 0.0]),
        "LotkaVolterra": [1.0, 0.5],
    }
    for name in BUILT_IN:
        field, start = getattr(ode.fields, name)(), starts[name]
        y0 = (
            tuple(torch.tensor(s, dtype=torch.float64) for s in start)
            if isinstance(start, tuple)
            else torch.tensor(start, dtype=torch.float64)
        )
        # torch's pow has other bits elsewhere.
        for loop in ("compiled",) if name == "Kepler" else ("python", "compiled"):
            solution = ode.integrate(field, y0, h=0.03125, steps=200, save_every=20, loop=loop)
            back = solution.reverse()
            yield (
                f"orbit {name} {loop}",
                [v for s in (solution, back) for v in (s.ys, s.velocities, s.momenta) if v is not None],
            )


def operators() -> Iterator[tuple[str, list[torch.Tensor]]]:
    for state in ("fixed32", "fixed64:40", "float64"):
        fmt = parse_state(state).make()
        x, y, f = (seeded(7, 33, seed=s, dtype=torch.float64) for s in (1, 2, 3))
        if fmt.exact:
            x, y = (fmt.encode(v)[1] for v in (x, y))
        for name in ("midpoint", "blend:c=0.125", "leapfrog", "midpoint_blend:a=0.8"):
            scheme = parse_scheme(name).make()
            after = scheme.step(x, y, lambda v, f=f: v * f, layer=0, state=fmt)
            yield f"step {name} {state}", list(after) if isinstance(after, tuple) else [after]


def trained() -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Weights after a few steps of language models: matrix products and AdamW, whose bits are torch's."""
    shape = {
        "layers": 3,
        "width": 16,
        "heads": 2,
        "context": 16,
        "batch": 2,
        "steps": 3,
        "warmup": 1,
        "tokenizer": "bytes",
        "eval_batches": 1,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "text.txt").write_text(
            " ".join(f"line {k} of {k * k % 97}, and {k % 7} more;" for k in range(600))
        )
        yield from _language_models(folder, shape)


def _language_models(data: str, shape: dict) -> Iterator[tuple[str, list[torch.Tensor]]]:
    for model in ("gpt", "llama"):
        for scheme in (
            "plain",
            "checkpoint",
            "midpoint",
            "blend:c=0.25",
            "bdia:c=0.5",
            "hamiltonian",
            "leapfrog",
            "midpoint_blend:a=paper,seed=3",
        ):
            config = lm.TrainConfig(
                data=(data,),
                model=model,
                scheme=scheme,
                device="cpu",
                out="",
                progress=False,
                save_every=0,
                **shape,
            )
            run = lm.train(config)
            yield (
                f"lm {model} {scheme}",
                [torch.tensor(run.losses, dtype=torch.float64), *run.model.parameters()],
            )


def converted() -> Iterator[tuple[str, list[torch.Tensor]]]:
    """transformers models, converted: logits before, and weights after two steps of SGD."""
    import transformers

    sizes = {
        "vocab_size": 48,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    families = {
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**sizes, num_key_value_heads=1)
        ),
        "gpt2": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=48,
                n_embd=16,
                n_layer=3,
                n_head=2,
                n_positions=32,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        ),
        "neox": lambda: transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(**sizes, hidden_dropout=0.0)
        ),
    }
    ids = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(1))
    for family, make in families.items():
        for scheme in ("auto", "blend:c=0.0625", "midpoint", "hamiltonian", "bdia"):
            torch.manual_seed(0)
            model = make().train()
            for i, p in enumerate(model.parameters()):
                p.data.copy_(0.2 * seeded(*p.shape, seed=i) + (p.ndim == 1))
            hf.convert(model, scheme, calibration=ids, say=None)
            out = [model(input_ids=ids).logits]
            made = hf.conversion(model)
            about = torch.tensor(list(f"{made.stack.scheme}".encode()))
            for _ in range(2):
                model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.05 * p.grad
                        p.grad = None
            yield f"hf {family} {scheme}: scheme and logits", [about, *out]
            yield f"hf {family} {scheme}: weights", list(model.parameters())


def canary() -> str:
    """What torch alone computes here.

    Where it is something else than when the outputs were recorded, those that rest on it cannot be compared.
    """
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    for i, p in enumerate(layer.parameters()):
        p.data.copy_(0.2 * seeded(*p.shape, seed=i))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    x = seeded(4, 12, 16, seed=1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).logsumexp(-1).sum().backward()
        optimizer.step()
    attention = nn.functional.scaled_dot_product_attention(
        *(seeded(2, 2, 12, 8, seed=s) for s in (1, 2, 3)), is_causal=True
    )
    return digest(
        *layer.parameters(),
        attention,
        nn.functional.silu(x),
        torch.softmax(x, -1),
        torch.rsqrt(x.square().mean(-1) + 1e-5),
    )


#: Parts that rest on torch's own products and functions.
ON_TORCH = {"trained": trained, "converted": converted}
OWN = {"stacks": stacks, "integrations": integrations, "orbits": orbits, "operators": operators}


def measured() -> dict:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import transformers

    found = {
        "torch": (
            f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, canary"
            f" {canary()}"
        )
    }
    for kind, parts in (("own", OWN), ("on torch", ON_TORCH)):
        found[kind] = {name: digest(*tensors) for part in parts.values() for name, tensors in part()}
    return found


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # read when torch is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    result = json.dumps(measured(), indent=0)
    if "--write" in sys.argv:
        FILE.write_text(result + "\n")
    else:
        print(result)
