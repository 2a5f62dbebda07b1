import hashlib
import inspect
import io

import helpers
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from skimage.util import random_noise

from lambdanet.data.corruption import corrupt
from lambdanet.data.images import to_bytes
from lambdanet.data.noise import NOISES, create_noise

# Each noise as the paper uses it. A new entry of NOISES must be added here to be tested.
PAPER = {
    "gaussian": [{"sigma": 0.1}, {"sigma": 0.2}, {"sigma": 0.3}],
    "salt-and-pepper": [{"amount": 0.05}],
    "speckle": [{"variance": 0.1}],
    # not the paper's
    "clipped-gaussian": [{"sigma": 25 / 255}],
    "blind-gaussian": [{"low": 1 / 255, "high": 55 / 255}],
    "blind-gaussian-in-files": [{"low": 1 / 255, "high": 55 / 255, "grey": 0.25, "halved": 0.5}],
}
CASES = [(name, parameters) for name, cases in PAPER.items() for parameters in cases]
every = pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)
ALONE = [one for one in CASES if one[0] != "blind-gaussian-in-files"]  # where a value depends on no other
by_value = pytest.mark.parametrize(("name", "parameters"), ALONE, ids=str)
salted = create_noise("salt-and-pepper", amount=0.05)


def test_blind_gaussian_draws_a_sigma_for_each_image():
    noise = create_noise("blind-gaussian", low=0.02, high=0.2)
    sigmas = (noise(flat(0.5, 400), generator()) - 0.5).std((1, 2, 3))
    assert sigmas.min() > 0.0195
    assert sigmas.max() < 0.205
    deciles = torch.quantile(sigmas, torch.linspace(0.1, 0.9, 9))
    torch.testing.assert_close(deciles, 0.02 + 0.18 * torch.linspace(0.1, 0.9, 9), atol=0.02, rtol=0)


def in_files(images, **shares):
    wanted = {"low": 0.1, "high": 0.100001, "grey": 1e-9, "halved": 1e-9} | shares
    return create_noise("blind-gaussian-in-files", **wanted)(images, generator())


def test_a_share_of_the_images_has_the_noise_of_greyscale_ones():
    changes = in_files(flat(0.5, 4000), grey=0.25) - 0.5
    same = (changes == changes[:, :1]).all((1, 2, 3))
    assert same.float().mean() == pytest.approx(0.25, abs=0.03)
    assert changes[same].std() == pytest.approx(0.1, abs=0.001)
    of_colours = changes[~same].transpose(0, 1).flatten(1)
    assert torch.corrcoef(of_colours).fill_diagonal_(0).abs().max() < 0.01


def test_a_share_of_the_images_has_colours_as_jpeg_stores_them():
    """Beside Pillow's own JPEG without loss by quantisation, to rounding; sides may be odd."""
    clean = torch.from_numpy(skimage.data.chelsea()[:201, :301].copy()).permute(2, 0, 1)
    images = (clean / 255).expand(8, -1, -1, -1)
    noisy, stored = (to_bytes(in_files(images, halved=share)) for share in (1e-9, 0.5))
    changed = [number for number in range(8) if (noisy[number] != stored[number]).any()]
    assert 0 < len(changed) < 8
    for number in changed:
        file = io.BytesIO()
        Image.fromarray(noisy[number]).save(file, "JPEG", quality=100, subsampling="4:2:0")
        expected = np.asarray(Image.open(file)).astype(float)
        assert np.square(stored[number] - expected).mean() < 1 < np.square(noisy[number] - expected).mean()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def flat(value, count=100):
    return torch.full((count, 3, 32, 32), value)


def test_every_noise_is_tried():
    assert set(PAPER) == set(NOISES)
    for name, cases in PAPER.items():
        given = inspect.signature(NOISES[name]).parameters.values()
        takes = {one.name for one in given if one.kind is one.KEYWORD_ONLY}
        assert all(set(parameters) == takes for parameters in cases)


@every
def test_same_seed_gives_the_same_bytes_and_leaves_the_images_alone(name, parameters):
    noise, images = create_noise(name, **parameters), torch.rand(4, 3, 16, 16, generator=generator(9))
    before = images.clone()
    torch.manual_seed(1)
    first, other = (noise(images, generator(seed)) for seed in (1, 2))
    torch.manual_seed(2)  # the global seed does not count
    assert torch.equal(noise(images, generator(1)), first)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, images.dtype)


@by_value
def test_images_and_colours_get_noise_of_their_own(name, parameters):
    noisy = create_noise(name, **parameters)(flat(0.5), generator())
    changes = (noisy - 0.5).transpose(0, 1).flatten(1).double()  # (colour, values)
    assert torch.corrcoef(changes).fill_diagonal_(0).abs().max() < 0.015
    of_images = (noisy - 0.5)[:20].flatten(1).double()
    assert torch.corrcoef(of_images).fill_diagonal_(0).abs().max() < 0.1


