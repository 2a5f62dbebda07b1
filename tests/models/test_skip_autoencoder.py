import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import images

from lambdanet.models import count_parameters, create_model
from lambdanet.models.skip_autoencoder import DEEPEST, SkipAutoEncoder
from lambdanet.tracking import export

LEVELS = (1, 2, 3)


def create(seed=0, **hyperparameters):
    torch.manual_seed(seed)
    return helpers.with_history(SkipAutoEncoder(**hyperparameters), seed)


def normalised(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps) ** 0.5
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def rectified(x):
    return x * (x > 0)


def test_default_is_three_levels_of_32_channels():
    assert count_parameters(create_model("skip-autoencoder")) == 334_403
    stride = {1: 2, 2: 4, 3: 8}
    assert {levels: SkipAutoEncoder(width=1, levels=levels).stride for levels in LEVELS} == stride


def test_network_is_the_descriptions_layers_with_added_shortcuts():
    """Convolution, pooling, normalisation, ReLU; ReLU of the shortcut and what is transposed."""
    model = create(width=2, levels=2).double()
    y = images(2, 3, 12, 20, dtype=torch.float64) - 0.2
    fine = F.conv2d(y, model.convolutions[0].weight, padding=1)
    half = rectified(normalised(fine.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), model.poolings[0][1]))
    coarse = F.conv2d(half, model.convolutions[1].weight, padding=1)
    bottom = rectified(normalised(coarse.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)), model.poolings[1][1]))

    def doubled(x, number):
        deconvolution, norm = model.deconvolutions[number]
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[..., ::2, ::2] = x
        kernel = deconvolution.weight.transpose(0, 1).flip(2, 3)
        return normalised(F.conv2d(spread, kernel, padding=1), norm)

    x = rectified(doubled(bottom, 0) + coarse)
    x = rectified(doubled(x, 1) + fine)
    expected = F.conv2d(x, model.output.weight.transpose(0, 1).flip(2, 3), model.output.bias, padding=1)
    torch.testing.assert_close(model(y), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_depth_takes_the_smallest_image_of_a_registered_program(levels):
    model = create(width=2, levels=levels)
    export.verify(export.Portable(model, {}), model)
    assert 2**DEEPEST == export.SMALLEST
