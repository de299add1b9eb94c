"""A small model with random weights under the name of one on the hub: a page that loads it runs as printed,
and nothing is downloaded.

transformers takes a name for a folder first, so a folder of that name, where the page's code runs, stands for
the hub.
"""

from __future__ import annotations

from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
END = "<|endoftext|>"


def tokenizer():
    """One id a byte."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {word: i for i, word in enumerate([END, *alphabet])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END
    )


def write(folder: Path) -> Path:
    """The model and its tokenizer, of SmolLM2's class, below ``folder``; returns where."""
    import torch
    import transformers

    words, there = tokenizer(), folder / NAME
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(there)
    words.save_pretrained(there)
    return there


def for_page(text: str, folder: Path) -> None:
    """What the code of this page loads by name, in the folder where the code will run."""
    if NAME in text:
        write(folder)
