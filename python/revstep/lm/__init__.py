"""A small language model on text of your own, with the plain or a reversible trunk: ``train``, ``resume``, ``generate``.

    from revstep import lm
    result = lm.train(lm.TrainConfig(scheme="blend:c=0.25", steps=200, out="run"))
    print(lm.generate_text("run", prompt="def "))

Names are imported on first use, so that ``revstep --help`` does not wait for torch.
"""

from __future__ import annotations

from ..late import late

_HOMES = {
    "GPTConfig": "shapes", "LlamaConfig": "shapes", "TrainConfig": "config",
    "GPT": "gpt", "Block": "gpt", "Llama": "llama", "LlamaBlock": "llama", "LanguageModel": "language_model", "make_model": "model", "ResidualStack": "trunk",
    "ByteTokenizer": "tokenizer", "BPETokenizer": "tokenizer", "load_tokenizer": "tokenizer",
    "Corpus": "data", "Batches": "data", "find_files": "data", "standard_library": "data", "prepare": "data",
    "train": "trainer", "resume": "trainer", "Result": "result", "DivergedError": "result", "evaluate": "run",
    "Checkpoint": "checkpoint", "CheckpointError": "checkpoint", "load_checkpoint": "checkpoint", "save_checkpoint": "checkpoint",
    "LogError": "session", "HeadroomError": "guard", "ParallelError": "parallel",
    "generate": "sampler", "generate_text": "sampler", "load_model": "sampler",
}  # fmt: skip

__all__, __getattr__, __dir__ = late(__name__, _HOMES)
