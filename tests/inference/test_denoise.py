import helpers
import numpy as np
import pytest
import torch

from lambdanet import backends
from lambdanet.data.images import to_tensor
from lambdanet.inference.denoise import denoise
from lambdanet.models import MODELS, create_model, load_weights

WEIGHTS = helpers.ROOT / "weights/paper"


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (70, 45)], ids=str)
@pytest.mark.parametrize("name", ["lambdanet", "lambdanet-u4-m7"])
def test_tiles_give_what_the_whole_gives(name, size):
    helpers.assert_tiles_fit(load_weights(WEIGHTS / f"gaussian-02-{name}-0.safetensors")[0], size)


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("scale", [1, 3000], ids=["logits of 1", "logits of 3000"])
@torch.no_grad()
def test_context_over_tiles_is_the_content_lambda_of_the_whole(u, scale):
    model = load_weights(WEIGHTS / f"speckle-lambdanet{'-u4-m7' if u == 4 else ''}-0.safetensors")[0].double()
    assert model.u == u
    model.keys[0].weight *= scale / model.keys[0].weight.abs().max()
    photographs = [helpers.noisy_photograph(40, 50, sigma=0.2, seed=seed) for seed in (0, 1)]
    noisy = to_tensor(np.stack(photographs)).double()
    tiles = [noisy[..., :7, :], noisy[..., 7:39, :13], noisy[..., 7:39, 13:], noisy[..., 39:, :]]
    # The formula, in one go: keys' softmax over all pixels, times the values.
    keys = model.keys(noisy).unflatten(1, (model.k, model.u)).flatten(3).softmax(-1)
    values = model.values(noisy).unflatten(1, (model.v, model.u)).flatten(3)
    expected = (keys[:, :, None] * values[:, None]).sum((-1, -2))
    assert expected.isfinite().all()
    for order in (tiles, tiles[::-1], [noisy]):
        torch.testing.assert_close(model.context(iter(order)), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model(noisy, expected), model(noisy), rtol=1e-9, atol=1e-12)


def test_model_without_halo_takes_the_whole():
    torch.manual_seed(0)
    model = create_model("lambda-resnet", blocks="l", width=4).eval()
    assert model.halo is None
    helpers.assert_tiles_fit(model, (30, 20))


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
