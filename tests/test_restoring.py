"""A report made of outputs, and these outputs made of what of it is in git."""

import dataclasses
import json
import shutil
from dataclasses import asdict

import helpers
import numpy as np
import pytest
import torch
from skimage.io import imsave

from lambdanet import evaluation, experiment, files, params, restoring
from lambdanet.config import Cell
from lambdanet.models import create_model, load_weights, save_weights
from lambdanet.noise import create_noise
from lambdanet.report import write_report

HISTORY = "epoch,learning_rate,loss,monitored_psnr\n1,0.001,0.02,18.5\n2,0.0005,0.01,21.0\n"
GRID = Cell("quick", "gaussian-01", "autoencoder", 0)
STUDIED = Cell("quick", "gaussian-01", "size-autoencoder-5", 0)
ON_SET = Cell("quick", "split", "cnn-bce", 0)
KINDS = {GRID: "", STUDIED: "studies", ON_SET: "sets"}
FOLDERS = ("scores", "models", "panels", "logs")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def made(once, tmp_path):
    """A copy of `once`."""
    loaded, _, root = once
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return loaded, {name: tmp_path / name for name in FOLDERS}, tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The parameters, the folders of outputs of three trainings, and the report and weights of these."""
    tmp_path = tmp_path_factory.mktemp("made")
    loaded = params.load(helpers.ROOT / "params.yaml")
    loaded = dataclasses.replace(loaded, noises={"gaussian-01": loaded.noises["gaussian-01"]})
    folders = {name: tmp_path / name for name in FOLDERS}
    for number, (cell, kind) in enumerate(KINDS.items()):
        place = folders["models"] / kind / cell.name
        torch.manual_seed(number)
        config = loaded.model("quick", cell.model)
        settings = loaded.training("quick", cell.model)
        description = experiment.describe(cell, config, loaded.training_noise(cell), settings)
        place.mkdir(parents=True)
        save_weights(place / "weights.safetensors", create_model(**config), description)
        files.write_json(place / "model.json", description)
        (place / "history.csv").write_text(HISTORY)
        digest = files.sha256(place / "weights.safetensors")
        measured = {"psnr": 25 + number / 3, "ssim": 0.8, "psnr_per_image": 25.1, "noisy_psnr": 20.3}
        measured |= {"noisy_ssim": 0.5, "noisy_psnr_per_image": 20.4, "train_psnr": 25.0}
        measured |= {"parameters": 9, "images": 100, "clean_sha256": "c", "noisy_sha256": "n"}
        scores = asdict(cell) | measured | {"weights_sha256": digest}
        files.write_json(folders["scores"] / kind / f"{cell.name}.json", scores)
        record = {"device": "cpu", "commit": "abc", "python": "3.11", "versions": {"torch": "2"}}
        record |= {"weights_sha256": digest, "computed_by": "reference"}
        files.write_json(
            folders["logs"] / f"{cell.name}.json", [record | {"history": [{"epoch": 1}], "seconds": number}]
        )
    model, _ = load_weights(folders["models"] / GRID.name / "weights.safetensors")
    noise = create_noise(**loaded.noise("gaussian-01"))
    evaluation.write_panel(model, noise, folders["panels"] / GRID.name, device=torch.device("cpu"))
    examples = folders["panels"] / "sets" / ON_SET.name
    examples.mkdir(parents=True)
    (examples / "levels.csv").write_text("sigma,noisy_psnr,psnr\n5,34.0,30.0\n25,20.0,25.0\n")
    for number in range(2):
        for kind in ("clean", "noisy", "denoised"):
            picture = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            imsave(examples / f"{number}-{kind}.png", picture, check_contrast=False)
    report(loaded, folders, tmp_path / "results")
    experiment.export_weights(tmp_path / "results/digests.json", folders["models"], tmp_path / "weights")
    return loaded, folders, tmp_path


def report(loaded, folders, out):
    write_report(loaded, "quick", *folders.values(), out / "benchmarks.json", out)


def restore(loaded, folders, root):
    return restoring.restore(loaded, "quick", root / "results", root / "weights", **folders)


def test_a_report_gives_back_what_it_was_made_of(made):
    loaded, folders, root = made
    before, shown = {name: contents(path) for name, path in folders.items()}, contents(root / "results")
    for path in folders.values():
        shutil.rmtree(path)
    assert restore(loaded, folders, root) == restoring.Restored(scores=3, trainings=3, photographs=2)
    for name in ("scores", "panels"):
        assert contents(folders[name]) == before[name]
    # Of a set a report keeps no history, as it shows none.
    of_set = restoring.Path("sets", ON_SET.name, "history.csv")
    assert contents(folders["models"]) == {
        path: value for path, value in before["models"].items() if path != of_set
    }
    (record,) = json.loads((folders["logs"] / f"{GRID.name}.json").read_text())
    (whole,) = json.loads(before["logs"][restoring.Path(f"{GRID.name}.json")])
    assert record == {key: value for key, value in whole.items() if key not in ("history", "seconds")}
    report(loaded, folders, root / "results")
    assert contents(root / "results") == shown


def test_a_set_whose_pictures_are_lost_keeps_its_numbers_and_figures(made):
    loaded, folders, root = made
    shown = contents(root / "results/figures")
    for lost in (folders["panels"] / "sets", root / "results/sets"):
        shutil.rmtree(lost)
    restore(loaded, folders, root)
    report(loaded, folders, root / "results")
    assert contents(root / "results/figures") == shown
    page = (root / "results/report.html").read_text()
    assert "cnn-bce" in page
    # Not those of another training.
    path = folders["scores"] / "sets" / f"{ON_SET.name}.json"
    files.write_json(path, json.loads(path.read_text()) | {"psnr": 26.0})
    report(loaded, folders, root / "results")
    lost = {restoring.Path(f"{kind}-split.png") for kind in ("examples", "levels")}
    assert contents(root / "results/figures").keys() == shown.keys() - lost
    other = (root / "results/report.html").read_text()
    assert "cnn-bce" in other
    assert page.count("<img") == other.count("<img") + 2


def test_trainings_without_weights_in_git_get_their_histories(made):
    loaded, folders, root = made
    shutil.rmtree(root / "weights/studies")
    shutil.rmtree(folders["models"])
    restore(loaded, folders, root)
    place = folders["models"] / "studies" / STUDIED.name
    assert contents(place) == {restoring.Path("history.csv"): HISTORY.encode()}


def test_weights_of_another_training_than_was_scored_stay_behind(made):
    _, folders, root = made
    other = create_model("cnn")
    save_weights(
        folders["models"] / "sets" / ON_SET.name / "weights.safetensors", other, {"model": {"name": "cnn"}}
    )
    export = (root / "results/digests.json", folders["models"], root / "weights")
    assert experiment.export_weights(*export) == 2
    assert not (root / "weights/sets").exists()
    (root / "results/trainings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"trainings\.json cannot be read"):
        experiment.export_weights(*export)


def test_what_is_there_is_left_as_it_is(made):
    loaded, folders, root = made
    other = folders["scores"] / f"{GRID.name}.json"
    other.write_text("{}")
    before = {name: contents(path) for name, path in folders.items()}
    assert restore(loaded, folders, root) == restoring.Restored()
    assert {name: contents(path) for name, path in folders.items()} == before


def test_a_log_of_another_training_is_added_to(made):
    loaded, folders, root = made
    path = folders["logs"] / f"{GRID.name}.json"
    mine = {"weights_sha256": "mine", "commit": "def"}
    files.write_json(path, [mine])
    restore(loaded, folders, root)
    first, second = json.loads(path.read_text())
    assert (first["commit"], second) == ("abc", mine)


def test_other_weights_than_were_scored_are_refused(made):
    loaded, folders, root = made
    stored = root / "weights" / f"{GRID.name}.safetensors"
    save_weights(stored, create_model("autoencoder"), {"model": {"name": "autoencoder"}})
    shutil.rmtree(folders["models"])
    with pytest.raises(ValueError, match=rf"{GRID.name}\.safetensors is not what .*results scored"):
        restore(loaded, folders, root)
    assert not (folders["models"] / GRID.name).exists()


def test_no_report_is_one_line(made):
    loaded, folders, root = made
    (root / "results/trainings.json").unlink()
    with pytest.raises(ValueError, match=r"trainings\.json cannot be read"):
        restore(loaded, folders, root)
