"""A small language model on text of your own, with the plain or a reversible trunk: ``train``, ``resume``,
``generate``.

    from revstep import lm
    result = lm.train(lm.TrainConfig(scheme="blend:c=0.25", steps=200, out="run"))
    print(lm.generate_text("run", prompt="def "))

Names are imported on first use, so that ``revstep --help`` does not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:  # what a type checker sees of it; .ci/typed.py compares the names
    from ._architectures import GPT as GPT
    from ._architectures import Block as Block
    from ._architectures import Llama as Llama
    from ._architectures import LlamaBlock as LlamaBlock
    from ._architectures import make_model as make_model
    from ._checkpoint import Checkpoint as Checkpoint
    from ._checkpoint import CheckpointError as CheckpointError
    from ._checkpoint import load_checkpoint as load_checkpoint
    from ._checkpoint import save_checkpoint as save_checkpoint
    from ._config import GPTConfig as GPTConfig
    from ._config import LlamaConfig as LlamaConfig
    from ._config import TrainConfig as TrainConfig
    from ._data import Batches as Batches
    from ._data import Corpus as Corpus
    from ._data import find_files as find_files
    from ._data import prepare as prepare
    from ._data import standard_library as standard_library
    from ._guard import HeadroomError as HeadroomError
    from ._language_model import LanguageModel as LanguageModel
    from ._language_model import ResidualStack as ResidualStack
    from ._parallel import ParallelError as ParallelError
    from ._run import evaluate as evaluate
    from ._sampler import generate as generate
    from ._sampler import generate_text as generate_text
    from ._sampler import load_model as load_model
    from ._session import DivergedError as DivergedError
    from ._session import LogError as LogError
    from ._session import Result as Result
    from ._tokenizer import BPETokenizer as BPETokenizer
    from ._tokenizer import ByteTokenizer as ByteTokenizer
    from ._tokenizer import load_tokenizer as load_tokenizer
    from ._trainer import resume as resume
    from ._trainer import train as train
else:
    __all__, __getattr__, __dir__ = late(__name__, _HOMES)
