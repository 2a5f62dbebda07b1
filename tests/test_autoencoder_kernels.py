"""The auto-encoder by kernels on a CPU: against its reference in float64, and when they are taken."""

import contextlib
import copy
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from kernel_helpers import OTHER_BATCHES, programs

from lambdanet.kernels.threads import share
from lambdanet.models import create_model, path, paths
from lambdanet.models.autoencoder import compiled

# Channels that fill vectors with zeros, or not at all, and sizes of whole and of broken blocks of pixels.
CASES = [(12, (32, 32)), (5, (40, 24)), (1, (64, 16)), (16, (8, 8))]  # each is seconds of compilation
WIDTH, SIZE = CASES[1]
LIMITS = {"output": 1e-6, "evaluation": 1e-6, "gradient": 1e-5}


def network(width=WIDTH, seed=0):
    """An auto-encoder without a layer whose units are all 0."""
    torch.manual_seed(seed)
    model = create_model("autoencoder", width=width)
    for layer in (*model.encoder[::2], *model.decoder[::2]):
        torch.nn.init.uniform_(layer.bias, -0.1, 0.4)
    return model


def images(b, size=SIZE, seed=0):
    return torch.rand(b, 3, *size, generator=torch.Generator().manual_seed(seed))


def layers(model, noisy):
    return model.decoder(model.encoder(noisy))


def learn(model, noisy, dtype=torch.float32):
    """What a training step gives, and the output of an evaluation."""
    model, noisy = copy.deepcopy(model).to(dtype).train(), noisy.to(dtype)
    output = model(noisy)
    F.mse_loss(output, noisy.flip(3).square()).backward()
    with torch.no_grad():
        evaluated = model.eval()(noisy)
    gradients = [p.grad for p in model.parameters()]
    return {"output": [output.detach()], "evaluation": [evaluated], "gradient": gradients}


def exactly(model, noisy):
    with paths.forced(paths.REFERENCE):
        return learn(model, noisy, torch.float64)


def content(found):
    """All bytes of what `learn` gives."""
    return [tensor.numpy().tobytes() for key in LIMITS for tensor in found[key]]


def errors(ours, exact):
    """The largest of an image's, and by norm of a parameter's gradient."""
    found = {key: (ours[key][0] - exact[key][0]).abs().max().item() for key in ("output", "evaluation")}
    pairs = zip(ours["gradient"], exact["gradient"], strict=True)
    return found | {"gradient": max(((one - other).norm() / other.norm()).item() for one, other in pairs)}


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """The batches that the kernels took."""
    batches, run = [], compiled.run
    monkeypatch.setattr(compiled, "run", lambda model, noisy: batches.append(noisy) or run(model, noisy))
    return batches


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("b", [1, 2, 9])
@pytest.mark.parametrize(("width", "size"), CASES, ids=str)
def test_kernels_are_exact(width, size, b, taken):
    """The median of three: a hidden unit next to 0 may be on the other side of it in float32."""
    found = []
    for seed in range(3):
        model, noisy = network(width, seed), images(b, size, seed)
        found.append(errors(learn(model, noisy), exactly(model, noisy)))
    assert len(taken) == 6
    middle = {key: median(each[key] for each in found) for key in LIMITS}
    assert not {key: middle[key] for key, limit in LIMITS.items() if not middle[key] < limit}


def losses(dtype):
    """Of ten steps, each on a batch of its own."""
    model = network().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for step in range(10):
        noisy = images(9, seed=step).to(dtype)
        optimizer.zero_grad()
        loss = F.mse_loss(model(noisy), noisy.flip(3).square())
        loss.backward()
        optimizer.step()
        yield loss.item()


def test_losses_stay_with_the_reference(taken):
    found = list(losses(torch.float32))
    assert len(taken) == 10
    with paths.forced(paths.REFERENCE):
        exact = list(losses(torch.float64))
    assert exact[-1] < 0.9 * exact[0]
    assert found == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("b", [1, 3, 9])
def test_threads(threads, b):
    model, noisy = network(), images(b)
    exact, evaluated = exactly(model, noisy), []
    for count in (1, 2, 4):
        threads(count)
        found = learn(model, noisy)
        assert content(found) == content(learn(model, noisy))
        assert not {key: error for key, error in errors(found, exact).items() if not error < LIMITS[key]}
        evaluated.append(found["evaluation"][0])
    assert torch.equal(evaluated[0], evaluated[1])
    assert torch.equal(evaluated[0], evaluated[2])


def test_threads_may_be_others_in_the_pass_backward(threads):
    model, noisy = network(), images(9)
    threads(4)
    expected = learn(model, noisy)["gradient"]
    threads(1)
    output = model(noisy)
    threads(4)
    F.mse_loss(output, noisy.flip(3).square()).backward()
    assert all(map(torch.equal, [p.grad for p in model.parameters()], expected))


