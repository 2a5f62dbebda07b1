import dataclasses
import json
import shutil

import helpers
import mlflow_helpers
import pytest
from click.testing import CliRunner
from helpers import one_line

from lambdanet import config, files
from lambdanet.cli import main
from lambdanet.inference import catalogue
from lambdanet.tracking import mlflow_runs, registry, sync

pytestmark = mlflow_helpers.WARNINGS

PSNR = {"autoencoder": 23.0, "dncnn": 25.0, "lambdanet": 24.0}


def write_outputs(folder, ones, logged=()):
    """Trainings as DVC's stages leave them, with logs of those runs."""
    known = loaded(folder)
    for one in ones:
        run = known.run(one.key.noise, one.key.model, one.key.seed)
        files.write_bytes(folder / run.weights, one.weights.read_bytes())
        files.write_csv(folder / run.history, one.history)
        files.write_json(folder / run.scores, dataclasses.asdict(one.key) | one.scores)
        if one.key.name in logged:
            log, digest = folder / run.log, {"weights_sha256": one.weights_sha256}
            history = mlflow_helpers.rows(3, images=32)
            record = mlflow_helpers.RECORD | digest | {"task": "train", "history": history}
            files.write_json(log, [record])
            evaluation = digest | {"inference_seconds_per_image": 0.002}
            files.write_json(log.with_suffix(".evaluate.json"), [evaluation])


def write_committed(folder, ones, profile="tiny"):
    """The same trainings as `export-weights` and `plot` leave them in git."""
    results, weights = folder / "results" / profile, folder / "weights" / profile
    weights.mkdir(parents=True)
    digests = {}
    for one in ones:
        name, scores = one.key.name, one.scores
        shutil.copy(one.weights, weights / f"{name}.safetensors")
        files.write_csv(results / "histories" / f"{name}.csv", one.history)
        numbers = {key: value for key, value in scores.items() if not isinstance(value, str)}
        files.write_json(results / "scores" / f"{name}.json", numbers)
        digests[name] = {key: scores[f"{key}_sha256"] for key in ("clean", "noisy", "weights")}
    files.write_json(results / "digests.json", digests)


