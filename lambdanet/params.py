"""The shape of params.yaml: raw dicts become typed, frozen settings here, once, or an error."""

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path

from lambdanet import yaml12

LARGEST_SEED = 2**32 - 1
STUDY_NOISE = "gaussian-01"  # as in dvc.yaml


def _number(
    low: float, high: float = float("inf"), *, above: bool = False, step: int = 1, **default: float
) -> typing.Any:
    """A field that must lie in [low, high], or in (low, high] with `above`; a multiple of `step`."""
    return field(metadata={"low": low, "high": high, "above": above, "step": step}, **default)


@dataclass(frozen=True, kw_only=True)
class Download:
    """Which clean images; of the data sets photos and cifar10, and what all others share.

    Attributes:
        dataset: a name of `DOWNLOADS`, or the path of a folder of photographs.
        train: number of training images.
        test: number of test images.
        seed: of the choice, where a data set holds more.
    """

    dataset: str
    train: int = _number(1)
    test: int = _number(1)
    seed: int = _number(0, LARGEST_SEED, default=0)

    @property
    def train_images(self) -> int:
        """How many images, or patches of such, train.npy holds."""
        return self.train


@dataclass(frozen=True, kw_only=True)
class DownloadBsds500(Download):
    """The same of BSDS500: whole test images, training images cut into patches of 40 x 40.

    Attributes:
        patches: of a training image; 214 of all 400 are 85,600.
    """

    patches: int = _number(1, default=214)

    @property
    def train_images(self) -> int:
        return self.train * self.patches


@dataclass(frozen=True, kw_only=True)
class DownloadFolder(Download):
    """The same of a folder of photographs: `train` and `test` are files, all cut into patches.

    Attributes:
        size: edge of the patches; a multiple of 8, as the auto-encoder halves it three times.
        patches: of a file.
    """

    size: int = _number(16, step=8, default=64)
    patches: int = _number(1, default=16)

    @property
    def train_images(self) -> int:
        return self.train * self.patches


