import json
import os
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from helpers import DNCNN, GAUSSIAN, LAMBDANET, PARAMS, changed

from lambdanet.arrays import digest, load_images
from lambdanet.datasets import photos
from lambdanet.models import create_model, save_weights
from lambdanet.records import read_records

TRAIN = helpers.train_words("lambdanet")
EVALUATE = helpers.evaluate_words("trained", "scores/s.json", "panels/p")
LOGS = ("log.json", "evaluate.json")
WORDS = {
    "download": ["tiny", "downloads", "new"],
    "corrupt": ["tiny", "gaussian-01", "clean", "new"],
    "train": TRAIN,
    "evaluate": EVALUATE,
}
USAGES = {
    "download": "PROFILE DOWNLOADS OUT [SET]",
    "corrupt": "PROFILE NOISE CLEAN OUT",
    "train": "PROFILE NOISE MODEL SEED CLEAN NOISY CHECKPOINTS LOG OUT",
    "evaluate": "PROFILE NOISE MODEL SEED TRAINED CLEAN NOISY LOG OUT PANEL",
}


@pytest.fixture
def project(tmp_path):
    torch.manual_seed(0)
    folder = helpers.write_project(tmp_path)
    save_weights(folder / "trained/weights.safetensors", create_model(**LAMBDANET), {"model": LAMBDANET})
    return folder


def everything(folder):
    """All paths but those of a checkpoint folder's lock and the logs, which say what was begun."""
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return paths - {"checkpoints", "checkpoints/lock", "checkpoints/lock.pid", *LOGS}


@pytest.fixture
def refused(stage, project):
    """Run a stage that must fail: its one line, after a look that nothing was left behind."""

    def refused(name, words=None):
        before = everything(project), helpers.contents(project / "trained")
        status, lines = stage(name, words or WORDS[name], project)
        assert status == 1
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert (everything(project), helpers.contents(project / "trained")) == before
        for record in [record for log in LOGS for record in read_records(project / log)]:
            assert record["finished"] is None
            assert "weights_sha256" not in record
        return lines[0].removeprefix("error: ")

    return refused


def replaced(words, old, new):
    return [new if word == old else word for word in words]


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("words", [[], ["one"], ["too", "many"] * 10], ids=len)
def test_wrong_words_give_the_usage(name, words, refused):
    script = helpers.ROOT / "stages" / f"{name}.py"
    assert refused(name, [*words, "word"]) == f"usage: python {script} {USAGES[name]}"


