"""The shape of params.yaml and profile.yaml: checked once, then resolved to one plain object for each run.

Not a dependency in DVC: the values themselves reach DVC as params.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lambdanet import signatures, yaml12

FOLDERS = ("ablations", "clean")  # of runs/, beside those with the name of a noise or a data set
LARGEST_SEED = 2**32 - 1
PARAMS, PROFILE = "params.yaml", "profile.yaml"

Name = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SEED)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
Hyperparameters = dict[Text, Any]  # of a model or a noise, whose function checks the values

_CLOSED = ConfigDict(extra="forbid")


def _number(**limits: float) -> Any:
    return Field(strict=True, allow_inf_nan=False, **limits)


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Download:
    """Which clean images; of the data sets photos and cifar10, and what all others share.

    Attributes:
        dataset: a name of `DOWNLOADS`, or the path of a folder of photographs.
        train: number of training images.
        test: number of test images.
        seed: of the choice, where a data set holds more.
    """

    dataset: Annotated[str, Field(strict=True, pattern=r"\S")]
    train: Count
    test: Count
    seed: Seed = 0

    @property
    def train_images(self) -> int:
        """How many images or patches train.npy holds."""
        return self.train


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class DownloadBsds500(Download):
    """The same of BSDS500: whole test images, training images cut into patches of 40 x 40.

    Attributes:
        patches: of a training image; 214 of all 400 are 85,600.
    """

    patches: Count = 214

    @property
    def train_images(self) -> int:
        return self.train * self.patches


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class DownloadFolder(Download):
    """The same of a folder of photographs: `train` and `test` are files, all cut into patches.

    Attributes:
        size: edge of the patches; a multiple of 8, as the auto-encoder halves it three times.
        patches: of a file.
    """

    size: Annotated[int, Field(strict=True, ge=16, multiple_of=8)] = 64
    patches: Count = 16

    @property
    def train_images(self) -> int:
        return self.train * self.patches


# What a data set takes; any other name is the path of a folder.
DOWNLOADS = {"photos": Download, "cifar10": Download, "cifar10-split": Download, "bsds500": DownloadBsds500}


def _kind(raw: Any) -> str:
    dataset = raw.get("dataset") if isinstance(raw, dict) else getattr(raw, "dataset", None)
    return (
        f"({DOWNLOADS.get(dataset, DownloadFolder).__name__})" if isinstance(dataset, str) else "(Download)"
    )


AnyDownload = Annotated[
    Annotated[Download, Tag("(Download)")]
    | Annotated[DownloadBsds500, Tag("(DownloadBsds500)")]
    | Annotated[DownloadFolder, Tag("(DownloadFolder)")],
    Discriminator(_kind),
]


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Training:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; an epoch's last batch may be smaller.
        learning_rate: the optimizer's, at its peak.
        schedule: "exponential": times `decay` after each epoch. "cosine": up linearly during the
            first `warmup` of all steps, then down to 0 along a half cosine.
        decay: of the exponential schedule, a factor per epoch.
        warmup: of the cosine schedule, a share of all steps.
        weight_decay: the L2 term's factor.
        loss: "mse", or "bce" (binary cross-entropy).
        fresh_noise: draw the training noise anew each epoch instead of using the stored pairs.
        monitored: number of test images whose PSNR, in their middle 64 x 64, goes into the history.
        optimizer: "adam", "adamax", or "sgd" (with momentum 0.9); each with its L2 term.
    """

    epochs: Count
    batch_size: Count
    learning_rate: Annotated[float, _number(gt=0, le=10)]
    schedule: Literal["exponential", "cosine"]
    decay: Annotated[float, _number(gt=0, le=1)]
    warmup: Annotated[float, _number(ge=0, le=0.9)]
    weight_decay: Annotated[float, _number(ge=0, le=1)]
    loss: Literal["mse", "bce"]
    fresh_noise: Flag
    monitored: Count
    optimizer: Literal["adam", "adamax", "sgd"] = "adam"

    def described(self) -> dict:
        """As a dict for what is written about a training.

        A setting with a default stands there only where it differs, so that a setting which is added later
        changes no file of a training that does not use it.
        """
        values = dataclasses.asdict(self)
        return values if self.optimizer != "adam" else {k: v for k, v in values.items() if k != "optimizer"}


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class ModelTraining(Training):
    """How a profile trains a model of Table 2.

    Attributes:
        hyperparameters: those that the profile sets otherwise than params.yaml.
    """

    hyperparameters: Hyperparameters = field(default_factory=dict)

    @property
    def settings(self) -> Training:
        """The same without the hyperparameters."""
        return Training(**{each.name: getattr(self, each.name) for each in dataclasses.fields(Training)})


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Study:
    """A question that is answered by trainings which differ in one thing.

    Attributes:
        title: of its table and figure.
        axis: the hyperparameter that its figure shows PSNR against; empty: a row for each ablation.
        group: the hyperparameter whose values get a line each; may be empty.
        document: whether it is another document's experiment, with data and settings of its own.
    """

    title: Text
    axis: Text = ""
    group: Text = ""
    document: Flag = False


