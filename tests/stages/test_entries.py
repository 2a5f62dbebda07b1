import json
import shutil

import helpers
import numpy as np
import pytest
import torch
from helpers import GAUSSIAN, LAMBDANET, PROFILE, changed

from lambdanet import files
from lambdanet.data import photos
from lambdanet.data.arrays import digest, load_images
from lambdanet.evaluation import evaluator
from lambdanet.models import create_model, load_weights, save_weights
from lambdanet.run_log import read_records
from lambdanet.training import experiment, optimizers

TRAIN = helpers.train_words("lambdanet")
WORDS = {
    "download": ["profile.yaml", "patches"],
    "corrupt": ["profile.yaml", "patches", "gaussian-01"],
    "train": TRAIN,
    "ablate": ["profile.yaml", "loss-bce"],
    "evaluate": ["profile.yaml", "gaussian-01"],
    **{name: ["profile.yaml"] for name in ("evaluate_ablations", "plot", "register")},
}
CLEAN, NOISY = f"{helpers.DATA}/clean", f"{helpers.DATA}/gaussian-01"
ABLATION = "runs/tiny/models/ablations/loss-bce/0"
KINDS = ("clean", "noisy", "denoised")  # of sample images
NOTED = ("runs/tiny/logs", "runs/tiny/checkpoints")  # what was begun


@pytest.fixture
def project(tmp_path):
    """Data, and a trained LambdaNet, for the table and as an ablation."""
    torch.manual_seed(0)
    folder = helpers.write_project(tmp_path)
    for place in (helpers.OUT, ABLATION):
        save_weights(folder / place / "weights.safetensors", create_model(**LAMBDANET), {"model": LAMBDANET})
    return folder


def everything(folder):
    """All files but the logs and a checkpoint folder's lock."""
    return {path: value for path, value in helpers.contents(folder).items() if not path.startswith(NOTED)}


@pytest.fixture
def refused(stage, project):
    """Run a stage that must fail: its one line, after a look that nothing was left behind."""

    def refused(name, words=None):
        before = everything(project)
        status, lines = stage(name, words or WORDS[name], project)
        assert status == 1
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert everything(project) == before
        for log in (project / "runs/tiny/logs").rglob("*.json"):
            for record in read_records(log):
                assert record["finished"] is None
                assert "weights_sha256" not in record
        return lines[0].removeprefix("error: ")

    return refused


@pytest.mark.parametrize("name", WORDS)
def test_wrong_words_give_the_usage(name, refused):
    script = helpers.ROOT / "stages" / f"{name}.py"
    assert refused(name, list("words")).startswith(f"usage: python {script} PROFILE.yaml")


def test_process_ends_with_status_1_and_one_line(project):
    (project / "params.yaml").write_text("noises: [")
    before = everything(project)
    status, out, err = helpers.run("train", TRAIN, project)
    assert (status, out, err.count("\n"), err[-1]) == (1, "", 1, "\n")
    assert err.startswith("error: params.yaml is not valid YAML: ")
    assert everything(project) == before


@pytest.mark.parametrize("name", WORDS)
def test_bad_settings_are_named(name, refused, project):
    helpers.write_config(project, profile=changed(PROFILE, ("train", "dncnn", "decay"), 2))
    assert refused(name) == "profile.yaml: train.dncnn.decay is 2, must be at most 1"


@pytest.mark.parametrize("name", ["corrupt", "train", "ablate", "evaluate", "evaluate_ablations"])
def test_missing_data_says_how_to_make_it(name, refused, project):
    shutil.rmtree(project / CLEAN)
    split = "test" if name.startswith("evaluate") else "train"
    assert refused(name) == f"{CLEAN}/{split}.npy is missing; make it with `dvc repro`"


@pytest.mark.parametrize(("name", "place"), [("evaluate", helpers.OUT), ("evaluate_ablations", ABLATION)])
def test_nothing_trained_is_one_line(name, place, refused, project):
    shutil.rmtree(project / place)
    kind = place.split("/")[3]
    assert refused(name) == f"nothing was trained of what runs/tiny/scores/{kind} is for; run `dvc repro`"


