"""From the scores of a profile's cells to its tables, figures and page."""

from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambdanet import files, records, workers
from lambdanet.config import Cell, Config, Run
from lambdanet.report import tables

NEEDED = ("lambdanet.report.figures",)  # what the processes that draw load
PROCESSES = 4  # of these, at most: with more, all would soon wait for the longest figure

# Of a training's log. No times: the same trainings on the same kind of machine give the same report.
KEPT = ("device", "commit", "python", "versions", "computed_by", "weights_sha256")


def write_report(config: Config, benchmarks: Path, folder: Path) -> None:
    """Write a profile's results; runs without a score are shown as not run.

    Args:
        config: of the profile; its runs name the files that their stages wrote. Logs may be absent.
        benchmarks: JSON file of the benchmarks, for the networks' times; may be absent.
        folder: replaced as a whole: table2.csv, table2.md, report.html, digests.json (which data and
            weights each score is of), trainings.json (each training's score and how it was trained), the
            folders scores, histories, figures and studies (a table for each, and pareto.csv), sets.csv,
            and in sets what the figures on these show.

    Raises:
        ValueError: no run has a score, or a file is not what it should be.
    """
    from lambdanet.report import figures, page, studies  # here: who reads a table needs no matplotlib

    runs = {run.cell: run for run in config.runs}
    cells = [run.cell for run in config.table_runs]
    scored = tables.read_scores(config.table_runs)
    if not scored:
        raise ValueError(
            f"{config.folders.of('scores')} holds no scores of profile {config.name}; "
            "make them with `dvc repro` first"
        )
    histories = {cell: tables.read_history(runs[cell].history) for cell in scored}
    table = tables.table2(cells, scored)
    processes = min(workers.cores(), PROCESSES)
    with files.new_folder(folder) as new, workers.several(processes, NEEDED) as later:
        draw = Drawing(new / "figures", later)
        files.write_json(new / "digests.json", {cell.name: tables.digests(s) for cell, s in scored.items()})
        for cell, score in scored.items():
            # Names and digests would drown the numbers in `dvc metrics show`.
            numbers = {key: value for key, value in score.items() if isinstance(value, int | float)}
            del numbers["seed"]
            files.write_json(new / "scores" / f"{cell.name}.json", numbers)
            files.write_text(new / "histories" / f"{cell.name}.csv", histories[cell].to_csv(index=False))
        files.write_text(new / "table2.csv", table.to_csv(index=False, float_format="%.6f"))
        files.write_text(new / "table2.md", tables.as_markdown(table))
        draw(figures.write_convergence, "convergence", histories)
        draw(figures.write_psnr, "psnr", table)
        for noise in dict.fromkeys(cell.noise for cell in scored):
            folders = _of_first_seed([runs[cell] for cell in scored if cell.noise == noise])
            draw(figures.write_panel, f"panel-{noise}", folders)
        studied, on_sets = (
            tables.read_scores([run for run in config.ablation_runs if config.is_document(run) is document])
            for document in (False, True)
        )
        for cell in studied | on_sets:
            if runs[cell].history.is_file():  # of some, a report from before they were kept has none
                history = tables.read_history(runs[cell].history)
                files.write_text(new / "studies/histories" / f"{cell.name}.csv", history.to_csv(index=False))
        answers = _write_studies(new, draw, config, studied, scored, benchmarks)
        own = _write_sets(new, folder, draw, config, on_sets)
        draw(figures.write_against_authors, "authors", histories, studies.authors_convergence())
        everything = scored | studied | on_sets
        logged = {
            cell: records.find_record(runs[cell].log, weights_sha256=score["weights_sha256"])
            for cell, score in everything.items()
        }
        kept = {
            cell.name: {"scores": score, "log": _in_short(logged[cell])} for cell, score in everything.items()
        }
        files.write_json(new / records.TRAININGS, kept)
        download = config.download()
        epochs = {model: config.training(model).epochs for model in config.models}
        draw.finish()
        page.write_page(
            new / "report.html", table, everything, logged, new / "figures", answers, own,
            comparable=download.dataset == "cifar10", stages=_examples(config),
            scale={"images": download.train_images, "epochs": epochs},
        )  # fmt: skip


class Drawing:
    """A report's figures, each drawn by whoever is free."""

    def __init__(self, folder: Path, later: workers.Later) -> None:
        self._folder, self._later, self._begun = folder, later, {}

    def __call__(self, write: Callable, name: str, *arguments: Any) -> None:
        """Begin a figure: `write(path, *arguments)`."""
        path = self._folder / f"{name}.png"
        self._begun[name] = self._later(write, path, *arguments), write, path, arguments

    def __contains__(self, name: str) -> bool:
        return name in self._begun

    def finish(self) -> None:
        """Wait until all are there."""
        for result, write, path, arguments in self._begun.values():
            try:
                result()
            except BrokenExecutor:  # something kills these processes
                write(path, *arguments)


