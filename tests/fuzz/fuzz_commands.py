"""Command lines: a good one of every command, of which some options are given values that nobody would, or
somebody did; every option that a parser has is reached, also one that is new.
"""

from __future__ import annotations

import argparse
import functools
from random import Random

from fuzz_samples import TRAIN, TUNE

WHOLE = (
    "0", "1", "2", "3", "-1", "7", "64", "1e3", "2147483648", "4294967296", "9223372036854775807",
    "9223372036854775808", "18446744073709551616", "1099511627776", "10000000000", "1" + "0" * 21, "1" * 5000,
    "-9223372036854775809", "x", "", "0x10", "1.5", "nan", "٣", " 2",
)  # fmt: skip
REAL = (
    "0", "1", "-1", "0.5", "nan", "inf", "-inf", "1e400", "-1e400", "1e308", "1e-320", "1e-8", "x", "", "1,5",
    "0.999999999", "1e10", "-0.0", "٣",
)  # fmt: skip
SIZES = (
    "1",
    "1MB",
    "4GB",
    "0",
    "-1",
    "1e400",
    "1e400GB",
    "nanGB",
    "0.5",
    "1.0",
    "1e30TB",
    "x",
    "",
    "9" * 400,
)
LENGTHS = ("1", "16", "8k", "0", "-1", "1" + "0" * 21, "9" * 400, "1e3", "999999999999m", "0.5k", "x", "")
PATHS = (
    "text", "run", "bpe", "model", "converted", "tuned", "stopped", "model.gguf", "bench", "block.py",
    "empty",
    "empty.txt", "a-file", "noise.bin", "word.txt", "link", "dangling", "loop", "full", "null", "zero",
    "pipe",
    "é\u2028x.txt", "nowhere", "nowhere/x", "a-file/x", "", ".", "..", "/proc/self/mem", "x" * 300,
    "x/" * 3000,
    "run/checkpoint-00000002", "run/data", "model/config.json", "-", "\udc80", "text/a.txt", "out",
)  # fmt: skip
WORDS = (
    "", "auto", "bytes", "bpe:300", "bpe:256", "bpe:1048577", "bpe:99999999999999999999", "bpe:x", "plain",
    "checkpoint", "blend", "blend:c=0.25", "blend:c=nan", "blend:c=1e400", "blend:c=0", "blend:c=",
    "blend:c=x",
    "blend:c=0.25/0.5", "blend:c=" + "/".join(["0.5"] * 9), "blend:c=1e-300", "blend:c=2", "midpoint",
    "midpoint:h=1e400", "midpoint:h=nan", "midpoint_blend:a=paper", "midpoint_blend:a=paper,seed=-1",
    "midpoint_blend:a=paper,seed=" + "9" * 30, "midpoint_blend:a=0", "bdia", "bdia:gamma=7", "bdia:seed=1e3",
    "leapfrog", "leapfrog:h=-1", "hamiltonian", "hamiltonian:h=0", "nonsense", "nonsense:x=1", "blend:x=1",
    ":", "=",
    "blend:" + "c=1," * 2000, "fixed32", "fixed64", "fixed32:0", "fixed32:31", "fixed32:999",
    "fixed32:" + "9" * 99,
    "fixed32:²", "float32", "float64", "float16", "float32:3", "int4", "cpu", "cuda", "cuda:99", "meta",
    "xla", "mps",
    "é", "\udc80", "a" * 3000, "all-linear", "q_proj", "q_proj,", "lm_head", "%s%n", "{}", "$(x)", "8,8",
    "2,4,8",
    "1,1,99999999999", "-1,2,8", "8", "0,8", "block.py:make", "block.py:raises", "block.py:none",
    "block.py:x",
    "block.py", "os:getcwd", "nowhere:x", "torch:no", "64, dropout=", "__import__('os')", "(" * 300,
    "py,.txt", "paper",
)  # fmt: skip
#: Options by what their values are, where type and metavar do not say it.
LIKE = {
    "fit": SIZES, "memory": SIZES, "memory_budget": SIZES, "seq": LENGTHS, "json": PATHS, "csv": PATHS,
    "html": PATHS, "out": PATHS, "deploy": PATHS, "data": PATHS, "calibration": PATHS, "report": PATHS,
    "model": PATHS, "teacher": PATHS, "hf": PATHS, "folder": PATHS, "config": (*PATHS, "gpt2",
    "smollm2-135m"),
}  # fmt: skip

