import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import yaml

from lambdanet import params
from lambdanet.datasets import DATASETS
from lambdanet.models import create_model
from lambdanet.noise import create_noise
from lambdanet.params import Cell, Download, Training

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


@pytest.fixture(scope="module")
def loaded():
    return params.load(PARAMS)


def test_paper_profile_is_table_1(loaded):
    """Weight decay is for LambdaNet alone, and the auto-encoder's batch size is found by its loss."""
    epochs = {"lambdanet": 50, "lambdanet-u4-m7": 50, "autoencoder": 300, "dncnn": 200}
    assert list(loaded.models)[:4] == list(epochs)
    for name in epochs:
        training = loaded.training("paper", name)
        assert training == Training(
            epochs=epochs[name],
            batch_size=128 if name == "autoencoder" else 256,
            learning_rate=1e-3,
            schedule="exponential",
            decay=0.99,
            warmup=0.1,
            weight_decay=1e-5 if name.startswith("lambdanet") else 0.0,
            loss="mse",
            fresh_noise=True,
            monitored=500,
        )
    assert loaded.downloads["paper"] == Download(dataset="cifar10", train=50_000, test=10_000, seed=0)
    assert not any(loaded.model_changes["paper"].values())


def test_noises_and_models_are_the_papers(loaded):
    assert loaded.noises == {
        "gaussian-01": {"name": "gaussian", "sigma": 0.1},
        "gaussian-02": {"name": "gaussian", "sigma": 0.2},
        "gaussian-03": {"name": "gaussian", "sigma": 0.3},
        "speckle": {"name": "speckle", "variance": 0.1},
        "salt-and-pepper": {"name": "salt-and-pepper", "amount": 0.05},
    }
    counts = {"lambdanet": 9_083, "lambdanet-u4-m7": 3_959, "autoencoder": 47_355, "dncnn": 558_336}
    counts |= {"skip-autoencoder": 334_403, "cnn": 29_507}  # not the paper's
    for profile in ("quick", "paper"):  # sample has a smaller DnCNN
        assert {
            name: sum(p.numel() for p in create_model(**loaded.model(profile, name)).parameters())
            for name in loaded.models
        } == counts


def test_everything_named_exists(loaded):
    assert tuple(loaded.trainings) == ("sample", "quick", "paper")
    assert loaded.profile in loaded.trainings
    for config in loaded.noises.values():
        create_noise(**config)
    assert {download.dataset for download in loaded.downloads.values()} <= set(DATASETS)


def test_a_profile_has_seeds_of_its_own_but_the_active_one_those_at_the_top(loaded, load):
    assert loaded.seeds == {"sample": (0,), "quick": (0,), "paper": (0, 1, 2)}
    assert {cell.seed for cell in [*loaded.cells("paper"), *loaded.set_cells("paper")]} == {0, 1, 2}
    other = load(yaml.safe_load(PARAMS.read_text()) | {"profile": "paper", "seeds": [7]})
    assert {cell.seed for cell in [*other.cells("paper"), *other.study_cells("paper")]} == {7}
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        other.cells("huge")


def test_cells_are_every_combination_in_order(loaded):
    cells = loaded.cells("quick")
    assert len(set(cells)) == len(cells) == 5 * 6 * len(loaded.seeds["quick"])
    assert cells[0] == Cell("quick", "gaussian-01", "lambdanet", 0)
    assert cells[0].name == "gaussian-01-lambdanet-0"
    assert [cell.noise for cell in cells] == sorted(
        (cell.noise for cell in cells), key=list(loaded.noises).index
    )
    assert len({cell.name for cell in cells}) == len(cells)


@pytest.fixture
def load(tmp_path):
    """Load what a dict, or a text, would be as params.yaml."""

    def load(raw):
        text = raw if isinstance(raw, str) else yaml.safe_dump(raw, sort_keys=False)
        (tmp_path / "params.yaml").write_text(text)
        return params.load(tmp_path / "params.yaml")

    return load


TINY = ("profiles", "tiny")
OWN = (*TINY, "models", "dncnn")


