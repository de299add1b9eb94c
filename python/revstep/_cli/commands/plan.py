"""``revstep plan``: what a training step will hold, for a model that is only a config.json."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..._options import add_flags
from ...errors import ConfigError
from .. import shared
from .._numbers import output_file
from ..shared import table, write_json

NAME = "plan"
HELP = (
    "predict memory, largest batch and step time of plain, checkpointed and reversible training, from a"
    " config.json"
)
EXAMPLES = """
revstep plan llama3-8b --seq 8k --memory 80GB                    an architecture known by name
revstep plan --models                                            the names
revstep plan llama3-8b --seq 4k --memory 24GB --lora 16 --weights int4
revstep plan path/to/model --seq 2048 --memory 24GiB --lora 8     a model's folder (config.json is enough)
revstep plan config.json --seq 4096 --memory 80GB --gpus 8 --engine fsdp --batch 2
revstep plan llama3-8b --seq 4096 --dtype bfloat16 --weights float32 --json plan.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="config.json, its folder, a GGUF file, or a name"
    )
    parser.add_argument("--models", action="store_true", help="list the architectures that are known by name")
    parser.add_argument("--seq", metavar="N", help="tokens in a sequence: 4096, 8k (8 x 1024)")
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="sequences a GPU in the columns of bytes (default 1)",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help=(
            "of one GPU: 80GB (10**9), 80GiB (2**30) or bytes; gives the largest batch, keep, and the fastest"
            " way that fits"
        ),
    )
    parser.add_argument(
        "--headroom",
        type=float,
        default=0.05,
        metavar="X",
        help="share of it left to fragmentation, context and libraries (default 0.05)",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="of the computation (default bfloat16)",
    )
    parser.add_argument(
        "--weights",
        choices=("bfloat16", "float16", "float32", "int8", "int4"),
        help=(
            "float32 with a narrower dtype: autocast; int8, int4: a packed base under --lora (default: dtype)"
        ),
    )
    parser.add_argument(
        "--optimizer", default="adamw", choices=("adamw", "momentum", "sgd"), help="default adamw"
    )
    shared.add_scheme(parser, "blend:c=0.0625", " (default blend:c=0.0625)")
    shared.add_state(parser, "fixed32", " (default fixed32)")
    parser.add_argument(
        "--lora",
        type=int,
        metavar="R",
        help="train LoRA adapters of this rank alone, with PEFT's targets for the architecture",
    )
    parser.add_argument(
        "--lora-all-linear", action="store_true", help="with --lora: adapters on every linear layer"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        default=1,
        metavar="N",
        help="data-parallel GPUs (default 1); all numbers are those of one of them",
    )
    parser.add_argument("--engine", default="ddp", choices=("ddp", "fsdp"), help="with --gpus (default ddp)")
    parser.add_argument(
        "--chunk",
        type=int,
        default=1024,
        metavar="N",
        help="rows of logits the chunked loss holds (default 1024)",
    )
    parser.add_argument(
        "--accumulate",
        action="store_true",
        help="gradients of an earlier micro-batch are there when the step begins",
    )
    parser.add_argument(
        "--fused-step",
        action="store_true",
        help="the optimiser steps inside backward: gradients do not exist all at once",
    )
    add_flags(parser, ("tile", "offload_carries"), tile=" (both of training; here a number)")
    parser.add_argument(
        "--device",
        default="cuda",
        choices=("cuda", "cpu"),
        help="where the step runs, which decides what its loss in chunks holds (default cuda)",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers there")


def run(args: argparse.Namespace) -> int:
    from ...plan import PUBLIC, plan
    from ...plan._source import known

    if args.models:
        rows = [(name, c["name"], str(c.get("num_hidden_layers", 12))) for name, c in PUBLIC.items()]
        print(table(("name", "model", "layers"), rows))
        return 0
    if args.config is None or args.seq is None:
        missing = "CONFIG" if args.config is None else "--seq N"
        raise ConfigError(
            f"{missing} is missing: expected e.g. revstep plan llama3-8b --seq 8k; known by name: {known()}"
        )
    if args.lora_all_linear and args.lora is None:
        raise ConfigError("--lora-all-linear goes with --lora R; give the rank")
    trainable = (
        "all"
        if args.lora is None
        else f"lora:r={args.lora}" + (",targets=all-linear" if args.lora_all_linear else "")
    )
    made = plan(
        args.config,
        sequence=args.seq,
        batch=args.batch,
        memory=args.memory,
        dtype=args.dtype,
        weights=args.weights,
        optimizer=args.optimizer,
        trainable=trainable,
        scheme=args.scheme,
        state=args.state,
        chunk=args.chunk,
        world=args.gpus,
        engine=args.engine,
        accumulate=args.accumulate,
        fused_step=args.fused_step,
        tile=args.tile,
        offload_carries=bool(args.offload_carries),
        device=args.device,
        headroom=args.headroom,
    )
    print(made.table())
    if args.json:
        write_json(args.json, made.to_dict())
    if best := made.fastest():
        print(f"\n{best}")
    short = made.shortage()
    if short is not None:
        if any(p.peak <= made.memory for p in made.points):
            return 0  # by tiles or a fused step, which the table has no rows of; the line above says it
        raise ConfigError(short)
    print(f"\n{made.advice(args.config if Path(args.config).is_dir() else 'MODEL')}")
    return 0
