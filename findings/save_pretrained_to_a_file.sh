#!/usr/bin/env bash
# save_pretrained to the path of a file: nothing is saved, nothing is raised.
#
# transformers' save_pretrained, of a tokenizer as of a model or a config, is given the path of a file that
# exists. One would guess an error such as os.makedirs raises for it. It writes a line to its log, which is
# silent under set_verbosity(CRITICAL) and easily lost, and returns. A program that goes on prints "saved".
#
# What helps: make the folder first (Path(path).mkdir(parents=True, exist_ok=True)), which raises.
#
# Seen with Python 3.11, transformers 5.24.0, tokenizers 0.23.3, CPU, 2026-11-30:
#   save_pretrained returned None; the file holds b'mine'; mkdir: FileExistsError
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys
from pathlib import Path

import tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

logging.set_verbosity(50)
bpe = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
path = Path("out")
path.write_bytes(b"mine")
try:
    returned = tokenizer.save_pretrained(path)
except OSError as error:
    print(f"it raises {type(error).__name__} now")
    sys.exit(1)
try:
    path.mkdir(parents=True, exist_ok=True)
    made = "nothing"
except OSError as error:
    made = type(error).__name__
print(f"save_pretrained returned {returned}; the file holds {path.read_bytes()}; mkdir: {made}")
sys.exit(not (returned is None and path.read_bytes() == b"mine" and made == "FileExistsError"))
PY
