"""The shape of params.yaml and profile.yaml: checked once, then resolved to one plain object for each run.

Not a dependency in DVC: the values themselves reach DVC as params.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lambdanet import files, yaml12

FOLDERS = ("ablations", "clean")  # of runs/, beside those with the name of a noise
PARAMS, PROFILE = "params.yaml", "profile.yaml"
MODELS = Path(__file__).parent / "models"
LARGEST_SEED = 2**32 - 1

Name = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
Hyperparameters = dict[Text, Any]  # their values are checked by the network

# How what stands in the two files is checked: no unknown keys, no changes later.
checked = dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))


def _number(**limits: float) -> Any:
    return Field(strict=True, allow_inf_nan=False, **limits)


def _unique(values: tuple) -> tuple:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} stands there twice")
    return values


def _named(value: dict) -> dict:
    if not isinstance(value.get("name"), str):
        raise ValueError("name is missing, or is no text")
    return value


Names = Annotated[tuple[Name, ...], AfterValidator(_unique)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_unique)]
# A noise or a network by its `name`, and its parameters, which its function checks.
Factory = Annotated[dict[Text, Any], AfterValidator(_named)]

# What each data set takes beside the keys that all have, and the defaults; any other name is of a folder.
DOWNLOADS = {
    "photos": {},
    "cifar10": {},
    "cifar10-split": {},
    "bsds500": {"patches": 214, "size": 40},
}
OF_A_FOLDER = {"size": 64, "patches": 16}


@checked
class Download:
    """Which clean images."""

    dataset: Annotated[str, Field(strict=True, min_length=1)]  # of DOWNLOADS, or the path of a folder
    train: Count  # images to train on, of BSDS500 and a folder before they are cut into patches
    test: Count  # images to test on; those of a folder are cut as well
    seed: Seed = 0  # of the choice, where a data set holds more
    patches: Count | None = None  # of an image of BSDS500 (214 of all 400 are 85,600) or of a folder
    # The edge of these patches; a multiple of 8, as the auto-encoder halves it three times.
    size: Annotated[int, Field(strict=True, ge=16, multiple_of=8)] | None = None

    def __post_init__(self) -> None:
        takes = DOWNLOADS.get(self.dataset, OF_A_FOLDER)
        for key in ("patches", "size"):
            if getattr(self, key) is None:
                object.__setattr__(self, key, takes.get(key))
            elif key not in takes:
                raise ValueError(f"{self.dataset} has no key {key}")

    @property
    def train_images(self) -> int:
        """How many images or patches train.npy holds."""
        return self.train * (self.patches or 1)


@checked
class Training:
    """How to train."""

    epochs: Count  # passes over the training images
    batch_size: Count  # images a step; an epoch's last batch may be smaller
    learning_rate: Annotated[float, _number(gt=0, le=10)]  # the optimizer's, at its peak
    # "exponential": times `decay` after each epoch. "cosine": up linearly during the first `warmup` of all
    # steps, then down to 0 along a half cosine.
    schedule: Literal["exponential", "cosine"]
    decay: Annotated[float, _number(gt=0, le=1)]  # a factor per epoch
    warmup: Annotated[float, _number(ge=0, le=0.9)]  # a share of all steps
    weight_decay: Annotated[float, _number(ge=0, le=1)]  # the L2 term's factor
    loss: Literal["mse", "mae", "bce"]  # mean squared or absolute error, or binary cross-entropy
    fresh_noise: Flag  # draw the training noise anew each epoch instead of using the stored pairs
    monitored: Count  # test images whose PSNR, in their middle 64 x 64, goes into the history
    optimizer: Literal["adam", "adamax", "sgd"] = "adam"  # each with its L2 term, sgd with momentum 0.9

    def described(self) -> dict:
        """As a dict for what is written about a training.

        A setting with a default stands there only where it differs, so that a setting which is added later
        changes no file of a training that does not use it.
        """
        values, fields = dataclasses.asdict(self), dataclasses.fields(self)
        return {one.name: values[one.name] for one in fields if values[one.name] != one.default}


@checked
class ModelTraining(Training):
    """How a profile trains a model of Table 2."""

    hyperparameters: Hyperparameters = field(default_factory=dict)  # set otherwise than in params.yaml

    @property
    def settings(self) -> Training:
        """The same without the hyperparameters."""
        return Training(**{each.name: getattr(self, each.name) for each in dataclasses.fields(Training)})


@checked
class Study:
    """A question that is answered by trainings which differ in one thing."""

    title: Text  # of its table and figure
    axis: Text = ""  # the hyperparameter that its figure shows PSNR against; empty: a row for each ablation
    group: Text = ""  # the hyperparameter whose values get a line each; may be empty
    document: Flag = False  # whether it is another document's experiment, with its own data and settings
    # settings of a training that the same search chose for each kind of network, so that they may differ
    tuned: tuple[Literal["batch_size", "learning_rate", "embedding_std"], ...] = ()


@checked
class Ablation:
    """A training beside Table 2: what is trained, on what, and how."""

    study: Name  # by its name in params.yaml
    model: Name  # the network, a name of `lambdanet.models`
    code: Text  # the file of lambdanet/models that holds it, without `.py`
    dataset: Name  # by its name in this profile
    noise: Name  # what it is trained on, by its name in params.yaml
    test_noise: Name  # the noise of the test images, likewise; together with `dataset` one of `pairs`
    hyperparameters: Hyperparameters  # all that differ from the network's defaults
    train: Training
    seeds: Seeds  # one training for each


@checked
class Corrupt:
    """The stored noise."""

    seed: Seed


@checked
class Table:
    """What Table 2 consists of, by names of `noises` and `models`."""

    noises: Annotated[Names, Field(min_length=1)]  # in the order of its rows
    lambdanets: Names  # models whose code is models/lambdanet.py
    baselines: Names  # models whose code has their name


@checked
class Pair:
    """A data set and a noise that are used together, by their names."""

    dataset: Name
    noise: Name


@checked
class Params:
    """All of params.yaml: what every profile shares."""

    corrupt: Corrupt
    noises: dict[Name, Factory]
    models: dict[Name, Factory]
    table: Table
    studies: dict[Name, Study] = field(default_factory=dict)


@checked
class Profile:
    """All of a profile.yaml: the scale at which everything is run."""

    profile: Name  # what it makes lies under runs/NAME
    root: Text  # the project's folder, from this file's
    file: Text  # this file, from the project's folder
    # Of a training; declared, as the results' last digits depend on it. More, no machine starts.
    threads: Annotated[int, Field(strict=True, ge=1, le=1024)]
    seeds: Seeds  # one training of each noise and model of Table 2 for each
    dataset: Name  # that Table 2 is about, by its name in `datasets`
    datasets: dict[Name, Download]  # clean images by name
    pairs: dict[Name, Pair]  # which of them are stored with which noise
    train: dict[Name, ModelTraining]  # how each model of Table 2 is trained
    levels: Names  # the ablations that are scored by noise level and on training images too
    ablations: Annotated[dict[Name, Ablation], Field(min_length=1)]  # others; DVC needs a stage of them


@dataclasses.dataclass(frozen=True)
class RunKey:
    """The name of one training: a noise, a model or an ablation, and a seed, under a profile."""

    profile: str
    noise: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """For users and for files that hold all trainings of a profile."""
        return f"{self.noise}-{self.model}-{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training, resolved: all that it takes, and where its files lie."""

    key: RunKey
    model: dict  # keyword arguments of `create_model`
    noise: dict  # keyword arguments of `create_noise`, what it is trained on
    settings: Training
    threads: int  # that the training uses
    train_images: int  # how many images or patches it is trained on
    levels: bool  # whether it is scored by noise level and on training images too
    clean: Path  # folder of the clean images
    noisy: Path  # folder of the noisy ones
    folder: Path  # of the weights, their description and the history
    checkpoints: Path  # folder
    log: Path  # JSON file of `run_log.Log`
    scores: Path  # JSON file
    samples: Path  # folder of denoised images

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def description(self) -> Path:
        """JSON: what the network is and how it was trained."""
        return self.folder / "model.json"

    @property
    def history(self) -> Path:
        """CSV: a row for each epoch."""
        return self.folder / "history.csv"


