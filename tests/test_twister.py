"""Salt and pepper by the compiled kernel: torch's numbers, and the generator ends where torch's would."""

import numpy as np
import pytest
import torch

from lambdanet import noise, twister


@pytest.fixture(autouse=True)
def compiled():
    pytest.importorskip("llvmlite")
    assert twister.agrees()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_formula(images, generator, amount):
    uniform = torch.rand(images.shape, generator=generator)
    return torch.where(uniform < amount / 2, 0.0, torch.where(uniform >= 1 - amount / 2, 1.0, images))


@pytest.mark.parametrize("amount", [0.0001, 0.05, 1 / 3, 1.0])
@pytest.mark.parametrize("shape", [(1248,), (1249,), (2, 3, 32, 32), (5, 7, 41), (256, 3, 32, 32)])
def test_gives_what_torchs_numbers_give(shape, amount):
    images = torch.rand(shape, generator=generator(9))
    for seed in (0, 1, 2**32 + 5, 2**64 - 1):
        mine, torchs = generator(seed), generator(seed)
        for _ in range(3):  # the second call starts in the middle of a block
            found = twister.salt_and_pepper(images, mine, amount)
            assert torch.equal(found, by_formula(images, torchs, amount))
            assert torch.equal(mine.get_state(), torchs.get_state())
            torch.rand(5, generator=mine), torch.rand(5, generator=torchs)


def test_kernel_is_what_runs(monkeypatch):
    drawn = []
    by_torch = twister._by_torch
    monkeypatch.setattr(
        twister, "_by_torch", lambda values, *rest: drawn.append(len(values)) or by_torch(values, *rest)
    )
    twister.salt_and_pepper(torch.zeros(10, 3, 32, 32), generator(), 0.05)
    assert drawn == [0, 10 * 3072 % 624]


def test_numbers_are_those_of_numpys_mersenne_twister():
    bits = np.random.MT19937()
    bits._legacy_seeding(7)
    uniform = (bits.random_raw(6240) % 2**24) / 2**24
    found = twister.salt_and_pepper(torch.full((6240,), 0.5), generator(7), 0.3)
    expected = np.where(uniform < 0.15, 0, np.where(uniform >= 0.85, 1, 0.5))
    np.testing.assert_array_equal(found, expected)


def test_images_come_out_as_they_went_in():
    images = torch.rand(4, 3, 32, 32, generator=generator(9))
    before = images.clone()
    found = noise.create_noise("salt-and-pepper", amount=0.05)(images, generator())
    assert torch.equal(images, before)
    assert found.shape == images.shape
    kept = (found != 0) & (found != 1)
    assert torch.equal(found[kept], images[kept])
    # 12,288 values: the standard deviation of the share is 0.002
    assert abs((~kept).float().mean() - 0.05) < 0.01


def test_what_the_kernel_does_not_fit_is_drawn_by_torch():
    images = torch.rand(8, 32, 32, 3, generator=generator(9))
    for other in (images.permute(0, 3, 1, 2), images.double(), images.half(), images[:1, :8], images[:0]):
        found = twister.salt_and_pepper(other, generator(3), 0.05)
        assert torch.equal(found, by_formula(other, generator(3), 0.05))
        assert found.dtype == other.dtype


def test_a_machine_where_it_does_not_agree_keeps_to_torch(monkeypatch):
    images = torch.rand(8, 3, 32, 32, generator=generator(9))
    expected = twister.salt_and_pepper(images, generator(3), 0.05)

    def refuse(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(twister, "_kernel", refuse)
    twister.agrees.cache_clear()
    try:
        assert not twister.agrees()
        assert torch.equal(twister.salt_and_pepper(images, generator(3), 0.05), expected)
        monkeypatch.setattr(twister, "_kernel", lambda: lambda *_: None)  # one that does nothing
        twister.agrees.cache_clear()
        assert not twister.agrees()
    finally:
        twister.agrees.cache_clear()
