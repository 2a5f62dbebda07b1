"""LambdaNet's faster paths against its reference in float64, and which path a network takes when."""

import copy
import itertools
import subprocess
import sys
from statistics import median

import pytest
import torch
import torch.nn.functional as F

from lambdanet.devices import choose_device
from lambdanet.kernels import objects, vectors
from lambdanet.models import create_model, dncnn, path, paths
from lambdanet.models.lambdanet import fused, reassociated

# u, m, k, heads, d, (h, w), batch; each value of the paper's and its neighbours, wide and narrow, odd batches
GRID = [
    (1, 23, 16, 4, 16, (32, 32), 20),
    (4, 7, 16, 4, 16, (32, 32), 18),
    (1, 23, 16, 4, 64, (32, 32), 5),
    (1, 11, 16, 4, 4, (32, 32), 8),
    (1, 3, 8, 2, 6, (16, 24), 33),
    (2, 15, 4, 4, 32, (12, 40), 3),
    (3, 5, 5, 3, 12, (10, 6), 16),
    (1, 1, 16, 1, 2, (8, 8), 9),
    (1, 19, 16, 8, 8, (14, 10), 17),
]


def network(u=1, m=23, k=16, heads=4, d=16, seed=0, **options):
    torch.manual_seed(seed)
    return create_model("lambdanet", u=u, m=m, k=k, heads=heads, d=d, **options)


def images(b, h, w, seed=0):
    """Clean images and noisy ones, which leave [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    clean = F.interpolate(torch.rand(b, 3, 3, 3, generator=generator), (h, w), mode="bilinear")
    return clean, clean + 0.1 * torch.randn(b, 3, h, w, generator=generator)


def learn(model, way, clean, noisy, dtype=torch.float32):
    """Output, gradients and running statistics of a training step, and then an evaluation's output."""
    model = copy.deepcopy(model).to(dtype).train()
    clean, noisy = clean.to(dtype), noisy.to(dtype)
    with paths.forced(way):
        output = model(noisy)
        F.mse_loss(output, clean).backward()
        model.eval()
        with torch.no_grad():
            evaluated = model(noisy)
    # A shift before a normalisation has no influence: its gradient is 0, or what rounding leaves.
    grads = [p.grad.flatten() for name, p in model.named_parameters() if name != "shortcut.0.bias"]
    buffers = [b.flatten() for b in model.buffers() if b.is_floating_point()] or [torch.ones(1)]
    return {
        "output": output.detach(),
        "gradient": torch.cat(grads),
        "statistics": torch.cat(buffers),
        "evaluation": evaluated,
    }


def error(ours, reference):
    return {
        key: ((ours[key].double() - value).norm() / value.norm()).item() for key, value in reference.items()
    }


@pytest.mark.parametrize("case", GRID, ids=str)
@pytest.mark.parametrize("way", [paths.PORTABLE, paths.FUSED])
def test_path_is_exact(way, case):
    """The median of three: a hidden unit next to 0 may be on the other side of it in float32.

    That changes a gradient by 1e-4, in the reference's own float32 as often.
    """
    *sizes, (h, w), b = case
    found = []
    for seed in range(3):
        model, (clean, noisy) = network(*sizes, seed=seed), images(b, h, w, seed)
        assert way == paths.PORTABLE or paths.choose(model, noisy) == paths.FUSED
        reference = learn(model, paths.REFERENCE, clean, noisy, torch.float64)
        found.append(error(learn(model, way, clean, noisy), reference))
    limits = {"evaluation": 1e-6, "output": 1e-5, "statistics": 2e-5, "gradient": 5e-5}
    for key, limit in limits.items():
        assert median(each[key] for each in found) < limit, key


OPTIONS = [
    ({"skip": False}, paths.FUSED),
    ({"skip": False, "u": 4, "m": 7}, paths.FUSED),
    ({"inner_skip": True}, paths.PORTABLE),
    ({"activation": "elu"}, paths.PORTABLE),
    ({"norm": "layer"}, paths.REFERENCE),
]


