"""A report's input as plain data: rows of trainings, each with its settings and its scores.

`collect` is the only place of the report that knows the configuration's shape.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from lambdanet import config as config_module
from lambdanet.config import Config, RunKey
from lambdanet.report.settings import changed, differing, instead, noise_title, recipe, structure
from lambdanet.report.statistics import Sample

STUDY_NOISE = "gaussian-01"  # of the networks that are compared by size
BASE = "base"  # the study, and its entry, of the network that the others change


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training with one seed, whether it was run or not.

    Attributes:
        scores: what was measured; None if it was not run.
        training: the settings that it was trained with: those recorded with it, else those of params.yaml.
        hyperparameters: the network's, likewise.
        recorded: whether they were recorded.
        outdated: where they differ from what params.yaml has now, in words; empty if nowhere.
        log: what was logged of the training, as trainings.json has it; may lack anything.
    """

    seed: int
    training: dict
    hyperparameters: dict
    scores: dict | None = None
    recorded: bool = False
    outdated: str = ""
    log: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table: a network on a noise, with its runs by seed.

    Attributes:
        name: by which params.yaml knows it.
        noise: of its test images, by its name.
        data: what it is trained on: dataset, images, noise.
        runs: one for each seed.
        study: that it is an entry of; empty for the table's models.
        document: whether that study is another document's experiment, with other data.
        tuned: settings that were chosen for each kind of network of that study alike.
    """

    name: str
    noise: str
    data: dict
    runs: tuple[Run, ...]
    study: str = ""
    document: bool = False
    tuned: tuple[str, ...] = ()

    @cached_property
    def done(self) -> list[Run]:
        """Those that were run: with the settings of today if there are any, else with those of earlier."""
        done = [run for run in self.runs if run.scores]
        return [run for run in done if not run.outdated] or done

    @property
    def first(self) -> Run:
        """A run that the others are like."""
        return (self.done or self.runs)[0]

    @property
    def hyperparameters(self) -> dict:
        return self.first.hyperparameters

    @property
    def family(self) -> str:
        """The kind of network."""
        return self.hyperparameters["name"]

    @property
    def noise_title(self) -> str:
        """The noise that it is trained on, for readers."""
        return noise_title(self.data["noise"])

    @property
    def epochs(self) -> int:
        return self.first.training["epochs"]

    @property
    def parameters(self) -> int:
        return self.done[0].scores["parameters"]

    @property
    def recipe(self) -> dict:
        """How it was trained, as `settings.recipe` has it."""
        return recipe(self.first.training, self.data, self.hyperparameters)

    @property
    def outdated(self) -> str:
        return "; ".join(dict.fromkeys(run.outdated for run in self.done if run.outdated))

    @property
    def hours(self) -> float | None:
        """Of its trainings together; None where one was not recorded."""
        each = [run.log.get("hours") for run in self.done]
        return sum(each) if each and None not in each else None

    @property
    def device(self) -> str:
        return " and ".join(dict.fromkeys(run.log["device"] for run in self.done if "device" in run.log))

    def values(self, key: str) -> tuple[float, ...]:
        """A score of each seed."""
        return tuple(run.scores[key] for run in self.done)

    def mean(self, key: str) -> float:
        """A score's mean over the seeds."""
        return sum(self.values(key)) / len(self.done)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study asks.

    Attributes:
        name, title: of the study.
        axis, group: hyperparameters of its figure; may be empty.
        base: the row that its entries change; None where they are compared with each other.
        rows: its entries.
    """

    name: str
    title: str
    axis: str = ""
    group: str = ""
    base: Row | None = None
    rows: list[Row] = field(default_factory=list)

    @property
    def done(self) -> list[Row]:
        """The base and the entries that were run."""
        return [row for row in [self.base, *self.rows] if row and row.done]


def unequal(one: Row, other: Row) -> str:
    """Why two networks may not be compared; empty if they may."""
    free = one.tuned if one.study == other.study else ()
    compared = ({k: v for k, v in row.recipe.items() if k not in free} for row in (one, other))
    found = differing(*compared)
    return f"trained differently: {found}" if found else ""


def sample(row: Row, rows: Iterable[Row], key: str = "psnr") -> Sample:
    """A row's values of a score, and those of its family among all rows."""
    kind = _kind(row)
    several = {r.values(key) for r in rows if len(r.done) > 1 and r.noise == row.noise and _kind(r) == kind}
    return Sample(row.values(key), tuple(sorted(several)))