@pytest.mark.parametrize("count", [1, 2])
def test_callers_in_two_threads_do_not_disturb_each_other(threads, count):
    threads(count)
    model = network()
    frozen = network(seed=1).eval().requires_grad_(False)
    batches = [images(4, seed=seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        alone = [content(learn(model, noisy)) for noisy in batches]
        assert list(pool.map(lambda noisy: content(learn(model, noisy)), 20 * batches)) == 20 * alone
        expected = [frozen(noisy) for noisy in batches]
        assert all(map(torch.equal, pool.map(frozen, 50 * batches), 50 * expected))


def gradients(model, output, **options):
    found = torch.autograd.grad(output.square().sum(), model.parameters(), **options)
    return [one.numpy().tobytes() for one in found]


def test_batches_do_not_disturb_each_other():
    """Two passes forward, and evaluations of as many images, before their passes backward."""
    model, batches = network(), [images(4, seed=seed) for seed in range(2)]
    alone = [gradients(model, model(noisy)) for noisy in batches]
    outputs = [model(noisy) for noisy in batches]
    with torch.no_grad():
        evaluated = [model(images(4, seed=seed)) for seed in (2, 1, 0)]
    assert torch.equal(evaluated[1], outputs[1])
    assert torch.equal(evaluated[2], outputs[0])
    assert [gradients(model, output, retain_graph=True) for output in outputs] == alone
    gradients(model, model(images(4, seed=3)))
    assert [gradients(model, output) for output in outputs] == alone


def test_room_of_an_inference_serves_a_training():
    model, noisy = network(), images(6)
    expected = content(learn(model, noisy))
    compiled.compiled(WIDTH, *SIZE).rooms.clear()
    with torch.inference_mode():
        model(noisy)
    assert content(learn(model, noisy)) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_image_that_is_spoilt_spoils_no_other(value):
    model, noisy = network(), images(4)
    expected = learn(model, noisy)
    spoilt = noisy.clone()
    spoilt[1, 0, 5, 7] = value
    output = model(spoilt)
    output.backward(torch.full_like(output, float("nan")))
    assert torch.equal(output[[0, 2, 3]], expected["output"][0][[0, 2, 3]])
    assert torch.equal(output[1].isnan(), layers(model, spoilt)[1].isnan())
    assert content(learn(model, noisy)) == content(expected)


@pytest.mark.parametrize("bias", [-1e38, -200.0, -88.0, 88.0, 1e38])
def test_output_far_from_the_middle(bias):
    model = network()
    with torch.no_grad():
        model.decoder[-2].bias.fill_(bias)
        torch.testing.assert_close(model(images(1)), layers(model, images(1)), rtol=0, atol=1e-37)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "part of another": lambda x: F.pad(x, (3, 2, 1, 0, 2, 1))[:, 2:-1, 1:, 3:-2],
    "every second": lambda x: x.repeat_interleave(2, 3)[..., ::2],
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layout_in_memory_does_not_matter(layout, last, taken):
    model, noisy, weights = network(), images(4), images(4, seed=1)
    output = model(noisy)
    output.backward(weights)
    other = network().to(memory_format=torch.channels_last if last else torch.contiguous_format)
    strided = layout(noisy)
    assert not strided.is_contiguous()
    found = other(strided)
    found.backward(layout(weights))
    assert len(taken) == 2
    assert found.is_contiguous()
    assert torch.equal(found, output)
    for one, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(one.grad, expected.grad)


def test_images_and_gradients_may_be_one_in_memory():
    model, one = network(), images(1)
    output, expected = model(one.expand(4, -1, -1, -1)), model(one.repeat(4, 1, 1, 1))
    assert torch.equal(output, expected)
    found = torch.autograd.grad(output.sum(), model.parameters())
    assert all(
        map(torch.equal, found, torch.autograd.grad(expected, model.parameters(), torch.ones(4, 3, *SIZE)))
    )


@pytest.mark.parametrize("which", [0, 5, 6, -1])
def test_parameter_that_changes_before_the_pass_backward_is_noticed(which):
    model = network()
    output = model(images(1))
    with torch.no_grad():
        list(model.parameters())[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_parameters_that_are_frozen_get_no_gradient():
    model, noisy = network(), images(2)
    model(noisy).sum().backward()
    half = network()
    half.encoder.requires_grad_(False)
    half(noisy).sum().backward()
    assert all(p.grad is None for p in half.encoder.parameters())
    pairs = zip(half.decoder.parameters(), model.decoder.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)


@pytest.mark.parametrize("forced", [paths.AUTO, paths.FUSED])
@pytest.mark.parametrize("training", [True, False])
def test_kernels_are_taken(forced, training, taken):
    model, noisy = network().train(training), images(2)
    with torch.set_grad_enabled(training), paths.forced(forced):
        output = model(noisy)
    assert len(taken) == 1
    assert output.requires_grad == training
    assert not torch.equal(output, layers(model, noisy))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("forced", sorted({*paths.NAMES} - {paths.AUTO, paths.FUSED}))
def test_another_path_that_is_forced_is_taken(forced, training, taken):
    model, noisy = network().train(training), images(2)
    with torch.set_grad_enabled(training), paths.forced(forced):
        assert torch.equal(model(noisy), layers(model, noisy))
    assert not taken


OTHERS = OTHER_BATCHES | {
    "large images": (lambda _noisy: images(1, (72, 72)), torch.no_grad),
    "long images": (lambda _noisy: images(1, (8, 72)), contextlib.nullcontext),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", OTHERS)
def test_kernels_are_not_taken_for(what, training, taken):
    change, around = OTHERS[what]
    noisy = change(images(2))
    model = network().to(noisy.dtype).train(training)
    with around(), paths.forced(paths.FUSED):
        assert torch.equal(model(noisy), layers(model, noisy))
    assert not taken


def test_gradients_of_an_evaluation_are_the_reference_s(taken):
    model, noisy = network().eval(), images(2)
    output = model(noisy)
    assert torch.equal(output, layers(model, noisy))
    output.sum().backward()
    assert model.encoder[0].weight.grad.abs().max() > 0
    assert not taken
    model.requires_grad_(False)
    torch.testing.assert_close(model(noisy), output, rtol=0, atol=1e-6)
    assert len(taken) == 1


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@programs
def test_programs_have_the_layers(traced, taken):
    model, noisy = network().eval().requires_grad_(False), images(2)
    program = traced(model, (noisy,))
    taken.clear()  # torch.jit compares with what is not traced
    assert torch.equal(program(noisy), layers(model, noisy))
    assert not taken


def test_without_llvmlite_the_layers_run(monkeypatch, taken):
    monkeypatch.setattr(paths, "unavailable", lambda: "no llvmlite")
    model, noisy = network(), images(2)
    assert torch.equal(model(noisy), layers(model, noisy))
    assert not taken


WAYS = {
    paths.AUTO: paths.FUSED,
    paths.FUSED: paths.FUSED,
    paths.REFERENCE: paths.REFERENCE,
    paths.PORTABLE: paths.REFERENCE,  # of LambdaNet alone
    paths.CHANNELS_LAST: paths.CHANNELS_LAST,
    paths.WINOGRAD: paths.CHANNELS_LAST,  # of DnCNN
    paths.BF16: paths.BF16,
    paths.BF16_FUSED: paths.BF16,  # of a GPU
}


@pytest.mark.parametrize("amx", [True, False])
def test_path_on_a_cpu(amx, monkeypatch):
    monkeypatch.setattr(paths, "_multiplies_bf16", lambda _device: amx)
    for forced in paths.NAMES:
        with paths.forced(forced):
            assert path("autoencoder", "cpu") == WAYS[forced], forced
    monkeypatch.setattr(paths, "unavailable", lambda: "no llvmlite")
    for forced in sorted({*paths.NAMES} - {paths.AUTO, paths.FUSED, paths.WINOGRAD}):
        with paths.forced(forced):
            assert path("autoencoder", "cpu") == WAYS[forced], forced
    assert path("autoencoder", "cpu") == (paths.BF16 if amx else paths.CHANNELS_LAST)


def outcome(run, noisy):
    try:
        return run(noisy).tolist()
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 36, 20),
        (1, 3, 4, 4),
        (2, 4, 8, 8),
        (3, 8, 8),
    ],
    ids=str,
)
def test_other_shapes_are_the_layers_s(shape):
    model, noisy = network(1).eval().requires_grad_(False), torch.rand(shape)
    assert outcome(model, noisy) == outcome(lambda x: layers(model, x), noisy)


def test_default_type_does_not_matter():
    model, noisy = network(), images(2)
    expected = content(learn(model, noisy))
    compiled.compiled(WIDTH, *SIZE).rooms.clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert content(learn(model, noisy)) == expected
    finally:
        torch.set_default_dtype(torch.float32)
        compiled.compiled(WIDTH, *SIZE).rooms.clear()


def test_room_that_cannot_be_made_is_made_later(monkeypatch):
    def fails(*_given, **_options):
        raise RuntimeError("can't allocate memory")

    model, noisy = network(), images(7)
    compiled.compiled(WIDTH, *SIZE).rooms.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", fails)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            model(noisy)
    try:
        torch.testing.assert_close(model(noisy), layers(model, noisy), rtol=0, atol=1e-6)
    finally:
        compiled.compiled(WIDTH, *SIZE).rooms.clear()


def test_work_that_fails_is_left_by_all_threads():
    ended = []

    def work(thread):
        if thread == 0:
            raise KeyboardInterrupt
        time.sleep(0.1)
        ended.append(thread)

    with pytest.raises(KeyboardInterrupt):
        share(work, 3)
    assert sorted(ended) == [1, 2]
