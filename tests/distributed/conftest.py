"""Two gloo processes for the tests of this folder, and one thread here as there: sums over two threads have
other bits.
"""

import pytest
import torch
from ranks import Ranks


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tests/conftest.py puts it back


@pytest.fixture(scope="session")
def ranks():
    pair = Ranks(2)
    yield pair
    pair.close()