@dataclass(frozen=True, kw_only=True, config=_CLOSED)
class Ablation:
    """A training beside Table 2: what is trained, on what, and how.

    Attributes:
        study: by its name in params.yaml.
        model: the network, a name of `lambdanet.models`.
        code: the file or folder of `lambdanet/models` that holds it, without `.py`.
        dataset: by its name in this profile.
        noise: what it is trained on, by its name in params.yaml.
        test_noise: the noise of the test images, likewise; together with `dataset` one of `pairs`.
        hyperparameters: all that differ from the network's defaults.
        train: how it is trained.
        seeds: one training for each.
    """

    study: Name
    model: Name
    code: Text
    dataset: Name
    noise: Name
    test_noise: Name
    hyperparameters: Hyperparameters
    train: Training
    seeds: Seeds


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Corrupt(_Mapping):
    """The stored noise."""

    seed: Seed


class Table(_Mapping):
    """What Table 2 consists of, by names of `noises` and `models`.

    Attributes:
        noises: in the order of its rows.
        lambdanets: models whose code is models/lambdanet.
        baselines: models whose code has their name.
    """

    noises: Annotated[tuple[Name, ...], Field(min_length=1)]
    lambdanets: tuple[Name, ...]
    baselines: tuple[Name, ...]


class Pair(_Mapping):
    """A data set and a noise that are used together, by their names."""

    dataset: Name
    noise: Name


class Params(_Mapping):
    """All of params.yaml: what every profile shares. Noises and models are arguments of their factories."""

    corrupt: Corrupt
    noises: dict[Name, Hyperparameters]
    models: dict[Name, Hyperparameters]
    table: Table
    studies: dict[Name, Study] = {}


class Profile(_Mapping):
    """All of a profile.yaml: the scale at which everything is run.

    Attributes:
        profile: its name; what it makes lies under runs/NAME.
        root: the project's folder, from this file's.
        file: this file, from the project's folder.
        threads: of a training; declared, as the results' last digits depend on it.
        seeds: one training of each noise and model of Table 2 for each.
        dataset: that Table 2 is about, by its name in `datasets`.
        datasets: clean images by name.
        pairs: which of them are stored with which noise.
        train: how each model of Table 2 is trained.
        levels: the ablations that are scored by noise level and on training images too.
        ablations: all other trainings.
    """

    profile: Name
    root: Text
    file: Text
    threads: Count
    seeds: Seeds
    dataset: Name
    datasets: dict[Name, AnyDownload]
    pairs: dict[Name, Pair]
    train: dict[Name, ModelTraining]
    levels: tuple[Name, ...]
    ablations: Annotated[dict[Name, Ablation], Field(min_length=1)]  # DVC needs a stage of them