class Folders(NamedTuple):
    """Where a profile's files lie, from the project's folder."""

    runs: Path
    results: Path
    weights: Path

    def of(self, kind: str, *parts: str) -> Path:
        """A folder of models, scores, samples, logs or checkpoints, or something in it."""
        return self.runs.joinpath(kind, *parts)


@dataclasses.dataclass(frozen=True)
class Config:
    """params.yaml and one profile.yaml."""

    params: Params
    profile: Profile

    @property
    def name(self) -> str:
        """The profile's."""
        return self.profile.profile

    @property
    def folders(self) -> Folders:
        return Folders(*(Path(kind, self.name) for kind in ("runs", "results", "weights")))

    @property
    def models(self) -> tuple[str, ...]:
        """The models of Table 2, in its order."""
        return self.params.table.lambdanets + self.params.table.baselines

    def model(self, name: str) -> dict:
        """Keyword arguments of `create_model` for a model of Table 2 or an ablation."""
        if ablation := self.profile.ablations.get(name):
            return {"name": ablation.model} | ablation.hyperparameters
        return look_up(self.params.models, name, "model") | self.profile.train[name].hyperparameters

    def training(self, name: str) -> Training:
        """How a model of Table 2 or an ablation is trained."""
        if ablation := self.profile.ablations.get(name):
            return ablation.train
        return look_up(self.profile.train, name, "model").settings

    def dataset(self, name: str = "") -> str:
        """The name of the data set that Table 2, or an ablation, is about."""
        return self.profile.ablations.get(name, self.profile).dataset

    def download(self, name: str = "") -> Download:
        """Its images."""
        return self.profile.datasets[self.dataset(name)]

    def noise(self, name: str) -> dict:
        """Keyword arguments of `create_noise`."""
        return look_up(self.params.noises, name, "noise")

    def is_document(self, run: Run) -> bool:
        """Whether an ablation is another document's experiment."""
        return self.params.studies[self.profile.ablations[run.key.model].study].document

    @property
    def pipeline(self) -> str:
        """The dvc.yaml of this profile, from the project's folder."""
        return str(Path(self.profile.file).parent / "dvc.yaml")

    def address(self, stage: str) -> str:
        """How `dvc` names a stage of this profile in the project's folder."""
        return stage if self.pipeline == "dvc.yaml" else f"{self.pipeline}:{stage}"

    def data(self, dataset: str, kind: str = "clean") -> Path:
        """The folder of a data set's clean images, or of those with a noise."""
        return self.folders.of("data", dataset, kind)

    def run(self, noise: str, model: str, seed: str | int) -> Run:
        """A training of Table 2.

        Raises:
            ValueError: an unknown noise or model, or no seed.
        """
        self.noise(noise)
        if model not in self.models:
            raise ValueError(f"unknown model {model!r}; Table 2 has {', '.join(self.models)}")
        key = RunKey(self.name, noise, model, _seed(seed))
        return self._resolve(key, f"{noise}/{model}-{key.seed}", noise, self.profile.dataset)

    def ablation(self, name: str, seed: str | int) -> Run:
        """A training of an ablation.

        Raises:
            ValueError: an unknown name, or no seed.
        """
        entry = look_up(self.profile.ablations, name, "ablation", self.profile.file)
        key = RunKey(self.name, entry.test_noise, name, _seed(seed))
        return self._resolve(key, f"ablations/{name}/{key.seed}", entry.noise, entry.dataset)

    def _resolve(self, key: RunKey, place: str, noise: str, dataset: str) -> Run:
        of = self.folders.of
        return Run(
            key=key,
            model=self.model(key.model),
            noise=self.noise(noise),
            settings=self.training(key.model),
            threads=self.profile.threads,
            train_images=self.profile.datasets[dataset].train_images,
            levels=key.model in self.profile.levels,
            clean=self.data(dataset),
            noisy=self.data(dataset, key.noise),
            folder=of("models", place),
            checkpoints=of("checkpoints", place),
            log=of("logs", f"{place}.json"),
            scores=of("scores", f"{place}.json"),
            samples=of("samples", place),
        )

    @functools.cached_property
    def table_runs(self) -> list[Run]:
        """All trainings of Table 2, in its order."""
        pairs = [(noise, model) for noise in self.params.table.noises for model in self.models]
        return [self.run(*pair, seed) for pair in pairs for seed in self.profile.seeds]

    @functools.cached_property
    def ablation_runs(self) -> list[Run]:
        """All trainings of the ablations, in the order of profile.yaml."""
        entries = self.profile.ablations.items()
        return [self.ablation(name, seed) for name, entry in entries for seed in entry.seeds]

    @property
    def runs(self) -> list[Run]:
        return [*self.table_runs, *self.ablation_runs]


