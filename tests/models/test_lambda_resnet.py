import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import images

from lambdanet.models.lambda_resnet import LambdaLayer, LambdaResNet


def create(**hyperparameters):
    torch.manual_seed(0)
    return LambdaResNet(**hyperparameters).eval()


@pytest.mark.parametrize("content", [True, False])
def test_lambda_layer_is_the_papers_formula_at_every_pixel(content):
    torch.manual_seed(0)
    one = LambdaLayer(6, k=3, heads=2, m=3, content=content).double()
    x = images(1, 6, 4, 5, dtype=torch.float64)
    queries, values = one.queries(x).unflatten(1, (2, 3)), one.values(x)
    global_lambda = torch.zeros(1, 3, 3, dtype=torch.float64)
    if content:
        keys = one.keys(x).flatten(2).softmax(2)
        global_lambda = keys @ values.flatten(2).mT
    expected = helpers.lambda_layer(queries, global_lambda, values[:, None], one.embedding)
    torch.testing.assert_close(one(x), expected)


def test_network_adds_what_its_blocks_make_of_the_noisy_image():
    model = create(blocks="cd", width=4).double()
    y = images(2, 3, 7, 9, dtype=torch.float64)
    state = model.state_dict()

    def convolved(x, name, **options):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    x = convolved(y - 0.5, "first", padding=1)
    x = x + convolved(x, "blocks.0.layers.0", padding=1).relu()
    each = convolved(x, "blocks.1.layers.0", padding=1, groups=4)
    x = x + convolved(each, "blocks.1.layers.1").relu()
    torch.testing.assert_close(model(y), y + convolved(x, "last", padding=1))


@pytest.mark.parametrize("blocks", ["cl", "lcl"])
def test_gradients_do_not_depend_on_the_layout_in_memory(blocks):
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = create(blocks=blocks).double().to(memory_format=layout)
        y = images(2, 3, 8, 9, dtype=torch.float64).contiguous(memory_format=layout)
        model(y).square().sum().backward()
        found.append([one.grad for one in model.parameters()])
    torch.testing.assert_close(*found)


def test_it_starts_near_the_noisy_image():
    y = images(4, 3, 32, 32)
    assert F.mse_loss(create()(y), y) < 0.01


def test_content_lambdas_see_all_pixels():
    model, y = create(blocks="l"), images(1, 3, 32, 32)
    other = y.clone()
    other[..., 0, 0] += 1
    assert (model(other) - model(y))[..., -1, -1].abs().max() > 0
