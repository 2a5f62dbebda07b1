import pytest
import torch


@pytest.fixture
def threads():
    """Set how many threads torch has."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
