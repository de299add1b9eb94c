"""Commands have their own lines: transformers' notices and progress bars off for a while."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

from ..extras import require


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers reports errors only and tokenizers start no threads (Trainer's workers would warn of them); as before afterwards.

    Raises:
        ConfigError: transformers is not installed.
    """
    logging = require("transformers", "working with Hugging Face models", "hf").utils.logging
    level, bars, threads = logging.get_verbosity(), logging.is_progress_bar_enabled(), os.environ.get("TOKENIZERS_PARALLELISM")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with warnings.catch_warnings():
            # Of peft, where a model came from a GGUF file: there is no config.json to compare the vocabulary with.
            warnings.filterwarnings("ignore", "Could not find a config file", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")  # names that peft still uses, for example
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if threads is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
