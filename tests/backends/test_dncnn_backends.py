"""DnCNN by Winograd kernels on a CPU: against its reference in float64, and when they are taken."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import helpers
import pytest
import torch
from helpers import images
from learning import content, learn
from torch import nn

from lambdanet import backends
from lambdanet.backends.cpu import codegen, dncnn, winograd
from lambdanet.models import create_model

LIMITS = {"output": 1e-5, "gradient": 2e-5, "statistics": 1e-5, "evaluation": 2e-6}


def network(seed=0, **options):
    """A DnCNN whose channels are normalised in different names, and soon by what they were."""
    torch.manual_seed(seed)
    model = helpers.with_history(create_model("dncnn", **options), seed)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 0.9
    return model


def by(backend, model, noisy, dtype=torch.float32):
    return learn(backend, model, noisy, noisy.flip(3).square(), dtype)


def errors(ours, exact):
    """The largest of an image's, and by norm of a parameter's gradient and of statistics."""
    found = {key: (ours[key][0] - exact[key][0]).abs().max().item() for key in ("output", "evaluation")}
    for key in ("gradient", "statistics"):
        pairs = zip(ours[key], exact[key], strict=True)
        found[key] = max(((one - other).norm() / other.norm()).item() for one, other in pairs)
    return found


def lost(size, *names, seeds=3, **options):
    """What names lose, the median over seeds: a hidden unit next to 0 may be on the other side of it."""
    found = {backend: [] for backend in names}
    for seed in range(seeds):
        model, noisy = network(seed, **options), images(size[0], 3, *size[1:], seed=seed)
        exact = by(backends.REFERENCE, model, noisy, torch.float64)
        for backend in names:
            ours = by(backend, model, noisy)
            assert ours["batches"] == exact["batches"] == [1] * (options["depth"] - 2)
            found[backend].append(errors(ours, exact))
    return [{key: median(each[key] for each in found[backend]) for key in LIMITS} for backend in names]


def beyond(found):
    return {key: found[key] for key, limit in LIMITS.items() if not found[key] < limit}


# Not of whole tiles, of one tile, of one row, of three blocks of columns.
@pytest.mark.parametrize(("width", "depth", "size"), [
    (8, 5, (1, 30, 22)), (14, 3, (2, 7, 9)), (24, 5, (9, 4, 4)), (64, 3, (2, 32, 32)), (8, 5, (2, 1, 5)),
    (14, 3, (1, 5, 330)), (64, 3, (2, 7, 9)),
], ids=str)  # fmt: skip
def test_kernels_are_exact(width, depth, size):
    (found,) = lost(size, backends.WINOGRAD, width=width, depth=depth, residual=depth == 5)
    assert not beyond(found)


# Small images: with 64 channels on 16 x 13 pixels, in half of the seeds a unit is on the other side of 0.
def test_of_many_layers_a_few_times_is_lost_what_float32_loses():
    found, plain = lost((2, 7, 9), backends.WINOGRAD, backends.REFERENCE, seeds=5, width=24, depth=17)
    for key in ("output", "gradient", "statistics"):
        assert found[key] < 6 * plain[key] < 1e-4, key
    assert found["evaluation"] < LIMITS["evaluation"]


def test_vectors_of_another_length_give_the_same(monkeypatch):
    other = 24 - codegen.lanes()
    monkeypatch.setattr(codegen, "lanes", lambda: other)
    (found,) = lost((2, 9, 13), backends.WINOGRAD, width=60, depth=4)
    assert not beyond(found)


@pytest.mark.parametrize("size", [(3, 37, 41), (1, 5, 9)], ids=str)
def test_threads(threads, size):
    model, noisy = network(width=14, depth=4), images(size[0], 3, *size[1:])
    exact = by(backends.REFERENCE, model, noisy, torch.float64)
    evaluated = set()
    for count in (1, 2, 4):
        threads(count)
        found, again = (by(backends.WINOGRAD, model, noisy) for _ in range(2))
        assert content(found) == content(again)
        assert not beyond(errors(found, exact))
        with torch.no_grad(), backends.forced(backends.WINOGRAD):
            evaluated.add(model.eval()(noisy).numpy().tobytes())
    assert len(evaluated) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_networks_of_two_threads_do_not_disturb_each_other(threads, count):
    threads(count)
    tasks = [(network(seed, width=14, depth=4), images(2, 3, 30, 30 + seed, seed=seed)) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        alone = [content(by(backends.AUTO, *task)) for task in tasks]
        together = list(pool.map(lambda task: content(by(backends.AUTO, *task)), 20 * tasks))
    assert together == 20 * alone


@pytest.mark.parametrize("forced", backends.NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_kernels_are_taken_unless_another_backend_is_forced(forced, training):
    model, noisy = network(width=8, depth=4).train(training), images(2, 3, 9, 13)
    with torch.set_grad_enabled(training), backends.forced(forced):
        output = model(noisy)
        kernels = forced in (backends.AUTO, backends.WINOGRAD)
        assert torch.equal(output, model.dncnn(noisy)) != kernels
        if kernels:
            strided = noisy.contiguous(memory_format=torch.channels_last)
            assert torch.equal(model(strided), output)
            assert torch.equal(model.to(memory_format=torch.channels_last)(strided), output)
    assert output.is_contiguous()


# The backend of DnCNN's training, and of another's of convolutions, by what is forced: on a CPU, on one with
# AMX, on a GPU, and there without a C compiler.
TAKEN = {
    "auto": (("winograd", "bf16", "bf16-fused", "bf16"), ("channels-last", "bf16", "bf16", "bf16")),
    "winograd": (("winograd", "winograd", "channels-last", "channels-last"), 4 * ("channels-last",)),
    "bf16-fused": (("bf16", "bf16", "bf16-fused", "bf16"), 4 * ("bf16",)),
}
ANYWHERE = {name: name for name in ("reference", "channels-last", "bf16")}
ANYWHERE |= {"portable": "reference", "fused": "reference"}  # which are of LambdaNet alone
TAKEN |= {forced: (4 * (name,), 4 * (name,)) for forced, name in ANYWHERE.items()}
MACHINES = [("cpu", False, None), ("cpu", True, None), ("cuda", True, None), ("cuda", True, "no compiler")]


@pytest.mark.parametrize("forced", backends.NAMES)
def test_backend_of_a_training_is_by_the_machine_and_what_is_forced(forced, monkeypatch):
    for number, (device, multiplies, reason) in enumerate(MACHINES):
        monkeypatch.setattr(backends, "_multiplies_bf16", lambda _device, found=multiplies: found)
        monkeypatch.setattr(backends, "unavailable_on_gpu", lambda found=reason: found)
        of_dncnn, of_others = (names[number] for names in TAKEN[forced])
        with backends.forced(forced):
            assert backends.of_training("dncnn", device) == of_dncnn
            assert backends.of_training("dncnn", device, outer_bias=True) == of_others
            for name in ("autoencoder", "cnn", "skip-autoencoder"):
                assert backends.of_training(name, device) == of_others
    monkeypatch.setattr(backends, "unavailable", lambda: "no llvmlite")
    monkeypatch.setattr(backends, "_multiplies_bf16", lambda _device: False)
    assert backends.of_training("dncnn", "cpu") == "channels-last"


def test_blocks_fit_and_cover():
    sizes = [*range(1, 40), 143, 144, 145, 147, 330, 512, 2048]
    for count, h, w, threads in itertools.product((1, 3, 64), sizes[::3], sizes, (1, 2, 16)):
        rows, columns = dncnn.cut(count, h, w, threads)
        down, across = (-(-side // winograd.TILE) for side in (h, w))
        assert 1 <= rows <= down
        assert 1 <= columns <= across
        assert rows * columns <= winograd.MOST_TILES
        assert (winograd.TILE * rows + 2) * (winograd.TILE * columns + 2) <= winograd.BORDERED
