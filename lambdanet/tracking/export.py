"""A denoiser as a program that runs without this project: what the registry holds of it."""

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import torch
import torch.fx.experimental._config as symbolic
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

from lambdanet.inference.denoise import SMALLEST, AnySize, denoise
from lambdanet.models import load_weights
from lambdanet.tracking.mlflow_runs import WEIGHTS

PROGRAM = "data/model.pt2"
# Far beyond what noise adds to [0, 1], far below the white of 8-bit images.
LARGEST_VALUE = 10
CONTRACT = (
    "Input: noisy images, float32, (n, 3, height, width), RGB, black at 0 and white at 1 (noise may go "
    f"beyond), any n, height and width from {SMALLEST}. Output: the same shape, in [0, 1]. Another type or "
    "shape is refused by the signature, smaller images and values beyond "
    f"±{LARGEST_VALUE} or NaN (images of 0 to 255?) by the program itself."
)
CHECKED_SIZES = ((1, 8, 8), (2, 8, 9), (3, 15, 32), (1, 33, 31), (2, 64, 48))


class Portable(AnySize):
    """A trained network with its contract: other values and smaller images are refused."""

    def forward(self, noisy: Tensor) -> Tensor:
        torch._assert_async(
            (noisy.abs() < LARGEST_VALUE).all(),
            "images must be floats with black at 0 and white at 1; these have NaN or values far beyond",
        )
        h, w = noisy.shape[-2:]
        torch._check(h >= SMALLEST)
        torch._check(w >= SMALLEST)
        return super().forward(noisy)


class Builder:
    """Makes folders of MLflow models; traces an architecture once, as weights do not change its program.

    Tracing takes seconds.
    """

    def __init__(self, folder: Path) -> None:
        """Begin with nothing traced; `folder` keeps a model of each architecture for this builder."""
        self.folder, self._programs = folder, {}

    def build(self, weights: Path, folder: Path, *, run_id: str, model_id: str) -> None:
        """Make a model's folder with a network's program, and compare the program with the network.

        Args:
            weights: file of `save_weights`; goes along, for those who have this project.
            folder: made.
            run_id: of the model in MLflow.
            model_id: likewise.

        Raises:
            ValueError: the weights cannot be read, or the network cannot be traced for every size.
        """
        network, description = load_weights(weights)
        portable = Portable(network, description)
        architecture = json.dumps(description["model"], sort_keys=True)
        if architecture not in self._programs:
            like = self.folder / uuid.uuid4().hex
            _trace(portable, like)
            self._programs[architecture] = like, torch.export.load(like / PROGRAM)
        like, program = self._programs[architecture]
        for name, value in portable.state_dict().items():
            program.state_dict[name].copy_(value)
        verify(program.module(), network)
        shutil.copytree(like, folder)
        torch.export.save(program, folder / PROGRAM)
        (folder / WEIGHTS).parent.mkdir()
        shutil.copy(weights, folder / WEIGHTS)
        card = Model.load(str(folder))
        card.run_id, card.model_id, card.model_uuid = run_id, model_id, uuid.uuid4().hex
        card.save(str(folder / "MLmodel"))


def _trace(network: Portable, folder: Path) -> None:
    card = Model()
    signature = ModelSignature(*(Schema([TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))]) for _ in "io"))
    with dynamic_sizes(network):
        mlflow.pytorch.save_model(
            network,
            folder,
            mlflow_model=card,
            signature=signature,
            # More than one image, of sides that no network takes unpadded.
            input_example=np.random.default_rng(0).random((2, 3, 43, 37), dtype=np.float32),
            # Found out by MLflow itself this takes 20 times as long.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            metadata={"contract": CONTRACT},
            serialization_format="pt2",
        )
    # A traced program stays on its device; without this `pyfunc` fails where there is a GPU.
    card.flavors["python_function"]["config"] = {"device": "cpu"}
    card.save(str(folder / "MLmodel"))


def dynamic_sizes(network: nn.Module) -> contextlib.AbstractContextManager:
    """Have `torch.export` trace a network, within this block, for every size; see `verify`.

    A network that strides has sizes inside that may or may not be 1, or equal to others; a tracer that
    looks at those of its example ends with a program for such sizes only. It must not look there. The
    others it traces rightly of itself, and if it may not look, it takes no single images.
    """
    return symbolic.patch(backed_size_oblivious=getattr(network, "stride", 1) > 1)


def verify(program: Callable[[Tensor], Tensor], network: nn.Module) -> None:
    """Compare a traced program with its network at sizes of all kinds.

    Raises:
        ValueError: it refuses one, or gives something else than the network.
    """
    for n, h, w in CHECKED_SIZES:
        noisy = torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(n * h * w))
        expected = denoise(network, noisy).clamp(0, 1)
        try:
            output = program(noisy)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"the traced network refuses images of {h} x {w}: {error}") from None
        if output.shape != noisy.shape or not torch.allclose(output, expected, rtol=0, atol=1e-5):
            raise ValueError(f"the traced network gives something else than the network at {h} x {w}")
