"""``revstep convert``: a Hugging Face model folder, reversible, and the way back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..._files import write_folder
from ..._locks import only_writer
from ...errors import ConfigError
from .. import shared
from .._numbers import output_folder

NAME = "convert"
HELP = (
    "convert a Hugging Face model folder to a reversible one: same class, same weights, constant activation"
    " memory in training"
)
EXAMPLES = """
revstep convert path/to/model out                     c by layer, at most 0.004 nats a token from the original
revstep convert path/to/model out --calibration my-text/ --tolerance 0.01
revstep convert path/to/model out --bits 3.5          the best choice of c for so many carry bits a layer
revstep convert path/to/model out --scheme blend:c=0.0625
revstep convert out plain --revert                    the plain model again, as trained
"""
#: Tokens of a row of the calibration text, where the model's context allows it.
CONTEXT = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL_DIR",
        help="a folder that save_pretrained wrote: config.json, weights, tokenizer",
    )
    parser.add_argument(
        "out",
        type=output_folder,
        metavar="OUT",
        help=(
            "folder for the converted model; transformers loads it as the plain one,"
            " revstep.hf.from_pretrained converted"
        ),
    )
    parser.add_argument(
        "--scheme",
        metavar="NAME[:OPTIONS]",
        help=(
            "blend:c=0.0625, midpoint:h=1, midpoint_blend:a=paper, bdia, hamiltonian, ..., or auto: a Blend"
            " with a c of its own in every layer, with the fewest bits within --tolerance on the calibration"
            " text (default auto)"
        ),
    )
    shared.add_auto(parser)
    parser.add_argument(
        "--loss-tolerance",
        type=float,
        metavar="X",
        help="of auto: largest relative rise of the loss (default 0.005)",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        metavar="PATH",
        help="your text: files and folders (default: the Python standard library's sources)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=16384,
        metavar="N",
        help="of the calibration text, at most (default 16384)",
    )
    shared.add_state(
        parser,
        None,
        " (default: the finest fixed-point format with room for eight times the largest calibrated value)",
    )
    shared.add_flags(parser, shared.OF_CONVERT, start=" (default: what the scheme recommends)")
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help=(
            "how increments are got from the layers (default: chosen; 'difference' subtracts, the last"
            " resort)"
        ),
    )
    parser.add_argument("--revert", action="store_true", help="MODEL_DIR is converted: write the plain model")


#: Options that only say how to convert.
_HOW = ("scheme", *shared.OF_AUTO, "loss_tolerance", "calibration", "state", *shared.OF_CONVERT, "adapter")


def run(args: argparse.Namespace) -> int:
    given = shared.given(args, _HOW)
    if args.revert and given:
        raise ConfigError(f"--revert only takes the conversion away; drop --{', --'.join(given)}")
    shared.check_auto(given, args.scheme, (*shared.OF_AUTO, "loss_tolerance"))
    if args.tokens < 2:
        raise ConfigError(f"--tokens is {args.tokens}, expected at least 2")
    if not Path(args.model).is_dir():
        raise ConfigError(f"no folder {args.model}; expected one that save_pretrained wrote")
    if Path(args.out).exists() and Path(args.out).samefile(args.model):
        raise ConfigError(f"OUT is the folder of the model itself, {args.out}: name another one")
    shared.check(args.scheme, args.state)
    from ...hf import _sources
    from ...hf._settings import quiet

    with quiet(), only_writer(args.out):
        tokenizer = _sources.load_tokenizer(args.model)
        model = _revert(args) if args.revert else _convert(args, given, tokenizer)

        def write(part: Path) -> None:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)

        write_folder(args.out, write)
    print(f"saved in {args.out}")
    return 0


def _revert(args: argparse.Namespace) -> Any:
    from ... import hf
    from ...hf import _sources

    if not _sources.converted(args.model):
        raise ConfigError(f"{args.model} holds a plain model: there is nothing to revert")
    model = hf.revert(_sources.load_model(args.model))
    print(f"reverted: a plain {type(model).__name__}")
    return model


def _convert(args: argparse.Namespace, given: dict[str, Any], tokenizer: Any) -> Any:
    from ... import hf
    from ...hf import _sources

    if _sources.converted(args.model):
        raise ConfigError(
            f"{args.model} is converted already; write its plain model first: revstep convert {args.model}"
            " PLAIN --revert"
        )
    model = _sources.load_model(args.model)
    rows = shared.token_rows(
        tokenizer, given.pop("calibration", None), shared.row_length(model, CONTEXT), limit=args.tokens
    )
    batches = [{"input_ids": part} for part in rows.split(4)]
    before = hf.mean_loss(model, batches)
    hf.convert(model, calibration=batches, say=print, **given)
    after = hf.mean_loss(model, batches)
    print(
        f"loss on {rows.numel():,} tokens: {before:.4f} before, {after:.4f} converted"
        f" ({after / before - 1.0:+.2%})"
    )
    return model
