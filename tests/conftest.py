"""Each test starts from the same random state and on one thread, so that a failure repeats."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


torch.set_num_threads(1)