@dataclasses.dataclass(frozen=True)
class RunKey:
    """The name of one training: a noise, a model or an ablation, and a seed, under a profile."""

    profile: str
    noise: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """For people and for files that hold all trainings of a profile."""
        return f"{self.noise}-{self.model}-{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training, resolved: all that it takes, and where its files lie.

    Attributes:
        key: its name.
        stage: the DVC stage that trains it.
        model: keyword arguments of `create_model`.
        noise: keyword arguments of `create_noise`, what it is trained on.
        settings: how it is trained.
        threads: that the training uses.
        train_images: how many images or patches it is trained on.
        levels: whether it is scored by noise level and on training images too.
        place: its path below each of the profile's folders.
        clean: folder of the clean images.
        noisy: folder of the noisy ones.
        folder: of the weights, their description and the history.
        checkpoints: folder.
        log: JSON file of `provenance.Log`; that of the evaluation lies beside it.
        scores: JSON file.
        samples: folder of denoised images.
    """

    key: RunKey
    stage: str
    model: dict
    noise: dict
    settings: Training
    threads: int
    train_images: int
    levels: bool
    place: str
    clean: Path
    noisy: Path
    folder: Path
    checkpoints: Path
    log: Path
    scores: Path
    samples: Path

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

    def download(self, name: str = "") -> Download:
        """The images that Table 2, or an ablation, is about."""
        ablation = self.profile.ablations.get(name)
        return self.profile.datasets[ablation.dataset if ablation else self.profile.dataset]

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
        config, table = self.noise(noise), self.params.table
        if model not in self.models:
            raise ValueError(f"unknown model {model!r}; Table 2 has {', '.join(self.models)}")
        run_key = RunKey(self.name, noise, model, _seed(seed))
        stage = "train-lambdanet" if model in table.lambdanets else "train"
        of = {"stage": f"{stage}@{run_key.name}", "place": f"{noise}/{model}-{run_key.seed}", "levels": False}
        return self._resolve(run_key, config, noise, self.profile.dataset, **of)

    def ablation(self, name: str, seed: str | int) -> Run:
        """A training of an ablation.

        Raises:
            ValueError: an unknown name, or no seed.
        """
        entry = look_up(self.profile.ablations, name, "ablation", self.profile.file)
        run_key = RunKey(self.name, entry.test_noise, name, _seed(seed))
        of = {
            "stage": f"ablate@{name}",
            "place": f"ablations/{name}/{run_key.seed}",
            "levels": name in self.profile.levels,
        }
        return self._resolve(run_key, self.noise(entry.noise), entry.test_noise, entry.dataset, **of)

    def _resolve(self, run_key: RunKey, noise: dict, test_noise: str, dataset: str, **of: Any) -> Run:
        kinds = {"folder": "models", "checkpoints": "checkpoints", "samples": "samples"}
        return Run(
            key=run_key,
            model=self.model(run_key.model),
            noise=noise,
            settings=self.training(run_key.model),
            threads=self.profile.threads,
            train_images=self.profile.datasets[dataset].train_images,
            clean=self.data(dataset),
            noisy=self.data(dataset, test_noise),
            **{key: self.folders.of(kind, of["place"]) for key, kind in kinds.items()},
            log=self.folders.of("logs", f"{of['place']}.json"),
            scores=self.folders.of("scores", f"{of['place']}.json"),
            **of,
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
    profile = _parse(Profile, file)
    params = _parse(Params, Path(PARAMS))
    for path, check in ((Path(PARAMS), _check_params), (file, functools.partial(_check_profile, file))):
        try:
            check(params, profile) if path == file else check(params)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return Config(params, profile)


def find(name: str) -> Path:
    """The profile.yaml of a profile: of the current folder, or of the folder with its name.

    Raises:
        ValueError: there is none.
    """
    if name in (found := profiles()):
        return found[name]
    known = ", ".join(found) or "none; run this in the project's folder"
    raise ValueError(f"unknown profile {name!r}; there are {known}")


def profiles() -> dict[str, Path]:
    """The profile.yaml of each profile of the project in the current folder, by name."""
    found = {path.parent.name: path for path in sorted(Path().glob(f"*/{PROFILE}"))}
    if (root := Path(PROFILE)).is_file():
        raw = load_yaml(root)
        return {str(raw.get("profile") if isinstance(raw, dict) else "paper"): root} | found
    return found


def load_yaml(path: Path) -> object:
    """Read YAML 1.2, as DVC does.

    Raises:
        ValueError: the file is missing, or is no YAML.
    """
    try:
        return yaml12.read(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; run this in the project's folder") from None


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
        raise ValueError(_one_line(error, where, kind)) from None


def schema(kind: type) -> dict:
    """The JSON schema of params.yaml or profile.yaml, for editors; schemas/ holds it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(kind).json_schema()


