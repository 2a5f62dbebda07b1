import dataclasses
import json
import re
import subprocess
import sys

import helpers
import pytest
import yaml
from helpers import PARAMS, PROFILE, changed

from lambdanet import config
from lambdanet.config import Download, RunKey, Training
from lambdanet.data.noise import create_noise
from lambdanet.models import create_model


@pytest.fixture(scope="module")
def loaded():
    """The project's own profiles by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(helpers.ROOT)
        return {name: config.load(file) for name, file in config.profiles().items()}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load what two dicts would be as params.yaml and profile.yaml."""
    monkeypatch.chdir(tmp_path)

    def load(params=PARAMS, profile=PROFILE):
        helpers.write_config(tmp_path, params, profile)
        return config.load("profile.yaml")

    return load


def test_the_papers_profile_is_table_1(loaded):
    paper = loaded["paper"]
    table1 = Training(
        epochs=50, batch_size=256, learning_rate=1e-3, schedule="exponential", decay=0.99, warmup=0.1,
        weight_decay=1e-5, loss="mse", fresh_noise=True, monitored=500,
    )  # fmt: skip
    no_decay = dataclasses.replace(table1, weight_decay=0.0)
    assert {name: paper.training(name) for name in paper.models} == {
        "lambdanet": table1,
        "lambdanet-u4-m7": table1,
        "autoencoder": dataclasses.replace(no_decay, epochs=300, batch_size=128),
        "dncnn": dataclasses.replace(no_decay, epochs=200),
    }
    assert paper.download() == Download(dataset="cifar10", train=50_000, test=10_000, seed=0)
    assert not any(entry.hyperparameters for entry in paper.profile.train.values())
    assert {run.key.seed for run in paper.runs} == {0, 1, 2}


def test_noises_and_models_are_the_papers(loaded):
    paper = loaded["paper"]
    assert {name: paper.noise(name) for name in paper.params.table.noises} == {
        "gaussian-01": {"name": "gaussian", "sigma": 0.1},
        "gaussian-02": {"name": "gaussian", "sigma": 0.2},
        "gaussian-03": {"name": "gaussian", "sigma": 0.3},
        "speckle": {"name": "speckle", "variance": 0.1},
        "salt-and-pepper": {"name": "salt-and-pepper", "amount": 0.05},
    }
    counts = {"lambdanet": 9_083, "lambdanet-u4-m7": 3_959, "autoencoder": 47_355, "dncnn": 558_336}
    others = {"skip-autoencoder": 334_403, "cnn-bce": 29_507}
    networks = {name: create_model(**paper.model(name)) for name in counts | others}
    assert {n: sum(p.numel() for p in net.parameters()) for n, net in networks.items()} == counts | others


def test_each_profile_can_be_created(loaded):
    assert list(loaded) == ["paper", "quick", "sample"]
    for one in loaded.values():
        for parameters in one.params.noises.values():
            create_noise(**parameters)
    for name in [*loaded["sample"].models, *loaded["sample"].profile.ablations]:
        create_model(**loaded["sample"].model(name))


def test_an_ablation_changes_what_it_names_and_nothing_else(loaded):
    paper = loaded["paper"]
    assert paper.model("channels-d4") == paper.model("lambdanet") | {"d": 4}
    base = paper.training("base")
    assert base == dataclasses.replace(paper.training("lambdanet"), epochs=25)
    assert paper.training("learning-rate-001") == dataclasses.replace(base, learning_rate=0.01)
    rival = paper.training("size-dncnn-6x14")
    assert (rival.epochs, rival.schedule, rival.learning_rate) == (12, "cosine", 0.005)


def test_each_ablation_but_other_documents_is_trained_as_its_study_says(loaded):
    """Those that vary LambdaNet differ from the base in their own hyperparameters or settings only."""
    paper = loaded["paper"]
    for name, entry in paper.profile.ablations.items():
        if paper.params.studies[entry.study].document or entry.model != "lambdanet":
            continue
        assert (entry.dataset, entry.noise, entry.test_noise) == ("cifar10", "gaussian-01", "gaussian-01")
        assert name == "base" or (paper.model(name) != paper.model("base")) != (
            entry.train != paper.training("base")
        ) or entry.study == "recipe"  # fmt: skip


