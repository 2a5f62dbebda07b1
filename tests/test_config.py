import dataclasses
import json
import re

import helpers
import pytest
import report_helpers
from helpers import PARAMS, PROFILE, changed

from lambdanet import config
from lambdanet.models import create_model


@pytest.fixture(scope="module")
def paper():
    """The project's own profile `paper`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(helpers.ROOT)
        return config.load(config.PROFILE)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load what two dicts would be as params.yaml and profile.yaml."""
    monkeypatch.chdir(tmp_path)

    def load(params=PARAMS, profile=PROFILE):
        helpers.write_config(tmp_path, params, profile)
        return config.load("profile.yaml")

    return load


def test_the_papers_profile_is_table_1(paper):
    table1 = config.Training(**report_helpers.TABLE_1)
    no_decay = dataclasses.replace(table1, weight_decay=0.0)
    assert {name: paper.training(name) for name in paper.models} == {
        "lambdanet": table1,
        "lambdanet-u4-m7": table1,
        "autoencoder": dataclasses.replace(no_decay, epochs=300, batch_size=160, decay=1.0),
        "dncnn": dataclasses.replace(no_decay, epochs=200),
    }
    assert paper.download() == config.Download(dataset="cifar10", train=50_000, test=10_000, seed=0)
    assert not any(entry.hyperparameters for entry in paper.profile.train.values())
    assert {run.key.seed for run in paper.runs} == {0, 1, 2}


def test_noises_and_models_are_the_papers(paper):
    assert {name: paper.noise(name) for name in paper.params.table.noises} == report_helpers.NOISES
    counts = report_helpers.SIZES | {"skip-autoencoder": 334_403, "cnn-bce": 29_507}
    networks = {name: create_model(**paper.model(name)) for name in counts}
    assert {n: sum(p.numel() for p in net.parameters()) for n, net in networks.items()} == counts


def test_each_ablation_but_other_documents_is_trained_as_its_study_says(paper):
    """Those that vary LambdaNet differ from the base in their own hyperparameters or settings only."""
    for name, entry in paper.profile.ablations.items():
        if paper.params.studies[entry.study].document or entry.model != "lambdanet":
            continue
        assert (entry.dataset, entry.noise, entry.test_noise) == ("cifar10", "gaussian-01", "gaussian-01")
        differs = [paper.model(name) != paper.model("base"), entry.train != paper.training("base")]
        assert name == "base" or sum(differs) == 1 or entry.study in ("recipe", "size")


def test_described_leaves_out_what_stands_at_its_default(paper):
    training = paper.training("lambdanet")
    assert set(dataclasses.asdict(training)) - set(training.described()) == {"optimizer"}
    assert dataclasses.replace(training, optimizer="sgd").described()["optimizer"] == "sgd"


def test_an_ablation_is_trained_on_one_noise_and_tested_on_another(load):
    entry = PROFILE["ablations"]["loss-bce"] | {"noise": "speckle", "seeds": [4]}
    one = load(profile=PROFILE | {"ablations": {"loss-bce": entry}})
    (run,) = one.ablation_runs
    assert run.key == config.RunKey("tiny", "gaussian-01", "loss-bce", 4)
    assert run.noise["name"] == "speckle"
    assert str(run.noisy) == "runs/tiny/data/patches/gaussian-01"
    assert str(run.folder) == "runs/tiny/models/ablations/loss-bce/4"


def test_a_run_is_resolved_with_all_its_paths(load):
    run = load().run("speckle", "dncnn", "3")
    assert run.key == config.RunKey("tiny", "speckle", "dncnn", 3)
    assert (run.model, run.noise) == (helpers.DNCNN, {"name": "speckle", "variance": 0.1})
    assert run.settings == config.Training(**helpers.TRAIN | {"epochs": 2})
    assert (run.threads, run.train_images, run.levels) == (1, 32, False)
    assert {f.name: str(getattr(run, f.name)) for f in dataclasses.fields(run)[7:]} == {
        "clean": "runs/tiny/data/patches/clean",
        "noisy": "runs/tiny/data/patches/speckle",
        "folder": "runs/tiny/models/speckle/dncnn-3",
        "checkpoints": "runs/tiny/checkpoints/speckle/dncnn-3",
        "log": "runs/tiny/logs/speckle/dncnn-3.json",
        "scores": "runs/tiny/scores/speckle/dncnn-3.json",
        "samples": "runs/tiny/samples/speckle/dncnn-3",
    }


def test_a_profile_changes_a_models_hyperparameters(load):
    one = load(profile=changed(PROFILE, ("train", "dncnn", "hyperparameters"), {"width": 9}))
    assert (one.model("dncnn"), one.params.models["dncnn"]) == (helpers.DNCNN | {"width": 9}, helpers.DNCNN)
    assert one.training("dncnn") == config.Training(**helpers.TRAIN | {"epochs": 2})


