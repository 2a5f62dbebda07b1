"""LambdaNet's faster backends against the plain network in float64, and which one a network takes when."""

from statistics import median

import helpers
import pytest
import torch
import torch.nn.functional as F
from learning import content, error, learn, selected

from lambdanet import backends
from lambdanet.backends import reassociated
from lambdanet.backends.cpu import codegen, compile_cache
from lambdanet.backends.cpu import lambdanet as fused
from lambdanet.devices import choose_device
from lambdanet.models import create_model

# u, m, k, heads, d, (h, w), batch; each value of the paper's and its neighbours, wide and narrow, odd batches
GRID = [
    (1, 23, 16, 4, 16, (32, 32), 20),
    (4, 7, 16, 4, 16, (32, 32), 18),
    (1, 3, 8, 2, 6, (16, 24), 33),
    (2, 15, 4, 4, 32, (12, 40), 3),
    (1, 1, 16, 1, 2, (8, 8), 9),
    (1, 19, 16, 8, 8, (14, 10), 17),
]
LIMITS = {"evaluation": 1e-6, "output": 1e-5, "statistics": 2e-5, "gradient": 5e-5}
OPTIONS = [
    ({"skip": False}, backends.FUSED),
    ({"skip": False, "u": 4, "m": 7}, backends.FUSED),
    ({"inner_skip": True}, backends.PORTABLE),
    ({"activation": "elu"}, backends.PORTABLE),
    ({"norm": "layer"}, backends.REFERENCE),
]


def network(u=1, m=23, k=16, heads=4, d=16, seed=0, **options):
    torch.manual_seed(seed)
    return create_model("lambdanet", u=u, m=m, k=k, heads=heads, d=d, **options)