def write_objects(path):
    np.save(path, np.array([helpers.Bomb("marker")], dtype=object), allow_pickle=True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("name", "folder"), [("corrupt", CLEAN), ("train", NOISY), ("evaluate", CLEAN)])
@pytest.mark.parametrize("damage", [cut, write_objects])
def test_damaged_data_is_named(name, folder, damage, refused, project):
    """tests/data/test_datasets.py has every damage."""
    damage(project / folder / "test.npy")
    assert f"{folder}/test.npy" in refused(name)
    assert not (project / "marker").exists()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_data_of_different_shapes_is_refused(name, refused, project):
    np.save(project / NOISY / "test.npy", np.zeros((3, 16, 16, 3), np.float16))
    assert refused(name) == "clean and noisy images differ in shape: (8, 16, 16, 3) and (3, 16, 16, 3)"


def test_output_that_cannot_be_written_is_named(refused, project):
    (project / "runs/tiny/checkpoints").write_text("")
    assert "runs/tiny/checkpoints" in refused("train")
    (project / "runs/tiny/samples").write_text("")
    assert "runs/tiny/samples" in refused("evaluate")


def test_download_writes_the_profiles_images(stage, project):
    assert stage("download", WORDS["download"], project) == (0, [])
    card = json.loads((project / CLEAN / "card.json").read_text())
    train = load_images(project / CLEAN, "train")
    assert card["sha256"]["train"] == digest(train)
    assert card["images"] == {"train": 32, "test": 8}
    known = {patch.tobytes() for patch in photos.load()[0]["train"]}
    assert all(patch.tobytes() in known for patch in train)


def test_corrupt_writes_noisy_images(stage, project):
    helpers.write_config(project, changed(helpers.PARAMS, ("corrupt", "seed"), 3))
    assert stage("corrupt", WORDS["corrupt"], project) == (0, [])
    for split, seed in (("train", 6), ("test", 7)):
        expected = helpers.noisy(load_images(project / CLEAN, split), GAUSSIAN, seed)
        found = load_images(project / NOISY, split)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected)


def test_train_and_evaluate_write_true_values(stage, project):
    assert stage("train", TRAIN, project)[0] == 0
    assert stage("evaluate", WORDS["evaluate"], project) == (0, [])
    history = helpers.read_csv(project / helpers.OUT / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert float(history[1]["loss"]) < float(history[0]["loss"])
    assert [float(row["learning_rate"]) for row in history] == [0.01, 0.0099]

    (path,) = (project / "runs/tiny/scores/gaussian-01").iterdir()  # the others are not trained
    scores = json.loads(path.read_text())
    clean, noisy = (load_images(project / place, "test") for place in (CLEAN, NOISY))
    weights = project / helpers.OUT / "weights.safetensors"
    model, description = load_weights(weights)
    run_key = {"profile": "tiny", "noise": "gaussian-01", "model": "lambdanet", "seed": 0}
    how = helpers.TRAIN | {"epochs": 2}
    assert description == {"cell": run_key, "model": LAMBDANET, "noise": GAUSSIAN, "training": how}
    assert json.loads((project / helpers.OUT / "model.json").read_text()) == description
    expected = evaluator.evaluate(model, clean, noisy, device=torch.device("cpu"))
    for key, value in expected.items():
        assert scores[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-6)), key
    assert scores["noisy_psnr"] == pytest.approx(20, abs=0.7)
    assert scores["weights_sha256"] == files.sha256(weights)
    assert {key: scores[key] for key in run_key} == run_key
    shown = {path.name for path in (project / "runs/tiny/samples/gaussian-01/lambdanet-0").iterdir()}
    assert shown == {f"{name}-{kind}.png" for name in ("astronaut", "chelsea") for kind in KINDS}