def _kind(row: Row) -> tuple:
    keys = ("dataset", "images", "optimizer", "schedule", "loss", "fresh_noise")
    return row.family, str(row.data["noise"]), *(row.recipe[key] for key in keys)


def is_papers(config: Config) -> bool:
    """Whether the table's images are the paper's, so that its values are ours to reach."""
    return config.download().dataset == "cifar10"


def collect(
    config: Config, scores: dict[RunKey, dict], descriptions: dict[RunKey, dict], logs: dict[RunKey, dict]
) -> list[Row]:
    """All rows of a profile, in the order of Table 2 and of the profile's ablations.

    Args:
        config: of the profile.
        scores: what was measured, of the trainings that were run.
        descriptions: what was recorded of trainings, as `experiment.describe` writes it; may lack any.
        logs: what was logged of them; may lack any.
    """
    planned: dict[tuple[str, str], list[config_module.Run]] = {}
    for run in config.runs:
        planned.setdefault((run.key.noise, run.key.model), []).append(run)
    rows = []
    for (noise, name), of_row in planned.items():
        entry, download = config.profile.ablations.get(name), config.download(name)
        data = {"dataset": download.dataset, "images": download.train_images, "noise": of_row[0].noise}
        runs = [
            _run(run, scores.get(run.key), descriptions.get(run.key), logs.get(run.key) or {})
            for run in of_row
        ]
        of_study = {}
        if entry:
            document, tuned = config.is_document(of_row[0]), config.params.studies[entry.study].tuned
            of_study = {"study": entry.study, "document": document, "tuned": tuned}
        rows.append(Row(name=name, noise=noise, data=data, runs=tuple(runs), **of_study))
    return rows


def _run(run: config_module.Run, scores: dict | None, description: dict | None, log: dict) -> Run:
    planned = {"training": asdict(run.settings), "model": run.model}
    used = description or planned
    before, now = (
        recipe(one["training"], {}, one["model"]) | structure(one["model"]) for one in (used, planned)
    )
    return Run(
        seed=run.key.seed, training=used["training"], hyperparameters=used["model"], scores=scores,
        recorded=description is not None, outdated=changed(before, now), log=log,
    )  # fmt: skip


def of_table(rows: list[Row]) -> list[Row]:
    """The rows of Table 2; behind a model that was not run, what was run of the study of its name."""
    found = []
    for row in (row for row in rows if not row.study):
        found.append(row)
        if not row.done:
            found += [_instead(one, row) for one in rows if one.study == row.name and _same_test(one, row)]
    return found


def _same_test(entry: Row, row: Row) -> bool:
    return bool(entry.done) and not entry.document and entry.noise == row.noise


def _instead(entry: Row, row: Row) -> Row:
    used, planned = (one.recipe | structure(one.hyperparameters) for one in (entry, row))
    note = instead(used, planned, row.name)
    return replace(entry, runs=tuple(replace(run, outdated=note) for run in entry.done))


def studies(config: Config, rows: list[Row]) -> list[Study]:
    """The studies with their rows. LambdaNet is the base of those with LambdaNets alone on the same data."""
    base = next((row for row in rows if row.study == BASE), None)
    found = []
    for name, asked in config.params.studies.items():
        entries = [row for row in rows if row.study == name]
        if name == BASE or not entries:
            continue
        alike = base is not None and all((e.family, e.data) == (base.family, base.data) for e in entries)
        of = {"title": asked.title, "axis": asked.axis, "group": asked.group}
        found.append(Study(name=name, base=base if alike else None, rows=entries, **of))
    return found