def test_a_profile_overrides_table_1_and_a_model_overrides_both(load):
    raw = helpers.changed(helpers.PARAMS, (*TINY, "train"), {"batch_size": 4, "decay": 0.5})
    raw = helpers.changed(raw, OWN, {"epochs": 7, "batch_size": 2, "model": {"width": 9}})
    loaded = load(raw)
    of_both, of_profile = loaded.training("tiny", "dncnn"), loaded.training("tiny", "lambdanet")
    assert (of_both.epochs, of_both.batch_size, of_both.decay, of_both.loss) == (7, 2, 0.5, "mse")
    assert (of_profile.epochs, of_profile.batch_size, of_profile.decay) == (2, 4, 0.5)
    assert loaded.model("tiny", "dncnn") == helpers.DNCNN | {"width": 9}
    assert loaded.model("tiny", "lambdanet") == helpers.LAMBDANET
    assert loaded.models["dncnn"] == helpers.DNCNN


def download(load, **keys):
    return load(helpers.changed(helpers.PARAMS, (*TINY, "download"), keys)).downloads["tiny"]


def test_keys_of_a_download_depend_on_the_data_set(load):
    counts = {"train": 10, "test": 2}
    for dataset in ("photos", "cifar10"):
        plain = download(load, dataset=dataset, **counts)
        assert dataclasses.asdict(plain) == {"dataset": dataset, **counts, "seed": 0}
        assert plain.train_images == 10
    bsds500 = download(load, dataset="bsds500", **counts)
    assert dataclasses.asdict(bsds500) == {"dataset": "bsds500", **counts, "seed": 0, "patches": 214}
    assert bsds500.train_images == 2140
    folder = download(load, dataset="/home/me/photos", **counts)
    assert dataclasses.asdict(folder) == (
        {"dataset": "/home/me/photos", **counts, "seed": 0, "size": 64, "patches": 16}
    )
    assert folder.train_images == 160
    small = download(load, dataset="Photos", **counts, size=16, patches=3, seed=7)
    assert (small.size, small.patches, small.seed, small.train_images) == (16, 3, 7, 30)


def test_no_data_set_is_named_with_what_it_may_be(load):
    text = "must be one of photos, cifar10, cifar10-split, bsds500, or the path of a folder of photographs$"
    with pytest.raises(ValueError, match=text):
        download(load, dataset=7, train=1, test=1)


def test_whole_numbers_are_numbers(load):
    rate = (
        load(helpers.changed(helpers.PARAMS, ("train", "learning_rate"), 1))
        .training("tiny", "dncnn")
        .learning_rate
    )
    assert (rate, type(rate)) == (1.0, float)


def test_settings_are_frozen(loaded):
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.training("paper", "dncnn").epochs = 1


@pytest.mark.parametrize("what", ["model", "noise", "training"])
def test_looking_up_an_unknown_name_lists_the_known(loaded, what):
    call = {
        "model": lambda: loaded.model("paper", "resnet"),
        "noise": lambda: loaded.noise("resnet"),
        "training": lambda: loaded.training("resnet", "dncnn"),
    }[what]
    with pytest.raises(ValueError, match=r"unknown (model|noise|profile) 'resnet'; params.yaml has \w+"):
        call()


def remove(*path):
    return path, KeyError


