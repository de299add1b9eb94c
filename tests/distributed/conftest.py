"""Two gloo processes for the tests of this folder."""

import pytest
from ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    pair = Ranks(2)
    yield pair
    pair.close()
