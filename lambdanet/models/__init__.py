"""The denoisers by name, and weights files that know which denoiser they belong to."""

import inspect
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lambdanet import files
from lambdanet.models.autoencoder import AutoEncoder
from lambdanet.models.cnn import ConvNet
from lambdanet.models.dncnn import DnCNN
from lambdanet.models.lambda_resnet import LambdaResNet
from lambdanet.models.lambdanet import LambdaNet
from lambdanet.models.skip_autoencoder import SkipAutoEncoder
from lambdanet.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "autoencoder": AutoEncoder,
    "cnn": ConvNet,
    "dncnn": DnCNN,
    "lambda-resnet": LambdaResNet,
    "lambdanet": LambdaNet,
    "skip-autoencoder": SkipAutoEncoder,
    "unet": UNet,
}

MOST_PARAMETERS = 10**9  # 4 GB; the largest here has 1.3 million


def create_model(name: str, **hyperparameters: float) -> nn.Module:
    """Create a freshly initialised denoiser: (b, 3, h, w) in [0, 1] to the same shape.

    Args:
        name: one of `MODELS`.
        **hyperparameters: the constructor's keyword arguments.

    Raises:
        ValueError: an unknown name, an unknown hyperparameter or a value out of range.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(sorted(MODELS))}")
    return files.call_with_known(MODELS[name], f"model {name!r}", hyperparameters)


def check_hyperparameters(name: str, **hyperparameters: float) -> None:
    """Refuse what `create_model` refuses, and what no machine holds; takes no memory for the weights.

    Raises:
        ValueError: see `create_model`, or the network is too large.
    """
    try:
        with torch.device("meta"):
            size = count_parameters(create_model(name, **hyperparameters))
    except (RuntimeError, OverflowError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"model {name!r} cannot have these hyperparameters, or is too large ({reason})"
        ) from None
    if size > MOST_PARAMETERS:
        raise ValueError(
            f"model {name!r} would have {size:,} parameters, must have at most {MOST_PARAMETERS:,}"
        )


def source(name: str) -> str:
    """The code of a model: its file."""
    return inspect.getsource(inspect.getmodule(MODELS[name]))


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save_weights(path: Path, model: nn.Module, description: dict) -> None:
    """Write a state dict as safetensors, with `description` as JSON in its header.

    `description` holds at least `model`, the keyword arguments of `create_model`; the same
    weights and description always give the same bytes.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # One metadata key only: safetensors writes several in no fixed order.
    header = {"lambdanet": json.dumps(description, sort_keys=True)}
    files.write_bytes(path, save(state, metadata=header))


def read_description(path: Path) -> dict:
    """Read the description in the header of a file of `save_weights`.

    Raises:
        ValueError: the file is not such a file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            description = json.loads((file.metadata() or {}).get("lambdanet", "null"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such weights file") from None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if not isinstance(description, dict) or "model" not in description:
        raise ValueError(f"{path}: a safetensors file, but not one that lambdanet wrote")
    noise = description.get("noise", {"name": ""})
    if not isinstance(noise, dict) or not isinstance(noise.get("name"), str):
        raise ValueError(f"{path}: its description names no noise")
    return description


def load_weights(path: Path) -> tuple[nn.Module, dict]:
    """Read a file of `save_weights`: the model in evaluation mode, and its description.

    Raises:
        ValueError: the file is not such a file, or does not fit the model that it names.
    """
    description = read_description(path)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        model = create_model(**description["model"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: names no model of lambdanet ({error})") from None
    except (RuntimeError, MemoryError):
        raise ValueError(f"{path}: the model that it names does not fit into memory") from None
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: the weights do not fit the model they name: {reason}") from None
    return model.eval(), description