# (where, what it becomes): every part that the message must hold.
BAD = {
    "unknown key at the top": ((("colour",), 1), ["colour", "allowed: profile, seeds, noises"]),
    "unknown key in train": (
        (("train", "colour"), 1),
        ["colour is not a known key", "allowed: epochs, batch_size"],
    ),
    "unknown key in corrupt": ((("corrupt", "colour"), 1), ["corrupt.colour", "allowed: seed"]),
    "unknown key in a profile": (((*TINY, "colour"), 1), ["profiles.tiny.colour", "download, train, models"]),
    "unknown key in download": (
        ((*TINY, "download", "colour"), 1),
        ["profiles.tiny.download.colour", "dataset, train, test, seed"],
    ),
    **{
        f"{key} of {dataset}": (
            ((*TINY, "download"), {"dataset": dataset, "train": 1, "test": 1, key: 16}),
            [f"profiles.tiny.download.{key} is not a key of {dataset}; allowed: dataset, train, test, seed"],
        )
        for dataset, key in [
            ("photos", "size"),
            ("photos", "patches"),
            ("cifar10", "size"),
            ("cifar10", "patches"),
            ("bsds500", "size"),
        ]
    },
    "unknown key of a folder": (
        ((*TINY, "download"), {"dataset": "photographs", "train": 1, "test": 1, "colour": 1}),
        ["profiles.tiny.download.colour", "allowed: dataset, train, test, seed, size, patches"],
    ),
    "unknown key of bsds500": (
        ((*TINY, "download"), {"dataset": "bsds500", "train": 1, "test": 1, "colour": 1}),
        ["profiles.tiny.download.colour", "allowed: dataset, train, test, seed, patches"],
    ),
    **{
        f"{key} of a folder: {value!r}": (
            ((*TINY, "download"), {"dataset": "a/b", "train": 1, "test": 1, key: value}),
            [f"profiles.tiny.download.{key} is {value!r}, must be {allowed}"],
        )
        for key, value, allowed in [
            ("size", 8, "at least 16"),
            ("size", 60, "a multiple of 8"),
            ("size", "64", "a whole number"),
            ("size", None, "a whole number"),
            ("patches", 0, "at least 1"),
            ("patches", 1.5, "a whole number"),
        ]
    },
    "unknown key in a profile's train": (
        ((*TINY, "train", "colour"), 1),
        ["profiles.tiny.train.colour", "epochs"],
    ),
    "unknown key in a profile's model": (
        ((*OWN, "colour"), 1),
        ["profiles.tiny.models.dncnn.colour", "epochs"],
    ),
    "unknown model in a profile": (
        ((*TINY, "models", "resnet"), {"epochs": 1}),
        ["profiles.tiny.models.resnet", "autoencoder, dncnn, lambdanet"],
    ),
    "unknown profile": ((("profile",), "huge"), ["profile is 'huge'", "must be one of tiny"]),
    "profile of a list": ((("profile",), ["tiny"]), ["profile is ['tiny']"]),
    **{
        f"no {key}": (remove(key), [f"{key} is missing"])
        for key in ("profile", "seeds", "noises", "models", "corrupt", "train", "profiles")
    },
    "no seed of corrupt": (remove("corrupt"), ["corrupt is missing"]),
    "no noise name": (remove("noises", "speckle", "name"), ["noises.speckle.name is missing"]),
    "no model name": (remove("models", "dncnn", "name"), ["models.dncnn.name is missing"]),
    "no model of a profile": (remove(*OWN), ["profiles.tiny.models.dncnn is missing"]),
    "no epochs": (remove(*OWN, "epochs"), ["profiles.tiny.models.dncnn.epochs is missing"]),
    "no loss": (remove("train", "loss"), ["loss is missing"]),
    "no download": (remove(*TINY, "download"), ["profiles.tiny.download"]),
    "no dataset": (remove(*TINY, "download", "dataset"), ["profiles.tiny.download.dataset is missing"]),
    "no models": (remove(*TINY, "models"), ["profiles.tiny.models"]),
    "a seed twice": ((("seeds",), [0, 1, 0]), ["seeds is [0, 1, 0]", "twice"]),
    "a seed of a profile twice": (((*TINY, "seeds"), [2, 2]), ["profiles.tiny.seeds is [2, 2]", "twice"]),
    "no seeds of a profile": (((*TINY, "seeds"), []), ["profiles.tiny.seeds is []", "list of whole numbers"]),
    **{
        f"seeds {value}": (
            (("seeds",), value),
            [f"seeds is {value!r}", "list of whole numbers from 0 to 4294967295"],
        )
        for value in (0, [], [-1], [0.5], [True], ["0"], None, {0: 1})
    },
    **{
        f"{kind} named {name!r}": (
            ((kind, name), {"name": "x"}),
            [f"{kind}: the name {name!r}", "lower-case"],
        )
        for kind in ("noises", "models")
        for name in ("a/b", "..", ".", "", "../x", "A", "a b", "a--b", "-a", "a_b", "a\nb", "ä", "a\n", 1)
    },
    "noise of text": ((("noises", "speckle"), "speckle"), ["noises.speckle is 'speckle'", "must be keys"]),
    "noises of a list": ((("noises",), ["speckle"]), ["noises is ['speckle']"]),
    "models of nothing": ((("models",), None), ["models is None"]),
    "train of a number": ((("train",), 5), ["train is 5", "must be keys"]),
    "corrupt of a list": ((("corrupt",), [1]), ["corrupt is [1]", "must be keys"]),
    "profiles of text": ((("profiles",), "paper"), ["profiles is 'paper'"]),
    "profile's train of text": (((*TINY, "train"), "x"), ["profiles.tiny.train is 'x'", "must be keys"]),
    "profile's model of text": ((OWN, "x"), ["profiles.tiny.models.dncnn is 'x'", "must be keys"]),
    "changes of text": (((*OWN, "model"), "x"), ["profiles.tiny.models.dncnn.model is 'x'", "must be keys"]),
    "profile of text": ((TINY, "x"), ["profiles.tiny is 'x'", "must be keys"]),
    **{
        f"profile named {name!r}": ((("profiles", name), helpers.PARAMS["profiles"]["tiny"]), [repr(name)])
        for name in ("../x", "a/b", "..", 1)
    },
    "noise's key of a number": ((("noises", "speckle", 1), 2), ["noises.speckle", "1"]),
    "noise's name of a list": (
        (("noises", "speckle", "name"), ["speckle"]),
        ["noises.speckle.name", "['speckle']"],
    ),
    "model's name of a list": ((("models", "dncnn", "name"), ["dncnn"]), ["models.dncnn.name", "['dncnn']"]),
}