def images(b, h, w, seed=0):
    """Clean images and noisy ones, which leave [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    clean = F.interpolate(torch.rand(b, 3, 3, 3, generator=generator), (h, w), mode="bilinear")
    return clean, clean + 0.1 * torch.randn(b, 3, h, w, generator=generator)


def beyond(found, **others):
    return {key: value for key, value in found.items() if not value < (LIMITS | others)[key]}


@pytest.mark.parametrize("case", GRID, ids=str)
def test_backends_are_exact(case):
    """The median of three: a hidden unit next to 0 may be on the other side of it in float32.

    That changes a gradient by 1e-4, in the reference's own float32 as often.
    """
    *sizes, (h, w), b = case
    found = {backends.PORTABLE: [], backends.FUSED: []}
    for seed in range(3):
        model, (clean, noisy) = network(*sizes, seed=seed), images(b, h, w, seed)
        assert selected(model, noisy) == backends.FUSED
        reference = learn(backends.REFERENCE, model, noisy, clean, torch.float64)
        for backend, errors in found.items():
            errors.append(error(learn(backend, model, noisy, clean), reference))
    for errors in found.values():
        assert not beyond({key: median(each[key] for each in errors) for key in LIMITS})


@pytest.mark.parametrize(("options", "backend"), OPTIONS, ids=str)
def test_architecture_s_variants_take_a_backend_that_covers_them(options, backend):
    clean, noisy = images(16, 32, 32)
    model = network(**options)
    assert selected(model, noisy) == backend
    reference = learn(backends.REFERENCE, model, noisy, clean, torch.float64)
    assert not beyond(error(learn(backend, model, noisy, clean), reference), gradient=1e-4)


@pytest.mark.parametrize("size", [(70, 90), (9, 75)], ids=str)  # the second is lower than the window
def test_portable_of_images_with_many_columns_is_exact(monkeypatch, size):
    model, (clean, noisy) = network(m=15), images(2, *size)
    calls = []
    real = reassociated._by_transform
    monkeypatch.setattr(reassociated, "_by_transform", lambda *given: calls.append(given) or real(*given))
    reference = learn(backends.REFERENCE, model, noisy, clean, torch.float64)
    assert not calls
    found = error(learn(backends.PORTABLE, model, noisy, clean, torch.float64), reference)
    assert max(found.values()) < 1e-11
    found = error(learn(backends.PORTABLE, model, noisy, clean), reference)
    assert len(calls) == 4  # training and evaluation, each in float64 and float32
    assert not beyond(found, output=1e-6, statistics=1e-6, gradient=5e-6)


def test_threads_do_not_change_a_byte_of_fused(threads):
    model, (clean, noisy) = network(), images(40, 32, 32)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(content(learn(backends.FUSED, model, noisy, clean)))
    assert found == 3 * found[:1]


@pytest.fixture
def registers(monkeypatch):
    """Have kernels compiled, all anew, for a processor with 32 long registers or without; vectors as long."""

    def choose(many):
        codegen.accumulators.cache_clear()
        fused.compiled.cache_clear()
        monkeypatch.setattr(codegen, "_long_registers", lambda: many)

    monkeypatch.setattr(compile_cache, "find", lambda request: None)
    monkeypatch.setattr(compile_cache, "keep", lambda request, code: None)
    monkeypatch.setattr(codegen, "lanes", lambda: 8)
    yield choose
    choose(False)  # forgets what was compiled


@pytest.mark.parametrize("sizes", [(1, 9, 16), (4, 7, 40)], ids=str)
def test_the_number_of_registers_does_not_change_a_byte_of_fused(registers, sizes):
    u, m, d = sizes
    model, (clean, noisy) = network(u=u, m=m, d=d), images(10, 14, 14)
    assert selected(model, noisy) == backends.FUSED
    found, accumulators = [], []
    for many in (False, True):
        registers(many)
        accumulators.append(codegen.accumulators())
        found.append(learn(backends.FUSED, model, noisy, clean))
    assert accumulators == [12, 24]
    assert content(found[0]) == content(found[1])


def test_kernels_are_taken_where_they_fit():
    model, noisy = network(), torch.zeros(16, 3, 32, 32)
    assert selected(model, noisy) == backends.FUSED
    with torch.no_grad():
        assert selected(model.eval(), noisy) == backends.FUSED
    model.train()
    others = {
        "a gradient of the images": noisy.clone().requires_grad_(),
        "odd sizes": torch.zeros(16, 3, 31, 32),
        "a photograph": torch.zeros(16, 3, 256, 256),
        "images smaller than the window": torch.zeros(50, 3, 10, 10),
    }
    for what, batch in others.items():
        assert selected(model, batch) == backends.PORTABLE, what
    assert selected(model, noisy, torch.zeros(1, 16, 4)) == backends.PORTABLE
    assert selected(model.double(), noisy.double()) == backends.PORTABLE
    assert selected(model, noisy) == backends.REFERENCE  # which refuses two types
    assert selected(network(u=2, d=256), noisy) == backends.PORTABLE
    assert selected(network(), noisy, None) == backends.FUSED


def test_kernels_that_do_not_run_are_named(monkeypatch):
    pytest.importorskip("triton")
    from lambdanet.backends.cuda import normalization

    def fails():
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(normalization, "trial", fails)
    reasons = {False: "no CUDA device", True: "RuntimeError: Failed to find C compiler. Please specify one"}
    for there, reason in reasons.items():
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        backends.unavailable_on_gpu.cache_clear()
        assert backends.unavailable_on_gpu() == reason
    backends.unavailable_on_gpu.cache_clear()


def test_device_may_name_a_backend():
    try:
        assert choose_device("cpu/portable") == torch.device("cpu")
        assert backends.of_training("lambdanet", "cpu") == backends.PORTABLE
    finally:
        choose_device("cpu/auto")
    assert backends.of_training("lambdanet", "cpu") == backends.FUSED
    assert backends.of_training("lambdanet", "cuda") == backends.PORTABLE


WITHOUT = """
import sys
sys.modules["llvmlite"] = None
import torch
from lambdanet import backends
from lambdanet.models import create_model
noisy = torch.rand(16, 3, 32, 32)
model, dncnn = create_model("lambdanet"), create_model("dncnn", depth=4, width=8)
model(noisy).sum().backward()
learned = float(model.embedding.grad.abs().sum()) > 0
print(backends.of_training("lambdanet", "cpu"), learned, torch.equal(dncnn(noisy), dncnn.dncnn(noisy)))
for name in ("fused", "winograd"):
    try:
        backends.force(name)
    except ValueError as error:
        print(error)
"""


def test_without_llvmlite_lambdanet_is_portable_and_dncnn_is_its_layers():
    done = helpers.python("-c", WITHOUT, check=True)
    first, *refused = done.stdout.splitlines()
    assert first == "portable True True"
    for name, line in zip(("fused", "winograd"), refused, strict=True):
        assert line.startswith(f"the {name} backend is not available here: ")
        assert line.endswith("; choose another, or auto")