# What a data set takes; any other name is that of a folder.
DOWNLOADS = {"photos": Download, "cifar10": Download, "cifar10-split": Download, "bsds500": DownloadBsds500}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train; params.yaml holds Table 1 of the paper and what the profiles change.

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
        optimizer: "adam", "adamax", or "sgd" (with momentum 0.9); each with its L2 term.
        fresh_noise: draw the training noise anew each epoch instead of using the stored pairs.
        monitored: number of test images whose PSNR, in their middle 64 x 64, goes into the history.
    """

    epochs: int = _number(1)
    batch_size: int = _number(1)
    learning_rate: float = _number(0, 10, above=True)
    schedule: typing.Literal["exponential", "cosine"]
    decay: float = _number(0, 1, above=True)
    warmup: float = _number(0, 0.9)
    weight_decay: float = _number(0, 1)
    loss: typing.Literal["mse", "bce"]
    fresh_noise: bool
    monitored: int = _number(1)
    optimizer: typing.Literal["adam", "adamax", "sgd"] = "adam"

    def described(self) -> dict:
        """As a dict for what is written about a training.

        A setting that has a default stands there only where it differs, so that a setting which is added
        later changes no file of a training that does not use it.
        """
        return {
            f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question that is answered by trainings which differ in one thing.

    Attributes:
        title: of its table and figure.
        axis: the hyperparameter that its figure shows PSNR against; empty: a row for each variation.
        group: the hyperparameter whose values get a line each; may be empty.
    """

    title: str
    axis: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """A training beside the table's: a model with other hyperparameters or another way to train it.

    Attributes:
        study: by its name in params.yaml; empty for a network of a set.
        model: the model that it varies, likewise.
        kind: "study" of LambdaNet, "rival" of another network: the DVC stage, and the profile's settings.
        changes: hyperparameters of the model.
        train: settings of the training.
        set: the set of images that it is trained on; empty for the profile's.
        noise: what it is trained on instead of the set's noise; may be empty.
    """

    study: str = ""
    model: str
    kind: str
    changes: dict
    train: dict
    set: str = ""
    noise: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training: a noise, a model and a seed, by the names of params.yaml, under a profile."""

    profile: str
    noise: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """The cell's name in paths and in DVC's stages, without the profile."""
        return f"{self.noise}-{self.model}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Params:
    """All of params.yaml, validated; noises and models are keyword arguments of their factories.

    Attributes:
        profile: the active profile's name.
        seeds: profile to those of its trainings; one cell for each.
        noises: name to keyword arguments of `create_noise`.
        models: name to keyword arguments of `create_model`.
        downloads: profile to its images.
        noise_seed: of the stored noise.
        trainings: profile to model to its settings.
        model_changes: profile to model to hyperparameters that the profile sets otherwise.
        studies: name to what is asked.
        variations: name to a study's training; all that params.yaml knows.
        chosen: the names of those that are run.
        sets: name of a set of images to its noise, keyword arguments of `create_noise`.
        set_downloads: profile to set to its images.
    """

    profile: str
    seeds: dict[str, tuple[int, ...]]
    noises: dict[str, dict]
    models: dict[str, dict]
    downloads: dict[str, Download]
    noise_seed: int
    trainings: dict[str, dict[str, Training]]
    model_changes: dict[str, dict[str, dict]]
    studies: dict[str, Study]
    variations: dict[str, Variation]
    chosen: tuple[str, ...]
    sets: dict[str, dict]
    set_downloads: dict[str, dict[str, Download]]

    def model(self, profile: str, name: str) -> dict:
        """Keyword arguments of `create_model` for one model or variation as a profile trains it."""
        changes = look_up(self.model_changes, profile, "profile")
        if variation := self.variations.get(name):
            of_profile = changes[variation.set or variation.model]
            return self.models[variation.model] | of_profile | variation.changes
        return look_up(self.models, name, "model") | changes[name]

    def training(self, profile: str, model: str) -> Training:
        """How a profile trains one model or variation."""
        return look_up(look_up(self.trainings, profile, "profile"), model, "model")

    def noise(self, name: str) -> dict:
        """Keyword arguments of `create_noise` for one noise, or for the noise of a set."""
        return look_up(self.noises | self.sets, name, "noise")

    def training_noise(self, cell: Cell) -> dict:
        """The same for what a cell is trained on."""
        variation = self.variations.get(cell.model)
        return (variation and variation.noise) or self.noise(cell.noise)

    def download(self, profile: str, name: str = "") -> Download:
        """A profile's images, or those of a set."""
        if not name:
            return look_up(self.downloads, profile, "profile")
        return look_up(look_up(self.set_downloads, profile, "profile"), name, "set")

    def train_images(self, cell: Cell) -> int:
        """The number of images or patches that a run's data set holds for training."""
        variation = self.variations.get(cell.model)
        return self.download(cell.profile, variation.set if variation else "").train_images

    def data_set(self, noise: str, model: str) -> str:
        """The set whose images a model is trained on; empty for the profile's images.

        Raises:
            ValueError: the model belongs to a set and `noise` is not that set, or the other way round.
        """
        variation = self.variations.get(model)
        of_model = variation.set if variation else ""
        if of_model != (noise if noise in self.sets else ""):
            own = of_model or "one of the noises " + ", ".join(self.noises)
            raise ValueError(f"{model} is not trained on {noise}, but on {own}")
        return of_model

    def cells(self, profile: str) -> list[Cell]:
        """All cells of a profile, in the order of the tables."""
        seeds = look_up(self.seeds, profile, "profile")
        return [Cell(profile, n, m, s) for n in self.noises for m in self.models for s in seeds]

    def study_cells(self, profile: str, *, chosen_only: bool = False) -> list[Cell]:
        """All cells of the studies, in the order of params.yaml, or those that are run."""
        names = [
            name
            for name, variation in self.variations.items()
            if variation.study and (name in self.chosen or not chosen_only)
        ]
        seeds = look_up(self.seeds, profile, "profile")
        return [Cell(profile, STUDY_NOISE, name, seed) for name in names for seed in seeds]

    def set_cells(self, profile: str) -> list[Cell]:
        """All cells on sets of their own images; the set stands in the noise's place."""
        return [
            Cell(profile, variation.set, name, seed)
            for name, variation in self.variations.items()
            if variation.set
            for seed in look_up(self.seeds, profile, "profile")
        ]

    def stage_of(self, stage: str, cell: Cell) -> str:
        """The name of the DVC stage that trains or evaluates a cell."""
        variation = self.variations.get(cell.model)
        if variation and variation.set:
            return f"{stage}-{variation.set}@{cell.profile}-{cell.model}-{cell.seed}"
        if variation:
            return f"{variation.kind}@{cell.profile}-{cell.model}-{cell.seed}"
        return f"{stage}@{cell.profile}-{cell.name}"

    def stages(self, profile: str) -> list[str]:
        """The names of a profile's DVC stages, level by level; for counting, the graph is DVC's."""
        cells = self.cells(profile)
        studied = self.study_cells(profile, chosen_only=True)
        return [
            f"download@{profile}",
            *(f"corrupt@{profile}-{noise}" for noise in self.noises),
            *(self.stage_of("train", cell) for cell in [*cells, *studied]),
            *(f"{stage}@{profile}-{name}" for stage in ("download-set", "corrupt-set") for name in self.sets),
            *(self.stage_of("train", cell) for cell in self.set_cells(profile)),
            *(self.stage_of("examine", cell) for cell in self.set_cells(profile)),
            *(self.stage_of("evaluate", cell) for cell in cells),
            *([f"compare@{profile}"] if studied else []),
            f"plot@{profile}",
            f"register@{profile}",
        ]  # fmt: skip


