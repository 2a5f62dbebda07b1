import dataclasses
import inspect
import json
import math
import os
import signal

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import AUTOENCODER, DNCNN, GAUSSIAN, LAMBDANET, TRAIN

from lambdanet import backends, config, files, models
from lambdanet.data.images import to_tensor
from lambdanet.data.noise import create_noise
from lambdanet.evaluation import metrics
from lambdanet.inference.denoise import denoise
from lambdanet.run_log import read_records
from lambdanet.training import checkpoint, experiment, loop
from lambdanet.training.loop import Pairs, train
from lambdanet.training.optimizers import learning_rate
from lambdanet.training.progress import Progress

CPU = torch.device("cpu")
TERM, INT = signal.SIGTERM, signal.SIGINT
STOPS = [(TERM, 1, 0.01), (INT, 7, 0.01), (TERM, 8, 0.01), (INT, 24, 0.01), (TERM, 12, 1)]


def settings(**changes):
    return config.Training(**TRAIN | {"epochs": 3} | changes)


@pytest.fixture(scope="module")
def data():
    clean, test = helpers.patches(64), helpers.patches(8, seed=1)
    return Pairs(clean, helpers.noisy(clean)), Pairs(test, helpers.noisy(test))


@pytest.fixture
def run(data, tmp_path):
    """Train on the tiny data: a function of (model, settings, seed) to (model, history)."""

    def run(model=LAMBDANET, how=None, seed=0, pairs=data):
        where = tmp_path / "checkpoints"
        result = train(model, GAUSSIAN, how or settings(), *pairs, seed=seed, device=CPU, checkpoints=where)
        checkpoint.discard(where)
        return result

    return run


def weight_bytes(model, path):
    models.save_weights(path, model, {"model": LAMBDANET})
    return path.read_bytes()


def test_cosine_rate_rises_in_the_warm_up_and_falls_to_zero():
    how = settings(schedule="cosine", learning_rate=0.01, warmup=0.1, epochs=10)
    rates = [learning_rate(how, step, 4) for step in range(40)]
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[22] == pytest.approx(0.005)
    assert rates[13] == pytest.approx(0.005 * (1 + math.cos(math.pi / 4)))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[39] < 0.01 * 0.002


@pytest.mark.parametrize(
    ("model", "backend"),
    [(LAMBDANET, "auto"), (DNCNN, "auto"), (AUTOENCODER, "auto"), (DNCNN, "bf16")],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_same_seed_gives_the_same_bytes(run, tmp_path, model, backend):
    with backends.forced(backend):
        found = [run(model, seed=seed) for seed in (3, 3, 4)]
    first, second, other = (weight_bytes(trained, tmp_path / "w") for trained, _ in found)
    assert first == second != other
    for trained, history in found:
        assert history[-1]["loss"] < history[0]["loss"]
        assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())
    if backend == "bf16":
        with backends.forced("reference"):
            assert weight_bytes(run(model, seed=3)[0], tmp_path / "w") != first


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "stored"])
def test_loss_falls_and_psnr_rises(run, fresh):
    _, history = run(DNCNN | {"width": 16}, settings(fresh_noise=fresh, epochs=30))
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert history[-1]["monitored_psnr"] > 23  # the noisy images have 20


@pytest.mark.parametrize(("loss", "batch_size"), [("mse", 24), ("mae", 24), ("bce", 8)])
def test_history_holds_the_mean_loss_of_the_epoch(run, data, loss, batch_size):
    """With a learning rate of next to nothing the loss is that of the initial model on all pairs."""
    how = settings(loss=loss, learning_rate=1e-12, fresh_noise=False, batch_size=batch_size, epochs=1)
    model, history = run(AUTOENCODER, how)
    x, output = to_tensor(data[0].clean), denoise(model, to_tensor(data[0].noisy))
    losses = {"mse": F.mse_loss, "mae": F.l1_loss, "bce": F.binary_cross_entropy}
    expected = losses[loss](output, x).item()
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_bce_takes_outputs_outside_the_unit_interval(run):
    _, history = run(DNCNN, settings(loss="bce", epochs=6))
    assert all(math.isfinite(row["loss"]) for row in history)
    assert history[-1]["loss"] < 0.97 * history[0]["loss"]


