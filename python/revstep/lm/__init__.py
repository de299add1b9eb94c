"""A small language model on text of your own, with the plain or a reversible trunk: ``train``, ``resume``,
``generate``.

    from revstep import lm
    result = lm.train(lm.TrainConfig(scheme="blend:c=0.25", steps=200, out="run"))
    print(lm.generate_text("run", prompt="def "))

Names are imported on first use, so that ``revstep --help`` does not wait for torch.
"""

from __future__ import annotations

from .._imports import late

_HOMES = {
    "GPTConfig": "_config",
    "LlamaConfig": "_config",
    "TrainConfig": "_config",
    "GPT": "_architectures",
    "Block": "_architectures",
    "Llama": "_architectures",
    "LlamaBlock": "_architectures",
    "LanguageModel": "_language_model",
    "make_model": "_architectures",
    "ResidualStack": "_language_model",
    "ByteTokenizer": "_tokenizer",
    "BPETokenizer": "_tokenizer",
    "load_tokenizer": "_tokenizer",
    "Corpus": "_data",
    "Batches": "_data",
    "find_files": "_data",
    "standard_library": "_data",
    "prepare": "_data",
    "train": "_trainer",
    "resume": "_trainer",
    "Result": "_session",
    "DivergedError": "_session",
    "evaluate": "_run",
    "Checkpoint": "_checkpoint",
    "CheckpointError": "_checkpoint",
    "load_checkpoint": "_checkpoint",
    "save_checkpoint": "_checkpoint",
    "LogError": "_session",
    "HeadroomError": "_guard",
    "ParallelError": "_parallel",
    "generate": "_sampler",
    "generate_text": "_sampler",
    "load_model": "_sampler",
}

__all__, __getattr__, __dir__ = late(__name__, _HOMES)