def test_described_leaves_out_what_stands_at_its_default(loaded):
    training = loaded["paper"].training("lambdanet")
    assert set(dataclasses.asdict(training)) - set(training.described()) == {"optimizer"}
    assert dataclasses.replace(training, optimizer="sgd").described()["optimizer"] == "sgd"


def test_runs_of_the_table_are_every_combination_in_order(load):
    one = load(profile=PROFILE | {"seeds": [0, 5]})
    assert [run.key.name for run in one.table_runs] == [
        f"{noise}-{model}-{seed}"
        for noise in ("gaussian-01", "speckle")
        for model in ("lambdanet", "autoencoder", "dncnn")
        for seed in (0, 5)
    ]


def test_a_run_is_resolved_with_all_its_paths(load):
    run = load().run("speckle", "dncnn", "3")
    assert run.key == RunKey("tiny", "speckle", "dncnn", 3)
    assert (run.stage, run.model, run.noise) == (
        "train@speckle-dncnn-3", helpers.DNCNN, {"name": "speckle", "variance": 0.1}
    )  # fmt: skip
    assert run.settings == Training(**helpers.TRAIN | {"epochs": 2})
    assert (run.threads, run.train_images, run.levels) == (1, 32, False)
    assert {f.name: str(getattr(run, f.name)) for f in dataclasses.fields(run)[9:]} == {
        "clean": "runs/tiny/data/patches/clean",
        "noisy": "runs/tiny/data/patches/speckle",
        "folder": "runs/tiny/models/speckle/dncnn-3",
        "checkpoints": "runs/tiny/checkpoints/speckle/dncnn-3",
        "log": "runs/tiny/logs/speckle/dncnn-3.json",
        "scores": "runs/tiny/scores/speckle/dncnn-3.json",
        "samples": "runs/tiny/samples/speckle/dncnn-3",
    }


def test_an_ablation_is_trained_on_one_noise_and_tested_on_another(load):
    entry = PROFILE["ablations"]["loss-bce"] | {"noise": "speckle", "seeds": [4]}
    one = load(profile=PROFILE | {"ablations": {"loss-bce": entry}})
    (run,) = one.ablation_runs
    assert run.key == RunKey("tiny", "gaussian-01", "loss-bce", 4)
    assert (run.stage, run.noise["name"]) == ("ablate@loss-bce", "speckle")
    assert (str(run.noisy), str(run.folder)) == (
        "runs/tiny/data/patches/gaussian-01", "runs/tiny/models/ablations/loss-bce/4"
    )  # fmt: skip


def test_a_profile_changes_a_models_hyperparameters(load):
    train = PROFILE["train"] | {"dncnn": PROFILE["train"]["dncnn"] | {"hyperparameters": {"width": 9}}}
    one = load(profile=PROFILE | {"train": train})
    assert one.model("dncnn") == helpers.DNCNN | {"width": 9}
    assert one.params.models["dncnn"] == helpers.DNCNN
    assert one.training("dncnn") == Training(**helpers.TRAIN | {"epochs": 2})


def download(load, **keys):
    return load(profile=changed(PROFILE, ("datasets", "patches"), keys)).download()


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


def test_whole_numbers_are_numbers(load):
    one = load(profile=changed(PROFILE, (*DNCNN, "learning_rate"), 1))
    assert repr(one.training("dncnn").learning_rate) == "1.0"