def test_history_describes_every_epoch(run, data):
    how = settings(epochs=4, decay=0.5, monitored=5)
    model, history = run(how=how)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [row["learning_rate"] for row in history] == [0.01, 0.005, 0.0025, 0.00125]
    assert list(history[0]) == ["epoch", "learning_rate", "loss", "monitored_psnr"]
    picked = [0, 2, 4, 5, 7]  # evenly spaced among 8
    x, y = to_tensor(data[1].clean[picked]), to_tensor(data[1].noisy[picked])
    mse = metrics.mean_squared_error(x, denoise(model, y).clamp(0, 1)).mean().item()
    assert history[-1]["monitored_psnr"] == pytest.approx(metrics.psnr(mse, data_range=1), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "rest", "fresh"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "fused": True}, True),  # Table 1
        ("adam", torch.optim.Adam, {"fused": True}, False),
        ("adamax", torch.optim.Adamax, {}, False),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "fused": True}, False),
    ],
)
def test_a_plain_loop_gives_the_same_bytes(run, data, name, kind, rest, fresh):
    """By the order, the noise and the rates that follow from the seed and the step."""
    rate = {"learning_rate": 0.01, "decay": 0.5, "weight_decay": 0.1}
    how = settings(batch_size=24, epochs=3, fresh_noise=fresh, optimizer=name, **rate)
    with backends.forced(backends.CHANNELS_LAST):
        model, _ = run(AUTOENCODER, how, seed=7)
    torch.manual_seed(7)
    plain = models.create_model(**AUTOENCODER).to(memory_format=torch.channels_last)
    optimizer = kind(plain.parameters(), lr=0.01, weight_decay=0.1, **rest)
    noise, generator = create_noise(**GAUSSIAN), torch.Generator()
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5**epoch
        for step, batch in enumerate(np.split(np.random.default_rng([7, epoch]).permutation(64), [24, 48])):
            x, y = to_tensor(data[0].clean[batch]), to_tensor(data[0].noisy[batch])
            if fresh:
                (number,) = np.random.SeedSequence([7, epoch, step]).generate_state(1, np.uint64)
                y = noise(x, generator.manual_seed(int(number)))
            optimizer.zero_grad()
            F.mse_loss(plain(y), x).backward()
            optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_nan_in_the_data_writes_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(helpers.write_project(tmp_path))
    run = config.load("profile.yaml").run("gaussian-01", "lambdanet", 0)
    noisy = np.load(run.noisy / "train.npy")
    noisy[5] = np.nan
    np.save(run.noisy / "train.npy", noisy)
    with pytest.raises(ValueError, match="the loss of epoch 1 is nan"):
        experiment.train_run(dataclasses.replace(run, settings=settings(fresh_noise=False)), device="cpu")
    assert not list(tmp_path.glob("runs/tiny/models/**/*lambdanet*"))
    (record,) = read_records(run.log)
    assert (record["finished"], record["history"]) == (None, [])


@pytest.mark.parametrize("name", ["autoencoder", "dncnn", "lambdanet"])
def test_middle_of_large_test_images_is_monitored(name, tmp_path, monkeypatch):
    """Whole photographs are of sizes that the auto-encoder does not take."""
    monkeypatch.chdir(helpers.write_project(tmp_path))
    run = config.load("profile.yaml").run("gaussian-01", name, 0)
    clean = helpers.patches(4, size=101, seed=1)[:, :75]
    noisy = helpers.noisy(clean)
    np.save(run.clean / "test.npy", clean)
    np.save(run.noisy / "test.npy", noisy)
    experiment.train_run(dataclasses.replace(run, settings=settings(epochs=1)), device="cpu")
    (row,) = helpers.read_csv(run.history)
    x, y = (to_tensor(images[:, 5:69, 18:82]) for images in (clean, noisy))
    mse = (denoise(models.load_weights(run.weights)[0], y).clamp(0, 1) - x).square().mean().item()
    assert float(row["monitored_psnr"]) == pytest.approx(-10 * np.log10(mse), abs=1e-3)


@pytest.mark.parametrize(("number", "steps", "rate"), STOPS)
def test_signal_at_any_step_loses_no_step(run, tmp_path, monkeypatch, caplog, number, steps, rate):
    """An epoch has 8 steps, the training 24; with another rate, the checkpoint is not used."""
    whole, whole_history = run(DNCNN, settings(learning_rate=rate))
    handlers, real = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)], Progress.step

    def step(self, loss):
        real(self, loss)
        if self.done == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "step", step)
    with pytest.raises(SystemExit) as stop:
        run(DNCNN)
    monkeypatch.undo()
    assert stop.value.code == 128 + number
    assert max((tmp_path / "checkpoints").glob("*.pt")).name == f"{steps:09d}.pt"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed, history = run(DNCNN, settings(learning_rate=rate))
    assert weight_bytes(resumed, tmp_path / "w") == weight_bytes(whole, tmp_path / "w")
    assert history == whole_history
    assert ("belongs to other settings, data or code; not used" in caplog.text) == (rate == 1)