@pytest.mark.parametrize(
    ("dataset", "given", "patches", "size", "images"),
    [
        ("photos", {}, None, None, 10),
        ("cifar10", {"seed": 7}, None, None, 10),
        ("bsds500", {}, 214, 40, 2140),
        ("bsds500", {"patches": 3}, 3, 40, 30),
        ("/home/me/photos", {}, 16, 64, 160),
        ("Photos", {"size": 16, "patches": 3}, 3, 16, 30),
    ],
)
def test_keys_of_a_download_depend_on_the_data_set(load, dataset, given, patches, size, images):
    keys = {"dataset": dataset, "train": 10, "test": 2} | given
    found = load(profile=changed(PROFILE, ("datasets", "patches"), keys)).download()
    assert dataclasses.asdict(found) == {"seed": 0, "patches": patches, "size": size} | keys
    assert found.train_images == images


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", "", "²", str(2**32)])
def test_what_is_no_seed_is_named(load, seed):
    said = helpers.refusal(load().run, "speckle", "dncnn", seed)
    assert said == f"the seed is {seed!r}, must be a whole number from 0 to 4294967295"


@pytest.mark.parametrize(
    ("noise", "model", "message"),
    [
        ("fog", "dncnn", "unknown noise 'fog'; params.yaml has gaussian-01, speckle"),
        ("speckle", "resnet", "unknown model 'resnet'; Table 2 has lambdanet, autoencoder, dncnn"),
        (None, "resnet", "unknown ablation 'resnet'; profile.yaml has loss-bce"),
    ],
)
def test_looking_up_an_unknown_name_lists_the_known(load, noise, model, message):
    call = (load().run, noise, model, 0) if noise else (load().ablation, model, 0)
    assert helpers.refusal(*call) == message


def test_profiles_are_the_root_and_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "unknown profile 'small'; there are none; " in helpers.refusal(config.find, "small")
    helpers.write_config(tmp_path)
    small = PROFILE | {"profile": "small", "root": "..", "file": "small/profile.yaml"}
    helpers.write_yaml(tmp_path / "small/profile.yaml", small)
    found = {name: str(path) for name, path in config.profiles().items()}
    assert found == {"tiny": "profile.yaml", "small": "small/profile.yaml"}
    one = config.load(config.find("small"))  # without a link to params.yaml
    assert (one.name, one.address("plot")) == ("small", "small/dvc.yaml:plot")
    assert helpers.refusal(config.find, "huge") == "unknown profile 'huge'; there are tiny, small"
    copy = PROFILE | {"root": "..", "file": "copy/profile.yaml"}
    helpers.write_yaml(tmp_path / "copy/profile.yaml", copy)
    with pytest.raises(ValueError, match=r"profile is 'tiny', must be 'copy', the name of its folder$"):
        config.load("copy/profile.yaml")
    helpers.write_config(tmp_path, profile=PROFILE | {"profile": "small"})
    with pytest.raises(ValueError, match=r"profile is 'small', which is the name of small/profile\.yaml; "):
        config.load("profile.yaml")


DNCNN = ("train", "dncnn")
BCE = ("ablations", "loss-bce")
DATASET = ("datasets", "patches")
ENTRY = PROFILE["ablations"]["loss-bce"]
LETTERS = "must be lower-case letters, digits and single dashes"
UNKNOWN = "is not a known key; schemas/ has those that are"
NO_LAMBDANET = PARAMS["table"] | {"lambdanets": ["dncnn"], "baselines": []}