def _in_short(record: dict | None) -> dict | None:
    return record and {key: record[key] for key in KEPT if key in record}


@dataclass(frozen=True)
class Answers:
    """What the studies found, for the page.

    Attributes:
        studies: title, sentences, rows and figure's name of each that has something to compare.
        networks: of `studies.pareto`, as rows.
        without: the titles of the studies that were not run.
    """

    studies: list[dict]
    networks: list[dict]
    without: list[str]


def _write_studies(
    new: Path,
    draw: Drawing,
    config: Config,
    found: dict[Cell, dict],
    grid: dict[Cell, dict],
    benchmarks: Path,
) -> Answers:
    from lambdanet.report import figures, studies

    whole, answered, without = studies.table(config, found), [], []
    for name, study in config.params.studies.items():
        if study.document:
            continue
        rows = studies.of_study(whole, name, config)
        said = studies.sentences(rows)
        if name == studies.BASE:
            continue
        if not said:
            without.append(study.title)
            continue
        files.write_text(new / "studies" / f"{name}.csv", rows.to_csv(index=False, float_format="%.6g"))
        draw(figures.write_study, f"study-{name}", study, rows)
        shown = {"name": name, "title": study.title, "said": said, "rows": tables.as_rows(rows)}
        answered.append(shown)
    seconds = studies.inference_seconds(tables.read_json(benchmarks)) if benchmarks.is_file() else {}
    networks = studies.pareto(config, grid, found, seconds)
    if not networks.empty:
        files.write_text(new / "studies" / "pareto.csv", networks.to_csv(index=False, float_format="%.6g"))
        draw(figures.write_pareto, "pareto", networks)
    return Answers(answered, tables.as_rows(networks), without)


def _write_sets(new: Path, old: Path, draw: Drawing, config: Config, found: dict[Cell, dict]) -> list[dict]:
    """What was found on sets of their own images, for the page: title, text, rows and figures' names.

    Where a set has no panels here, the figures of the report that is replaced are taken, if that was of the
    same scores: reports from before these panels were kept have nothing else.
    """
    from lambdanet.report import figures, sets

    whole, sections = sets.table(config, found), []
    runs = {run.cell: run for run in config.ablation_runs}
    if found:
        files.write_text(new / "sets.csv", whole.to_csv(index=False, float_format="%.6g"))
    for name in (name for name, study in config.params.studies.items() if study.document):
        # Samples that neither this clone nor git has are no reason to show no numbers.
        scored = {c: score for c, score in found.items() if config.profile.ablations[c.model].study == name}
        shown_runs = [runs[cell] for cell in scored if (runs[cell].samples / "levels.csv").is_file()]
        title, text = sets.ABOUT.get(name, (config.params.studies[name].title, ""))
        rows = tables.as_rows(whole[whole["set"] == name])
        section = {"name": name, "title": title, "text": text, "rows": rows}
        shown = [f"examples-{name}", f"levels-{name}"]
        if shown_runs:
            folders = _of_first_seed(shown_runs)
            for model, folder in folders.items():
                for path in folder.iterdir():
                    files.write_bytes(new / "sets" / model / path.name, path.read_bytes())
            draw(figures.write_levels, f"levels-{name}", sets.levels(folders))
            draw(figures.write_examples, f"examples-{name}", folders)
        elif scored and _has_scores(old, scored):
            for path in (old / "figures" / f"{figure}.png" for figure in shown):
                if path.is_file():
                    files.write_bytes(new / "figures" / path.name, path.read_bytes())
        section["figures"] = [f for f in shown if f in draw or (new / "figures" / f"{f}.png").is_file()]
        sections.append(section)
    return sections


def _has_scores(report: Path, scores: dict[Cell, dict]) -> bool:
    """Whether a report was of these scores."""
    path = report / records.TRAININGS
    kept = tables.read_json(path) if path.is_file() else {}
    return all(kept.get(cell.name, {}).get("scores") == score for cell, score in scores.items())


def _examples(config: Config) -> list[str]:
    """Commands that run a stage of each kind."""
    first = [*config.table_runs[:1], *config.ablation_runs[:1]]
    stages = [f"evaluate@{config.params.table.noises[0]}", *(run.stage for run in first)]
    return [config.address(stage) for stage in stages]


def _of_first_seed(runs: list[Run]) -> dict[str, Path]:
    """By model, the samples of its run with the first seed, in the order of the runs."""
    found: dict[str, Path] = {}
    for run in runs:
        found.setdefault(run.cell.model, run.samples)
    return found
