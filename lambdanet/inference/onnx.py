"""Trained networks as ONNX programs, which run without this project and without torch."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from lambdanet import backends, files
from lambdanet.inference.denoise import SMALLEST, AnySize, denoise
from lambdanet.models import load_weights

OPSET = 20
CONTRACT = (
    "Input `noisy`: float32, (n, 3, height, width), RGB, black 0 and white 1 (noise may go beyond), any n, "
    f"height and width from {SMALLEST}. Output `clean`: the same shape, in [0, 1]."
)
CHECKED_SIZES = ((1, 8, 8), (3, 15, 32), (2, 64, 49))
TOLERANCE = 1e-5


def export(weights: Path, path: Path) -> float:
    """Write a network as an ONNX file, and compare it with the network; takes seconds.

    The file's metadata hold the `contract`, the `opset` and, as JSON, the network's `description`.

    Args:
        weights: file of `save_weights`.
        path: the file to write; replaced.

    Returns:
        The largest difference between onnxruntime's output and the network's, on `CHECKED_SIZES`.

    Raises:
        ValueError: the weights cannot be read, the network takes one size only, or the outputs differ by
            more than `TOLERANCE`.
    """
    network, description = load_weights(weights)
    if side := getattr(network, "side", None):
        raise ValueError(f"{weights}: this network takes images of {side} x {side} only, not of any size")
    with backends.forced(backends.REFERENCE):
        model = _traced(AnySize(network, description))
        details = {"contract": CONTRACT, "opset": str(OPSET), "description": json.dumps(description)}
        onnx.helper.set_model_props(model, details)
        content = model.SerializeToString()
        difference = _compared(content, network)
    if not difference <= TOLERANCE:
        raise ValueError(f"{weights}: the ONNX program differs from the network by {difference:.1e}")
    files.write_bytes(path, content)
    return difference


def _traced(network: nn.Module) -> onnx.ModelProto:
    program = torch.onnx.export(
        network,
        (torch.rand(2, 3, 43, 37),),  # sides that no network takes unpadded
        dynamo=True,
        dynamic_shapes={"noisy": {0: "n", 2: "height", 3: "width"}},
        input_names=["noisy"],
        output_names=["clean"],
        opset_version=OPSET,
        verbose=False,
    )
    model = program.model_proto  # made anew at each access
    graph = model.graph
    graph.output[0].type.CopyFrom(graph.input[0].type)  # named there by what the padding comes to
    for part in (*graph.node, *graph.input, *graph.output):
        part.ClearField("metadata_props")  # stack traces with this machine's folders
    graph.ClearField("value_info")
    return model


def _compared(content: bytes, network: nn.Module) -> float:
    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = []
    for n, h, w in CHECKED_SIZES:
        noisy = torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(n * h * w))
        (output,) = session.run(None, {"noisy": noisy.numpy()})
        expected = denoise(network, noisy).clamp(0, 1).numpy()
        differences.append(np.abs(output - expected).max() if output.shape == expected.shape else np.inf)
    return float(max(differences))
