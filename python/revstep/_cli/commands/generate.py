"""``revstep generate``: text from what ``revstep train`` or ``revstep finetune`` made, or a Hugging Face
folder.
"""

from __future__ import annotations

import argparse

from ...errors import ConfigError
from .. import shared

NAME = "generate"
HELP = "sample text from a trained model"
EXAMPLES = """
revstep generate run --prompt "def main(" --count 200
revstep generate run --temperature 0 --scheme plain     the same weights as the plain residual network
revstep generate run2 --prompt "Once"                   of revstep finetune: as it was trained
revstep generate --hf path/to/model --prompt "Once"     a Hugging Face model, converted or plain
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="the --out folder of revstep train or revstep finetune")
    parser.add_argument(
        "--hf",
        metavar="MODEL_DIR",
        help="instead: the folder of a Hugging Face model, which runs as it was saved",
    )
    parser.add_argument("--prompt", default="", help="text to continue (default: start a document)")
    parser.add_argument(
        "--count",
        "--max-tokens",
        type=int,
        default=200,
        metavar="N",
        help="tokens to add at most (default 200)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0 takes the likeliest token (default 0.8)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="choose among the N likeliest, 0: all (default 0)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="X",
        help="choose among the likeliest that make up this probability (default 0.95)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default 0)"
    )
    shared.add_scheme(parser, None, " (default: as trained)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, ... (default cpu)")


def run(args: argparse.Namespace) -> int:
    if args.hf is None and args.folder is not None and shared.holds_one(args.folder):
        args.hf, args.folder = args.folder, None
    if args.hf is not None:
        return shared.run(args)
    if args.folder is None:
        raise ConfigError("name the folder of a training run, or a Hugging Face model with --hf MODEL_DIR")
    from ...lm import generate_text

    sampling = {
        name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed", "scheme", "device")
    }
    print(generate_text(args.folder, args.prompt, args.count, **sampling))
    return 0
