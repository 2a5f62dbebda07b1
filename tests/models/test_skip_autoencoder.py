import helpers
import pytest
import torch
import torch.nn.functional as F

from lambdanet.models import count_parameters, create_model
from lambdanet.models.skip_autoencoder import DEEPEST, SkipAutoEncoder
from lambdanet.tracking import export

LEVELS = (1, 2, 3)
WIDE = {  # of the convolutions that mirror each other, and of the first and the last
    1: 9 * (3 * 32 + 32 * 32 + 32 * 3) + 3 + 2 * 2 * 32,
    2: 9 * (3 * 32 + 32 * 64 + 64 * 64 + 64 * 32 + 32 * 3) + 3 + 2 * 2 * (32 + 64),
    3: 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 128 + 128 * 64 + 64 * 32 + 32 * 3) + 3 + 4 * (32 + 64 + 128),
}


def images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def create(seed=0, **hyperparameters):
    torch.manual_seed(seed)
    return helpers.with_history(SkipAutoEncoder(**hyperparameters), seed)


def normalised(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps) ** 0.5
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def rectified(x):
    return x * (x > 0)


@pytest.mark.parametrize(("levels", "count"), WIDE.items())
def test_parameters_are_those_of_the_layers(levels, count):
    assert count_parameters(SkipAutoEncoder(levels=levels)) == count
    assert count == {1: 11_075, 2: 75_843, 3: 334_403}[levels]


def test_default_is_three_levels_of_32_channels():
    assert count_parameters(create_model("skip-autoencoder")) == WIDE[3]
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
    assert [part.shape[1:] for part in (fine, half, coarse, bottom)] == [
        (2, 12, 20),
        (2, 6, 10),
        (4, 6, 10),
        (4, 3, 5),
    ]
    torch.testing.assert_close(model(y), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_a_shortcut_alone_carries_the_image(level):
    """With the transposed convolution beside it silenced, nothing from deeper levels reaches the output."""
    model, y = create(width=4), images(2, 3, 16, 24)
    silenced = model.deconvolutions[-level][1]
    before = model(y)
    with torch.no_grad():
        silenced.weight.zero_()
        silenced.bias.zero_()
    output = model(y)
    assert (output - before).abs().max() > 1e-3
    assert output.std(dim=(0, 2, 3)).min() > 1e-3
    output.sum().backward()
    for number, convolution in enumerate(model.convolutions, start=1):
        assert bool(convolution.weight.grad.any()) == (number <= level)


@pytest.mark.parametrize("level", LEVELS)
def test_without_a_shortcut_the_output_is_another(level):
    model, y = create(width=4), images(2, 3, 16, 24)
    whole, features = model(y), []
    model.convolutions[level - 1].register_forward_hook(lambda _module, _args, x: features.append(x))
    model.deconvolutions[-level].register_forward_hook(lambda _module, _args, x: x - features.pop())
    assert (model(y) - whole).abs().max() > 1e-2


def test_output_leaves_the_unit_interval():
    output = create(width=4)(10 * images(2, 3, 32, 32) - 5)
    assert output.min() < 0
    assert output.max() > 1


def test_network_itself_takes_multiples_of_the_stride_only():
    with pytest.raises(RuntimeError, match="must match"):
        create(width=2)(images(1, 3, 33, 45))


@pytest.mark.parametrize("levels", LEVELS)
def test_every_depth_takes_the_smallest_image_of_a_registered_program(levels):
    model = create(width=2, levels=levels)
    export.verify(export.Portable(model), model)
    assert 2**DEEPEST == export.SMALLEST


def test_products_in_half_precision_are_close():
    model, y = create(width=8), images(4, 3, 32, 32)
    expected = model(y)
    model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(y)
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).square().mean() < 1e-3 * expected.var()
    output.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
