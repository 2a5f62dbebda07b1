import pytest
import torch
import torch.nn.functional as F
from helpers import images
from torch import nn

from lambdanet.models import count_parameters, create_model
from lambdanet.models.cnn import ConvNet


@pytest.mark.parametrize(("given", "slope"), [({}, 0.2), ({"slope": 0.3}, 0.3)])
def test_network_is_the_descriptions_layers(given, slope):
    assert count_parameters(create_model("cnn")) == 29_507  # 32 channels
    torch.manual_seed(0)
    model = ConvNet(width=3, **given).double()
    y = images(2, 3, 12, 20, dtype=torch.float64)
    weights = [one for one in model.modules() if isinstance(one, nn.Conv2d)]

    def convolved(x, number):
        x = F.conv2d(x, weights[number].weight, weights[number].bias, padding=1)
        return torch.where(x > 0, x, slope * x) if number < 4 else 1 / (1 + (-x).exp())

    def halved(x):
        return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))

    def doubled(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x = halved(convolved(halved(convolved(y, 0)), 1))
    assert x.shape == (2, 3, 3, 5)
    expected = convolved(doubled(convolved(doubled(convolved(x, 2)), 3)), 4)
    torch.testing.assert_close(model(y), expected, rtol=1e-9, atol=1e-12)
