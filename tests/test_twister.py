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


@pytest.fixture
def blocks(monkeypatch):
    """How many values each call of the kernel was given."""
    counts, by_kernel = [], twister._by_kernel

    def count(images, *rest):
        counts.append(images.numel())
        return by_kernel(images, *rest)

    monkeypatch.setattr(twister, "_by_kernel", count)
    return counts


@pytest.mark.parametrize("amount", [0.0001, 0.05, 1 / 3, 1.0])
@pytest.mark.parametrize("shape", [(9984,), (9985,), (5, 3, 32, 32), (50, 7, 41), (256, 3, 32, 32)])
def test_gives_what_torchs_numbers_give(shape, amount, blocks):
    images = torch.rand(shape, generator=generator(9))
    for seed in (0, 1, 2**32 + 5, 2**64 - 1):
        mine, torchs = generator(seed), generator(seed)
        for _ in range(3):  # the second call starts in the middle of a block
            found = twister.salt_and_pepper(images, mine, amount)
            assert torch.equal(found, by_formula(images, torchs, amount))
            assert torch.equal(mine.get_state(), torchs.get_state())
            torch.rand(5, generator=mine), torch.rand(5, generator=torchs)
    assert blocks == [images.numel()] * 12


def test_torch_draws_the_parts_of_blocks_only(monkeypatch):
    drawn, by_torch = [], twister._by_torch

    def count(values, *rest):
        drawn.append(len(values))
        return by_torch(values, *rest)

    monkeypatch.setattr(twister, "_by_torch", count)
    mine = generator()
    for _ in range(2):
        twister.salt_and_pepper(torch.zeros(10, 3, 32, 32), mine, 0.05)
    after = 30720 % 624
    assert drawn == [0, after, 624 - after, (30720 - 624 + after) % 624]


def test_numbers_are_those_of_numpys_mersenne_twister():
    bits = np.random.MT19937()
    bits._legacy_seeding(7)
    uniform = (bits.random_raw(12480) % 2**24) / 2**24
    found = twister.salt_and_pepper(torch.full((12480,), 0.5), generator(7), 0.3)
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


def test_what_the_kernel_does_not_fit_is_drawn_by_torch(blocks):
    images = torch.rand(16, 32, 32, 3, generator=generator(9))
    others = [images.permute(0, 3, 1, 2), images.double(), images.half(), images[:1, :8], images[:0]]
    for other in [*others, images.clone().requires_grad_()]:
        mine, torchs = generator(3), generator(3)
        torch.rand(5, generator=mine), torch.rand(5, generator=torchs)
        found = twister.salt_and_pepper(other, mine, 0.05)
        assert torch.equal(found, by_formula(other, torchs, 0.05))
        assert found.dtype == other.dtype
    assert not blocks
    twister.salt_and_pepper(images, generator(3), 0.05)
    assert blocks == [images.numel()]


def test_torchs_defaults_do_not_count():
    images = torch.rand(16, 3, 32, 32, generator=generator(9))
    expected = twister.salt_and_pepper(images, generator(3), 0.05)
    torch.set_default_dtype(torch.float64)
    try:
        twister.agrees.cache_clear()
        assert twister.agrees()
        assert torch.equal(twister.salt_and_pepper(images, generator(3), 0.05), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(twister.salt_and_pepper(images, generator(3), 0.05), expected)


def test_a_machine_where_it_does_not_agree_keeps_to_torch(monkeypatch):
    images = torch.rand(16, 3, 32, 32, generator=generator(9))
    expected = twister.salt_and_pepper(images, generator(3), 0.05)

    def refuse(*_):
        raise RuntimeError("no compiler here")

    others = {"_kernel": [refuse, lambda: lambda *_: None], "BYTES": [5000], "_left": [lambda _: -1]}
    try:
        for name, values in others.items():
            for value in values:
                with monkeypatch.context() as patch:
                    patch.setattr(twister, name, value)
                    twister.agrees.cache_clear()
                    assert not twister.agrees()
                    assert torch.equal(twister.salt_and_pepper(images, generator(3), 0.05), expected)
    finally:
        twister.agrees.cache_clear()