def test_a_checkpoint_after_a_minute_never_stands_between_an_epochs_last_step_and_its_row(run, monkeypatch):
    states, real, step = [], checkpoint.save, Progress.step

    def save(folder, key, steps, state):
        states.append((steps, len(state["history"]), state["loss_sum"] > 0))
        real(folder, key, steps, state)

    monkeypatch.setattr(Progress, "step", lambda *words: step(*words) or True)  # as if each took a minute
    monkeypatch.setattr(checkpoint, "save", save)
    run(DNCNN)
    assert states == [(steps, steps // 8, steps % 8 > 0) for steps in range(1, 25)]


def key(data, model=DNCNN, noise=GAUSSIAN, how=None, seed=0, noisy=0.0):
    pairs = Pairs(data[0].clean, data[0].noisy + np.float16(noisy))
    return loop._key(model, noise, how or settings(), pairs, data[1], seed, CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"how": settings(optimizer="sgd")},
        {"how": settings(fresh_noise=False)},
        {"seed": 1},
        {"model": DNCNN | {"residual": False}},
        {"noise": GAUSSIAN | {"sigma": 0.2}},
        {"noisy": 0.01},
    ],
    ids=lambda change: next(iter(change)),
)
def test_key_of_a_checkpoint_covers_settings_and_data(data, change):
    assert key(data) == key(data)
    assert key(data, **change) != key(data)


@pytest.mark.parametrize("part", [(models, "source"), (backends, "source"), (inspect, "getsource")])
def test_key_of_a_checkpoint_covers_the_code_and_the_backend(data, part, monkeypatch):
    before, real = key(data), getattr(*part)
    with backends.forced("reference"):
        assert key(data) != before
    monkeypatch.setattr(*part, lambda *words: real(*words) + "# changed")
    assert key(data) != before
    for text in ("def write_forward", "def select", "class Recorded"):
        assert text in backends.source()


RESULTS = ("weights.safetensors", "model.json", "history.csv")
LONG = helpers.changed(helpers.PROFILE, ("train", "dncnn", "epochs"), 100_000)
OUT, CHECKPOINTS = (f"runs/tiny/{kind}/gaussian-01/dncnn-0" for kind in ("models", "checkpoints"))
LOG = "runs/tiny/logs/gaussian-01/dncnn-0.json"
WORDS = helpers.train_words("dncnn")
DRIVER = """
import functools, json, os, signal
import entry
from lambdanet import files
from lambdanet.run_log import Log
from lambdanet.training import checkpoint, experiment
from lambdanet.training.progress import Progress
experiment.devices.be_deterministic()  # takes a second the first time

def die(*_arguments, **_keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, number, action=die, behind=False):
    real, calls = getattr(owner, name), []
    def wrapper(*arguments, **keywords):
        calls.append(1)
        if len(calls) == number and not behind:
            action()
        result = real(*arguments, **keywords)
        if len(calls) == number and behind:
            action()
        return result
    setattr(owner, name, wrapper)

after = functools.partial(before, behind=True)

def saving(number, action):
    return lambda: before(checkpoint, "save", number, action)

MOMENTS = {
    "before the log is begun": lambda: before(Log, "write", 1),
    "in the first epoch": lambda: after(Progress, "step", 2),
    "checkpoint written, not renamed": saving(7, lambda: before(os, "replace", 1)),
    "checkpoint renamed, old one there": saving(7, lambda: after(os, "replace", 1)),
    "epoch logged, no checkpoint of it": lambda: after(Log, "epoch", 3),
    "in the middle of an epoch": lambda: after(Progress, "step", 15),
    "old checkpoint removed": lambda: after(Path, "unlink", 4),
    "trained, weights not written": lambda: before(experiment, "save_weights", 1),
    "weights written, not the history": lambda: before(files, "write_csv", 1),
    "folder not renamed": lambda: after(files, "write_csv", 1),
    "before the log": lambda: before(Log, "finish", 1),
    "before the checkpoints go": lambda: before(checkpoint, "discard", 1),
    "never": lambda: None,
}
ends = {}
for moment, prepare in MOMENTS.items():
    pid = os.fork()
    if not pid:
        prepare()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except BaseException:
            os._exit(1)
        os._exit(0)
    ends[moment] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    out = Path("runs/tiny/models/gaussian-01/dncnn-0")
    if (out / "weights.safetensors").exists() and moment != "never":
        os.rename(out, "out-" + moment)
print(json.dumps(ends), file=open("ends.json", "w"))
"""


