"""A report made of outputs, and these outputs made of what of it is in git."""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from report_helpers import HISTORY, MEASURES
from skimage.io import imsave

from lambdanet import cards, config, files, restoring
from lambdanet.data.noise import create_noise
from lambdanet.evaluation import samples
from lambdanet.inference import denoise_files
from lambdanet.models import create_model, load_weights, save_weights
from lambdanet.report import write_report
from lambdanet.tracking import sync
from lambdanet.training import experiment

KINDS = ("scores", "models", "samples", "logs")
RESULTS, WEIGHTS = Path("results/tiny"), Path("weights/tiny")


def outputs():
    return {kind: helpers.contents(Path("runs/tiny", kind)) for kind in KINDS}


def loss():
    for kind in KINDS:
        shutil.rmtree(f"runs/tiny/{kind}")


@pytest.fixture
def made(once, tmp_path, monkeypatch):
    """The runs of a copy of `once`, the current folder: of the table, an ablation, another document's."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    loaded = config.load("profile.yaml")
    return loaded, [loaded.run("gaussian-01", "autoencoder", 0), *loaded.ablation_runs]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A project with the outputs of three runs, and the report and weights of these."""
    folder = tmp_path_factory.mktemp("made")
    document = helpers.PROFILE["ablations"]["loss-bce"] | {"study": "split"}
    params = helpers.changed(helpers.PARAMS, ("studies", "split"), {"title": "A", "document": True})
    ablations = {"levels": ["cnn-bce"], "ablations": helpers.PROFILE["ablations"] | {"cnn-bce": document}}
    helpers.write_config(folder, params, helpers.PROFILE | ablations)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loaded = config.load("profile.yaml")
        table = loaded.run("gaussian-01", "autoencoder", 0)
        for number, run in enumerate([table, *loaded.ablation_runs]):
            write_outputs(run, number)
        model, _ = load_weights(table.weights)
        noise = create_noise(**loaded.noise("gaussian-01"))
        samples.write_samples(model, noise, table.samples, device=torch.device("cpu"))
        examples = loaded.ablation("cnn-bce", 0).samples
        files.write_text(examples / "levels.csv", "sigma,noisy_psnr,psnr\n5,34.0,30.0\n25,20.0,25.0\n")
        for number in range(2):
            for kind in ("clean", "noisy", "denoised"):
                picture = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
                imsave(examples / f"{number}-{kind}.png", picture, check_contrast=False)
        write_report(loaded, RESULTS)
        restoring.export_weights(loaded)
    return folder


def write_outputs(run, number):
    torch.manual_seed(number)
    description = experiment.describe(run)
    save_weights(run.weights, create_model(**run.model), description)
    files.write_json(run.description, description)
    run.history.write_text(HISTORY)
    digest = files.sha256(run.weights)
    measured = MEASURES | {"psnr": 25 + number / 3, "train_psnr": 25.0, "parameters": 9, "noisy_sha256": "n"}
    measured |= {"images": 100, "weights_sha256": digest}
    files.write_json(run.scores, asdict(run.key) | measured)
    record = {"device": "cpu", "commit": "abc", "python": "3.11", "versions": {"torch": "2"}}
    record |= {"weights_sha256": digest, "computed_by": "reference"}
    files.write_json(run.log, [record | {"history": [{"epoch": 1}], "seconds": number}])


def test_a_report_gives_back_what_it_was_made_of(made):
    loaded, (table, *_) = made
    before, shown = outputs(), helpers.contents(RESULTS)
    loss()
    assert restoring.restore(loaded) == restoring.Restored(scores=3, trainings=3, samples=2)
    after = outputs()
    assert {kind: after[kind] for kind in KINDS[:3]} == {kind: before[kind] for kind in KINDS[:3]}
    (record,) = json.loads(table.log.read_text())
    (whole,) = json.loads(before["logs"][table.log.relative_to("runs/tiny/logs").as_posix()])
    kept = {key: value for key, value in whole.items() if key not in ("history", "seconds")}
    assert record == kept | {"hours": 0.0}
    write_report(loaded, RESULTS)
    assert helpers.contents(RESULTS) == shown


