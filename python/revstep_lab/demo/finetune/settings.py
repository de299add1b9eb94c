"""What a run of the worked example ``revstep demo --hf`` is made of: its settings, its two texts, and the
small models that it trains first.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from revstep._files import write_folder
from revstep._imports import require
from revstep.errors import ConfigError
from revstep.hf._finetune import FineTune, Tuned, finetune
from revstep.lm import _data

FAMILIES = ("gpt2", "llama")


@dataclass(frozen=True)
class Settings:
    """Sizes. The defaults take about a quarter of an hour on one CPU core; :meth:`small` less than a minute.

    Attributes:
        steps, tune_steps: of training each model, and of each fine-tuning.
        layers, width, heads, vocab, context, batch: the models, and the rows of a step.
        lr, tune_lr, lora_lr: peak learning rates; lora: rank of the adapters.
        batches: of a validation.
        text: characters of the standard library that are read.
        families: what is trained.
        seed: of weights and order. out: folder of everything. device: "cpu", or "auto".

    Raises:
        ConfigError: a number that cannot be used.
    """

    steps: int = 1500
    tune_steps: int = 80
    layers: int = 8
    width: int = 128
    heads: int = 4
    vocab: int = 1024
    context: int = 128
    batch: int = 4
    lr: float = 3e-3
    tune_lr: float = 5e-4
    lora_lr: float = 3e-3
    lora: int = 8
    batches: int = 12
    text: int = 3_000_000
    families: tuple[str, ...] = FAMILIES
    seed: int = 0
    out: str = "revstep-demo-hf"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "tune_steps", "layers", "heads", "context", "batch", "lora", "batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a whole number of at least 1")
        if self.width % (2 * self.heads) or self.width < 1:
            raise ConfigError(f"width is {self.width}, expected a multiple of twice the {self.heads} heads")
        unknown = [f for f in self.families if f not in FAMILIES]
        if unknown or not self.families:
            raise ConfigError(f"families are {self.families}, expected some of {', '.join(FAMILIES)}")
        if not self.out:
            raise ConfigError("out is empty: name a folder for the models, figures and numbers")

    @classmethod
    def small(cls, steps: int = 40, **changes) -> Settings:
        """For a check that everything works."""
        sizes = {
            "layers": 4,
            "width": 64,
            "heads": 2,
            "vocab": 384,
            "context": 64,
            "batch": 8,
            "batches": 2,
            "text": 300_000,
            "lora": 4,
        }
        return cls(**{"steps": steps, "tune_steps": max(1, steps // 5), **sizes, **changes})


# ------------------------------------------------------------------------------------------------------------
# Two texts that every Python brings: the sources of its standard library, and the language's documentation in
# English.

END = "<|endoftext|>"
#: Share of each text, at its end, that nothing trains on.
HELD_OUT = 0.08


@dataclass(frozen=True)
class Text:
    """Rows of token ids (N, T): to train on, and held out (as batches of keyword arguments)."""

    train: Tensor
    held_out: list[dict[str, Tensor]]


def library(characters: int) -> str:
    """Sources of the standard library up to that many characters, a file from here and there; without the
    documentation they contain.
    """
    files = [path for path in _data.standard_library() if path.parent.name != "pydoc_data"]
    found, have = [], 0
    for path in files[::2] + files[1::2]:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if have + len(text) <= characters:
            found.append(text)
            have += len(text)
    if not found:
        raise ConfigError(f"no file of the standard library has at most {characters} characters: read more")
    return END.join(found)


def documentation() -> str:
    """The topics of Python's ``help()``: English prose about the language.

    Raises:
        ConfigError: this Python was installed without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this Python has no pydoc_data.topics, the text to fine-tune on; expected a complete standard"
            " library"
        ) from error
    return END.join(topics[name] for name in sorted(topics))


def make_tokenizer(text: str, vocab: int, context: int) -> Any:
    """A byte-level BPE of ``vocab`` ids trained on ``text``, as transformers has it."""
    tokenizers, transformers = (
        require(name, "the worked example", "hf") for name in ("tokenizers", "transformers")
    )
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        text.split(END),
        tokenizers.trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=[END], show_progress=False, initial_alphabet=alphabet
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, model_max_length=context
    )


def as_rows(text: str, tokenizer: Any, settings: Settings) -> Text:
    """The text cut to rows of ``context`` ids, its end held out."""
    pieces = tokenizer.backend_tokenizer.encode_batch([piece for piece in text.split(END) if piece])
    ids = [i for piece in pieces for i in (*piece.ids, tokenizer.eos_token_id)]
    rows = torch.tensor(ids[: len(ids) // settings.context * settings.context], dtype=torch.int64).view(
        -1, settings.context
    )
    held = max(int(HELD_OUT * len(rows)), settings.batch)
    if len(rows) < held + settings.batch:
        raise ConfigError(
            f"the text has {len(rows)} rows of {settings.context} tokens, expected at least"
            f" {2 * settings.batch}: read more"
        )
    tail = rows[len(rows) - held :]
    some = tail[torch.linspace(0, len(tail) - 1, min(len(tail), settings.batches * settings.batch)).long()]
    return Text(rows[: len(rows) - held], [{"input_ids": batch} for batch in some.split(settings.batch)])


# ------------------------------------------------------------------------------------------------------------
# Small models of the real transformers classes, trained as any other and saved as a hub would have them.


def untrained(family: str, settings: Settings, tokenizer: Any) -> nn.Module:
    """GPT2LMHeadModel or LlamaForCausalLM; the same seed, the same weights."""
    transformers = require("transformers", "the worked example", "hf")
    ids = {name: tokenizer.eos_token_id for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    length = 4 * settings.context
    torch.manual_seed(settings.seed)
    if family == "gpt2":
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=length,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            **ids,
            **off,
        )
        return transformers.GPT2LMHeadModel(config)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads // 2,
        intermediate_size=8 * settings.width // 3 // 16 * 16,
        tie_word_embeddings=True,
        **ids,
    )
    return transformers.LlamaForCausalLM(config)


def make(family: str, settings: Settings, text: Text, tokenizer: Any, folder: Path) -> Tuned:
    """Train the plain model and save it with its tokenizer in ``folder``."""
    model = untrained(family, settings, tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        how = FineTune(
            out=scratch,
            steps=settings.steps,
            batch=settings.batch,
            lr=settings.lr,
            warmup=settings.steps // 10,
            weight_decay=0.1,
            seed=settings.seed,
            device=settings.device,
            loss_chunk=0,
        )
        tuned = finetune(model, text.train, how, say=None)
    write_folder(folder, model.save_pretrained)
    write_folder(folder, tokenizer.save_pretrained)
    return tuned