def _parse(kind: type, path: Path) -> Any:
    raw = load_yaml(path)
    try:
        return build(kind, raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _seed(value: str | int) -> int:
    if not (str(value).isascii() and str(value).isdecimal()) or int(value) > LARGEST_SEED:
        raise ValueError(f"the seed is {value!r}, must be a whole number from 0 to {LARGEST_SEED}")
    return int(value)


def _one_line(error: ValidationError, where: str, kind: type) -> str:
    """The first of pydantic's errors in the words of this project; unknown keys before missing ones."""
    found = sorted(error.errors(), key=lambda one: one["type"] == "missing")
    one = found[0]
    parts = [str(part) for part in one["loc"] if not str(part).startswith(("(", "["))]
    key = ".".join([where, *parts] if where else parts) or "the file"
    if one["type"] == "missing":
        return f"{key} is missing"
    if one["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is not a known key; allowed: {', '.join(_allowed(schema(kind), one['loc'][:-1]))}"
    if one["loc"] and one["loc"][-1] == "[key]":
        return f"{key}: a name must be lower-case letters, digits and single dashes"
    return f"{key} is {one['input']!r}, must be {_must_be(one['type'], one.get('ctx', {}))}"


def _allowed(node: dict, place: tuple) -> list[str]:
    """The keys that a schema has at a place."""
    known = node.get("$defs", {})
    for part in place:
        if str(part).startswith("("):  # one of several, by its tag
            node = known[part.strip("()")]
        else:
            named = next(iter(node.get("patternProperties", {}).values()), node)
            node = node.get("properties", {}).get(part, named)
        node = known[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return list(node.get("properties", {}))


_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "too_short": "a list of at least one",
    "string_pattern_mismatch": "lower-case letters, digits and single dashes",
}
_KINDS |= dict.fromkeys(
    ("dict_type", "model_type", "dataclass_type", "model_attributes_type"), "keys with values"
)


def _must_be(kind: str, limits: dict) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most", "multiple_of": "a multiple of"}
    for key, word in words.items():
        if key in limits:
            return f"{word} {limits[key]:g}"
    if limits.get("field_type") == "Dictionary":
        kind = "dict_type"
    if kind == "literal_error":
        return f"one of {limits['expected'].replace(' or ', ', ').replace(chr(39), '')}"
    return _KINDS.get(kind, kind.replace("_", " "))


def _check_params(params: Params) -> None:
    _not_a_folder("noises", params.noises)
    for name, config in params.noises.items():
        _check_factory(f"noises.{name}", config, "noise", signatures.noises, exactly=True)
    for name, config in params.models.items():
        _check_factory(f"models.{name}", config, "model", signatures.models)
    table = params.table
    _unique("table.noises", table.noises)
    _unique("table", (*table.lambdanets, *table.baselines))
    for name in table.noises:
        _known("table.noises", name, params.noises, "noises")
    for key in ("lambdanets", "baselines"):
        for name in getattr(table, key):
            _known(f"table.{key}", name, params.models, "models")
            code = "lambdanet" if key == "lambdanets" else name
            if _code(params.models[name]["name"]) != code:
                raise ValueError(f"table.{key}: {name!r} is no network of lambdanet/models/{code}")


def _check_profile(file: Path, params: Params, profile: Profile) -> None:
    if (file.parent / profile.root).resolve() != Path().resolve():
        raise ValueError(f"root is {profile.root!r}, must lead from {file.parent} to the project's folder")
    if file.resolve() != Path(profile.file).resolve():
        raise ValueError(f"file is {profile.file!r}, must be {file}")
    if file.resolve().parent != Path().resolve():
        if profile.profile != (wanted := file.resolve().parent.name):
            raise ValueError(f"profile is {profile.profile!r}, must be {wanted!r}, the name of its folder")
    elif (other := Path(profile.profile, PROFILE)).exists():
        raise ValueError(f"profile is {profile.profile!r}, which is the name of {other}; choose another one")
    _not_a_folder("datasets", profile.datasets)
    _unique("seeds", profile.seeds)
    _known("dataset", profile.dataset, profile.datasets, "datasets")
    for key, pair in profile.pairs.items():
        _known(f"pairs.{key}.dataset", pair.dataset, profile.datasets, "datasets")
        _known(f"pairs.{key}.noise", pair.noise, params.noises, "noises")
    pairs = [(pair.dataset, pair.noise) for pair in profile.pairs.values()]
    _unique("pairs", pairs)
    for noise in params.table.noises:
        if (profile.dataset, noise) not in pairs:
            raise ValueError(f"pairs: {profile.dataset} with {noise}, which Table 2 needs, is missing")
    models = (*params.table.lambdanets, *params.table.baselines)
    for name in models:
        if name not in profile.train:
            raise ValueError(f"train.{name} is missing")
    for name, entry in profile.train.items():
        _known("train", name, models, "the models of Table 2")
        config = params.models[name] | entry.hyperparameters
        _check_factory(f"train.{name}.hyperparameters", config, "model", signatures.models)
    for name in profile.levels:
        _known("levels", name, profile.ablations, "ablations")
    for name, entry in profile.ablations.items():
        _check_ablation(f"ablations.{name}", name, entry, params, profile, pairs)


def _check_ablation(
    where: str, name: str, entry: Ablation, params: Params, profile: Profile, pairs: list[tuple[str, str]]
) -> None:
    if name in params.models:
        raise ValueError(f"{where}: a model has this name")
    _unique(f"{where}.seeds", entry.seeds)
    _known(f"{where}.study", entry.study, params.studies, "studies")
    _known(f"{where}.noise", entry.noise, params.noises, "noises")
    if (entry.dataset, entry.test_noise) not in pairs:
        raise ValueError(f"{where}: {entry.dataset} with {entry.test_noise} is none of pairs")
    config = {"name": entry.model} | entry.hyperparameters
    _check_factory(where, config, "model", signatures.models)
    if (code := _code(entry.model)) != entry.code:
        raise ValueError(f"{where}.code is {entry.code!r}, must be {code!r}, which holds {entry.model}")


def _code(network: str) -> str:
    """The file or folder of lambdanet/models that holds a network, without `.py`."""
    return signatures.models()[network].file.removesuffix(".py").split("/")[1]


def _check_factory(where: str, config: dict, kind: str, registry: Callable, *, exactly: bool = False) -> None:
    known, name = registry(), config.get("name")
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{where}: unknown {kind} {name!r}; choose one of {', '.join(sorted(known))}")
    given, takes = [key for key in config if key != "name"], known[name].parameters
    if exactly and sorted(given) != sorted(takes):
        wanted = f"{kind} {name!r} takes {', '.join(takes)}"
        raise ValueError(f"{where}: {wanted}; given: {', '.join(given) or 'none'}")
    for key in given:
        if key not in takes:
            raise ValueError(f"{where}: {kind} {name!r} has no parameter {key}; it has {', '.join(takes)}")


def _known(where: str, name: str, known: Iterable[str], of: str) -> None:
    if name not in known:
        raise ValueError(f"{where} is {name!r}, must be one of {of}: {', '.join(known) or 'none'}")


def _not_a_folder(where: str, names: Iterable[str]) -> None:
    for name in FOLDERS:
        if name in names:
            raise ValueError(f"{where}.{name}: a folder below runs/ has this name; choose another one")


def _unique(where: str, values: Iterable) -> None:
    values = list(values)
    for value in values:
        if values.count(value) > 1:
            shown = " with ".join(value) if isinstance(value, tuple) else value
            raise ValueError(f"{where}: {shown} stands there twice")


def write_schemas(folder: Path) -> None:
    """Write the JSON schemas of params.yaml and profile.yaml."""
    for name, kind in (("params", Params), ("profile", Profile)):
        (folder / f"{name}.json").write_text(json.dumps(schema(kind), indent=2) + "\n")


if __name__ == "__main__":
    write_schemas(Path("schemas"))