def loaded(folder):
    """The configuration, with which paths are below the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return config.load("profile.yaml")


def outputs(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = sync.from_outputs(config.load("profile.yaml"))
    order = list(PSNR)
    found = [dataclasses.replace(one, weights=folder / one.weights) for one in found]
    return sorted(found, key=lambda one: order.index(one.key.model))


@pytest.fixture
def project(tmp_path):
    """A folder with params.yaml; the networks for it come from `grid`."""
    folder = tmp_path / "project"
    folder.mkdir()
    helpers.write_config(folder)
    return folder


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """One small network for each name; test_registry.py has those of every architecture."""
    folder = tmp_path_factory.mktemp("grid")
    config = mlflow_helpers.NETWORKS["dncnn"]
    return [mlflow_helpers.trained(folder, model, config=config, psnr=psnr) for model, psnr in PSNR.items()]


@pytest.fixture
def client(project, monkeypatch):
    mlflow_helpers.trace_once(monkeypatch)
    return mlflow_helpers.use_database(project, monkeypatch)


def test_publishing_brings_all_of_a_grid_and_then_nothing(client, project, grid):
    write_outputs(project, grid, logged=["gaussian-01-dncnn-0"])
    trained = outputs(project)
    done = sync.publish(trained)
    run_keys = [f"gaussian-01-{model}-0" for model in PSNR]
    assert done.runs == run_keys
    assert done.versions == [f"denoiser-gaussian-01 version {n}" for n in (1, 2, 3)]
    assert set(done.aliases) == {
        "denoiser-gaussian-01@champion -> version 2: dncnn, tiny, 25.00 dB",
        "denoiser-gaussian-01@compact -> version 2: dncnn, tiny, 25.00 dB",
        "denoiser-gaussian-01@autoencoder -> version 1: autoencoder, tiny, 23.00 dB",
        "denoiser-gaussian-01@dncnn -> version 2: dncnn, tiny, 25.00 dB",
        "denoiser-gaussian-01@lambdanet -> version 3: lambdanet, tiny, 24.00 dB",
    }
    assert done.without_log == ["gaussian-01-autoencoder-0", "gaussian-01-lambdanet-0"]
    text = done.lines()
    assert text[0] == "3 runs, 3 new versions, 5 aliases moved"
    assert text[-1].startswith("not restored: times, memory, device and training images' digests of 2 of 3 ")

    runs, versions = before = mlflow_helpers.state(client)
    assert set(runs) == set(run_keys)
    assert [one.version for one, _ in versions] == [1, 2, 3]
    run = runs["gaussian-01-dncnn-0"]
    assert (run["status"], run["tags"]["device"]) == ("FINISHED", "a machine")
    assert [value[:2] for value in run["metrics"]["epoch_seconds"]] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert run["metrics"]["inference_seconds_per_image"][0][1] == 0.002
    assert ("tiny/patches/clean/train", "a" * 36) in run["inputs"]
    again = sync.publish(outputs(project))
    assert (again.runs, again.versions, again.aliases) == (run_keys, [], [])
    assert mlflow_helpers.state(client) == before


def test_the_best_seed_is_registered_with_the_mean_of_all(client, project, tmp_path):
    config = mlflow_helpers.NETWORKS["dncnn"]

    def seeds(**psnr):
        return [
            mlflow_helpers.trained(tmp_path, "dncnn", seed=int(n[1]), psnr=value) for n, value in psnr.items()
        ]

    other = mlflow_helpers.trained(tmp_path, "lambdanet", config=config, psnr=27.5)
    ablation = dataclasses.replace(
        mlflow_helpers.trained(tmp_path, "loss-bce", config=config, psnr=40.0), study="loss", registered=False
    )
    first, *_ = seeds(s0=28.0)
    done = sync.publish([first, other, ablation])
    assert done.versions == [f"denoiser-gaussian-01 version {n}" for n in (1, 2)]
    done = sync.publish([*seeds(s0=28.0, s1=28.5, s2=25.0), other, ablation])
    assert done.versions == ["denoiser-gaussian-01 version 3"]
    assert done.aliases[0] == "denoiser-gaussian-01@champion -> version 2: lambdanet, tiny, 27.50 dB"
    mean = (28.0 + 28.5 + 25.0) / 3
    assert [(one.seed, one.psnr, one.mean_psnr, names) for one, names in registry.denoisers(client)] == [
        (0, 28.0, mean, ()),
        (0, 27.5, 27.5, ("champion", "compact", "lambdanet")),
        (1, 28.5, mean, ("dncnn",)),
    ]
    experiment = client.get_experiment_by_name("lambdanet/tiny").experiment_id
    models = client.search_logged_models([experiment], "tags.study = 'loss'")
    assert [(one.name, one.status) for one in models] == [("gaussian-01-loss-bce-0", "READY")]
    assert len(client.search_logged_models([experiment])) == 5  # one for each training


def run(*words):
    return CliRunner().invoke(main, list(words))


def test_commands_publish_and_list(client, project, grid):
    write_outputs(project, grid)
    done = run("models", "sync", "--profile", "tiny")
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "3 runs, 3 new versions, 5 aliases moved"
    assert (
        run("models", "sync", "--profile", "tiny").output.splitlines()[0]
        == "3 runs, 0 new versions, 0 aliases moved"
    )

    listed = json.loads(run("models", "list", "--json").stdout)
    assert [(row["model"], row["version"], row["psnr"], row["aliases"]) for row in listed] == [
        ("lambdanet", 1, 24.0, ["lambdanet"]),
        ("autoencoder", 2, 23.0, ["autoencoder"]),
        ("dncnn", 3, 25.0, ["champion", "compact", "dncnn"]),
    ]
    text = run("models", "list").output
    lines = text.splitlines()
    assert " ".join(lines[0].split()) == "noise model version psnr ssim parameters profile created aliases"
    assert lines[3].split()[:4] == ["gaussian-01", "dncnn", "3", "25.000"]
    assert lines[3].endswith("champion, compact, dncnn")
    assert text.endswith(f"\n\n{catalogue.RULE}\n")


def test_commands_pin_and_reject(client, project, grid):
    sync.publish(grid)
    assert run("models", "pin", "gaussian-01", "1").output.splitlines() == [
        "denoiser-gaussian-01@champion -> version 1: autoencoder, tiny, 23.00 dB",
        "denoiser-gaussian-01@compact -> version 1: autoencoder, tiny, 23.00 dB",
        "2 aliases moved",
    ]
    assert run("models", "reject", "gaussian-01", "--model", "dncnn").output.splitlines() == [
        "denoiser-gaussian-01@dncnn -> none", "1 aliases moved",
    ]  # fmt: skip
    assert run("models", "unpin", "gaussian-01").output.endswith("3 aliases moved\n")
    assert one_line(run("models", "pin", "gaussian-01")) == "error: name one of VERSION and --model MODEL\n"
    assert "has no version 9; it has 1, 2, 3" in one_line(run("models", "pin", "gaussian-01", "9"))


def test_an_unreachable_server_is_one_line(project, grid, monkeypatch):
    write_outputs(project, grid)
    monkeypatch.chdir(project)
    uri = f"http://127.0.0.1:{mlflow_helpers.closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in (["models", "sync", "--profile", "tiny"], ["models", "list"]):
        assert one_line(run(*command)) == f"error: MLflow at {uri} cannot be used: Connection refused\n"


def test_register_without_a_server_warns_and_does_not_fail_the_reproduction(
    stage, project, grid, client, monkeypatch
):
    write_outputs(project, grid)
    here, away = mlflow_runs.uri(), f"http://127.0.0.1:{mlflow_helpers.closed_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    why = f"MLflow at {away} cannot be used: Connection refused"
    again = "dvc repro --force --single-item register"
    warning = f"warning: not registered: {why}; later run `{again}`"
    assert stage("register", ["profile.yaml"], project) == (0, [warning])
    receipt = project / "runs/tiny/receipt.json"
    assert json.loads(receipt.read_text()) == {"registered": {}, "why": why}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert stage("register", ["profile.yaml"], project)[0] == 0
    digests = {one.key.name: one.weights_sha256 for one in grid}
    assert json.loads(receipt.read_text()) == {"registered": digests}


def test_without_outputs_what_is_committed_is_published(client, project, grid):
    write_committed(project, grid[:2])
    lines = run("models", "sync", "--profile", "tiny").output.splitlines()
    assert lines[:2] == [
        "2 trainings from weights/tiny, as DVC's outputs of them are not here",
        "2 runs, 2 new versions, 4 aliases moved",
    ]
    folders = (project / name / "tiny" for name in ("weights", "results"))
    committed = sync.catalogue(sync.from_committed(*folders, loaded(project)))
    registered = [dataclasses.replace(one, created="", version=0) for one, _ in registry.denoisers(client)]
    assert registered == list(committed)
    assert [path.read_bytes() for path in committed.values()] == [
        one.weights.read_bytes() for one in grid[:2]
    ]


def test_a_network_that_cannot_be_built_is_named_and_the_others_registered(client, project, grid):
    write_outputs(project, grid[:2])
    trained = outputs(project)
    trained[0].weights.write_bytes(b"damaged since")
    with pytest.raises(ValueError, match=r"^not registered, all else is done: gaussian-01-autoencoder-0: "):
        sync.publish(trained)
    assert [one.model for one, _ in registry.denoisers(client)] == ["dncnn"]


def test_a_network_for_images_of_one_size_has_a_run_and_is_no_denoiser(client, project, grid):
    config = {**mlflow_helpers.NETWORKS["lambdanet"], "decoder": "connected", "side": 16}
    one = mlflow_helpers.trained(project / "connected", "connected", config=config, psnr=40.0)
    write_outputs(project, [grid[0]])
    done = sync.publish([one, *outputs(project)])
    assert done.runs == ["gaussian-01-connected-0", "gaussian-01-autoencoder-0"]
    assert done.one_size == ["gaussian-01-connected-0"]
    last = "not registered, as they take images of one size only: gaussian-01-connected-0"
    assert done.lines()[-1] == last
    assert [denoiser.model for denoiser, _ in registry.denoisers(client)] == ["autoencoder"]
    assert len(mlflow_helpers.runs(client)) == 2