def test_settings_are_frozen(loaded):
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded["paper"].training("dncnn").epochs = 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.run("fog", "dncnn", 0), "unknown noise 'fog'; params.yaml has gaussian-01, speckle"),
        (
            lambda one: one.run("speckle", "resnet", 0),
            "unknown model 'resnet'; Table 2 has lambdanet, autoencoder, dncnn",
        ),
        (lambda one: one.ablation("resnet", 0), "unknown ablation 'resnet'; profile.yaml has loss-bce"),
        *(
            (
                lambda one, seed=seed: one.run("speckle", "dncnn", seed),
                f"the seed is {seed!r}, must be a whole number from 0 to 4294967295",
            )
            for seed in ("x", "-1", "1.5", "", "²", str(2**32))
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_looking_up_an_unknown_name_lists_the_known(load, call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(load())


def test_profiles_are_the_root_and_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="unknown profile 'small'; there are none; run this in the project"):
        config.find("small")
    helpers.write_config(tmp_path)
    (tmp_path / "small").mkdir()
    small = PROFILE | {"profile": "small", "root": "..", "file": "small/profile.yaml"}
    (tmp_path / "small/profile.yaml").write_text(yaml.safe_dump(small))
    assert {name: str(path) for name, path in config.profiles().items()} == {
        "tiny": "profile.yaml", "small": "small/profile.yaml"
    }  # fmt: skip
    one = config.load(config.find("small"))  # without a link to params.yaml
    assert (one.name, one.address("plot")) == ("small", "small/dvc.yaml:plot")
    with pytest.raises(ValueError, match=r"unknown profile 'huge'; there are tiny, small$"):
        config.find("huge")
    (tmp_path / "copy").mkdir()
    copy = PROFILE | {"root": "..", "file": "copy/profile.yaml"}
    (tmp_path / "copy/profile.yaml").write_text(yaml.safe_dump(copy))
    with pytest.raises(ValueError, match=r"profile is 'tiny', must be 'copy', the name of its folder$"):
        config.load("copy/profile.yaml")
    helpers.write_config(tmp_path, profile=PROFILE | {"profile": "small"})
    with pytest.raises(ValueError, match=r"profile is 'small', which is the name of small/profile\.yaml; "):
        config.load("profile.yaml")


DNCNN = ("train", "dncnn")
BCE = ("ablations", "loss-bce")
DATASET = ("datasets", "patches")


def remove(*path):
    return path, KeyError


# In profile.yaml: (where, what it becomes): the message, without the file.
BAD = {
    "unknown key": (
        (("colour",), 1),
        "colour is not a known key; allowed: profile, root, file, threads",
    ),
    "unknown setting": (((*DNCNN, "colour"), 1), "train.dncnn.colour is not a known key; allowed: epochs, "),
    "unknown key of a data set": (
        ((*DATASET, "colour"), 1),
        "datasets.patches.colour is not a known key; allowed: dataset, train, test, seed",
    ),
    **{
        f"{key} of {dataset}": (
            (DATASET, {"dataset": dataset, "train": 1, "test": 1, key: 16}),
            f"datasets.patches.{key} is not a known key; allowed: dataset, train, test, seed",
        )
        for dataset, key in [("photos", "size"), ("cifar10", "patches"), ("bsds500", "size")]
    },
    **{
        f"{key} of a folder: {value!r}": (
            (DATASET, {"dataset": "a/b", "train": 1, "test": 1, key: value}),
            f"datasets.patches.{key} is {value!r}, must be {allowed}",
        )
        for key, value, allowed in [
            ("size", 8, "at least 16"),
            ("size", 60, "a multiple of 8"),
            ("size", "64", "a whole number"),
            ("patches", 0, "at least 1"),
            ("patches", 1.5, "a whole number"),
        ]
    },
    **{f"no {key}": (remove(key), f"{key} is missing") for key in PROFILE},
    "no model": (remove(*DNCNN), "train.dncnn is missing"),
    "no epochs": (remove(*DNCNN, "epochs"), "train.dncnn.epochs is missing"),
    "no loss of an ablation": (remove(*BCE, "train", "loss"), "ablations.loss-bce.train.loss is missing"),
    "no data set": (remove(*DATASET, "dataset"), "datasets.patches.dataset is missing"),
    "model that the table lacks": (
        (("train", "resnet"), helpers.TRAIN | {"epochs": 1}),
        "train is 'resnet', must be one of the models of Table 2: lambdanet, autoencoder, dncnn",
    ),
    "a seed twice": ((("seeds",), [0, 1, 0]), "seeds: 0 stands there twice"),
    "a seed of an ablation twice": (
        ((*BCE, "seeds"), [2, 2]),
        "ablations.loss-bce.seeds: 2 stands there twice",
    ),
    "seeds of a number": ((("seeds",), 0), "seeds is 0, must be a list"),
    "no seeds at all": ((("seeds",), []), "seeds is [], must be a list of at least one"),
    "a seed below 0": ((("seeds",), [-1]), "seeds.0 is -1, must be at least 0"),
    "a seed of text": ((("seeds",), ["0"]), "seeds.0 is '0', must be a whole number"),
    "a seed of true": ((("seeds",), [True]), "seeds.0 is True, must be a whole number"),
    **{
        f"ablation named {name!r}": (
            (("ablations", name), PROFILE["ablations"]["loss-bce"]),
            f"ablations.{name}: a name must be lower-case letters, digits and single dashes",
        )
        for name in ("a/b", "..", "", "A", "a b", "a--b", "-a", "a_b", "ä")
    },
    "ablation named like a model": (
        (("ablations", "dncnn"), PROFILE["ablations"]["loss-bce"]),
        "ablations.dncnn: a model has this name",
    ),
    "no ablation": ((("ablations",), {}), "ablations is {}, must be keys with values"),
    **{
        f"data set named {name}": (
            (("datasets", name), PROFILE["datasets"]["patches"]),
            f"datasets.{name}: a folder below runs/ has this name; choose another one",
        )
        for name in ("ablations", "clean")
    },
    "unknown study": (
        ((*BCE, "study"), "lost"),
        "ablations.loss-bce.study is 'lost', must be one of studies: base, loss",
    ),
    "levels of no ablation": (
        (("levels",), ["dncnn"]),
        "levels is 'dncnn', must be one of ablations: loss-bce",
    ),
    "unknown noise": (
        ((*BCE, "noise"), "fog"),
        "ablations.loss-bce.noise is 'fog', must be one of noises: gaussian-01, speckle",
    ),
    "unknown network": (
        ((*BCE, "model"), "unet"),
        "ablations.loss-bce: unknown model 'unet'; choose one of autoencoder, cnn, dncnn, lambda-resnet, ",
    ),
    "code that DVC would not see": (
        ((*BCE, "code"), "dncnn"),
        "ablations.loss-bce.code is 'dncnn', must be 'lambdanet', which holds lambdanet",
    ),
    "unknown hyperparameter of an ablation": (
        ((*BCE, "hyperparameters", "x"), 1),
        "ablations.loss-bce: model 'lambdanet' has no parameter x; it has u, m, k, heads, d, ",
    ),
    "unknown hyperparameter of a model": (
        ((*DNCNN, "hyperparameters"), {"x": 1}),
        "train.dncnn.hyperparameters: model 'dncnn' has no parameter x; it has depth, width, residual",
    ),
    "pair that is not stored": (
        ((*BCE, "test_noise"), "fog"),
        "ablations.loss-bce: patches with fog is none of pairs",
    ),
    "pair that the table needs": (
        remove("pairs", "speckle"),
        "pairs: patches with speckle, which Table 2 needs",
    ),
    "pair of an unknown data set": (
        (("pairs", "speckle", "dataset"), "x"),
        "pairs.speckle.dataset is 'x', must be one of datasets: patches",
    ),
    "pair that stands twice": (
        (("pairs", "again"), {"dataset": "patches", "noise": "speckle"}),
        "pairs: patches with speckle stands there twice",
    ),
    "data set of the table": ((("dataset",), "x"), "dataset is 'x', must be one of datasets: patches"),
    "root elsewhere": ((("root",), ".."), "root is '..', must lead from . to the project's folder"),
    "file elsewhere": ((("file",), "a.yaml"), "file is 'a.yaml', must be profile.yaml"),
    **{
        f"{'.'.join(path)} of {value!r}": (
            (path, value),
            f"{'.'.join(path)} is {value!r}, must be keys with values",
        )
        for path in [("train",), DNCNN, DATASET, BCE, ("pairs",), (*DNCNN, "hyperparameters")]
        for value in (5, "x", None)
    },
}
VALUES = {
    (*DNCNN, "epochs"): (0, -1, 1.5, "2", True, None, [1]),
    (*DNCNN, "learning_rate"): (0, -0.1, 10.5, "fast", True, None, float("nan"), float("inf")),
    (*DNCNN, "schedule"): ("linear", None, 1, ["cosine"], True),
    (*DNCNN, "decay"): (0, 1.01, -1, "x"),
    (*DNCNN, "warmup"): (-0.1, 0.95, "x"),
    (*DNCNN, "weight_decay"): (-1e-9, 1.1, "none", float("inf")),
    (*DNCNN, "loss"): ("mae", None, 2),
    (*DNCNN, "fresh_noise"): (1, "true", None),
    ("threads",): (0, 1.0, "1"),
    (*DATASET, "dataset"): (1, None, ["photos"], {}, True, "", " "),
    (*DATASET, "train"): (0, "32", 1.0),
    (*DATASET, "seed"): (-1, "x"),
}
for path, values in VALUES.items():
    for value in values:
        BAD[f"{'.'.join(path)}: {value!r}"] = ((path, value), f"{'.'.join(path)} is {value!r}, must be ")


@pytest.mark.parametrize("case", BAD)
def test_bad_value_of_a_profile_is_named_in_one_line(case, load):
    (path, value), message = BAD[case]
    with pytest.raises(ValueError, match=rf"^profile\.yaml: {re.escape(message)}") as caught:
        load(profile=changed(PROFILE, path, value))
    assert "\n" not in str(caught.value)


BAD_PARAMS = {
    "unknown key": ((("colour",), 1), "colour is not a known key; allowed: corrupt, noises, models"),
    "unknown key in corrupt": ((("corrupt", "colour"), 1), "corrupt.colour is not a known key; allowed"),
    **{f"no {key}": (remove(key), f"{key} is missing") for key in PARAMS if key != "studies"},
    "seed of text": ((("corrupt", "seed"), "0"), "corrupt.seed is '0', must be a whole number"),
    "no name": (remove("noises", "speckle", "name"), "noises.speckle: unknown noise None; choose one of "),
    "name of a list": ((("models", "dncnn", "name"), ["dncnn"]), "models.dncnn: unknown model ['dncnn']; "),
    "name of a noise": (
        (("noises", "a b"), {"name": "gaussian", "sigma": 1}),
        "noises.a b: a name must be lower-case letters, digits and single dashes",
    ),
    **{
        f"noise named {name}": (
            (("noises", name), helpers.GAUSSIAN),
            f"noises.{name}: a folder below runs/ has this name; choose another one",
        )
        for name in ("ablations", "clean")
    },
    "unknown noise": ((("noises", "speckle"), {"name": "fog"}), "noises.speckle: unknown noise 'fog'; "),
    "parameter of a noise": (
        (("noises", "gaussian-01"), {"name": "gaussian", "std": 1}),
        "noises.gaussian-01: noise 'gaussian' takes sigma; given: std",
    ),
    "unknown model": ((("models", "dncnn", "name"), "resnet"), "models.dncnn: unknown model 'resnet'; "),
    "unknown hyperparameter": (
        (("models", "dncnn", "x"), 1),
        "models.dncnn: model 'dncnn' has no parameter x; it has depth, width, residual",
    ),
    "noise of text": ((("noises", "speckle"), "speckle"), "noises.speckle is 'speckle', must be keys"),
    "noises of a list": ((("noises",), ["speckle"]), "noises is ['speckle'], must be keys with values"),
    "table of an unknown noise": (
        (("table", "noises"), ["fog"]),
        "table.noises is 'fog', must be one of noises: gaussian-01, speckle",
    ),
    "table of a noise twice": ((("table", "noises"), ["speckle", "speckle"]), "table.noises: speckle"),
    "table of an unknown model": (
        (("table", "baselines"), ["unet"]),
        "table.baselines is 'unet', must be one of models: lambdanet, autoencoder, dncnn",
    ),
    "a baseline among the LambdaNets": (
        (("table", "lambdanets"), ["dncnn"]),
        "table: dncnn stands there twice",
    ),
    "a LambdaNet among the baselines": (
        (("table",), PARAMS["table"] | {"lambdanets": [], "baselines": ["lambdanet-b"]}),
        "table.baselines: 'lambdanet-b' is no network of lambdanet/models/lambdanet-b",
    ),
    "study of a number": ((("studies", "loss", "title"), 1), "studies.loss.title is 1, must be text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_bad_value_of_params_is_named_in_one_line(case, load):
    (path, value), message = BAD_PARAMS[case]
    raw = changed(PARAMS, ("models", "lambdanet-b"), helpers.LAMBDANET)
    if path[0] != "table":
        raw = PARAMS
    with pytest.raises(ValueError, match=rf"^params\.yaml: {re.escape(message)}") as caught:
        load(changed(raw, path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("schedule", "one of exponential, cosine"),
        ("loss", "one of mse, bce"),
        ("optimizer", "one of adam, adamax, sgd"),
        ("decay", "above 0"),
        ("warmup", "at least 0"),
        ("batch_size", "at least 1"),
    ],
)
def test_message_says_what_is_allowed(key, allowed, load):
    value = -1 if allowed[:3] != "one" else "x"
    with pytest.raises(ValueError, match=f"train.dncnn.{key} is {value!r}, must be {allowed}$"):
        load(profile=changed(PROFILE, (*DNCNN, key), value))


@pytest.mark.parametrize("name", ["params.yaml", "profile.yaml"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML: "),
        (b"!!python/object/apply:os.system [exit]", "is not valid YAML: "),
        (b"a: 1\na: 2\n", "is not valid YAML: "),
        (b"profile: \xff\xfe", ""),
        (b"", ": the file is None, must be keys with values"),
        (b"- a\n", ": the file is ['a'], must be keys with values"),
    ],
)
def test_files_that_hold_something_else_are_named_in_one_line(name, content, message, load, tmp_path):
    load()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}\W.*") as caught:
        config.load("profile.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["params.yaml", "profile.yaml"])
def test_missing_file_is_named(name, load, tmp_path):
    load()
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"^{name} is missing; run this in the project's folder$"):
        config.load("profile.yaml")


def test_yaml_is_version_1_2_as_dvc_reads_it(load, tmp_path):
    load()
    text = yaml.safe_dump(PROFILE).replace("learning_rate: 0.01", "learning_rate: 2e-05")
    (tmp_path / "profile.yaml").write_text(f"\ufeff{text}", encoding="utf-8")
    assert config.load("profile.yaml").training("dncnn").learning_rate == 2e-5


@pytest.mark.parametrize(("name", "kind"), [("params", config.Params), ("profile", config.Profile)])
def test_schemas_for_editors_are_current(name, kind):
    """After a change: python -m lambdanet.config."""
    assert json.loads((helpers.ROOT / f"schemas/{name}.json").read_text()) == config.schema(kind)
    for file in (
        [f"{name}.yaml"]
        if name == "params"
        else ["profile.yaml", "sample/profile.yaml", "quick/profile.yaml"]
    ):
        folder = helpers.ROOT / file
        first = folder.read_text().splitlines()[0]
        assert (folder.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == (
            helpers.ROOT / f"schemas/{name}.json"
        )


def test_configuration_loads_without_torch(tmp_path):
    code = (
        "import sys; from lambdanet import config; config.load('profile.yaml'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=helpers.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
