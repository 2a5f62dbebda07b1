from unittest.mock import Mock

import pytest
import torch

from lambdanet import devices


def test_auto_takes_cuda_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.choose_device() == torch.device("cuda")
    assert devices.choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "tpu", ""])
def test_absent_device_is_named(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device '{name}' is not available here; choose auto or cpu"):
        devices.choose_device(name)


GPU = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory."))
PYTHON = Mock(side_effect=MemoryError())
SAID = r"^out of memory: \d+\.\d GiB were in use at most, and the cpu has \d+\.\d GiB; lower batch_size$"


@pytest.mark.parametrize("allocate", [GPU, PYTHON, lambda: torch.empty(2**60)], ids=["GPU", "Python", "CPU"])
def test_memory_that_ends_is_one_line(allocate):
    with pytest.raises(ValueError, match=SAID):  # noqa: SIM117
        with devices.memory_errors_in_one_line(torch.device("cpu"), "lower batch_size"):
            allocate()