def test_exported_weights_have_a_readme_with_a_row_for_each(made):
    _, (table, ablation, _) = made
    scores = [json.loads(run.scores.read_text()) for run in (table, ablation)]
    text = (WEIGHTS / "README.md").read_text()
    assert text.startswith("# Weights of the profile `tiny`\n")
    rows = [line for line in text.splitlines() if ".safetensors |" in line]
    values = "9 | patches, 32 images | 2 | 25.00 | 0.800 | 100 | abc"
    assert rows[0] == f"| gaussian-01-autoencoder-0.safetensors | gaussian-01 | {values} |"
    assert [row.split(" | ")[5] for row in rows[:2]] == [f"{one['psnr']:.2f}" for one in scores]
    assert len(rows) == 3
    assert text.endswith(f"Limits: {cards.LIMITS}.\n\nLicence: {cards.LICENCE}.\n")


def test_what_is_there_is_left_alone(made):
    loaded, (table, *_) = made
    table.history.write_text("mine")
    assert restoring.restore(loaded) == restoring.Restored()
    assert table.history.read_text() == "mine"


def test_trainings_without_weights_in_git_get_their_histories(made):
    loaded, (_, ablation, _) = made
    shutil.rmtree(WEIGHTS / "ablations")
    loss()
    restoring.restore(loaded)
    assert helpers.contents(ablation.folder) == {"history.csv": HISTORY.encode()}


def test_weights_of_another_training_than_was_scored_are_not_exported(made):
    loaded, (_, ablation, _) = made
    before = helpers.contents(WEIGHTS)
    save_weights(ablation.weights, create_model("cnn"), {"model": {"name": "cnn"}})
    with pytest.raises(ValueError, match=rf"^{ablation.weights} is missing or is not what was scored; "):
        restoring.export_weights(loaded)
    assert helpers.contents(WEIGHTS) == before
    (RESULTS / "trainings.json").write_text("[]")
    assert "trainings.json is no JSON object" in helpers.refusal(restoring.export_weights, loaded)


NOT_WHOLE = [{}, {"scores": 7}, {"scores": {"psnr": 20.0}}, {"log": {}}, {"log": "weights_sha256"}]


@pytest.mark.parametrize("change", NOT_WHOLE)
def test_a_damaged_report_is_refused_by_all_who_read_it(made, change):
    loaded, (table, *_) = made
    kept, name = files.read_json(RESULTS / "trainings.json"), table.key.name
    files.write_json(RESULTS / "trainings.json", kept | {name: kept[name] | change if change else 7})
    line = f"results/tiny/trainings.json is damaged at {name}; restore it, or remove it and run `dvc repro`"
    readers = [
        restoring.restore, restoring.export_weights, lambda loaded: write_report(loaded, RESULTS),
        lambda _: denoise_files.committed(WEIGHTS, RESULTS), partial(sync.from_committed, WEIGHTS, RESULTS),
    ]  # fmt: skip
    for read in readers:
        assert helpers.refusal(read, loaded) == line


def test_committed_weights_stay_where_the_training_is_not_here(made):
    loaded, (table, ablation, document) = made
    before = helpers.contents(WEIGHTS)
    for run in (table, ablation):
        shutil.rmtree(run.folder)
    assert restoring.export_weights(loaded) == 3
    assert helpers.contents(WEIGHTS) == before
    (WEIGHTS / f"ablations/{ablation.key.name}.safetensors").unlink()  # neither here nor there
    assert restoring.export_weights(loaded) == 2
    assert f"ablations/{document.key.name}.safetensors" in helpers.contents(WEIGHTS)


def test_weights_that_are_not_those_scored_are_refused(made):
    loaded, (table, *_) = made
    loss()
    path = WEIGHTS / f"{table.key.name}.safetensors"
    save_weights(path, create_model("cnn"), {"model": {"name": "cnn"}})
    assert helpers.refusal(restoring.restore, loaded) == f"{path} is not what {RESULTS} scored"