def load(file: Path | str) -> Config:
    """Read and check a profile.yaml, and the params.yaml of its project.

    Args:
        file: of the profile; the project is the current folder.

    Raises:
        ValueError: names the file, the key, its value and what is allowed.
    """
    file = Path(file)
    profile, params = _read(file, Profile), _read(Path(PARAMS), Params)
    config = Config(params, profile)
    with within(PARAMS):
        _check_params(params)
    with within(file):
        _check_place(file, profile)
        _check_profile(config)
    return config


@contextlib.contextmanager
def within(where: Path | str) -> Iterator[None]:
    """Say in front of a ValueError of the block where it is: in which file, at which key."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def find(name: str) -> Path:
    """The profile.yaml of a profile: of the current folder, or of the folder with its name.

    Raises:
        ValueError: there is none.
    """
    if name in (found := profiles()):
        return found[name]
    known = ", ".join(found) or "none; run this in the project's folder"
    raise ValueError(f"unknown profile {name!r}; there are {known}")


def profiles(project: Path = Path()) -> dict[str, Path]:
    """The profile.yaml of each profile of a project, from its folder, by name; that of the root is first."""
    found = {path.parent.name: path.relative_to(project) for path in sorted(project.glob(f"*/{PROFILE}"))}
    if (root := project / PROFILE).is_file():
        raw = yaml12.read(root)
        return {str(raw.get("profile", "paper") if isinstance(raw, dict) else "paper"): Path(PROFILE)} | found
    return found


def look_up(table: dict[str, Any], name: str, what: str, where: str = PARAMS) -> Any:
    """`table[name]`; a name that is not there is a ValueError that lists those that are."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; {where} has {', '.join(table) or 'none'}")
    return table[name]