@pytest.mark.parametrize("name", WORDS)
def test_process_ends_with_status_1_and_one_line(name, project):
    (project / "params.yaml").write_text("profile: [")
    before = everything(project)
    status, out, err = helpers.run(name, WORDS[name], project)
    assert (status, out) == (1, "")
    assert err.startswith("error: params.yaml is not valid YAML: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert everything(project) == before


@pytest.mark.parametrize("name", WORDS)
def test_missing_params_are_named(name, refused, project):
    (project / "params.yaml").unlink()
    assert refused(name) == "params.yaml is missing; run this in the project's folder"


@pytest.mark.parametrize("name", WORDS)
def test_bad_params_are_named(name, refused, project):
    helpers.write_project(project, changed(PARAMS, ("train", "decay"), 2))
    assert "decay is 2.0, must be above 0 and at most 1" in refused(name)


@pytest.mark.parametrize("name", WORDS)
def test_params_that_is_a_folder_is_named(name, refused, project):
    (project / "params.yaml").unlink()
    (project / "params.yaml").mkdir()
    assert "params.yaml" in refused(name)


@pytest.mark.parametrize("name", ["download", "train", "evaluate"])
def test_unknown_profile_lists_the_known(name, refused):
    assert (
        refused(name, replaced(WORDS[name], "tiny", "huge")) == "unknown profile 'huge'; params.yaml has tiny"
    )


@pytest.mark.parametrize("name", ["corrupt", "train", "evaluate"])
def test_unknown_noise_lists_the_known(name, refused):
    message = refused(name, replaced(WORDS[name], "gaussian-01", "fog"))
    assert message == "unknown noise 'fog'; params.yaml has gaussian-01, speckle"


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_unknown_model_lists_the_known(name, refused):
    message = refused(name, replaced(WORDS[name], "lambdanet", "resnet"))
    assert message == "unknown model 'resnet'; params.yaml has autoencoder, dncnn, lambdanet"


@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize("seed", ["x", "-1", "1.5", "", "²"])
def test_seed_must_be_a_whole_number(name, seed, refused):
    message = refused(name, replaced(WORDS[name], "0", seed))
    assert message == f"the seed is {seed!r}, must be a whole number from 0 to 4294967295"


def test_seed_beyond_64_bits_is_refused(refused):
    assert "seed" in refused("train", replaced(TRAIN, "0", str(10**30)))


@pytest.mark.parametrize("name", ["corrupt", "train", "evaluate"])
def test_missing_data_says_how_to_make_it(name, refused):
    message = refused(name, replaced(WORDS[name], "clean", "nowhere"))
    split = "test" if name == "evaluate" else "train"
    assert message == f"nowhere/{split}.npy is missing; make it with `dvc repro`"


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_missing_noisy_data_is_named(name, refused):
    assert refused(name, replaced(WORDS[name], "noisy", "nowhere")).startswith("nowhere/")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch marker",)


def write_objects(path):
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\0" * 300),
    "pickled objects": write_objects,
    "one image": lambda path: np.save(path, np.zeros((16, 16, 3), np.uint8)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("corrupt", "clean"),
        ("train", "clean"),
        ("train", "noisy"),
        ("evaluate", "clean"),
        ("evaluate", "noisy"),
    ],
)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_data_is_named(name, folder, damage, refused, project):
    path = project / folder / "test.npy"
    DAMAGE[damage](path)
    assert f"{folder}/test.npy" in refused(name)
    assert not (project / "marker").exists()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_data_of_different_shapes_is_refused(name, refused, project):
    np.save(project / "noisy/test.npy", np.zeros((3, 16, 16, 3), np.float16))
    assert refused(name) == "clean and noisy images differ in shape: (8, 16, 16, 3) and (3, 16, 16, 3)"


def test_unknown_dataset_lists_the_known(refused, project):
    helpers.write_project(project, changed(PARAMS, ("profiles", "tiny", "download", "dataset"), "mnist"))
    assert refused("download") == (
        "dataset is 'mnist', neither one of photos, cifar10, cifar10-split, bsds500 nor a folder that exists"
    )


def test_too_many_images_are_refused(refused, project):
    helpers.write_project(project, changed(PARAMS, ("profiles", "tiny", "download", "train"), 6001))
    assert refused("download") == "photos's train split has 6000 images, 6001 are asked for"


@pytest.mark.parametrize("content", [None, b"", b"garbage"], ids=["missing", "empty", "garbage"])
@pytest.mark.parametrize("dataset", ["cifar10", "bsds500"])
def test_bad_archive_on_disk_is_named(dataset, content, refused, project, monkeypatch):
    helpers.write_project(project, changed(PARAMS, ("profiles", "tiny", "download", "dataset"), dataset))
    if content is not None:
        (project / "archive").write_bytes(content)
    monkeypatch.setenv(f"LAMBDANET_{dataset.upper()}", "archive")
    assert "archive" in refused("download")


@pytest.mark.parametrize("name", ["corrupt", "train"])
@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"name": "gaussian", "sigma": -1}, "sigma of noise 'gaussian' is -1, must be a number above 0"),
        (
            {"name": "gaussian", "sigma": "0.1"},
            "sigma of noise 'gaussian' is '0.1', must be a number above 0",
        ),
        ({"name": "gaussian", "std": 1}, "noise 'gaussian' takes sigma; given: std"),
        (
            {"name": "fog"},
            "unknown noise 'fog'; choose one of blind-gaussian, clipped-gaussian, "
            "gaussian, salt-and-pepper, speckle",
        ),
        ({"name": "salt-and-pepper", "amount": 2}, "amount is 2, must be at most 1"),
    ],
    ids=str,
)
def test_bad_noise_parameters_are_named(name, parameters, text, refused, project):
    helpers.write_project(project, changed(PARAMS, ("noises", "gaussian-01"), parameters))
    assert refused(name) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"m": 4}, "m is 4, must be odd"),
        ({"m": "5"}, "m"),
        ({"m": 2.5}, "m"),
        ({"x": 1}, "model 'lambdanet' has no parameter x"),
        ({"name": "resnet"}, "unknown model 'resnet'"),
    ],
    ids=str,
)
def test_bad_hyperparameters_are_named(change, text, refused, project):
    helpers.write_project(project, changed(PARAMS, ("models", "lambdanet"), LAMBDANET | change))
    assert text in refused("train")