def short_digest(values):
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def bytes_of_colours():
    return np.random.default_rng(0).integers(0, 256, (2300, 32, 32, 3), dtype=np.uint8)


def test_stored_salt_and_pepper_is_the_one_of_the_committed_results(bytes_of_colours):
    """Three chunks, the last one smaller; recorded when a kernel drew the numbers."""
    assert short_digest(corrupt(bytes_of_colours, salted, seed=5)) == "941e6684bdf6423a"


@pytest.mark.parametrize(("batch", "digest"), [(37, "46094a6b090e5f14"), (256, "38e26b3ad42f862e")])
def test_fresh_salt_and_pepper_is_the_one_of_the_committed_results(bytes_of_colours, batch, digest):
    """Three steps of a training, each with a seed, then one that continues from where the third ended."""
    fresh = generator()
    found = []
    for step in range(3):
        some = torch.from_numpy(bytes_of_colours[step * batch : (step + 1) * batch]).float()
        found.append(salted(some.permute(0, 3, 1, 2).contiguous() / 255, fresh.manual_seed(2**63 + step)))
    first = torch.from_numpy(bytes_of_colours[:batch]).float().permute(0, 3, 1, 2) / 255
    found.append(salted(first, fresh))
    assert short_digest(torch.cat(found).numpy()) == digest


SKIMAGE = {
    "clipped-gaussian": lambda p: {"mode": "gaussian", "var": p["sigma"] ** 2, "clip": True},
    "gaussian": lambda parameters: {"mode": "gaussian", "var": parameters["sigma"] ** 2, "clip": False},
    "speckle": lambda parameters: {"mode": "speckle", "var": parameters["variance"]},
    "salt-and-pepper": lambda parameters: {"mode": "s&p", "amount": parameters["amount"]},
}


@pytest.mark.parametrize(("name", "parameters"), [case for case in CASES if len(case[1]) == 1], ids=str)
def test_distribution_is_that_of_scikit_image(name, parameters):
    clean = skimage.data.astronaut()[None]
    ours = corrupt(clean, create_noise(name, **parameters), seed=0).astype(float)
    x = clean / 255
    theirs = random_noise(x, rng=0, **SKIMAGE[name](parameters))
    psnrs = [peak_signal_noise_ratio(x, np.clip(y, 0, 1), data_range=1) for y in (ours, theirs)]
    assert psnrs[0] == pytest.approx(psnrs[1], abs=0.1)
    changes = [(y - x)[x > 0.2] for y in (ours, theirs)]
    assert changes[0].std() == pytest.approx(changes[1].std(), rel=0.02)
    shares = np.linspace(0.05, 0.95, 25)
    np.testing.assert_allclose(np.quantile(ours, shares), np.quantile(theirs, shares), atol=0.01)
    ours, theirs = (np.quantile(each, shares) for each in changes)
    np.testing.assert_allclose(ours, theirs, atol=0.02 * changes[1].std() + 0.001)


@by_value
def test_stored_noise_is_the_noise_rounded(name, parameters):
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    noise = create_noise(name, **parameters)
    exact = noise(torch.from_numpy(images).float() / 255, generator(5)).half().numpy()
    stored = corrupt(images, noise, seed=5)
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, exact)


@pytest.mark.parametrize(("name", "parameters", "message"), [
    ("poisson", {"rate": 1}, f"unknown noise 'poisson'; choose one of {', '.join(sorted(NOISES))}"),
    ("gaussian", {}, "noise 'gaussian' takes sigma; given: none"),
    ("speckle", {"variance": 0.1, "clip": True}, "noise 'speckle' takes variance; given: variance, clip"),
    ("salt-and-pepper", {"amount": 1.01}, "amount is 1.01, must be at most 1"),
    ("blind-gaussian", {"low": 0.2, "high": 0.1}, "low is 0.2, must be below high (0.1)"),
    *(("blind-gaussian-in-files", {"low": 0.1, "high": 0.2, "grey": 1, "halved": 1, name: 1.5},
       f"{name} is 1.5, must be at most 1") for name in ("grey", "halved")),
    *(("gaussian", {"sigma": value}, f"sigma of noise 'gaussian' is {value!r}, must be a number above 0")
      for value in (0, -0.1, True, "0.1", None, float("nan"), float("inf"), [0.1])),
])  # fmt: skip
def test_what_a_noise_does_not_take_is_named_in_one_line(name, parameters, message):
    assert helpers.refusal(create_noise, name, **parameters) == message
