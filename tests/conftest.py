"""What every test starts from: the same seeds, few threads, no display, no network."""

import os
import random

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))  # the same rounding on every machine
hypothesis.settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # so is a busy machine
)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture(autouse=True)
def seeds():
    """Tests give their own generators; whatever draws from a global one repeats all the same."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """The same rounding in processes that are compared; and CPU time that is work: of two threads
    on a busy machine, each spins while it waits for the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
