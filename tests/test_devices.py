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


def test_deterministic_algorithms_are_on():
    before = torch.are_deterministic_algorithms_enabled()
    try:
        devices.be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_cpu_is_described_with_its_threads():
    kind, *_, threads = devices.describe_device(torch.device("cpu")).split(", ")
    assert kind == "cpu"
    assert threads == f"{torch.get_num_threads()} threads"
