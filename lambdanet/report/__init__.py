"""From the scores of a profile's runs to its tables, figures and page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lambdanet import files, run_log
from lambdanet.config import Config, Run, RunKey
from lambdanet.report import runs, tables

# Draws a figure of a report: `draw(write, name, *arguments)`, with a function of `report.figures`.
Draw = Callable[..., None]

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

    known = {run.key: run for run in config.runs}
    scored = tables.read_scores(config.table_runs)
    if not scored:
        raise ValueError(
            f"{config.folders.of('scores')} holds no scores of profile {config.name}; "
            f"make them with `dvc repro {config.pipeline}` first"
        )
    beside = tables.read_scores(config.ablation_runs)
    on_sets = {key: score for key, score in beside.items() if config.is_document(known[key])}
    everything = scored | beside
    histories = {key: tables.read_history(known[key].history) for key in scored}
    logged = {
        key: run_log.find_record(known[key].log, weights_sha256=score["weights_sha256"])
        for key, score in everything.items()
    }
    described = _descriptions([known[key] for key in everything], everything, logged, folder)
    rows = runs.collect(config, everything, described)
    comparable = runs.is_papers(config)
    table = tables.table2([row for row in rows if not row.study and not row.dataset], comparable=comparable)
    with files.new_folder(folder) as new:

        def draw(write: Callable, name: str, *arguments: Any) -> None:
            write(_figure(new, name), *arguments)

        _write_numbers(new, scored, histories, table)
        draw(figures.write_convergence, "convergence", histories)
        draw(figures.write_psnr, "psnr", table)
        for noise in dict.fromkeys(key.noise for key in scored):
            folders = _of_first_seed([known[key] for key in scored if key.noise == noise])
            draw(figures.write_panel, f"panel-{noise}", folders)
        of_ablations = {
            # Of some, a report from before they were kept has none.
            key: tables.read_history(known[key].history)
            for key in beside
            if known[key].history.is_file()
        }
        asked = runs.questions(config, rows)
        answers = _write_studies(new, draw, asked, rows, of_ablations, benchmarks, comparable=comparable)
        own = _write_sets(new, folder, draw, rows, on_sets, known)
        if comparable:
            draw(figures.write_against_authors, "authors", histories, studies.authors_convergence())
        kept = {
            key.name: {
                "scores": score,
                "log": _in_short(logged[key]),
                "description": described.get(key),
            }
            for key, score in everything.items()
        }
        files.write_json(new / run_log.TRAININGS, kept)
        page.write_page(
            new / "report.html", table, rows, everything, logged, new / "figures", answers, own,
            comparable=comparable, stages=_examples(config),
            images=config.download().train_images,
        )  # fmt: skip


def _write_numbers(
    new: Path, scored: dict[RunKey, dict], histories: dict[RunKey, pd.DataFrame], table: pd.DataFrame
) -> None:
    """The table and what it is of."""
    files.write_json(new / "digests.json", {key.name: tables.digests(s) for key, s in scored.items()})
    for key, score in scored.items():
        # Names and digests would drown the numbers in `dvc metrics show`.
        numbers = {key: value for key, value in score.items() if isinstance(value, int | float)}
        del numbers["seed"]
        files.write_json(new / "scores" / f"{key.name}.json", numbers)
        files.write_text(new / "histories" / f"{key.name}.csv", histories[key].to_csv(index=False))
    files.write_text(new / "table2.csv", table.to_csv(index=False, float_format="%.6f"))
    files.write_text(new / "table2.md", tables.as_markdown(table))


def _descriptions(
    scored: list[Run], scores: dict[RunKey, dict], logged: dict[RunKey, dict | None], old: Path
) -> dict[RunKey, dict]:
    """How trainings were described when they were made: in their folder, the old report, or their log."""
    path = old / run_log.TRAININGS
    kept = tables.read_json(path) if path.is_file() else {}
    found = {}
    for run in scored:
        key = run.key
        before = kept.get(key.name) or {}
        if before.get("scores", {}).get("weights_sha256") != scores[key]["weights_sha256"]:
            before = {}
        here = tables.read_json(run.description) if run.description.is_file() else None
        if one := here or before.get("description") or (logged[key] or {}).get("description"):
            found[key] = one
    return found


def _figure(report: Path, name: str) -> Path:
    return report / "figures" / f"{name}.png"


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
    draw: Draw,
    asked: list[runs.Question],
    rows: list[runs.Row],
    histories: dict[RunKey, pd.DataFrame],
    benchmarks: Path,
    *,
    comparable: bool,
) -> Answers:
    from lambdanet.report import figures, studies

    answered, without = [], []
    for question in asked:
        said = studies.sentences(question, rows, comparable=comparable)
        if not said:
            without.append(question.title)
            continue
        table = studies.table(question, rows, comparable=comparable)
        files.write_text(
            new / "studies" / f"{question.name}.csv", table.to_csv(index=False, float_format="%.6g")
        )
        draw(figures.write_study, f"study-{question.name}", question, table)
        shown = {"name": question.name, "title": question.title, "said": said, "rows": tables.as_rows(table)}
        if question.name == studies.FOLLOWING and comparable:
            shown["said"] = said + _write_following(new, draw, question, histories)
        answered.append(shown)
    for key, history in histories.items():
        files.write_text(new / "studies" / "histories" / f"{key.name}.csv", history.to_csv(index=False))
    seconds = studies.inference_seconds(tables.read_json(benchmarks)) if benchmarks.is_file() else {}
    networks = studies.pareto(rows, seconds)
    if not networks.empty:
        files.write_text(new / "studies" / "pareto.csv", networks.to_csv(index=False, float_format="%.6g"))
        paper = tables.paper_table2() if comparable else tables.paper_table2()[:0]
        noise = runs.STUDY_NOISE
        draw(figures.write_pareto, "pareto", networks, paper[paper["noise"] == noise], noise)
    return Answers(answered, tables.as_rows(networks), without)


def _write_following(
    new: Path, draw: Draw, question: runs.Question, histories: dict[RunKey, pd.DataFrame]
) -> list[str]:
    """How a study's losses follow the authors' log: a table, a figure, and what they say."""
    from lambdanet.report import figures, studies

    model, noise = question.rows[0].family, question.rows[0].noise
    by_entry: dict[str, list[pd.DataFrame]] = {}
    for row in question.rows:
        seeds = {run.seed for run in row.done}
        own = [h for key, h in histories.items() if key.model == row.name and key.seed in seeds]
        by_entry |= {row.name: own} if own else {}
    table, said = studies.following(by_entry, model, noise)
    if said:
        files.write_text(new / "studies" / "following.csv", table.to_csv(index=False, float_format="%.6g"))
        authors = studies.authors_convergence()
        logged = authors[(authors["model"] == model) & (authors["noise"] == noise)]
        draw(figures.write_following, f"following-{question.name}", by_entry, logged)
    return said


def _write_sets(
    new: Path,
    old: Path,
    draw: Draw,
    rows: list[runs.Row],
    found: dict[RunKey, dict],
    known: dict[RunKey, Run],
) -> list[dict]:
    """What was found on images of their own, for the page: title, text, rows and figures' names.

    Where a set has no panels here, the figures of the report that is replaced are taken, if that was of the
    same scores: reports from before these panels were kept have nothing else.
    """
    from lambdanet.report import figures, sets

    whole, sections = sets.table(rows), []
    if found:
        files.write_text(new / "sets.csv", whole.to_csv(index=False, float_format="%.6g"))
    for name in dict.fromkeys(row.dataset for row in rows if row.dataset):
        # Samples that neither this clone nor git has are no reason to show no numbers.
        names = {row.name for row in rows if row.dataset == name}
        scored = {key: score for key, score in found.items() if key.model in names}
        shown_runs = [known[key] for key in scored if (known[key].samples / "levels.csv").is_file()]
        title, text = sets.about(name, rows)
        shown = [f"examples-{name}", f"levels-{name}"]
        if shown_runs:
            folders = _of_first_seed(shown_runs)
            for model, folder in folders.items():
                for path in folder.iterdir():
                    files.write_bytes(new / "sets" / model / path.name, path.read_bytes())
            draw(figures.write_levels, f"levels-{name}", sets.levels(folders))
            draw(figures.write_examples, f"examples-{name}", folders)
        elif scored and _has_scores(old, scored):
            for path in (_figure(old, name) for name in shown):
                if path.is_file():
                    files.write_bytes(new / "figures" / path.name, path.read_bytes())
        there = [f for f in shown if _figure(new, f).is_file()]
        of_set = tables.as_rows(whole[whole["set"] == name])
        sections.append({"name": name, "title": title, "text": text, "rows": of_set, "figures": there})
    return sections


def _has_scores(report: Path, scores: dict[RunKey, dict]) -> bool:
    """Whether a report was of these scores."""
    path = report / run_log.TRAININGS
    kept = tables.read_json(path) if path.is_file() else {}
    return all(kept.get(key.name, {}).get("scores") == score for key, score in scores.items())


def _examples(config: Config) -> list[str]:
    """Of a stage of each kind, how `dvc` names it."""
    first = [*config.table_runs[:1], *config.ablation_runs[:1]]
    stages = [f"evaluate@{config.params.table.noises[0]}", *(run.stage for run in first)]
    return [config.address(stage) for stage in stages]


def _of_first_seed(shown: list[Run]) -> dict[str, Path]:
    """By model, the samples of its run with the first seed, in the order of the runs."""
    found: dict[str, Path] = {}
    for run in shown:
        found.setdefault(run.key.model, run.samples)
    return found
