"""Hostile commands with a name: those that were found first, every other one of a run until all were
tried.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_child import Limits
from fuzz_samples import TRAIN, TUNE

_SMALL = [*TRAIN, "--out", "out"]
_TUNED = [*TUNE, "--out", "out"]
PLAN = "plan smollm2-135m --seq 512".split()


def _zero_heads(folder: Path) -> str:
    import json

    path = folder / "model" / "config.json"
    config = json.loads(path.read_text()) | {"num_attention_heads": 0}
    path.write_text(json.dumps(config))
    return "model/config.json: num_attention_heads 0"


def _broken_report(folder: Path) -> str:
    (folder / "bench" / "trunk.json").write_text('{"bench": "trunk", "rows": [')
    return "bench/trunk.json: broken JSON"


COMMANDS: list[tuple[list[str], Limits, Callable[[Path], str] | None]] = [
    *(
        (words, Limits(), None)
        for words in (
            [*_SMALL, "--seed", str(2**64)], [*_SMALL, "--seed", str(2**63 - 1)], [*_SMALL, "--batch",
            str(10**10)],
            [*_SMALL, "--width", str(2**40)], [*_SMALL, "--width", str(2**17)], [*_SMALL, "--layers",
            str(10**9)],
            [*_SMALL, "--context", str(10**21)], [*_SMALL, "--accumulate", str(2**70)], [*_SMALL, "--lr",
            "1e400"],
            [*_SMALL, "--tokenizer", "bpe:1048577"], [*_SMALL, "--tokenizer", "bpe:" + "9" * 30],
            [*_SMALL, "--tokenizer", "bpe:300", "--data", "word.txt"], [*_SMALL, "--data", "zero"],
            [*_SMALL, "--data", "pipe"], [*_SMALL, "--out", "a-file"], [*_SMALL, "--out", "a-file/x"],
            [*_SMALL, "--out", "full"], [*_SMALL, "--out", "run"], [*_SMALL, "--memory-budget", "1e400",
            "--keep", "auto"],
            [*_SMALL, "--eval-batches", str(10**12)], [*_SMALL, "--steps", "9" * 5000],
            [*_TUNED, "--seed", str(2**64)], [*_TUNED, "--seed", str(2**32)], [*_TUNED, "--batch",
            str(10**10)],
            [*_TUNED, "--lora", str(2**40)], [*_TUNED, "--fit", "1e400"], [*_TUNED, "--out", "a-file"],
            [*_TUNED, "--deploy", "a-file"], [*_TUNED, "--deploy", "model"], [*_TUNED, "--lr", "nan"],
            [*_TUNED, "--clip", "nan"], [*_TUNED, "--context", str(10**21)], [*_TUNED, "--lora-alpha", "nan"],
            "generate run --temperature nan".split(), "generate run --temperature 1e400".split(),
            "generate run --top-p nan".split(), ["generate", "run", "--seed", str(2**64)],
            ["generate", "run", "--count", "1" + "0" * 21], ["generate", "run", "--top-k", str(2**64)],
            "generate --hf model --temperature nan".split(), ["generate", "--hf", "model", "--seed",
            str(2**64)],
            "generate --hf model --temperature 1e-320 --count 2".split(),
            "generate run --temperature 1e-320".split(),
            "generate run --device meta".split(), "generate --hf model --device meta --count 2".split(),
            "convert model a-file --calibration text --tokens 64 --scheme blend:c=0.25".split(),
            "convert model a-file/x --calibration text --tokens 64 --scheme blend:c=0.25".split(),
            "convert converted a-file --revert".split(),
            "convert model out --calibration text --bits nan".split(),
            [*PLAN[:2], "--seq", "1" + "0" * 21], [*PLAN, "--memory", "1e400"], [*PLAN, "--batch",
            str(10**21)],
            [*PLAN, "--memory", "1e300GB"], [*PLAN, "--headroom", "nan"], [*PLAN, "--lora", str(2**70)],
            [*PLAN, "--gpus", str(10**30)], [*PLAN, "--chunk", str(2**70)], [*PLAN, "--tile", str(2**70)],
            *([*PLAN, "--json", path] for path in ("null", "full", "link", "dangling", "loop", "a-file/x",
            "empty", "")),
            "bench --report empty".split(), "bench --report a-file".split(), "bench --report nowhere".split(),
            "verify --block block.py:raises --shape 2,8".split(),
            "verify --block block.py:none --shape 2,8".split(),
            "verify --block block.py:make --shape 2,8 --layers 99999999999999".split(),
            "verify --block block.py:make --shape 2,99999999999,8".split(),
            "verify --method verlet --equation separable --property order --json nowhere/x.json".split(),
            "verify --method verlet --equation separable --property order --html a-file".split(),
            "demo stacks --minutes nan --out out".split(), "demo stacks --minutes 1e400 --out out".split(),
            "demo stacks --steps 1 --width 1099511627776 --out out".split(),
            "demo stacks --out a-file".split(),
            ["demo", "stacks", "--steps", "1", "--seed", str(2**64), "--out", "out"],
        )
    ),
    ("plan model --seq 16".split(), Limits(), _zero_heads),
    ("generate --hf model --count 2".split(), Limits(), _zero_heads),
    ("bench --report bench".split(), Limits(), _broken_report),
    *((["generate", "run", "--prompt", "é→", "--count", "1"], Limits(encoding=name),
    None) for name in ("ascii", "cp1252")),
    *((words, Limits(stdout="/dev/full"), None) for words in (PLAN, "generate run --count 1".split(),
    ["--help"])),
    *(([*_TUNED, "--deploy", "plain"], Limits(file=most), None) for most in (0, 300, 3000, 10_000, 15_000,
    20_000)),
    *(([*_TUNED, "--save-every", "1"], Limits(file=most), None) for most in (1000, 5000, 8000, 12_000,
    30_000)),
    *((_SMALL, Limits(file=most), None) for most in (0, 300, 3000, 10_000, 20_000)),
    *(
        ("convert model out --calibration text --tokens 64 --scheme blend:c=0.25".split(), Limits(file=most),
        None)
        for most in (0, 300, 3000, 10_000)
    ),
]  # fmt: skip
