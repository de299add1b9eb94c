import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `models`

from hub import hub, revstep  # noqa: F401, the fixtures of the command line


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to gain from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