def build(kind: type, raw: object, where: str = "") -> Any:
    """Make one of the classes here of a raw value.

    Raises:
        ValueError: names the key below `where`, its value and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        try:
            line = _one_line(error, where)
        except RecursionError:
            line = f"{where or 'the file'} is nested too deeply"
        raise ValueError(line) from None


def _read(path: Path, kind: type) -> Any:
    try:
        raw = yaml12.read(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; run this in the project's folder") from None
    with within(path):
        return build(kind, raw)


def _seed(value: str | int) -> int:
    if not (str(value).isascii() and str(value).isdecimal()) or int(value) > LARGEST_SEED:
        raise ValueError(f"the seed is {value!r}, must be a whole number from 0 to {LARGEST_SEED}")
    return int(value)


# Where pydantic's words are about Python, not about YAML, or long.
_RULES = {
    "string_pattern_mismatch": "be lower-case letters, digits and single dashes",
    "tuple_type": "be a list",
    "dict_type": "be keys with values",
    "dataclass_type": "be keys with values",
}


def _one_line(error: ValidationError, where: str) -> str:
    """The first of pydantic's errors; an unknown key comes before a missing one, as it may be that one."""
    first = min(error.errors(), key=lambda one: one["type"] == "missing")
    key = ".".join([where] * bool(where) + [str(part) for part in first["loc"] if part != "[key]"])
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "unexpected_keyword_argument":
        return f"{key} is not a known key; schemas/ has those that are"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}"
    rule = _RULES.get(first["type"]) or first["msg"].partition(" should ")[2]
    rule = rule.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{key or 'the file'} is {first['input']!r}, must {rule}"


