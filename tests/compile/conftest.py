"""Compiled stacks: nothing compiled is carried from one test to the next, and inductor writes to a folder of
the test session.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo

sys.path[:0] = [
    str(Path(__file__).parent),
    *(str(Path(__file__).parents[1] / name) for name in ("stack", "hf")),
]


@pytest.fixture(autouse=True)
def _fresh():
    torch.set_num_threads(1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session", autouse=True)
def _inductor_folder(tmp_path_factory):
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
    yield
    if before is None:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


@pytest.fixture(scope="session")
def inductor():
    """The backend's name; skips where inductor has no C++ compiler to call."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as e:
        pytest.skip(f"inductor needs a C++ compiler: {e}")
    return "inductor"
