import dataclasses
import functools
import json

import helpers
import mlflow_helpers
import pytest

from lambdanet import config, files
from lambdanet.inference import catalogue, denoise_files
from lambdanet.tracking import mlflow_runs, registry, sync

PSNR = {"autoencoder": 23.0, "dncnn": 25.0, "lambdanet": 24.0}
run = functools.partial(helpers.lambdanet, "models")


def write_outputs(ones, logged=()):
    """Trainings as DVC's stages leave them, with logs of those runs."""
    known = config.load("profile.yaml")
    for one in ones:
        run = known.run(one.key.noise, one.key.model, one.key.seed)
        files.write_bytes(run.weights, one.weights.read_bytes())
        files.write_csv(run.history, one.history)
        files.write_json(run.scores, dataclasses.asdict(one.key) | one.scores)
        if one.key.name in logged:
            digest, history = {"weights_sha256": one.weights_sha256}, mlflow_helpers.rows(3, images=32)
            record = mlflow_helpers.RECORD | digest | {"task": "train", "history": history}
            files.write_json(run.log, [record])


@pytest.fixture
def project(client, tmp_path):
    """The folder of `client`, with params.yaml; the networks for it come from `grid`."""
    helpers.write_config(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """One small network for each name; test_registry.py has those of every architecture."""
    folder = tmp_path_factory.mktemp("grid")
    config = mlflow_helpers.NETWORKS["dncnn"]
    return [mlflow_helpers.trained(folder, model, config=config, psnr=psnr) for model, psnr in PSNR.items()]


def choose(*words):
    """What `pin`, `reject` or `unpin` moves: the alias, and the version that it stands for now."""
    *moved, last = run(*words).output.splitlines()
    assert last == f"{len(moved)} aliases moved"
    return {line.partition("@")[2].partition(":")[0] for line in moved}


def test_sync_brings_all_of_a_grid_and_then_nothing(client, project, grid):
    write_outputs(grid, logged=["gaussian-01-dncnn-0"])
    first, *moved, last = run("sync", "--profile", "tiny").output.splitlines()
    assert first == "3 runs, 3 new versions, 5 aliases moved"
    assert set(moved) == {
        "  denoiser-gaussian-01@champion -> version 3: dncnn, tiny, 25.00 dB",
        "  denoiser-gaussian-01@compact -> version 3: dncnn, tiny, 25.00 dB",
        "  denoiser-gaussian-01@autoencoder -> version 2: autoencoder, tiny, 23.00 dB",
        "  denoiser-gaussian-01@dncnn -> version 3: dncnn, tiny, 25.00 dB",
        "  denoiser-gaussian-01@lambdanet -> version 1: lambdanet, tiny, 24.00 dB",
    }
    assert last.startswith("not restored: times, memory, device and training images' digests of 2 of 3 ")

    runs, versions = before = mlflow_helpers.state(client)
    assert set(runs) == {f"gaussian-01-{model}-0" for model in PSNR}
    assert [one.version for one, _ in versions] == [1, 2, 3]
    logged = runs["gaussian-01-dncnn-0"]
    assert (logged["status"], logged["tags"]["device"]) == ("FINISHED", "a machine")
    assert [value[:2] for value in logged["metrics"]["epoch_seconds"]] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert ("tiny/patches/clean/train", "a" * 36) in logged["inputs"]
    again = run("sync", "--profile", "tiny").output.splitlines()
    assert again[0] == "3 runs, 0 new versions, 0 aliases moved"
    assert mlflow_helpers.state(client) == before

    listed = json.loads(run("list", "--json").stdout)
    assert [(row["model"], row["version"], row["psnr"], row["aliases"]) for row in listed] == [
        ("lambdanet", 1, 24.0, ["lambdanet"]),
        ("autoencoder", 2, 23.0, ["autoencoder"]),
        ("dncnn", 3, 25.0, ["champion", "compact", "dncnn"]),
    ]
    text = run("list").output
    lines = text.splitlines()
    assert " ".join(lines[0].split()) == "noise model version psnr ssim parameters profile created aliases"
    assert lines[3].split()[:4] == ["gaussian-01", "dncnn", "3", "25.000"]
    assert lines[3].endswith("champion, compact, dncnn")
    assert text.endswith(f"\n\n{catalogue.RULE}\n")


def test_the_best_seed_is_registered_with_the_mean_of_all(client, project, tmp_path):
    config = mlflow_helpers.NETWORKS["dncnn"]

    def seeds(*psnrs):
        return [mlflow_helpers.trained(tmp_path, seed=seed, psnr=psnr) for seed, psnr in enumerate(psnrs)]

    other = mlflow_helpers.trained(tmp_path, "lambdanet", config=config, psnr=27.5)
    ablation = mlflow_helpers.trained(tmp_path, "loss-bce", config=config, psnr=40.0)
    ablation = dataclasses.replace(ablation, study="loss", registered=False)
    done = sync.publish([*seeds(28.0), other, ablation])
    assert done.versions == [f"denoiser-gaussian-01 version {n}" for n in (1, 2)]
    done = sync.publish([*seeds(28.0, 28.5, 25.0), other, ablation])
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


def test_a_pinned_or_rejected_version_stays_so_until_it_is_unpinned(client, project, grid):
    sync.publish(grid)  # autoencoder, dncnn, lambdanet
    assert choose("pin", "gaussian-01", "1") == {"champion -> version 1", "compact -> version 1"}
    # Better weights, and of a larger profile.
    better = mlflow_helpers.trained(project, profile="large", psnr=30.0)
    better = dataclasses.replace(better, train_images=64)
    assert sync.publish([*grid, better]).aliases == [
        "denoiser-gaussian-01@dncnn -> version 4: dncnn, large, 30.00 dB",
        "denoiser-gaussian-01@lambdanet -> none",
    ]
    # A noise has one pin.
    new = {"champion -> version 4", "compact -> version 4"}
    assert choose("pin", "gaussian-01", "4") == new | {"autoencoder -> none"}
    assert choose("pin", "gaussian-01", "4") == set()

    old = {f"{alias} -> version 2" for alias in ("champion", "compact", "dncnn")}
    others = {"autoencoder -> version 1", "lambdanet -> version 3"}
    assert choose("reject", "gaussian-01", "4") == old | others
    assert sync.publish([better]).aliases == []
    third = {"champion -> version 3", "compact -> version 3"}
    assert choose("reject", "gaussian-01", "2") == third | {"dncnn -> none"}
    assert choose("unpin", "gaussian-01", "2") == old
    none = {"autoencoder -> none", "lambdanet -> none"}
    assert choose("unpin", "gaussian-01") == new | none | {"dncnn -> version 4"}
    assert run("pin", "gaussian-01").exit_code == 2
    assert "has no version 9; it has 1, 2, 3, 4" in helpers.one_line(run("pin", "gaussian-01", "9"))


def test_register_without_a_server_warns_and_other_commands_fail(stage, project, grid, client, monkeypatch):
    write_outputs(grid)
    here, away = mlflow_runs.uri(), f"http://127.0.0.1:{helpers.free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    why = f"MLflow at {away} cannot be used: Connection refused"
    again = "dvc repro --force --single-item register"
    warning = f"warning: not registered: {why}; later run `{again}`"
    assert stage("register", ["profile.yaml"], project) == (0, [warning])
    receipt = project / "runs/tiny/receipt.json"
    assert json.loads(receipt.read_text()) == {"registered": {}, "why": why}
    for command in (["sync", "--profile", "tiny"], ["list"]):
        assert helpers.one_line(run(*command)) == f"error: {why}\n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert stage("register", ["profile.yaml"], project)[0] == 0
    digests = {one.key.name: one.weights_sha256 for one in grid}
    assert json.loads(receipt.read_text()) == {"registered": digests}


def test_without_outputs_what_is_committed_is_published(client, project, grid):
    weights, results = folders = [project / name / "tiny" for name in ("weights", "results")]
    trainings = {one.key.name: {"scores": dataclasses.asdict(one.key) | one.scores} for one in grid[:2]}
    files.write_json(results / "trainings.json", trainings)
    for one in grid[:2]:
        files.write_bytes(weights / f"{one.key.name}.safetensors", one.weights.read_bytes())
        files.write_csv(results / "histories" / f"{one.key.name}.csv", one.history)
    first, second, *_ = run("sync", "--profile", "tiny").output.splitlines()
    assert first == "2 trainings from weights/tiny, as DVC's outputs of them are not here"
    assert second == "2 runs, 2 new versions, 4 aliases moved"
    committed = denoise_files.committed(*folders)
    unknown = {"created": "", "version": 0, "train_images": 0}  # of a folder alone
    registered = [dataclasses.replace(one, **unknown) for one, _ in registry.denoisers(client)]
    assert registered == list(committed)
    assert list(map(files.sha256, committed.values())) == [one.weights_sha256 for one in grid[:2]]


def test_a_network_that_cannot_be_built_is_named_and_the_others_registered(client, project, grid):
    write_outputs(grid[:2])
    trained = sync.from_outputs(config.load("profile.yaml"))
    assert trained[0].key.model == "autoencoder"
    trained[0].weights.write_bytes(b"damaged since")
    with pytest.raises(ValueError, match=r"^not registered, all else is done: gaussian-01-autoencoder-0: "):
        sync.publish(trained)
    assert [one.model for one, _ in registry.denoisers(client)] == ["dncnn"]
