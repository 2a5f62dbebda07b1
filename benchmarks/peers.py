"""Other people's packages on the same work; one that is not there is named, and stops nothing.

`pip install -e '.[bench]'` brings all of them in the versions that were tried.
"""

import contextlib
import importlib
import inspect
import io
import textwrap
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.methods import Method
from lambdanet.models.lambdanet import LambdaNet


def load(name: str) -> ModuleType:
    """Import a peer without what it prints.

    Raises:
        ImportError: says whether it is missing or broken.
    """
    package = name.split(".")[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise ImportError("not installed") from None
        raise ImportError(f"cannot be imported: {type(error).__name__}: {error}") from None


def attempt(build: Callable[[], Method]) -> Method | str:
    """A method, or why there is none."""
    try:
        return build()
    except (ImportError, ValueError) as error:
        return str(error)


class Encoded(nn.Module):
    """A lambda layer with LambdaNet's decoder behind it."""

    def __init__(self, layer: nn.Module, model: LambdaNet) -> None:
        super().__init__()
        self.layer, self.conv, self.shortcut = layer, model.conv, model.shortcut

    def forward(self, noisy: Tensor) -> Tensor:
        z = self.layer(noisy)
        return torch.sigmoid(self.conv(z) + self.shortcut(z))


def lambda_networks(model: LambdaNet) -> Method:
    """Phil Wang's layer (PyPI: lambda-networks) with the weights of `model`, which has u = 1."""
    package = load("lambda_networks")
    k, _, _, m, _ = model.embedding.shape
    layer = package.LambdaLayer(3, dim_out=model.heads * model.v, dim_k=k, r=m, heads=model.heads)
    state = _normalisations(model) | {
        "to_q.weight": model.queries[0].weight,
        "to_k.weight": model.keys[0].weight,
        "to_v.weight": model.values[0].weight,
        "pos_conv.weight": model.embedding,
        "pos_conv.bias": torch.zeros(k),
    }
    layer.to(model.embedding.dtype).load_state_dict(state)
    return Method(Encoded(layer, model), note="its convolution has a bias")


def timm(model: LambdaNet) -> Method:
    """Ross Wightman's layer with the weights of `model`, which has u = 1.

    Raises:
        ValueError: its code is not the one that the patch is for.
    """
    original = load("timm.layers.lambda_layer")
    k, _, _, m, _ = model.embedding.shape
    layer = _patched(original)(
        3, dim_out=model.heads * model.v, num_heads=model.heads, dim_head=k, r=m, qkv_bias=False
    )
    weights = [part[0].weight for part in (model.queries, model.keys, model.values)]
    state = _normalisations(model) | {
        "qkv.weight": torch.cat(weights),
        "conv_lambda.weight": model.embedding.permute(0, 1, 3, 4, 2),  # its depth comes last
        "conv_lambda.bias": torch.zeros(k),
    }
    layer.to(model.embedding.dtype).load_state_dict(state)
    note = "patched: its result takes the input's number of channels; its convolution has a bias"
    return Method(Encoded(layer, model), note=note)


def _patched(module: ModuleType) -> type[nn.Module]:
    """The layer, with as many channels out as it was asked for: `C` of its last reshape becomes -1."""
    source = textwrap.dedent(inspect.getsource(module.LambdaLayer.forward))
    faulty = ".reshape(B, C, H, W)"
    if source.count(faulty) != 1:
        raise ValueError("another version than the one that the patch is for")
    names = {}
    exec(source.replace(faulty, ".reshape(B, -1, H, W)"), vars(module), names)
    return type("LambdaLayer", (module.LambdaLayer,), {"forward": names["forward"]})


def _normalisations(model: LambdaNet) -> dict[str, Tensor]:
    named = {"norm_q": model.queries[1], "norm_v": model.values[1]}
    return {
        f"{name}.{key}": value for name, norm in named.items() for key, value in norm.state_dict().items()
    }
