"""Other people's packages on the same work; one that is not there is named, and stops nothing.

`pip install -e '.[bench]'` brings all of them but SCICO in the versions that were tried. Of SCICO only the
files with its trained networks are read, so `pip install --no-deps scico==0.0.7` brings it, without JAX.
"""

import contextlib
import importlib.util
import inspect
import io
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import Method
from lambdanet.inference.denoise import denoise
from lambdanet.models.dncnn import DnCNN
from lambdanet.models.lambdanet import LambdaNet

SCICO_SIGMAS = {"L": 0.06, "M": 0.1, "H": 0.2}  # of the noise that each was trained on, of 1
FLAX_ARRAY = 1  # flax.serialization's type of a MessagePack extension: shape, dtype, values


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


def scico_dncnn(sigma: float) -> DnCNN:
    """SCICO's DnCNN of 17 layers for the noise nearest to `sigma`, of 1.

    Raises:
        ImportError: SCICO or msgpack is not installed.
    """
    level = min(SCICO_SIGMAS, key=lambda one: abs(SCICO_SIGMAS[one] - sigma))
    package = importlib.util.find_spec("scico")  # importing it needs JAX
    if package is None:
        raise ImportError("scico is not installed; `pip install --no-deps scico==0.0.7` brings it")
    path = Path(*package.submodule_search_locations, "data/flax", f"dncnn17{level}.mpk")
    if not path.is_file():
        raise ImportError(f"this scico has no {path.name}; `pip install --no-deps scico==0.0.7` brings it")
    return flax_dncnn(path)


def flax_dncnn(path: Path) -> DnCNN:
    """A DnCNN of one channel, from the file that flax wrote of SCICO's `DnCNNNet`.

    Returns:
        A network that reads the first of three channels and gives it three times; see `by_channel`.
    """
    import msgpack

    saved = msgpack.unpackb(path.read_bytes(), ext_hook=_flax_array)
    weights, statistics = saved["params"], saved["batch_stats"]
    first, last = _kernel(weights["conv_start"]), _kernel(weights["conv_end"])
    model = DnCNN(depth=len(statistics) + 2, width=len(first), residual=True)
    state = {
        "dncnn.0.weight": F.pad(first, (0, 0, 0, 0, 0, 2)),  # nothing of the second and third channel
        f"dncnn.{len(model.dncnn) - 1}.weight": last.repeat(3, 1, 1, 1),
    }
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for number in range(len(statistics)):
        block, conv, norm = weights[f"ConvBNBlock_{number}"], 3 * number + 2, 3 * number + 3
        known = block["BatchNorm_0"] | statistics[f"ConvBNBlock_{number}"]["BatchNorm_0"]
        state[f"dncnn.{conv}.weight"] = _kernel(block["Conv_0"])
        state |= {f"dncnn.{norm}.{ours}": known[theirs] for ours, theirs in names.items()}
        state[f"dncnn.{norm}.num_batches_tracked"] = torch.tensor(0)  # SCICO does not count them
    model.load_state_dict(state)
    return model.eval()


def by_channel(model: DnCNN, noisy: np.ndarray) -> np.ndarray:
    """Denoise each channel of an image by itself as SCICO does, whose images go on at the opposite edge.

    Args:
        model: of `flax_dncnn`.
        noisy: float, (h, w, channels), black 0 and white 1.
    """
    halo = model.halo
    channels = torch.from_numpy(noisy).float().permute(2, 0, 1)[:, None].expand(-1, 3, -1, -1)
    output = denoise(model, F.pad(channels, (halo, halo, halo, halo), mode="circular"))
    return output[:, 0, halo:-halo, halo:-halo].permute(1, 2, 0).numpy()


def _kernel(saved: dict[str, Tensor]) -> Tensor:
    return saved["kernel"].permute(3, 2, 0, 1)  # saved as height, width, channels in, channels out


def _flax_array(kind: int, content: bytes) -> Tensor:
    import msgpack

    if kind != FLAX_ARRAY:
        raise ValueError(f"the file holds a MessagePack extension of type {kind}, not only arrays")
    shape, dtype, values = msgpack.unpackb(content)
    return torch.from_numpy(np.frombuffer(values, dtype).reshape(shape).copy())
