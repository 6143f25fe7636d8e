"""The scripts in eval/ are no package: put them on the path, so that tests import them as modules."""

import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[2] / "eval"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Work this small gains nothing from threads, and loses seconds to them where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)