VALUES = {
    (*OWN, "epochs"): (0, -1, 1.5, "2", True, None, [1]),
    ("train", "batch_size"): (0, -1, 2.0, "8", None),
    ("train", "learning_rate"): (0, -0.1, 10.5, "fast", True, None, float("nan"), float("inf")),
    ("train", "schedule"): ("linear", None, 1, ["cosine"], True),
    ("train", "decay"): (0, 1.01, -1, "x"),
    ("train", "warmup"): (-0.1, 0.95, "x"),
    ("train", "weight_decay"): (-1e-9, 1.1, "none", float("inf")),
    ("train", "loss"): ("mae", None, 2),
    ("train", "fresh_noise"): (1, "true", None),
    ("train", "monitored"): (0, 1.5),
    ("corrupt", "seed"): (-1, 0.5, "0", None),
    (*TINY, "download", "dataset"): (1, None, ["photos"], {}, True, "", " "),
    (*TINY, "download", "train"): (0, "32", 1.0),
    (*TINY, "download", "test"): (0, -5),
    (*TINY, "download", "seed"): (-1, "x"),
    (*TINY, "train", "decay"): (0, "x"),
}
for path, values in VALUES.items():
    for value in values:
        # Table 1's values are read as a part of each model's
        parts = [f"{path[-1]} is {value!r}", "must be"]
        BAD[f"{'.'.join(path)}: {value!r}"] = ((path, value), parts)


@pytest.mark.parametrize("case", BAD)
def test_bad_value_is_named_in_one_line(case, load, tmp_path):
    (path, value), parts = BAD[case]
    with pytest.raises(ValueError, match=r"^") as caught:
        load(helpers.changed(helpers.PARAMS, path, value))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'params.yaml'}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("schedule", "exponential, cosine"),
        ("loss", "mse, bce"),
        ("decay", "above 0 and at most 1"),
        ("warmup", "at least 0 and at most 0.9"),
        ("batch_size", "at least 1"),
        ("learning_rate", "above 0 and at most 10"),
    ],
)
def test_message_says_what_is_allowed(key, allowed, load):
    value = -1 if key not in ("schedule", "loss") else "x"
    with pytest.raises(ValueError, match=f"{key} is {value!r}?.*, must be (one of )?{allowed}$"):
        load(helpers.changed(helpers.PARAMS, ("train", key), value))


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\t", "!!python/object/apply:os.system [exit]", "a: 1\n---\nb: 2", "\x00"]
)
def test_invalid_yaml_is_one_line(text, load, tmp_path):
    with pytest.raises(ValueError, match=r"params.yaml is not valid YAML: ") as caught:
        load(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b", "5"])
def test_yaml_without_keys_is_refused(text, load):
    with pytest.raises(ValueError, match=r"params.yaml: the file is .*, must be keys with values"):
        load(text)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"params.yaml is missing; run this in the project's folder"):
        params.load(tmp_path / "params.yaml")


