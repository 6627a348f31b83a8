"""What every test starts from: no network, no fight for cores, the same random numbers."""

import os


# Before torch or transformers is imported, since both read these once; processes that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def seed() -> int:
    """Makes random weights and images the same in every run and every order of tests; gives the seed."""
    torch.manual_seed(0)
    return 0
