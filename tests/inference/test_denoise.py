import helpers
import numpy as np
import pytest
import skimage.data
import torch
from torch import nn

from lambdanet import backends
from lambdanet.data.images import to_tensor
from lambdanet.inference.denoise import TILE, denoise, denoise_photograph
from lambdanet.models import MODELS, create_model, load_weights

CPU = torch.device("cpu")
WEIGHTS = helpers.ROOT / "weights/quick"
TRAINED = ("autoencoder", "lambdanet", "lambdanet-u4-m7")
SIZES = [(1, 1), (1, 40), (70, 45)]


@pytest.fixture(scope="module", params=TRAINED)
def trained(request):
    """A network of the profile quick, as it is in git."""
    return load_weights(WEIGHTS / f"gaussian-02-{request.param}-0.safetensors")[0]


def photo(h, w, dtype=np.uint8, seed=0):
    """Part of a photograph with noise, of 8 or of 16 true bits."""
    clean = skimage.data.chelsea()[100 : 100 + h, 150 : 150 + w] / 255
    noisy = np.clip(clean + 0.2 * np.random.default_rng(seed).standard_normal(clean.shape), 0, 1)
    return np.round(np.iinfo(dtype).max * noisy).astype(dtype)


def apart(first, second):
    return np.abs(first.astype(int) - second.astype(int)).max()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_give_what_the_whole_gives(trained, size):
    image = photo(*size, np.uint16)
    whole = denoise_photograph(trained, image, CPU, tile=TILE)
    assert (whole.dtype, whole.shape) == (np.uint16, image.shape)
    assert apart(denoise_photograph(trained, image, CPU, tile=32), whole) <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_whole_is_the_network_clipped_and_rounded(trained, dtype):
    image, white = photo(45, 37, dtype), np.iinfo(dtype).max
    noisy = torch.from_numpy(image.astype(np.float32) / np.float32(white)).permute(2, 0, 1)[None]
    expected = (denoise(trained, noisy)[0].clamp(0, 1) * white).round().permute(1, 2, 0).numpy()
    output = denoise_photograph(trained, image, CPU)
    assert output.dtype == dtype
    assert apart(output, expected) <= (dtype == np.uint16)
    clean = skimage.data.chelsea()[100:145, 150:187] / 255
    error, error_before = (np.mean((values / white - clean) ** 2) for values in (output, image))
    assert error < 0.35 * error_before


def content_lambda(model, noisy):
    """The formula, in one go: keys' softmax over all pixels, times the values."""
    keys = model.keys(noisy).unflatten(1, (model.k, model.u)).flatten(3).softmax(-1)
    values = model.values(noisy).unflatten(1, (model.v, model.u)).flatten(3)
    return (keys[:, :, None] * values[:, None]).sum((-1, -2))


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("scale", [1, 3000], ids=["logits of 1", "logits of 3000"])
@torch.no_grad()
def test_context_over_tiles_is_the_content_lambda_of_the_whole(u, scale):
    model = load_weights(WEIGHTS / f"speckle-lambdanet{'-u4-m7' if u == 4 else ''}-0.safetensors")[0].double()
    assert model.u == u
    model.keys[0].weight *= scale / model.keys[0].weight.abs().max()
    noisy = to_tensor(np.stack([photo(40, 50), photo(40, 50, seed=1)])).double()
    tiles = [noisy[..., :7, :], noisy[..., 7:39, :13], noisy[..., 7:39, 13:], noisy[..., 39:, :]]
    expected = content_lambda(model, noisy)
    assert expected.isfinite().all()
    for order in (tiles, tiles[::-1], [noisy]):
        torch.testing.assert_close(model.context(iter(order)), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model(noisy, expected), model(noisy), rtol=1e-9, atol=1e-12)


class Levelled(nn.Module):
    """Knows no `halo`, as it looks at all pixels: (b, 3, h, w), the mean becomes 1/2."""

    def forward(self, noisy):
        return noisy - noisy.mean() + 0.5


def test_model_without_halo_takes_the_whole():
    image = np.random.default_rng(0).integers(100, 140, (30, 20, 3), np.uint8)
    image[:8, :8] -= 50
    output = denoise_photograph(Levelled(), image, CPU, tile=8)
    expected = np.round(image - image.astype(float).mean() + 127.5)
    assert apart(output, expected) == 0


@pytest.mark.parametrize("name", sorted(MODELS))
def test_layout_in_memory_is_what_a_network_takes_and_does_not_show(name):
    model = create_model(name, **({"depth": 3, "width": 8} if name == "dncnn" else {})).eval()
    noisy = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    taken = []
    model.register_forward_pre_hook(lambda _, images: taken.append(images[0]))
    found = denoise(model, noisy)
    with backends.forced("reference"):
        expected = denoise(model, noisy)
    last, plain = taken
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last) == (name != "lambdanet")
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