@pytest.mark.parametrize(("options", "way"), OPTIONS, ids=str)
def test_architecture_s_variants_take_a_path_that_covers_them(options, way):
    clean, noisy = images(16, 32, 32)
    model = network(**options)
    assert paths.choose(model, noisy) == way
    reference = learn(model, paths.REFERENCE, clean, noisy, torch.float64)
    found = error(learn(model, way, clean, noisy), reference)
    limits = {"evaluation": 1e-6, "output": 1e-5, "statistics": 2e-5, "gradient": 1e-4}
    assert not {key: found[key] for key, limit in limits.items() if key in found and found[key] >= limit}


@pytest.mark.parametrize("sizes", [(1, 23), (4, 7)], ids=str)
def test_portable_path_in_float64_is_the_reference(sizes):
    clean, noisy = images(6, 20, 26)
    model = network(*sizes)
    reference = learn(model, paths.REFERENCE, clean, noisy, torch.float64)
    found = error(learn(model, paths.PORTABLE, clean, noisy, torch.float64), reference)
    assert max(found.values()) < 1e-11


@pytest.mark.parametrize("groups", [4, 16])
@pytest.mark.parametrize("m", [15, 23])
@pytest.mark.parametrize("size", [(67, 71), (9, 75), (5, 3)], ids=str)  # some smaller than the window
def test_transform_of_whole_images_is_the_convolution(size, m, groups):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    filters = torch.randn(groups, 4, m, m, generator=generator, dtype=torch.float64)
    found, expected = (
        by(x, filters.requires_grad_()) for by in (reassociated._by_transform, reassociated._by_convolution)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(output, filters, weights)[0] for output in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("m", [15, 23])
def test_portable_path_of_images_with_many_columns_is_exact(m, monkeypatch):
    model, (clean, noisy) = network(m=m), images(2, 70, 90)
    calls = []
    real = reassociated._by_transform
    monkeypatch.setattr(reassociated, "_by_transform", lambda *given: calls.append(given) or real(*given))
    reference = learn(model, paths.REFERENCE, clean, noisy, torch.float64)
    assert not calls
    found = error(learn(model, paths.PORTABLE, clean, noisy, torch.float64), reference)
    assert max(found.values()) < 1e-11
    found = error(learn(model, paths.PORTABLE, clean, noisy), reference)
    limits = {"evaluation": 1e-6, "output": 1e-6, "statistics": 1e-6, "gradient": 5e-6}
    assert len(calls) == 4  # training and evaluation, each in float64 and float32
    assert not {key: found[key] for key, limit in limits.items() if found[key] >= limit}


@pytest.mark.parametrize("way", [paths.PORTABLE, paths.FUSED])
def test_median_error_over_seeds(way):
    errors = []
    for seed in range(5):
        model, (clean, noisy) = network(seed=seed), images(16, 32, 32, seed)
        reference = learn(model, paths.REFERENCE, clean, noisy, torch.float64)
        errors.append(error(learn(model, way, clean, noisy), reference)["gradient"])
    assert median(errors) < 5e-6


def losses(way, sizes, dtype=torch.float32, steps=24):
    model = network(*sizes).to(dtype).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    found = []
    with paths.forced(way):
        for step in range(steps):
            clean, noisy = (part.to(dtype) for part in images(16, 32, 32, step))
            optimizer.zero_grad()
            loss = F.mse_loss(model(noisy), clean)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


@pytest.mark.parametrize("sizes", [(1, 23), (4, 7)], ids=str)
def test_loss_stays_with_the_reference(sizes):
    reference = losses(paths.REFERENCE, sizes, torch.float64)
    assert reference[-1] < 0.97 * reference[0]
    for way in (paths.PORTABLE, paths.FUSED):
        for ours, theirs in zip(losses(way, sizes), reference, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_threads_do_not_change_a_byte_of_the_fused_path(threads):
    model, (clean, noisy) = network(), images(40, 32, 32)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(learn(model, paths.FUSED, clean, noisy))
    for key in ("gradient", "statistics", "output", "evaluation"):
        assert torch.equal(found[0][key], found[1][key])
        assert torch.equal(found[0][key], found[2][key])


@pytest.fixture
def registers(monkeypatch):
    """Have kernels compiled, all anew, for a processor with 32 long registers or without; vectors as long."""

    def forget():
        vectors.accumulators.cache_clear()
        fused.compiled.cache_clear()

    def choose(many):
        forget()
        monkeypatch.setattr(vectors, "_long_registers", lambda: many)

    monkeypatch.setattr(objects, "find", lambda request: None)
    monkeypatch.setattr(objects, "keep", lambda request, code: None)
    monkeypatch.setattr(vectors, "lanes", lambda: 8)
    yield choose
    forget()


@pytest.mark.parametrize("sizes", [(1, 23, 16), (4, 7, 40)], ids=str)
def test_the_number_of_registers_does_not_change_a_byte_of_the_fused_path(registers, sizes):
    u, m, d = sizes
    model, (clean, noisy) = network(u=u, m=m, d=d), images(10, 14, 14)
    assert paths.choose(model, noisy) == paths.FUSED
    found, accumulators = [], []
    for many in (False, True):
        registers(many)
        accumulators.append(vectors.accumulators())
        found.append(learn(model, paths.FUSED, clean, noisy))
    assert accumulators == [12, 24]
    for key in ("gradient", "statistics", "output", "evaluation"):
        assert torch.equal(found[0][key], found[1][key])


def test_batches_do_not_disturb_each_other():
    """Two passes forward before their passes backward, as in an accumulation of gradients."""
    model = network().train()
    batches = [images(18, 32, 32, seed) for seed in range(2)]
    alone = [learn(model, paths.FUSED, *batch) for batch in batches]
    with paths.forced(paths.FUSED):
        outputs = [model(noisy) for _, noisy in batches]
        together = []
        for output, (clean, _) in zip(outputs, batches, strict=True):
            model.zero_grad()
            F.mse_loss(output, clean).backward()
            named = model.named_parameters()
            together.append(torch.cat([p.grad.flatten() for n, p in named if n != "shortcut.0.bias"]))
    for ours, theirs in zip(together, alone, strict=True):
        assert torch.equal(ours, theirs["gradient"])


def test_kernels_are_taken_where_they_fit():
    model, noisy = network(), torch.zeros(16, 3, 32, 32)
    assert paths.choose(model, noisy) == paths.FUSED
    with torch.no_grad():
        assert paths.choose(model.eval(), noisy) == paths.FUSED
    model.train()
    others = {
        "a gradient of the images": noisy.clone().requires_grad_(),
        "float64": noisy.double(),
        "odd sizes": torch.zeros(16, 3, 31, 32),
        "a photograph": torch.zeros(16, 3, 256, 256),
        "images smaller than the window": torch.zeros(50, 3, 10, 10),
    }
    for what, batch in others.items():
        assert paths.choose(model, batch) == paths.PORTABLE, what
    assert paths.choose(model, noisy, context=torch.zeros(1, 16, 4)) == paths.PORTABLE
    assert paths.choose(model.double(), noisy) == paths.PORTABLE
    assert paths.choose(network(u=2, d=256), noisy) == paths.PORTABLE
    assert paths.choose(network(), noisy, None) == paths.FUSED


def test_reference_is_taken_where_reassociation_does_not_pay():
    assert paths.choose(network(), torch.zeros(1, 3, 32, 32)) == paths.REFERENCE  # too little to do
    photograph = torch.zeros(1, 3, 256, 256)
    assert paths.choose(network(), photograph) == paths.PORTABLE
    assert paths.choose(network(u=4, m=7), photograph) == paths.REFERENCE
    assert paths.choose(network(u=4, m=7, d=64), photograph) == paths.PORTABLE


def test_evaluation_with_gradients_does_not_take_the_kernels():
    model = network().eval()
    output = model(images(16, 32, 32)[1])
    output.sum().backward()
    assert model.embedding.grad.abs().max() > 0


@pytest.mark.parametrize(("way", "shape"), [*itertools.product(paths.NAMES, [(1, 3, 9, 13), (4, 3, 32, 32)])])
def test_every_forced_path_gives_an_output(way, shape):
    model = network().eval()
    noisy = images(shape[0], *shape[2:])[1]
    with torch.no_grad(), paths.forced(way):
        torch.testing.assert_close(model(noisy), model.reference(noisy), rtol=1e-5, atol=1e-6)


def test_unknown_path_is_named():
    with pytest.raises(ValueError, match="unknown path 'gpu'; choose one of auto, reference"):
        paths.force("gpu")


def test_dncnn_takes_its_kernels_on_a_gpu_where_they_run(monkeypatch):
    monkeypatch.setattr(paths, "_multiplies_bf16", lambda _device: True)
    for reason, expected in (("RuntimeError: no compiler", paths.BF16), (None, paths.BF16_FUSED)):
        monkeypatch.setattr(dncnn, "unavailable", lambda reason=reason: reason)
        assert path("dncnn", "cuda") == expected
        with paths.forced(paths.BF16_FUSED):
            assert path("dncnn", "cuda") == expected
            assert path("dncnn", "cpu") == paths.BF16
            assert path("autoencoder", "cuda") == paths.BF16
    for way in (paths.BF16, paths.CHANNELS_LAST, paths.REFERENCE):
        with paths.forced(way):
            assert path("dncnn", "cuda") == way
    for name in ("autoencoder", "cnn", "skip-autoencoder"):
        assert path(name, "cuda") == paths.BF16
    assert path("dncnn", "cpu") == paths.BF16


def test_kernels_that_do_not_run_are_named(monkeypatch):
    pytest.importorskip("triton")
    from lambdanet.models.dncnn import normalization

    def fails():
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(normalization, "trial", fails)
    for there, reason in (
        (False, "no CUDA device"),
        (True, "RuntimeError: Failed to find C compiler. Please specify one"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        dncnn.unavailable.cache_clear()
        assert dncnn.unavailable() == reason
    dncnn.unavailable.cache_clear()


def test_device_may_name_a_path():
    try:
        assert choose_device("cpu/portable") == torch.device("cpu")
        assert paths.usual("cpu") == paths.PORTABLE
    finally:
        choose_device("cpu/auto")
    assert paths.usual("cpu") == paths.FUSED
    assert paths.usual("cuda") == paths.PORTABLE


def test_convolutions_take_half_precision_where_the_processor_has_units_for_it(monkeypatch):
    for units, expected in ((True, paths.BF16), (False, paths.CHANNELS_LAST)):
        monkeypatch.setattr(paths, "_multiplies_bf16", lambda _device, units=units: units)
        for name in ("autoencoder", "cnn", "skip-autoencoder"):
            assert path(name, "cpu") == expected
        assert path("dncnn", "cpu") == (paths.BF16 if units else paths.WINOGRAD)
        assert path("lambdanet", "cpu") == paths.FUSED
        with paths.forced(paths.REFERENCE):
            assert path("dncnn", "cpu") == paths.REFERENCE
        for way in (paths.CHANNELS_LAST, paths.BF16):
            with paths.forced(way):
                assert path("dncnn", "cpu") == way
                assert path("lambdanet", "cpu") == paths.FUSED
    for way in (paths.PORTABLE, paths.FUSED):
        with paths.forced(way):
            assert path("dncnn", "cpu") == paths.REFERENCE


WITHOUT = """
import sys
sys.modules["llvmlite"] = None
import torch
from lambdanet.models import create_model, path
from lambdanet.models import paths
model = create_model("lambdanet")
model(torch.rand(16, 3, 32, 32)).sum().backward()
print(path("lambdanet", "cpu"), paths.unavailable() is not None, float(model.embedding.grad.abs().sum()) > 0)
try:
    paths.force("fused")
except ValueError as error:
    print(error)
"""


def test_without_llvmlite_the_portable_path_is_taken():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "portable True True"
    assert second.startswith("the fused path is not available here: ")
    assert second.endswith("; choose another, or auto")


def test_torch_s_default_type_does_not_matter_to_the_kernels():
    model, (clean, noisy) = network(m=7), images(9, 20, 16)
    expected = learn(model, paths.FUSED, clean, noisy)
    torch.set_default_dtype(torch.float64)
    try:
        found = learn(model, paths.FUSED, clean, noisy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
