"""What only a GPU can show; skipped where there is none."""

import helpers
import pytest
import torch
from helpers import GAUSSIAN, TRAIN
from learning import learn

from lambdanet import backends, devices
from lambdanet.backends.cuda import graphs
from lambdanet.config import Training
from lambdanet.models import create_model
from lambdanet.training import checkpoint, loop, optimizers
from lambdanet.training.loop import Pairs, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CUDA = torch.device("cuda")
LAMBDANET = {"name": "lambdanet", "u": 1, "m": 23}
SMALL_LAMBDANET = {"name": "lambdanet", "u": 4, "m": 7}
DNCNN = {"name": "dncnn", "depth": 4, "width": 16, "residual": True}
AUTOENCODER = {"name": "autoencoder"}
NETWORKS = [AUTOENCODER, {"name": "cnn"}, DNCNN, LAMBDANET, SMALL_LAMBDANET, {"name": "skip-autoencoder"}]
NOISES = [
    {"name": "speckle", "variance": 0.1}, {"name": "salt-and-pepper", "amount": 0.05},
    {"name": "blind-gaussian", "low": 0.01, "high": 0.2},
    {"name": "blind-gaussian-in-files", "low": 0.01, "high": 0.2, "grey": 0.5, "halved": 0.5},
]  # fmt: skip
EPOCHS = 3  # of 5 steps, the last of a smaller batch


@pytest.fixture(autouse=True)
def deterministic():
    devices.be_deterministic()


@pytest.fixture(scope="module")
def data():
    clean, test = helpers.patches(70, 32), helpers.patches(8, 32, seed=1)
    return Pairs(clean, helpers.noisy(clean)), Pairs(test, helpers.noisy(test))


@pytest.fixture
def run(data, tmp_path):
    def run(model, noise=GAUSSIAN, folder="checkpoints", discard=True, **changes):
        how = Training(**TRAIN | {"epochs": EPOCHS, "batch_size": 16} | changes)
        where = tmp_path / folder
        model, history = train(model, noise, how, *data, seed=0, device=CUDA, checkpoints=where)
        if discard:
            checkpoint.discard(where)
        return {name: value.cpu() for name, value in model.state_dict().items()}, history

    return run


def same(one, other):
    (mine, _), (theirs, _) = one, other
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("model", NETWORKS, ids=lambda config: config["name"])
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "stored"])
def test_a_recorded_step_gives_the_bytes_of_one_that_is_not(run, monkeypatch, model, fresh):
    sizes, record = [], graphs.Recorded._record
    monkeypatch.setattr(
        graphs.Recorded, "_record", lambda self, batch: sizes.append(len(batch)) or record(self, batch)
    )
    recorded = run(model, fresh_noise=fresh)
    assert sizes == [16, 6]
    monkeypatch.setattr(graphs.Recorded, "__call__", lambda self, batch: self._run_aside(batch))
    as_it_is = run(model, fresh_noise=fresh)
    assert same(recorded, as_it_is)
    assert recorded[1] == as_it_is[1]
    assert recorded[1][-1]["loss"] < recorded[1][0]["loss"]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise["name"])
def test_every_noise_can_be_recorded_and_is_fresh(run, monkeypatch, noise):
    recorded = run(AUTOENCODER, noise)
    monkeypatch.setattr(graphs.Recorded, "__call__", lambda self, batch: self._run_aside(batch))
    assert same(recorded, run(AUTOENCODER, noise))


