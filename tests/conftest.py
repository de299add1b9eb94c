"""Settings shared by all tests: reproducible Hypothesis examples, restored thread count."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("explore", parent=settings.get_profile("fixed"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("REVSTEP_HYPOTHESIS", "fixed"))


@pytest.fixture(autouse=True)
def _keep_thread_count():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
