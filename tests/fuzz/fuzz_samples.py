"""One good file of every format that a command reads, made by the commands themselves: what is damaged later.

``text/``, ``run/``, ``bpe/`` (of train), ``model/``, ``converted/``, ``tuned/``, ``stopped/`` (of finetune),
``model.gguf``, ``bench/`` (of bench), ``block.py``; and the things of :func:`odd`, made anew for every case.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = """
import torch


def make(width=8):
    return torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, width))


def raises(width=8):
    raise RuntimeError("no block today")


def none(width=8):
    return None
"""
LINES = "".join(f"def f{i}(x):\n    return x + {i % 7}  # the state can be rebuilt\n\n" for i in range(60))
#: The smallest runs: options that make a command end in a second.
TRAIN = (
    "train --data text --tokenizer bytes --layers 1 --width 8 --heads 1 --context 8 --batch 2 --steps 2"
    " --eval-batches 1 --eval-every 0 --save-every 0 --device cpu --no-progress"
).split()
TUNE = (
    "finetune model --data text --context 16 --batch 2 --steps 2 --eval-batches 1 --scheme blend:c=0.25"
    " --lora 2 --device cpu --no-progress --loss-chunk 0"
).split()
BENCHES = ("trunk", "price", "dial", "ode_against", "keep", "finetune")


def copy(root: Path, target: Path) -> None:
    """The samples for one case, and beside them what a path can also be."""
    shutil.copytree(root, target, symlinks=True)
    odd(target)


def odd(root: Path) -> None:
    """What a path can also be."""
    (root / "empty").mkdir()
    (root / "empty.txt").write_bytes(b"")
    (root / "a-file").write_text("keep me\n")
    (root / "noise.bin").write_bytes(bytes(range(256)) * 40)
    (root / "word.txt").write_text("a" * 3_000)
    (root / "link").symlink_to("a-file")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "full").symlink_to("/dev/full")
    (root / "null").symlink_to("/dev/null")
    (root / "zero").symlink_to("/dev/zero")
    (root / "é\u2028x.txt").write_text("é" * 500, encoding="utf-8")
    os.mkfifo(root / "pipe")


def make(root: Path) -> None:
    """All of it, below ``root``. Called in a process of its own: it uses threads."""
    os.chdir(root)
    (root / "text").mkdir()
    for name in ("a.txt", "b.py", "c.md"):
        (root / "text" / name).write_text(LINES, encoding="utf-8")
    (root / "block.py").write_text(BLOCK)
    _models(root)
    _call([*TRAIN, "--out", "run"])
    _call([*TRAIN, "--tokenizer", "bpe:270", "--model", "llama", "--out", "bpe"])
    _call([*TUNE, "--out", "tuned"])
    _stopped(root)
    (root / "bench").mkdir()
    for name in BENCHES:
        shutil.copy(ROOT / "docs" / "benchmarks" / f"{name}.json", root / "bench")


def _call(argv: list[str]) -> None:
    from revstep._cli import main

    code = main(argv)
    if code:
        raise SystemExit(f"the sample of {' '.join(argv)} could not be made: exit code {code}")


def _models(root: Path) -> None:
    import tokenizers
    import torch
    import transformers

    end = "<|endoftext|>"
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [LINES],
        tokenizers.trainers.BpeTrainer(
            vocab_size=280, special_tokens=[end], show_progress=False, initial_alphabet=alphabet
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, intermediate_size=16, max_position_embeddings=64, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    import gguf_files  # of tests/hf

    gguf_files.write(root / "model.gguf", model, tokenizer)
    _call(
        [
            "convert",
            "model",
            "converted",
            "--calibration",
            "text",
            "--tokens",
            "64",
            "--scheme",
            "blend:c=0.25",
        ]
    )


def _stopped(root: Path) -> None:
    """A fine-tuning that ended after its first checkpoint, as a machine that went down leaves it."""
    import json

    _call([*TUNE, "--save-every", "1", "--out", "stopped"])
    folder = root / "stopped"
    record = json.loads((folder / "finetune.json").read_text(encoding="utf-8"))
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoint-2")
    record |= {"finished": False}
    for name in ("losses", "states"):
        record.pop(name, None)
    (folder / "finetune.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