def load(path: Path) -> Params:
    """Read and validate params.yaml.

    Raises:
        ValueError: names the key, its value and what is allowed.
    """
    try:
        raw = yaml12.read(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; run this in the project's folder") from None
    try:
        return _parse(_mapping(raw, "the file"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def look_up(table: dict[str, typing.Any], name: str, what: str) -> typing.Any:
    """`table[name]`; a name that is not there is a ValueError that lists those that are."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; params.yaml has {', '.join(table)}")
    return table[name]


def build(kind: type, raw: object, where: str, *, partly: bool = False) -> typing.Any:
    """Make a dataclass of a dict, with every key known, present, of its type and in its range.

    With `partly` keys may be missing, and the result is a dict of the checked values.

    Raises:
        ValueError: names the key `where.key`, the value and what is allowed.
    """
    raw = _mapping(raw, where)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    types = typing.get_type_hints(kind)
    _only(raw, fields, where)
    missing = [n for n, f in fields.items() if n not in raw and f.default is dataclasses.MISSING]
    if missing and not partly:
        raise ValueError(f"{where}.{missing[0]} is missing")
    values = {name: _value(raw[name], types[name], fields[name], f"{where}.{name}") for name in raw}
    return values if partly else kind(**values)


def _parse(raw: dict) -> Params:
    needed = ("profile", "seeds", "noises", "models", "corrupt", "train", "profiles")
    studying = ("studies", "studied", "variations", "rivals", "sets", "own")
    _only(raw, (*needed, *studying), "")
    for key in needed:
        if key not in raw:
            raise ValueError(f"{key} is missing")
    profiles = _mapping(raw["profiles"], "profiles")
    for name in profiles:
        _checked_name(name, "profiles")
    base = build(Training, raw["train"], "train", partly=True)
    if not isinstance(raw["profile"], str) or raw["profile"] not in profiles:
        raise ValueError(f"profile is {raw['profile']!r}, must be one of {', '.join(map(str, profiles))}")
    seeds, of_active = {}, _seeds(raw["seeds"], "seeds")
    noises, models = (_named(raw[key], key) for key in ("noises", "models"))
    corrupt = build(_Corrupt, raw["corrupt"], "corrupt")
    studies, variations, chosen = _studies(raw, models)
    choices = [name for name in raw.get("studied", {}) if not name.endswith("-rivals")]
    sets = _named(raw.get("sets", {}), "sets")
    taken = {"noise": noises, "model": models, "kind of study": ("study", "rival")}
    for what, names in taken.items():
        for name in sets:
            if name in names:
                raise ValueError(f"sets.{name}: a {what} has this name; choose another")
    variations |= _own(raw, models, sets, variations)

    downloads, trainings, changes, set_downloads = {}, {}, {}, {}
    for name, content in profiles.items():
        where = f"profiles.{name}"
        content = _mapping(content, where)
        known = ("download", "train", "models", "study", "rival", "sets", "studied", "seeds")
        _only(content, known, where)
        own_seeds = _seeds(content["seeds"], f"{where}.seeds") if "seeds" in content else of_active
        seeds[name] = of_active if name == raw["profile"] else own_seeds
        downloads[name] = _download(content.get("download"), f"{where}.download")
        if "studied" in content and content["studied"] not in choices:
            raise ValueError(
                f"{where}.studied is {content['studied']!r}, must be one of {', '.join(choices) or 'none'}"
            )
        overrides = _mapping(content.get("models"), f"{where}.models")
        _only(overrides, models, f"{where}.models")
        trainings[name], changes[name] = {}, {}
        for model in models:
            here = f"{where}.models.{model}"
            if model not in overrides:
                raise ValueError(f"{here} is missing")
            own = dict(_mapping(overrides[model], here))
            changes[name][model] = _mapping(own.pop("model", {}), f"{here}.model")
            shared = build(Training, content.get("train", {}), f"{where}.train", partly=True)
            own = build(Training, own, here, partly=True)
            trainings[name][model] = build(Training, base | shared | own, here)
        of_sets = _mapping(content.get("sets", {}), f"{where}.sets")
        _only(of_sets, sets, f"{where}.sets")
        set_downloads[name], sizes = {}, {}
        for one in sets:
            here = f"{where}.sets.{one}"
            if one not in of_sets:
                raise ValueError(f"{here} is missing")
            own = _mapping(of_sets[one], here)
            _only(own, ("download", "train", "model"), here)
            set_downloads[name][one] = _download(own.get("download"), f"{here}.download")
            changes[name][one] = _mapping(own.get("model", {}), f"{here}.model")
            sizes[one] = build(Training, own.get("train", {}), f"{here}.train", partly=True)
        for kind in ("study", "rival"):
            sizes[kind] = build(Training, content.get(kind, {}), f"{where}.{kind}", partly=True)
        for one, variation in variations.items():
            trainings[name][one] = dataclasses.replace(
                trainings[name][variation.model], **sizes[variation.set or variation.kind] | variation.train
            )
    return Params(
        profile=raw["profile"], seeds=seeds, noises=noises, models=models, downloads=downloads,
        noise_seed=corrupt.seed, trainings=trainings, model_changes=changes,
        studies=studies, variations=variations, chosen=chosen,
        sets=sets, set_downloads=set_downloads,
    )  # fmt: skip


def _studies(
    raw: dict, models: dict[str, dict]
) -> tuple[dict[str, Study], dict[str, Variation], tuple[str, ...]]:
    """The studies, all variations by name, and the names of those that are run."""
    studies = {}
    for name, content in _mapping(raw.get("studies", {}), "studies").items():
        studies[_checked_name(name, "studies")] = build(Study, content, f"studies.{name}")
    studied = _mapping(raw.get("studied", {}), "studied").items()
    sets = {f"studied.{_checked_name(key, 'studied')}": value for key, value in studied}
    sets |= {key: raw[key] for key in ("variations", "rivals") if key in raw}
    variations: dict[str, Variation] = {}
    for where, entries in sets.items():
        for name, entry in _mapping(entries, where).items():
            here = f"{where}.{_checked_name(name, where)}"
            own = dict(_mapping(entry, here))
            study = own.pop("study", None)
            if study not in studies:
                known = ", ".join(studies) or "none"
                raise ValueError(f"{here}.study is {study!r}, must be one of studies: {known}")
            own = {"model": "lambdanet"} | own
            variation = _variation(own, models, here, study=study)
            kinds = {"variations": "study", "rivals": "rival"}  # whose stage depends on which models' code
            if kinds.get(where, variation.kind) != variation.kind:
                other = next(key for key, kind in kinds.items() if kind == variation.kind)
                raise ValueError(f"{here}: {variation.model} belongs under `{other}:`")
            if name in models:
                raise ValueError(f"{here}: a model has this name")
            if variations.setdefault(name, variation) != variation:
                raise ValueError(f"{here} stands there twice, with other values")
    return (
        studies,
        variations,
        tuple(_mapping(raw.get("variations", {}), "variations") | raw.get("rivals", {})),
    )


def _own(
    raw: dict, models: dict[str, dict], sets: dict[str, dict], others: dict[str, Variation]
) -> dict[str, Variation]:
    """The networks of the sets by name."""
    found: dict[str, Variation] = {}
    networks = _mapping(raw.get("own", {}), "own")
    _only(networks, sets, "own")
    for one, entries in networks.items():
        for name, entry in _mapping(entries, f"own.{one}").items():
            here = f"own.{one}.{_checked_name(name, f'own.{one}')}"
            own = dict(_mapping(entry, here))
            noise = _mapping(own.pop("noise", {}), f"{here}.noise")
            variation = _variation(own, models, here, set=one, noise=noise)
            if name in models or name in others or name in found:
                raise ValueError(f"{here}: something else has this name")
            found[name] = variation
    return found


def _variation(raw: dict, models: dict[str, dict], where: str, **of_kind: typing.Any) -> Variation:
    """What an entry of a study and one of a set share: a model, how it is trained, and hyperparameters."""
    changes = dict(raw)
    model = changes.pop("model", None)
    if model not in models:
        raise ValueError(f"{where}.model is {model!r}, must be one of models: {', '.join(models)}")
    train = build(Training, changes.pop("train", {}), f"{where}.train", partly=True)
    kind = "study" if models[model]["name"] == "lambdanet" else "rival"
    return Variation(kind=kind, model=model, changes=changes, train=train, **of_kind)


@dataclass(frozen=True, kw_only=True)
class _Corrupt:
    seed: int = _number(0, LARGEST_SEED)


def _download(raw: object, where: str) -> Download:
    dataset = _mapping(raw, where).get("dataset", "")
    if "dataset" in raw and (not isinstance(dataset, str) or not dataset.strip()):
        names = ", ".join(DOWNLOADS)
        raise ValueError(
            f"{where}.dataset is {dataset!r}, must be one of {names}, or the path of a folder of photographs"
        )
    kind = DOWNLOADS.get(dataset, DownloadFolder)
    keys = [f.name for f in dataclasses.fields(kind)]
    for key in ("size", "patches"):
        if key in raw and key not in keys:
            raise ValueError(f"{where}.{key} is not a key of {dataset}; allowed: {', '.join(keys)}")
    return build(kind, raw, where)


def _named(raw: object, where: str) -> dict[str, dict]:
    """Noises or models: names that may stand in a path and in a stage's name, each with a `name`."""
    entries = _mapping(raw, where)
    for name, entry in entries.items():
        _checked_name(name, where)
        if "name" not in _mapping(entry, f"{where}.{name}"):
            raise ValueError(f"{where}.{name}.name is missing")
        if not isinstance(entry["name"], str):
            raise ValueError(f"{where}.{name}.name is {entry['name']!r}, must be text")
        for key in entry:
            if not isinstance(key, str):
                raise ValueError(f"{where}.{name}.{key!r} is not a known key; keys are text")
    return entries


def _seeds(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(map(_is_seed, value)):
        raise ValueError(f"{where} is {value!r}, must be a list of whole numbers from 0 to {LARGEST_SEED}")
    if len(set(value)) < len(value):
        raise ValueError(f"{where} is {value!r}, has a seed twice")
    return tuple(value)


def _is_seed(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SEED


def _checked_name(name: object, where: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{where}: the name {name!r} must be lower-case letters, digits and single dashes")
    return name


def _mapping(raw: object, where: str) -> dict:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} is {raw!r}, must be keys with values")
    return raw


def _only(raw: dict, known: typing.Iterable[str], where: str) -> None:
    for key in raw:
        if key not in known:
            name = f"{where}.{key}" if where else key
            raise ValueError(f"{name} is not a known key; allowed: {', '.join(known)}")


def _value(raw: object, kind: typing.Any, spec: dataclasses.Field, where: str) -> object:
    if typing.get_origin(kind) is typing.Literal:
        if raw not in typing.get_args(kind):
            raise ValueError(f"{where} is {raw!r}, must be one of {', '.join(typing.get_args(kind))}")
        return raw
    if kind is float and type(raw) is int:
        raw = float(raw)
    if type(raw) is not kind:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise ValueError(f"{where} is {raw!r}, must be {names[kind]}")
    low, high, above = (spec.metadata.get(key) for key in ("low", "high", "above"))
    if low is not None and not (low < raw <= high if above else low <= raw <= high):
        limits = f"{'above' if above else 'at least'} {low}" + (
            f" and at most {high}" if high < float("inf") else ""
        )
        raise ValueError(f"{where} is {raw!r}, must be {limits}")
    if kind is int and raw % (step := spec.metadata.get("step", 1)):
        raise ValueError(f"{where} is {raw!r}, must be a multiple of {step}")
    return raw
