"""From the scores of a profile's runs to its tables, figures and page."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lambdanet import files, run_log
from lambdanet.config import Config, Run, RunKey
from lambdanet.report import runs, settings, tables

if TYPE_CHECKING:
    from lambdanet.report.page import Chapter

# Of a training's log; `hours` is made of its seconds, so coarse that short trainings are the same each time.
KEPT = ("device", "commit", "python", "versions", "computed_by", "weights_sha256", "hours")
LEVELS = ("sigma", "noisy_psnr", "psnr")  # columns of levels.csv


def write_report(config: Config, folder: Path) -> None:
    """Write a profile's results; runs without a score are shown as not run.

    Args:
        config: of the profile; its runs name the files that their stages wrote. Logs may be absent.
        folder: replaced as a whole: table2 as .csv, .md and .tex; report.html; trainings.json (each
            training's score, which data and weights it is of, and how it was trained); the folders scores,
            histories, figures, studies (a table for each as .csv and .tex, pareto, and the ablations'
            histories) and samples (what was found by noise level).

    Raises:
        ValueError: no run has a score, or a file is not what it should be.
    """
    from lambdanet.report import figures, page, studies  # here: who reads a table needs no matplotlib

    known = {run.key: run for run in config.runs}
    scored = tables.read_scores(config.table_runs)
    if not scored:
        raise ValueError(
            f"{config.folders.of('scores')} holds no scores of profile {config.name}; "
            f"make them with `dvc repro {config.pipeline}` first"
        )
    beside = tables.read_scores(config.ablation_runs)
    everything = scored | beside
    histories = {key: tables.read_history(known[key].history) for key in scored}
    # The reports of some ablations were made before their histories were kept.
    of_ablations = {
        key: tables.read_history(known[key].history) for key in beside if known[key].history.is_file()
    }
    logs = {key: _log(known[key], score) for key, score in everything.items()}
    described = _descriptions([known[key] for key in everything], everything, folder)
    rows = runs.collect(config, everything, described, logs)
    comparable = runs.is_papers(config)
    table = tables.table2(runs.of_table(rows), comparable=comparable)
    noises = {name: settings.noise_title(noise) for name, noise in config.params.noises.items()}
    authors = studies.authors_convergence() if comparable else studies.authors_convergence()[:0]
    with files.new_folder(folder) as new:
        _write_numbers(new, scored, histories, table, noises)
        kept = {
            key.name: {"scores": score, "log": logs[key], "description": described.get(key)}
            for key, score in everything.items()
        }
        files.write_json(new / run_log.TRAININGS, kept)
        for key, history in of_ablations.items():
            files.write_text(new / "studies" / "histories" / f"{key.name}.csv", history.to_csv(index=False))
        figures.write_dumbbell(_figure(new, "dumbbell"), table, noises)
        figures.write_psnr(_figure(new, "psnr"), table, noises)
        figures.write_convergence(_figure(new, "convergence"), histories, authors, noises)
        ends = studies.convergence(histories, authors)
        if not ends.empty:
            _write_table(new / "convergence", ends, tables.for_readers(ends, noises))
        for number, noise in enumerate(dict.fromkeys(key.noise for key in scored)):
            folders = _of_first_seed([known[key] for key in scored if key.noise == noise])
            if not number:
                figures.write_photographs(_figure(new, "strip"), folders, strip=True)
            figures.write_photographs(_figure(new, f"panel-{noise}"), folders)
        asked = runs.studies(config, rows)
        chapters = [_write_study(new, study, rows, known, noises, of_ablations, authors) for study in asked]
        networks = _write_pareto(new, rows, noises, comparable=comparable)
        page.write_page(
            new / "report.html", config, rows, table, everything, logs, chapters, networks, ends, noises
        )


def _log(run: Run, score: dict) -> dict | None:
    """What the newest log of a score's training says, as far as it is kept."""
    record = run_log.find_record(run.log, score["weights_sha256"])
    if record and "seconds" in record:
        record |= {"hours": round(record["seconds"] / 3600, 1)}
    return record and {key: record[key] for key in KEPT if key in record}


def _write_numbers(
    new: Path, scored: dict[RunKey, dict], histories: dict[RunKey, pd.DataFrame], table: pd.DataFrame,
    noises: dict[str, str],
) -> None:  # fmt: skip
    """The table and what it is of."""
    for key, score in scored.items():
        # Names and digests would drown the numbers in `dvc metrics show`.
        numbers = {key: value for key, value in score.items() if isinstance(value, int | float)}
        del numbers["seed"]
        files.write_json(new / "scores" / f"{key.name}.json", numbers)
        files.write_text(new / "histories" / f"{key.name}.csv", histories[key].to_csv(index=False))
    shown = tables.for_readers(table, noises, without=tables.BESIDE)
    _write_table(new / "table2", table, shown, digits=".6f")
    files.write_text(new / "table2.md", tables.as_markdown(table, noises))


def _write_table(path: Path, table: pd.DataFrame, shown: pd.DataFrame, digits: str = ".6g") -> None:
    """A table as PATH.csv, and what readers see of it as PATH.tex."""
    files.write_text(path.with_name(f"{path.name}.csv"), table.to_csv(index=False, float_format=f"%{digits}"))
    files.write_text(path.with_name(f"{path.name}.tex"), tables.as_latex(shown))


def _descriptions(scored: list[Run], scores: dict[RunKey, dict], old: Path) -> dict[RunKey, dict]:
    """How trainings were described when they were made: in their folder, or the old report."""
    kept = run_log.read_trainings(old) if (old / run_log.TRAININGS).is_file() else {}
    found = {}
    for run in scored:
        before = kept.get(run.key.name) or {"scores": {}}
        same = before["scores"].get("weights_sha256") == scores[run.key]["weights_sha256"]
        if run.description.is_file():
            found[run.key] = files.read_json(run.description)
        elif same and before.get("description"):
            found[run.key] = before["description"]
    return found


def _figure(report: Path, name: str) -> Path:
    return report / "figures" / f"{name}.png"


def _write_study(
    new: Path, study: runs.Study, rows: list[runs.Row], known: dict[RunKey, Run], noises: dict[str, str],
    histories: dict[RunKey, pd.DataFrame], authors: pd.DataFrame,
) -> "Chapter":  # fmt: skip
    """A study's table and figures; returns its chapter of the page."""
    from lambdanet.report import figures, page, studies

    said = studies.sentences(study, rows)
    if not said:
        return page.Chapter(study)
    table = studies.table(study, rows)
    shown = tables.for_readers(table, noises, without=("model",))
    _write_table(new / "studies" / study.name, table, shown)
    drawn = [f"study-{study.name}"]
    figures.write_study(_figure(new, drawn[0]), study, table)
    names = {row.name for row in study.rows}
    sampled = [run for key, run in known.items() if key.model in names and run.levels]
    if folders := _of_first_seed([run for run in sampled if (run.samples / "levels.csv").is_file()]):
        for model, folder in folders.items():
            for path in folder.iterdir():
                files.write_bytes(new / "samples" / model / path.name, path.read_bytes())
        drawn.append(f"levels-{study.name}")
        levels = {
            model: tables.read_columns(folder / "levels.csv", LEVELS) for model, folder in folders.items()
        }
        figures.write_levels(_figure(new, drawn[1]), levels)
    if study.name == studies.FOLLOWING and (followed := _write_following(new, study, histories, authors)):
        said, drawn = [*said, *followed], [*drawn, f"following-{study.name}"]
    noise = noises[study.rows[0].noise]
    return page.Chapter(study, said, table, shown, drawn, noise)


def _write_following(
    new: Path, study: runs.Study, histories: dict[RunKey, pd.DataFrame], authors: pd.DataFrame
) -> list[str]:
    """How the losses of a study follow the authors' log: a table, a figure, and what they say."""
    from lambdanet.report import figures, studies

    names, first = {row.name for row in study.rows if row.done}, study.rows[0]
    by_entry: dict[str, list[pd.DataFrame]] = {}
    for key, history in histories.items():
        if key.model in names:
            by_entry.setdefault(key.model, []).append(history)
    logged = authors[(authors["model"] == first.family) & (authors["noise"] == first.noise)]
    table, said = studies.following(by_entry, logged)
    if said:
        path = new / "studies" / f"following-{study.name}"
        _write_table(path, table, tables.for_readers(table, {}))
        figures.write_following(_figure(new, path.name), by_entry, logged)
    return said


def _write_pareto(
    new: Path, rows: list[runs.Row], noises: dict[str, str], *, comparable: bool
) -> pd.DataFrame:
    """Every network by its size: a table, empty where none was run on the studies' noise, and a figure."""
    from lambdanet.report import figures, studies

    networks = studies.pareto(rows)
    if not networks.empty:
        _write_table(new / "studies" / "pareto", networks, tables.for_readers(networks, {}))
        paper = tables.paper_table2()[: None if comparable else 0]
        paper = paper[paper["noise"] == runs.STUDY_NOISE]
        figures.write_pareto(_figure(new, "pareto"), networks, paper, noises[runs.STUDY_NOISE])
    return networks


def _of_first_seed(shown: list[Run]) -> dict[str, Path]:
    """By model, the samples of its run with the first seed, in the order of the runs."""
    found: dict[str, Path] = {}
    for run in shown:
        found.setdefault(run.key.model, run.samples)
    return found