def test_file_of_other_bytes_is_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"profile: \xff\xfe")
    with pytest.raises(ValueError, match=r"params.yaml"):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["2e-05", "1e-4", "1.5E-3", "+1e-1", ".5e-3"])
def test_exponents_are_numbers_as_dvc_writes_them(text, tmp_path):
    path = tmp_path / "params.yaml"
    raw = (helpers.ROOT / "params.yaml").read_text()
    assert "weight_decay: 0.00001" in raw
    path.write_text(raw.replace("weight_decay: 0.00001", f"weight_decay: {text}"))
    assert params.load(path).training("paper", "lambdanet").weight_decay == float(text)


def test_bad_value_is_named_where_it_stands(tmp_path):
    path = tmp_path / "params.yaml"
    raw = (helpers.ROOT / "params.yaml").read_text()
    path.write_text(raw.replace("batch_size: 256", "batch_size: none"))
    with pytest.raises(ValueError, match=r"yaml: train\.batch_size is 'none', must be a whole number"):
        params.load(path)


def test_stages_are_those_of_dvc():
    listed = subprocess.run(
        [Path(sys.executable).with_name("dvc"), "stage", "list", "--name-only"],
        cwd=helpers.ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = params.load(helpers.ROOT / "params.yaml")
    assert sorted(loaded.stages(loaded.profile)) == sorted(listed.stdout.split())


def test_variation_changes_its_model_s_settings_and_no_others(loaded):
    assert loaded.model("paper", "channels-d4") == loaded.models["lambdanet"] | {"d": 4}
    base, rate = (loaded.training("paper", name) for name in ("base", "learning-rate-001"))
    assert base == dataclasses.replace(loaded.training("paper", "lambdanet"), epochs=25)
    assert rate == dataclasses.replace(base, learning_rate=0.01)
    assert loaded.model("sample", "keys-k8")["embedding_std"] == 0.02  # as the profile has its LambdaNet
    rival = loaded.training("paper", "size-dncnn-6x14")
    assert (rival.epochs, rival.schedule, rival.learning_rate) == (12, "cosine", 0.005)


def test_the_few_are_among_all(loaded):
    chosen = [cell.model for cell in loaded.study_cells("sample", chosen_only=True)]
    every = [cell.model for cell in loaded.study_cells("sample")]
    assert set(chosen) < set(every)
    only_paper = {"autoencoder-settings"}  # what the authors' log decides
    assert {loaded.variations[name].study for name in chosen} == set(loaded.studies) - only_paper


def test_described_leaves_out_what_stands_at_its_default(loaded):
    training = loaded.training("paper", "lambdanet")
    assert set(dataclasses.asdict(training)) - set(training.described()) == {"optimizer"}
    assert dataclasses.replace(training, optimizer="sgd").described()["optimizer"] == "sgd"


STUDYING = helpers.PARAMS | {
    "studies": {"loss": {"title": "The loss"}},
    "variations": {"loss-bce": {"study": "loss", "train": {"loss": "bce"}}},
}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"study": "lost"}, "variations.loss-bce.study is 'lost', must be one of studies: loss"),
        ({}, "variations.loss-bce.study is None, must be one of studies: loss"),
        (
            {"study": "loss", "model": "unet"},
            "variations.loss-bce.model is 'unet', must be one of models: autoencoder, dncnn, lambdanet",
        ),
        (
            {"study": "loss", "train": {"loss": "l1"}},
            "variations.loss-bce.train.loss is 'l1', must be one of mse, bce",
        ),
        ({"study": "loss", "train": {"rate": 1}}, "variations.loss-bce.train.rate is not a known key"),
    ],
)
def test_bad_variation_is_one_line(tmp_path, entry, message):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(STUDYING))
    assert params.load(path).stages("tiny")[-3:] == ["compare@tiny", "plot@tiny", "register@tiny"]
    path.write_text(yaml.safe_dump(STUDYING | {"variations": {"loss-bce": entry}}))
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {re.escape(message)}"):
        params.load(path)