# In profile.yaml: what becomes what (KeyError: goes), and the message without the file.
BAD_PROFILE = [
    (("colour",), 1, f"colour {UNKNOWN}"),
    ((*DNCNN, "colour"), 1, f"train.dncnn.colour {UNKNOWN}"),
    ((*DATASET, "size"), 16, "datasets.patches: photos has no key size"),
    (DATASET, {"dataset": "a", "train": 1, "test": 1, "size": 60}, "datasets.patches.size is 60, must be a "),
    *(((key,), KeyError, f"{key} is missing") for key in PROFILE),
    ((*DNCNN, "epochs"), KeyError, "train.dncnn.epochs is missing"),
    (DNCNN, KeyError, "train has lambdanet, autoencoder, must have lambdanet, autoencoder, dncnn"),
    (("seeds",), [0, 1, 0], "seeds: 0 stands there twice"),
    (("seeds",), 0, "seeds is 0, must be a list"),
    (("seeds",), [-1], "seeds.0 is -1, must be at least 0"),
    (("seeds",), [True], "seeds.0 is True, must be a valid integer"),
    *(
        (("ablations", name), ENTRY, f"ablations.{name} is {name!r}, {LETTERS}")
        for name in ("a/b", "..", "", "a--b")
    ),
    (("ablations", "dncnn"), ENTRY, "ablations.dncnn: a model has this name"),
    ((*BCE, "study"), "lost", "ablations.loss-bce: study is 'lost', must be one of studies: base, loss"),
    (("levels",), ["dncnn"], "levels is 'dncnn', must be one of ablations: loss-bce"),
    ((*BCE, "noise"), "fog", "ablations.loss-bce: noise is 'fog', must be one of noises: gaussian-01, spec"),
    ((*BCE, "model"), "vgg", "ablations.loss-bce: model: unknown model 'vgg'; choose one of autoencoder"),
    ((*BCE, "code"), "dncnn", "ablations.loss-bce: code is 'dncnn', must be 'lambdanet', which holds lamb"),
    ((*BCE, "test_noise"), "fog", "ablations.loss-bce: patches with fog is none of pairs"),
    (("pairs", "speckle"), KeyError, "pairs: patches with speckle, which Table 2 needs"),
    (("pairs", "again"), PROFILE["pairs"]["speckle"], "pairs: patches with speckle stands there twice"),
    (("pairs", "speckle", "dataset"), "x", "pairs is 'x', must be one of datasets: patches"),
    (("root",), "..", "root is '..', must lead from . to the project's folder"),
    (("file",), "a.yaml", "file is 'a.yaml', must be profile.yaml"),
    *(
        (path, 5, f"{'.'.join(path)} is 5, must be keys with values")
        for path in (("train",), DNCNN, DATASET, BCE)
    ),
]
VALUES = {
    (*DNCNN, "epochs"): (0, 1.5, "2", True, None),
    (*DNCNN, "learning_rate"): (0, 10.5, "fast", True, float("nan"), float("inf")),
    (*DNCNN, "schedule"): ("linear", None),
    (*DNCNN, "decay"): (0, 1.01),
    (*DNCNN, "warmup"): (-0.1, 0.95),
    (*DNCNN, "weight_decay"): (-1e-9, 1.1),
    (*DNCNN, "loss"): ("l1", 2),
    (*DNCNN, "optimizer"): ("rmsprop",),
    (*DNCNN, "fresh_noise"): (1, "true"),
    ("threads",): (0, 1.0, "1", 1025),
    (*DATASET, "dataset"): (1, None, ["photos"], ""),
    (*DATASET, "train"): (0, "32"),
    (*DATASET, "seed"): (-1, "x"),
}
BAD_PROFILE += [
    (path, value, f"{'.'.join(path)} is {value!r}, must ")
    for path, values in VALUES.items()
    for value in values
]


BAD_PARAMS = [
    (("colour",), 1, f"colour {UNKNOWN}"),
    *(((key,), KeyError, f"{key} is missing") for key in PARAMS if key != "studies"),
    (("corrupt", "seed"), "0", "corrupt.seed is '0', must be a valid integer"),
    (("noises", "speckle", "name"), KeyError, "noises.speckle: name is missing, or is no text"),
    (("models", "dncnn", "name"), ["dncnn"], "models.dncnn: name is missing, or is no text"),
    (("noises", "a b"), helpers.GAUSSIAN, f"noises.a b is 'a b', {LETTERS}"),
    (("noises", "clean"), helpers.GAUSSIAN, "noises.clean: a folder below runs/ has this name; choose "),
    (("models", "dncnn", "name"), "resnet", "models.dncnn: unknown model 'resnet'; choose one of auto"),
    (("noises", "speckle"), "speckle", "noises.speckle is 'speckle', must be keys with values"),
    (("table", "noises"), ["fog"], "table.noises is 'fog', must be one of noises: gaussian-01, speckle"),
    (("table", "noises"), ["speckle", "speckle"], "table.noises: speckle stands there twice"),
    (("table", "baselines"), ["dncnn", "lambdanet"], "table: lambdanet stands there twice"),
    (("table",), NO_LAMBDANET, "table: 'dncnn' is no network of lambdanet/models/lambdanet.py"),
    (("studies", "loss", "title"), 1, "studies.loss.title is 1, must be a valid string"),
]


BAD = [("profile", PROFILE, *one) for one in BAD_PROFILE] + [("params", PARAMS, *one) for one in BAD_PARAMS]


@pytest.mark.parametrize(("file", "raw", "path", "value", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_value_is_named_in_one_line(file, raw, path, value, message, load):
    assert helpers.refusal(load, **{file: changed(raw, path, value)}).startswith(f"{file}.yaml: {message}")


@pytest.mark.parametrize("name", ["params.yaml", "profile.yaml"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML: "),
        (b"!!python/object/apply:os.system [exit]", "is not valid YAML: "),
        (b"profile: \xff\xfe", "is not valid YAML: "),
        (b"", ": the file is None, must be keys with values"),
        (None, "is missing; run this in the project's folder"),
    ],
)
def test_files_that_hold_something_else_are_named_in_one_line(name, content, message, load, tmp_path):
    load()
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    said = helpers.refusal(config.load, "profile.yaml")
    assert re.match(rf"{re.escape(name)}\W", said)
    assert message in said


@pytest.mark.parametrize(("name", "kind"), [("params", config.Params), ("profile", config.Profile)])
def test_schemas_for_editors_are_current(name, kind):
    """After a change: python -m lambdanet.config."""
    assert json.loads((helpers.ROOT / f"schemas/{name}.json").read_text()) == config.schema(kind)
    for folder in ("", "sample", "quick") if name == "profile" else ("",):
        file = helpers.ROOT / folder / f"{name}.yaml"
        first = file.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / first).resolve() == helpers.ROOT / f"schemas/{name}.json"