@pytest.mark.parametrize("device", ["tpu", "cpu:x", ""])
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_unknown_device_is_named(device, name, refused, monkeypatch):
    monkeypatch.setenv("LAMBDANET_DEVICE", device)
    assert f"device {device!r}" in refused(name)


def test_images_too_small_to_score_are_refused(refused, project):
    helpers.write_project(project, size=8)
    assert refused("evaluate") == "SSIM needs images of at least 11 x 11, these are 8 x 8"


@pytest.mark.parametrize(
    "content",
    [None, b"", b"garbage", b"\x80\x02cos\nsystem\nU\x0ctouch marker\x85R."],
    ids=["missing", "empty", "garbage", "pickle"],
)
def test_bad_weights_are_named(content, refused, project):
    path = project / "trained/weights.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    assert refused("evaluate").startswith("trained/weights.safetensors: no")
    assert not (project / "marker").exists()


def test_weights_of_another_model_are_named(refused, project):
    path = project / "trained/weights.safetensors"
    save_weights(path, create_model(**DNCNN), {"model": LAMBDANET})
    message = refused("evaluate")
    assert message.startswith("trained/weights.safetensors: the weights do not fit the model they name: ")


def test_output_that_cannot_be_written_is_named(refused, project):
    (project / "file").write_text("")
    assert "file" in refused("corrupt", replaced(WORDS["corrupt"], "new", "file/new"))
    assert "file" in refused("train", replaced(TRAIN, "checkpoints", "file/checkpoints"))


def test_download_writes_the_profiles_images(stage, project):
    assert stage("download", WORDS["download"], project) == (0, [])
    card = json.loads((project / "new/card.json").read_text())
    train = load_images(project / "new", "train")
    assert card["sha256"]["train"] == digest(train)
    assert card["images"] == {"train": 32, "test": 8}
    known = {patch.tobytes() for patch in photos.load()[0]["train"]}
    assert all(patch.tobytes() in known for patch in train)


def test_corrupt_writes_noisy_images(stage, project):
    assert stage("corrupt", WORDS["corrupt"], project) == (0, [])
    for split, seed in (("train", 0), ("test", 1)):
        expected = helpers.noisy(load_images(project / "clean", split), GAUSSIAN, seed)
        np.testing.assert_array_equal(load_images(project / "new", split), expected)


def test_stages_announce_their_place_in_the_grid(project):
    bad = replaced(TRAIN, "clean", "nowhere")
    status, out, _ = helpers.run("train", bad, project)
    assert (status, out) == (1, "[stage 6 of 17] train@tiny-gaussian-01-lambdanet-0\n")


def test_stages_call_no_name_of_this_machine(project):
    for script in (helpers.ROOT / "stages").glob("*.py"):
        assert str(Path.home()) not in script.read_text()


HEAVY = {"torch._dynamo", "torch._inductor", "sympy", "scipy", "skimage", "matplotlib", "pandas", "mlflow"}
# What a stage may load of these; each takes about a second, and there are dozens of stages.
LOADS = {"corrupt": set(), "train": set(), "evaluate": {"scipy", "skimage"}}


@pytest.mark.parametrize("name", LOADS)
def test_stages_load_only_what_they_need(name, project):
    report = f"\nprint(*sorted({HEAVY} & set(sys.modules)))\n"
    words = helpers.train_words("dncnn") if name == "train" else WORDS[name]
    status, out, err = helpers.run(name, words, project, helpers.RUN_STAGE + report)
    assert status == 0, err
    assert set(out.splitlines()[-1].split()) == LOADS[name]