def test_killed_at_every_kind_of_moment_ends_in_the_same_bytes(tmp_path):
    profile = helpers.changed(helpers.PROFILE, ("train", "dncnn", "epochs"), 40)
    one_go = helpers.write_project(tmp_path / "one-go", profile=profile)
    project = helpers.write_project(tmp_path / "killed", profile=profile)
    status, _, err = helpers.run("train", WORDS, one_go)
    assert (status, err.count("epoch ")) == (0, 40), err
    uninterrupted = helpers.contents(one_go / OUT)
    assert set(uninterrupted) == set(RESULTS)
    status, _, err = helpers.run("train", WORDS, project, helpers.OF_STAGE + DRIVER)
    assert status == 0, err
    ends = json.loads((project / "ends.json").read_text())
    assert {moment: end for moment, end in ends.items() if end != -signal.SIGKILL} == {"never": 0}
    assert helpers.contents(project / OUT) == uninterrupted
    whole = {path.name: helpers.contents(path) for path in project.glob("out-*")}
    written = ("out-before the log", "out-before the checkpoints go")
    assert whole == dict.fromkeys(written, uninterrupted)
    (record,) = read_records(project / LOG)  # none of the process that found the training whole
    assert record["weights_sha256"] == files.sha256(project / OUT / RESULTS[0])
    assert [row["epoch"] for row in record["history"]] == list(range(1, 41))
    assert list((project / OUT).parent.glob(".*.part")) == []
    assert [path.name for path in (project / CHECKPOINTS).iterdir() if "lock" not in path.name] == []


@pytest.mark.parametrize(("number", "read"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_stage_ends_on_a_signal_with_a_checkpoint_though_its_reader_was_killed(tmp_path, number, read):
    project = helpers.write_project(tmp_path, profile=LONG)
    process = helpers.start("train", WORDS, project)
    helpers.wait_for_line(process, "/100000: loss")

    def done():
        return max((int(path.stem) for path in (project / CHECKPOINTS).glob("*.pt")), default=0)

    if read:
        process.send_signal(number)
        said = process.communicate(timeout=helpers.PATIENCE)[1].splitlines()
        assert said[-1].endswith("the checkpoint is written, run again to resume")
    else:
        process.stdout.close(), process.stderr.close()
        then = done()
        # Several epochs, of each of which it prints a line.
        helpers.wait_until(lambda: done() > then + 50 or process.poll() is not None)
        process.send_signal(number)
    assert process.wait(helpers.PATIENCE) == 128 + number
    assert done() > 0
    assert {path.name for path in (project / "runs/tiny").iterdir()} == {"checkpoints", "data", "logs"}


def test_second_trainer_of_the_same_output_refuses(tmp_path, stage, monkeypatch):
    project = helpers.write_project(tmp_path, profile=LONG)
    first = helpers.start("train", WORDS, project)
    try:
        helpers.wait_for_line(first, "epoch 1/")
        monkeypatch.setattr(files, "WAIT_SECONDS", 0.3)
        status, lines = stage("train", WORDS, project)
        assert status == 1
        assert lines == [f"error: process {first.pid} is writing the same output; wait for it or stop it"]
        assert first.poll() is None
        assert not (project / OUT).exists()
    finally:
        first.kill()  # and not waited for: the lock is
    monkeypatch.setattr(files, "WAIT_SECONDS", helpers.PATIENCE)
    with files.sole_writer(project / CHECKPOINTS / "lock"):
        assert (project / CHECKPOINTS / "lock.pid").read_text() == f"{os.getpid()}\n"
    first.communicate()


def test_death_of_dvc_ends_the_trainer(tmp_path):
    project = helpers.write_project(tmp_path, profile=LONG)
    code = "import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]], check=False)\n"
    (project / "dvc").write_text(code)
    dvc = helpers.start("train", WORDS, project, parent=project / "dvc", DVC_STAGE="train")
    try:
        helpers.wait_for_line(dvc, "epoch 1/")
        trainer = int((project / CHECKPOINTS / "lock.pid").read_text())
        dvc.kill()
        dvc.wait()
        helpers.wait_until(lambda: not helpers.lives(trainer))
        assert len(list((project / CHECKPOINTS).glob("*.pt"))) > 0
        assert "the checkpoint is written" in dvc.stderr.read()
    finally:
        dvc.kill()
        dvc.communicate()
        if helpers.lives(trainer):
            os.kill(trainer, signal.SIGKILL)