@pytest.mark.parametrize(
    ("studied", "of_profile", "message"),
    [
        (
            {"few": {}, "few-rivals": {}, "all": {}},
            "most",
            "profiles.tiny.studied is 'most', must be one of all, few",
        ),
        ({}, "few", "profiles.tiny.studied is 'few', must be one of none"),
        ({1: {}}, "few", "studied: the name 1 must be lower-case letters, digits and single dashes"),
    ],
)
def test_bad_choice_of_studies_is_one_line(tmp_path, studied, of_profile, message):
    path = tmp_path / "params.yaml"
    chosen = {"profiles": {"tiny": STUDYING["profiles"]["tiny"] | {"studied": of_profile}}}
    path.write_text(yaml.safe_dump(STUDYING | {"studied": studied} | chosen))
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{path}: {message}')}$"):
        params.load(path)


def test_a_name_has_one_meaning(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(STUDYING | {"variations": {"dncnn": {"study": "loss"}}}))
    with pytest.raises(ValueError, match=r"variations\.dncnn: a model has this name$"):
        params.load(path)
    other = {"studied": {"all": {"loss-bce": {"study": "loss"}}}}
    path.write_text(yaml.safe_dump(STUDYING | other))
    with pytest.raises(ValueError, match=r"variations\.loss-bce stands there twice, with other values$"):
        params.load(path)


@pytest.mark.parametrize(
    ("name", "what"), [("gaussian-01", "noise"), ("dncnn", "model"), ("study", "kind of study")]
)
def test_a_set_s_name_is_no_other_s(tmp_path, name, what):
    path = tmp_path / "params.yaml"
    raw = helpers.PARAMS | {"sets": {name: {"name": "gaussian", "sigma": 0.3}}}
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=rf"sets\.{name}: a {what} has this name; choose another$"):
        params.load(path)


def test_a_variation_stands_where_its_model_s_code_is_a_dependency(tmp_path):
    path = tmp_path / "params.yaml"
    entry = {"loss-bce": {"study": "loss", "model": "dncnn"}}
    path.write_text(yaml.safe_dump(STUDYING | {"variations": entry}))
    with pytest.raises(ValueError, match=r"variations\.loss-bce: dncnn belongs under `rivals:`$"):
        params.load(path)
    path.write_text(yaml.safe_dump(STUDYING | {"rivals": {"loss-x": {"study": "loss"}}}))
    with pytest.raises(ValueError, match=r"rivals\.loss-x: lambdanet belongs under `variations:`$"):
        params.load(path)


def test_a_model_of_a_set_is_trained_on_its_images_with_its_noise(loaded):
    blind = Cell("paper", "bsds500", "dncnn-blind", 0)
    assert loaded.data_set("bsds500", "dncnn-blind") == "bsds500"
    assert loaded.training_noise(blind) == {"name": "blind-gaussian", "low": 0.004, "high": 0.216}
    assert loaded.train_images(blind) == 85_600
    assert loaded.train_images(Cell("paper", "split", "cnn-bce", 0)) == 40_000
    assert loaded.train_images(Cell("paper", "gaussian-01", "lambdanet", 0)) == 50_000
    for noise, model in [("gaussian-01", "dncnn-blind"), ("bsds500", "dncnn"), ("split", "dncnn-blind")]:
        with pytest.raises(ValueError, match=f"^{model} is not trained on {noise}, but on "):
            loaded.data_set(noise, model)
