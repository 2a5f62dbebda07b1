from functools import partial

import helpers
import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity
from torch import nn

from lambdanet.data.arrays import digest
from lambdanet.evaluation import evaluator, metrics

CPU = torch.device("cpu")


def random(h, w, rng):
    return rng.random((5, h, w, 3))


def smooth(h, w, rng):
    return np.clip(gaussian_filter(rng.random((5, h, w, 3)), (0, 4, 4, 0)) * 1.5, 0, 1)


def photographs(h, w, rng):
    image = skimage.data.astronaut() / 255
    corners = [rng.integers(0, 512 - max(h, w), 2) for _ in range(5)]
    return np.stack([image[y : y + h, x : x + w] for y, x in corners])


def constant(h, w, rng):
    return np.broadcast_to(rng.random((5, 1, 1, 3)), (5, h, w, 3)).copy()


def tensor(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def skimage_ssim(clean, image, data_range=1):
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    return structural_similarity(clean, image, data_range=data_range, **how)


def assert_agree(clean, image, data_range=1):
    """Both metrics, per image, against scikit-image."""
    mse = metrics.mean_squared_error(tensor(clean), tensor(image))
    ours = [metrics.psnr(value, data_range=data_range) for value in mse.tolist()]
    theirs = [peak_signal_noise_ratio(x, y, data_range=data_range) for x, y in zip(clean, image, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    theirs = [mean_squared_error(x, y) for x, y in zip(clean, image, strict=True)]
    np.testing.assert_allclose(mse, theirs, rtol=1e-9)
    ours = metrics.ssim(tensor(clean), tensor(image), data_range=data_range)
    assert ours.shape == (len(clean),)
    theirs = [skimage_ssim(x, y, data_range) for x, y in zip(clean, image, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    return ours


@pytest.mark.parametrize("make", [random, smooth, photographs, constant])
@pytest.mark.parametrize("size", [(11, 11), (33, 47)])
@pytest.mark.parametrize("sigma", [0.01, 0.3])
def test_metrics_are_those_of_scikit_image(make, size, sigma):
    rng = np.random.default_rng(0)
    clean = make(*size, rng)
    assert_agree(clean, clean + sigma * rng.standard_normal(clean.shape))


@pytest.mark.parametrize("pixels", [1, 2 * 33 * 47, 1 << 20])
def test_images_are_compared_in_blocks_of_any_size(pixels, monkeypatch):
    rng = np.random.default_rng(2)
    clean = photographs(33, 47, rng)
    noisy = clean + 0.1 * rng.standard_normal(clean.shape)
    whole = assert_agree(clean, noisy)
    monkeypatch.setattr(metrics, "BLOCK", pixels)
    np.testing.assert_allclose(assert_agree(clean, noisy), whole, rtol=0, atol=1e-14)


def test_float32_images_lose_nothing():
    rng = np.random.default_rng(4)
    clean = smooth(32, 32, rng).astype(np.float32)
    image = (clean + 0.001 * rng.standard_normal(clean.shape)).astype(np.float32)
    expected = assert_agree(clean.astype(float), image.astype(float))
    np.testing.assert_allclose(metrics.ssim(tensor(clean), tensor(image), data_range=1), expected, atol=1e-9)


def test_identical_images():
    images = tensor(photographs(33, 47, np.random.default_rng(6)))
    assert metrics.mean_squared_error(images, images).tolist() == [0] * 5
    assert metrics.psnr(0, data_range=1) == np.inf
    assert metrics.ssim(images, images, data_range=1).tolist() == pytest.approx([1] * 5, abs=1e-12)


@pytest.mark.parametrize("size", [(10, 32), (32, 10), (1, 1)])
def test_images_smaller_than_the_window_are_refused(size):
    images = torch.zeros(1, 3, *size)
    message = f"SSIM needs images of at least 11 x 11, these are {size[0]} x {size[1]}"
    assert message in helpers.refusal(metrics.ssim, images, images, data_range=1)


@pytest.fixture
def scored(monkeypatch):
    """Seven photographs, their noisy copies, and the scores of a model that changes nothing."""
    monkeypatch.setattr(evaluator, "CHUNK", 3)
    clean = (255 * photographs(32, 32, np.random.default_rng(7))).astype(np.uint8)
    clean = np.concatenate([clean, np.zeros_like(clean[:1]), np.full_like(clean[:1], 255)])
    noisy = helpers.noisy(clean, {"name": "gaussian", "sigma": 0.2})
    return clean, noisy, evaluator.evaluate(nn.Identity(), clean, noisy, device=CPU)


def test_evaluate_pools_as_it_says(scored):
    clean, noisy, scores = scored
    x, y = clean / 255, np.clip(noisy.astype(float), 0, 1)
    per_image = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x, y, strict=True)]
    assert scores["psnr"] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-5)
    assert scores["psnr_per_image"] == pytest.approx(np.mean(per_image), abs=1e-5)
    assert scores["psnr_per_image"] > scores["psnr"] + 0.05
    ssim = np.mean([skimage_ssim(a, b) for a, b in zip(x, y, strict=True)])
    assert scores["ssim"] == pytest.approx(ssim, abs=1e-6)
    assert (scores["parameters"], scores["images"]) == (0, 7)
    assert (scores["clean_sha256"], scores["noisy_sha256"]) == (digest(clean), digest(noisy))


def test_evaluate_scores_the_input_beside_the_output(scored):
    clean, noisy, scores = scored
    for key in ("psnr", "ssim", "psnr_per_image"):
        assert scores[f"noisy_{key}"] == scores[key]

    grey = helpers.By(lambda noisy: torch.full_like(noisy, 0.5))
    grey = evaluator.evaluate(grey, clean, noisy, device=CPU)
    expected = peak_signal_noise_ratio(clean / 255, np.full(clean.shape, 0.5), data_range=1)
    assert grey["psnr"] == pytest.approx(expected, abs=1e-5)
    assert grey["noisy_psnr"] == scores["noisy_psnr"]


def test_evaluate_clips_for_scoring(scored):
    clean, noisy, scores = scored
    assert noisy.min() < 0 < 1 < noisy.max()

    stretch = helpers.By(lambda noisy: noisy + 5 * (noisy > 1) - 5 * (noisy < 0))
    stretched = evaluator.evaluate(stretch, clean, noisy, device=CPU)
    assert (stretched["psnr"], stretched["ssim"]) == (scores["psnr"], scores["ssim"])


def test_an_image_without_an_error_has_no_psnr_of_its_own(scored):
    """Speckle leaves black as it is: that image's PSNR would be infinite, which no score file can hold."""
    clean, noisy, scores = scored
    black = np.zeros((1, 32, 32, 3), np.uint8)
    images = np.concatenate([clean, black]), np.concatenate([noisy, black.astype(np.float16)])
    more = evaluator.evaluate(nn.Identity(), *images, device=CPU)
    assert more["images"] == scores["images"] + 1
    assert more["psnr_per_image"] == pytest.approx(scores["psnr_per_image"], rel=1e-12)
    assert 10 ** (-more["psnr"] / 10) == pytest.approx(10 ** (-scores["psnr"] / 10) * 7 / 8, rel=1e-9)
    with pytest.raises(ValueError, match="every test image equals its clean one"):
        evaluator.evaluate(nn.Identity(), black, black.astype(np.float16), device=CPU)


@pytest.mark.parametrize("metric", [metrics.mean_squared_error, partial(metrics.ssim, data_range=1)])
@pytest.mark.parametrize("other", [(1, 3, 16, 16), (2, 1, 16, 16), (2, 3, 16, 1), (3, 16, 16)], ids=str)
def test_images_of_different_shapes_are_refused(metric, other):
    with pytest.raises(ValueError, match=r"^images have the shapes \(2, 3, 16, 16\) and "):
        metric(torch.rand(2, 3, 16, 16), torch.rand(other))


@pytest.mark.parametrize("score", [evaluator.evaluate, evaluator.pooled_psnr])
def test_what_is_not_finite_is_not_scored(scored, score):
    clean, noisy, _ = scored
    with pytest.raises(ValueError, match=r"^an image that is scored holds NaN"):
        score(helpers.By(lambda noisy: noisy * torch.nan), clean, noisy, device=CPU)
    noisy[4, 3, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"^test image 4 has values that are not finite; make the images"):
        score(nn.Identity(), clean, noisy, device=CPU)
