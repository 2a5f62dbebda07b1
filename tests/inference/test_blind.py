import helpers
import numpy as np
import pytest
import skimage.data
import torch

from lambdanet.data.images import to_tensor
from lambdanet.data.noise import create_noise
from lambdanet.inference import blind
from lambdanet.models import load_weights

NOISES = ("gaussian-01", "gaussian-02", "gaussian-03", "salt-and-pepper", "speckle")


def trained(noise):
    network, description = load_weights(helpers.ROOT / f"weights/paper/{noise}-autoencoder-0.safetensors")
    return network, create_noise(**description["noise"])


def photographs(side):
    """The middle of four photographs; none of them was trained on."""
    whole = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    middles = [(len(one) // 2, one.shape[1] // 2, one) for one in whole]
    half = side // 2
    return to_tensor(np.stack([one[y - half : y + half, x - half : x + half] for y, x, one in middles]))


def as_a_file(noisy):
    return (255 * noisy.clamp(0, 1)).round() / 255


def test_right_denoiser_fits_best_on_most_photographs():
    denoisers, clean, wrong = [trained(noise) for noise in NOISES], photographs(128), 0
    for number, (_, noise) in enumerate(denoisers):
        noisy = as_a_file(noise(clean, torch.Generator().manual_seed(7)))
        misfits = torch.stack([blind.misfit(noisy, *one) for one in denoisers])
        wrong += (misfits.argmin(0) != number).sum().item()
    assert wrong <= 1  # of 20


def test_misfit_is_the_recorded_one_the_same_again_and_of_each_image_alone():
    network, noise = trained("speckle")
    noisy = as_a_file(noise(photographs(32), torch.Generator().manual_seed(7)))
    state = torch.get_rng_state()
    first = blind.misfit(noisy, network, noise)
    recorded = torch.tensor([0.0106, 0.0050, 0.0097, 0.0141])
    torch.testing.assert_close(first, recorded, rtol=0.02, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(blind.misfit(noisy, network, noise), first)
    torch.testing.assert_close(blind.misfit(noisy[:1], network, noise), first[:1])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)], ids=str)
def test_smallest_images_have_a_misfit(size):
    network, noise = trained("gaussian-01")
    assert blind.misfit(torch.rand(1, 3, *size), network, noise).isfinite().all()