@pytest.mark.parametrize("optimizer", ["adam", "adamax", "sgd"])
@pytest.mark.parametrize("model", [LAMBDANET, DNCNN], ids=lambda config: config["name"])
def test_a_killed_training_goes_on_to_the_same_bytes(run, monkeypatch, model, optimizer):
    whole = run(model, optimizer=optimizer)

    class KilledError(Exception):
        pass

    steps = iter(range(100))
    real = graphs.Recorded.__call__

    def killed(self, batch):
        if next(steps) == 7:
            raise KilledError
        return real(self, batch)

    monkeypatch.setattr(graphs.Recorded, "__call__", killed)
    monkeypatch.setattr(loop.Progress, "step", lambda self, loss: True)  # a checkpoint a step
    if optimizer == "sgd":  # not recorded: stop it elsewhere
        rate = optimizers.learning_rate

        def stopped(*arguments):
            if next(steps) == 7:
                raise KilledError
            return rate(*arguments)

        monkeypatch.setattr(optimizers, "learning_rate", stopped)
    with pytest.raises(KilledError):
        run(model, folder="killed", discard=False, optimizer=optimizer)
    monkeypatch.undo()
    devices.be_deterministic()
    found, load = [], checkpoint.load_newest
    monkeypatch.setattr(checkpoint, "load_newest", lambda *given: found.append(load(*given)) or found[-1])
    assert same(run(model, folder="killed", optimizer=optimizer), whole)
    assert [state["done"] for state in found] == [7]


@pytest.mark.parametrize("shape", [(3, 16, 7, 9), (80, 64, 32, 32), (256, 64, 32, 32)], ids=str)
@pytest.mark.parametrize(("dtype", "mean"), [("float32", 100), ("bfloat16", 1.5)])
def test_normalisation_is_torchs(shape, dtype, mean):
    import gpu_kernels

    fits, errors = gpu_kernels.normalisation(shape, dtype, mean, CUDA)
    assert fits is (dtype == "bfloat16")  # what an autocast convolution gives
    rounded = 1e-4 if dtype == "float32" else 5e-3
    limits = {"a": rounded, "dy": rounded, "dgamma": 1e-5, "dbeta": 1e-5, "mean": 1e-6, "var": 1e-6}
    assert all(errors[name] <= limit for name, limit in limits.items()), errors


@pytest.mark.parametrize("shape", [(3, 7, 9, 16), (80, 32, 32, 64), (256, 32, 32, 64)], ids=str)
def test_first_convolution_is_torchs(shape):
    import gpu_kernels

    fits, errors = gpu_kernels.convolution(shape, exact=False, device=CUDA)
    assert fits
    assert errors["a"] <= 3e-3
    assert errors["dw"] <= 1e-5


def test_a_card_may_be_named_by_its_number(data, tmp_path):
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    try:
        assert devices.choose_device(str(last)) == last
        how = Training(**TRAIN | {"epochs": EPOCHS, "batch_size": 16})
        model, _ = train(DNCNN, GAUSSIAN, how, *data, seed=0, device=last, checkpoints=tmp_path)
        assert next(model.parameters()).device == last
    finally:
        torch.cuda.set_device(0)


def test_dncnn_by_the_kernels_is_dncnn(run, monkeypatch):
    from lambdanet.backends.cuda import first_convolution, normalization

    kernels, used = {normalization: "normalize_and_rectify", first_convolution: "convolve_and_rectify"}, set()
    for module, name in kernels.items():
        real = getattr(module, name)

        def spy(*given, name=name, real=real):
            used.add(name)
            return real(*given)

        monkeypatch.setattr(module, name, spy)
    assert backends.unavailable_on_gpu() is None
    fused = run(DNCNN)
    assert used == set(kernels.values())
    with backends.forced(backends.BF16):
        plain = run(DNCNN)
    with backends.forced(backends.REFERENCE):
        reference = run(DNCNN)
    assert not same(fused, plain)
    for history in (fused[1], plain[1]):
        assert history[-1]["loss"] == pytest.approx(reference[1][-1]["loss"], rel=0.02)


@pytest.mark.parametrize("config", [LAMBDANET, SMALL_LAMBDANET], ids=["u1", "u4"])
def test_portable_lambdanet_is_the_reference(config):
    torch.manual_seed(0)
    model, noisy = create_model(**config).to(CUDA), torch.rand(16, 3, 32, 32, device=CUDA)
    ours, plain = (learn(each, model, noisy, 1 - noisy) for each in (backends.PORTABLE, backends.REFERENCE))
    assert (ours["output"][0] - plain["output"][0]).norm() < 1e-5 * plain["output"][0].norm()
    for mine, right in zip(ours["gradient"], plain["gradient"], strict=True):
        assert (mine - right).norm() < 2e-3 * right.norm() + 1e-7