def test_ablate_trains_every_seed_and_evaluate_ablations_scores_them(stage, project):
    profile = changed(PROFILE, ("ablations", "loss-bce", "seeds"), [3, 0])
    helpers.write_config(project, profile=profile | {"levels": ["loss-bce"]})
    shutil.rmtree(project / ABLATION)
    assert stage("ablate", WORDS["ablate"], project)[0] == 0
    weights = {}
    for seed in (0, 3):
        network, description = load_weights(project / ABLATION.replace("/0", f"/{seed}/weights.safetensors"))
        run_key = {"profile": "tiny", "noise": "gaussian-01", "model": "loss-bce", "seed": seed}
        assert description["cell"] == run_key
        assert description["training"]["loss"] == "bce"
        weights[seed] = next(network.parameters())
    assert not torch.equal(weights[0], weights[3])
    assert list((project / "runs/tiny/checkpoints/ablations/loss-bce").glob("*/*.pt")) == []
    assert stage("evaluate_ablations", WORDS["evaluate_ablations"], project) == (0, [])
    for seed in (0, 3):
        scores = json.loads((project / f"runs/tiny/scores/ablations/loss-bce/{seed}.json").read_text())
        assert scores["seed"] == seed
        assert 5 < scores["train_psnr"] < 30
        shown = {path.name for path in (project / f"runs/tiny/samples/ablations/loss-bce/{seed}").iterdir()}
        assert shown == {"levels.csv", *(f"{n}-{kind}.png" for n in (0, 1) for kind in KINDS)}


def test_an_interrupted_ablation_keeps_the_seeds_that_were_done(stage, project, monkeypatch):
    """DVC removes the output before it runs the stage again."""
    helpers.write_config(project, profile=changed(PROFILE, ("ablations", "loss-bce", "seeds"), [0, 1]))
    real, trained = experiment.train_run, []

    def fails_at_the_second(run, **words):
        if run.key.seed:
            raise ValueError("killed")
        real(run, **words)

    monkeypatch.setattr(experiment, "train_run", fails_at_the_second)
    assert stage("ablate", WORDS["ablate"], project)[0] == 1
    first = (project / ABLATION / "weights.safetensors").read_bytes()
    shutil.rmtree(project / "runs/tiny/models/ablations/loss-bce")
    monkeypatch.setattr(experiment, "train_run", real)
    learn = optimizers.learning_rate  # called once a step
    monkeypatch.setattr(optimizers, "learning_rate", lambda *words: trained.append(1) or learn(*words))
    status, lines = stage("ablate", WORDS["ablate"], project)
    assert status == 0
    assert any("gaussian-01-loss-bce-0: resumes from epoch 2.0 of 2" in line for line in lines), lines
    assert (project / ABLATION / "weights.safetensors").read_bytes() == first
    assert len(trained) == 2 * 4 + 2  # steps, and a row an epoch, of the second seed alone


HEAVY = {"torch", "torch._dynamo", "torch._inductor", "sympy", "scipy", "skimage", "matplotlib", "pandas"}
HEAVY |= {"mlflow", "dvc", "prefect"}  # what is around training and scoring
WITHOUT_POOCH = "import sys; sys.modules['pooch'] = None\n"  # which scikit-image loads where it is there
# What a stage may load of these; each takes about a second, and there are dozens of stages.
LOADS = {
    "download": {"scipy", "skimage"},
    "corrupt": {"torch"},
    "train": {"torch"},
    "evaluate": {"torch", "scipy", "skimage"},
    "evaluate_ablations": {"torch"},
}


@pytest.mark.parametrize("name", LOADS)
def test_stages_load_only_what_they_need(name, project):
    report = f"\nprint(*sorted({HEAVY} & set(sys.modules)))\n"
    words = helpers.train_words("dncnn") if name == "train" else WORDS[name]
    status, out, err = helpers.run(name, words, project, WITHOUT_POOCH + helpers.RUN_STAGE + report)
    assert status == 0, err
    assert set(out.splitlines()[-1].split()) == LOADS[name]