def _check_params(params: Params) -> None:
    table = params.table
    for name in FOLDERS:
        if name in params.noises:
            raise ValueError(f"noises.{name}: a folder below runs/ has this name; choose another one")
    _known("table.noises", table.noises, params.noises, "noises")
    with within("table"):
        _unique(table.lambdanets + table.baselines)
    _known("table", table.lambdanets + table.baselines, params.models, "models")
    code = {name: _code(f"models.{name}", config["name"]) for name, config in params.models.items()}
    expected = dict.fromkeys(table.lambdanets, "lambdanet") | {name: name for name in table.baselines}
    for name, file in expected.items():
        if code[name] != file:
            raise ValueError(f"table: {name!r} is no network of lambdanet/models/{file}.py")


def _check_place(file: Path, profile: Profile) -> None:
    here, folder = Path().resolve(), file.resolve().parent
    if (file.parent / profile.root).resolve() != here:
        raise ValueError(f"root is {profile.root!r}, must lead from {file.parent} to the project's folder")
    if file.resolve() != Path(profile.file).resolve():
        raise ValueError(f"file is {profile.file!r}, must be {file}")
    if folder != here and profile.profile != folder.name:
        raise ValueError(f"profile is {profile.profile!r}, must be {folder.name!r}, the name of its folder")
    if folder == here and (other := Path(profile.profile, PROFILE)).exists():
        raise ValueError(f"profile is {profile.profile!r}, which is the name of {other}; choose another one")


def _check_profile(config: Config) -> None:
    params, profile = config.params, config.profile
    pairs = [f"{pair.dataset} with {pair.noise}" for pair in profile.pairs.values()]
    with within("pairs"):
        _unique(tuple(pairs))
    _known("dataset", [profile.dataset], profile.datasets, "datasets")
    _known("pairs", [pair.dataset for pair in profile.pairs.values()], profile.datasets, "datasets")
    _known("pairs", [pair.noise for pair in profile.pairs.values()], params.noises, "noises")
    _known("levels", profile.levels, profile.ablations, "ablations")
    for noise in params.table.noises:
        if (pair := f"{profile.dataset} with {noise}") not in pairs:
            raise ValueError(f"pairs: {pair}, which Table 2 needs, is missing")
    if set(profile.train) != set(config.models):
        raise ValueError(f"train has {', '.join(profile.train)}, must have {', '.join(config.models)}")
    for name, entry in profile.ablations.items():
        with within(f"ablations.{name}"):
            _check_ablation(name, entry, params, pairs)


def _check_ablation(name: str, entry: Ablation, params: Params, pairs: list[str]) -> None:
    if name in params.models:
        raise ValueError("a model has this name")
    _known("study", [entry.study], params.studies, "studies")
    _known("noise", [entry.noise], params.noises, "noises")
    study = params.studies[entry.study]
    for key in filter(None, (study.axis, study.group)):
        value = entry.hyperparameters.get(key)
        if type(value) not in (int, float) or not value > 0:
            raise ValueError(f"{key} is {value!r}, must be above 0: {entry.study} has a figure over it")
    if (pair := f"{entry.dataset} with {entry.test_noise}") not in pairs:
        raise ValueError(f"{pair} is none of pairs")
    if (code := _code("model", entry.model)) != entry.code:
        raise ValueError(f"code is {entry.code!r}, must be {code!r}, which holds {entry.model}")


def _code(where: str, network: str) -> str:
    """The file of lambdanet/models that holds a network, without `.py`: the network's name in underscores."""
    known = sorted(path.stem for path in MODELS.glob("[a-z]*.py"))
    if (code := network.replace("-", "_")) not in known:
        names = ", ".join(known).replace("_", "-")
        raise ValueError(f"{where}: unknown model {network!r}; choose one of {names}")
    return code


def _known(where: str, names: Iterable[str], known: Iterable[str], of: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where} is {name!r}, must be one of {of}: {', '.join(known) or 'none'}")


def schema(kind: type) -> dict:
    """The JSON schema of params.yaml or profile.yaml, for editors; schemas/ holds it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(kind).json_schema()


if __name__ == "__main__":  # after a change of the classes here
    for kind in (Params, Profile):
        path = Path("schemas", f"{kind.__name__.lower()}.json")
        files.write_text(path, json.dumps(schema(kind), indent=2) + "\n")