#: Good command lines; what they need lies in the samples. ``bench`` and ``verify`` take the shortest rows.
BASES = (
    [*TRAIN, "--out", "out"],
    [*TRAIN, "--out", "out", "--tokenizer", "bpe:280"],
    [*TRAIN, "--out", "out", "--model", "llama", "--kv-heads", "1", "--state", "fixed64"],
    "train --out run --resume --steps 3 --no-progress --device cpu".split(),
    "train --out bpe --resume auto --steps 3 --no-progress --device cpu".split(),
    [*TUNE, "--out", "out"],
    [*TUNE, "--out", "out", "--deploy", "plain"],
    [*TUNE, "--out", "out", "--fit", "4GB"],
    "finetune model.gguf --data text --context 16 --steps 1 --eval-batches 1 --scheme plain --out o".split(),
    "finetune model --out stopped --resume --no-progress".split(),
    "generate run --count 4".split(),
    "generate bpe --count 4 --prompt def".split(),
    "generate tuned --count 4 --device cpu".split(),
    "generate --hf model --count 4 --prompt x --top-k 3".split(),
    "convert model out --calibration text --tokens 64 --scheme blend:c=0.25".split(),
    "convert model out --calibration text --tokens 64 --bits 2".split(),
    "convert converted out --revert".split(),
    "plan smollm2-135m --seq 512 --memory 8GB --json plan.json".split(),
    "plan model --seq 16 --lora 2 --batch 2 --memory 1GB".split(),
    "plan model.gguf --seq 16".split(),
    "bench --report bench".split(),
    "bench --rounds 1 --no-memory --json b.json --csv b.csv --layers 2 --width 8 --batch 1".split(),
    "verify --scheme blend --state fixed32 --dtype float32 --json v.json".split(),
    "verify --method verlet --equation separable --property order --json v.json".split(),
    "verify --block block.py:make --shape 2,4,8 --layers 3".split(),
    "demo stacks --steps 1 --minutes 0.01 --layers 1 --width 8 --schemes blend:c=0.25 --out out --no-progress"
    " --dtype float32 --device cpu".split(),
)  # fmt: skip


@functools.cache
def options(command: str) -> list[argparse.Action]:
    """Every option and argument of a command, as its parser has them."""
    from revstep._cli import make_parser

    parser = make_parser(command)
    subs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [a for a in subs.choices[command]._actions if a.dest not in ("help", "traceback")]


def values(action: argparse.Action, rng: Random) -> list[str]:
    """The words that follow the option."""
    if action.nargs == 0:
        return []
    pool = LIKE.get(action.dest)
    if pool is None and action.choices:
        pool = (*map(str, action.choices), *map(str, action.choices), "x", "")
    if pool is None:
        pool = WHOLE if action.type is int else REAL if action.type is float else (*WORDS, *WHOLE[:8])
    if rng.random() < 0.08:
        pool = rng.choice((WORDS, PATHS, REAL, WHOLE))
    many = rng.choice((0, 1, 1, 2)) if action.nargs in ("+", "*", "?") else 1
    return [rng.choice(pool) for _ in range(many)]


def mutate(base: list[str], rng: Random) -> list[str]:
    """The command line with up to three of its options changed, added or taken away."""
    argv = list(base)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        action = rng.choice(options(argv[0]))
        words = values(action, rng)
        if not action.option_strings:
            places = [i for i, word in enumerate(argv) if i and not word.startswith("-") and word in PATHS]
            if places and words:
                argv[places[0]] = words[0]
            continue
        name = action.option_strings[-1]
        if name in argv:
            at = argv.index(name)
            end = next((i for i in range(at + 1, len(argv)) if argv[i].startswith("--")), len(argv))
            argv[at:end] = [] if rng.random() < 0.1 else [name, *words]
        else:
            argv += [f"{name}={words[0]}"] if len(words) == 1 and rng.random() < 0.5 else [name, *words]
    if rng.random() < 0.03:
        argv.insert(rng.randrange(len(argv) + 1), rng.choice((*WORDS, *PATHS)))
    return argv
