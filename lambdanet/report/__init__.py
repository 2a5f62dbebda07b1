"""From the scores of a profile's cells to its tables, figures and page."""

from dataclasses import dataclass
from pathlib import Path

from lambdanet import files, records
from lambdanet.params import Cell, Params
from lambdanet.report import tables

# Of a training's log. No times: the same trainings on the same kind of machine give the same report.
KEPT = ("device", "commit", "python", "versions", "computed_by", "weights_sha256")


def write_report(
    params: Params,
    profile: str,
    scores: Path,
    models: Path,
    panels: Path,
    logs: Path,
    benchmarks: Path,
    folder: Path,
) -> None:
    """Write a profile's results; cells without a score are shown as not run.

    Args:
        params: all of params.yaml.
        profile: whose results.
        scores: folder with one JSON file a cell, from `evaluate`.
        models: folder with one folder a cell, from `train`; its history is used.
        panels: folder with one folder of photographs a cell, from `evaluate`.
        logs: folder with one JSON file a cell on how it was trained; may be incomplete or absent.
        benchmarks: JSON file of the benchmarks, for the networks' times; may be absent.
        folder: replaced as a whole: table2.csv, table2.md, report.html, digests.json (which data and
            weights each score is of), trainings.json (each training's score and how it was trained), the
            folders scores, histories, figures and studies (a table for each, and pareto.csv), sets.csv,
            and in sets what the figures on these show.

    Raises:
        ValueError: no cell has a score, or a file is not what it should be.
    """
    from lambdanet.report import figures, page, studies  # here: who reads a table needs no matplotlib

    cells = params.cells(profile)
    scored = tables.read_scores(cells, scores)
    if not scored:
        raise ValueError(f"{scores} holds no scores of profile {profile}; make them with `dvc repro` first")
    histories = {cell: tables.read_history(models / cell.name / "history.csv") for cell in scored}
    table = tables.table2(cells, scored)
    with files.new_folder(folder) as new:
        files.write_json(new / "digests.json", {cell.name: tables.digests(s) for cell, s in scored.items()})
        for cell, score in scored.items():
            # Names and digests would drown the numbers in `dvc metrics show`.
            numbers = {key: value for key, value in score.items() if isinstance(value, int | float)}
            del numbers["seed"]
            files.write_json(new / "scores" / f"{cell.name}.json", numbers)
            files.write_text(new / "histories" / f"{cell.name}.csv", histories[cell].to_csv(index=False))
        files.write_text(new / "table2.csv", table.to_csv(index=False, float_format="%.6f"))
        files.write_text(new / "table2.md", tables.as_markdown(table))
        figures.write_convergence(new / "figures" / "convergence.png", histories)
        figures.write_psnr(new / "figures" / "psnr.png", table)
        for noise in dict.fromkeys(cell.noise for cell in scored):
            folders = _of_first_seed([cell for cell in scored if cell.noise == noise], panels)
            figures.write_panel(new / "figures" / f"panel-{noise}.png", folders)
        studied = tables.read_scores(params.study_cells(profile), scores / "studies")
        answers = _write_studies(new, params, profile, studied, models / "studies", scored, benchmarks)
        on_sets = tables.read_scores(params.set_cells(profile), scores / "sets")
        own = _write_sets(new, folder, params, profile, on_sets, panels / "sets")
        authors = studies.authors_convergence()
        figures.write_against_authors(new / "figures" / "authors.png", histories, authors)
        everything = scored | studied | on_sets
        logged = {
            cell: records.find_record(logs / f"{cell.name}.json", weights_sha256=score["weights_sha256"])
            for cell, score in everything.items()
        }
        kept = {
            cell.name: {"scores": score, "log": _in_short(logged[cell])} for cell, score in everything.items()
        }
        files.write_json(new / records.TRAININGS, kept)
        download = params.download(profile)
        epochs = {model: params.training(profile, model).epochs for model in params.models}
        page.write_page(
            new / "report.html", table, everything, logged, new / "figures", answers, own,
            comparable=download.dataset == "cifar10", stages=_examples(params, profile),
            scale={"images": download.train_images, "epochs": epochs},
        )  # fmt: skip


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
    params: Params,
    profile: str,
    found: dict[Cell, dict],
    models: Path,
    grid: dict[Cell, dict],
    benchmarks: Path,
) -> Answers:
    from lambdanet.report import figures, studies

    whole, answered, without = studies.table(params, profile, found), [], []
    for name, study in params.studies.items():
        rows = studies.of_study(whole, name, params, profile)
        said = studies.sentences(rows)
        if name == studies.BASE:
            continue
        if not said:
            without.append(study.title)
            continue
        files.write_text(new / "studies" / f"{name}.csv", rows.to_csv(index=False, float_format="%.6g"))
        figures.write_study(new / "figures" / f"study-{name}.png", study, rows)
        shown = {"name": name, "title": study.title, "said": said, "rows": tables.as_rows(rows)}
        answered.append(shown)
    for cell in found:
        history = tables.read_history(models / cell.name / "history.csv")
        files.write_text(new / "studies" / "histories" / f"{cell.name}.csv", history.to_csv(index=False))
    seconds = studies.inference_seconds(tables.read_json(benchmarks)) if benchmarks.is_file() else {}
    networks = studies.pareto(params, profile, grid, found, seconds)
    if not networks.empty:
        files.write_text(new / "studies" / "pareto.csv", networks.to_csv(index=False, float_format="%.6g"))
        figures.write_pareto(new / "figures" / "pareto.png", networks)
    return Answers(answered, tables.as_rows(networks), without)


def _write_sets(
    new: Path, old: Path, params: Params, profile: str, found: dict[Cell, dict], panels: Path
) -> list[dict]:
    """What was found on sets of their own images, for the page: title, text, rows and figures' names.

    Where a set has no panels here, the figures of the report that is replaced are taken, if that was of the
    same scores: reports from before these panels were kept have nothing else.
    """
    from lambdanet.report import figures, sets

    whole, sections = sets.table(params, profile, found), []
    if found:
        files.write_text(new / "sets.csv", whole.to_csv(index=False, float_format="%.6g"))
    for name in params.sets:
        # Panels that neither this clone nor git has are no reason to show no numbers.
        scored = {cell: score for cell, score in found.items() if cell.noise == name}
        cells = [cell for cell in scored if (panels / cell.name).is_dir()]
        title, text = sets.ABOUT.get(name, (f"The set {name}", ""))
        rows = tables.as_rows(whole[whole["set"] == name])
        section = {"name": name, "title": title, "text": text, "rows": rows}
        shown = [f"examples-{name}", f"levels-{name}"]
        if cells:
            folders = _of_first_seed(cells, panels)
            for folder in folders.values():
                for path in folder.iterdir():
                    files.write_bytes(new / "sets" / folder.name / path.name, path.read_bytes())
            figures.write_levels(new / "figures" / f"levels-{name}.png", sets.levels(folders))
            figures.write_examples(new / "figures" / f"examples-{name}.png", folders)
        elif scored and _has_scores(old, scored):
            for path in (old / "figures" / f"{figure}.png" for figure in shown):
                if path.is_file():
                    files.write_bytes(new / "figures" / path.name, path.read_bytes())
        section["figures"] = [figure for figure in shown if (new / "figures" / f"{figure}.png").is_file()]
        sections.append(section)
    return sections


def _has_scores(report: Path, scores: dict[Cell, dict]) -> bool:
    """Whether a report was of these scores."""
    path = report / records.TRAININGS
    kept = tables.read_json(path) if path.is_file() else {}
    return all(kept.get(cell.name, {}).get("scores") == score for cell, score in scores.items())


def _examples(params: Params, profile: str) -> list[str]:
    """A DVC stage that scores or trains a cell of each kind."""
    kinds = {"evaluate": params.cells, "train": params.study_cells, "examine": params.set_cells}
    first = {stage: cells(profile)[:1] for stage, cells in kinds.items()}
    return [params.stage_of(stage, cell) for stage, cells in first.items() for cell in cells]


def _of_first_seed(cells: list[Cell], folder: Path) -> dict[str, Path]:
    """By model, the folder of its cell with the first seed, in the order of the cells."""
    found: dict[str, Path] = {}
    for cell in cells:
        found.setdefault(cell.model, folder / cell.name)
    return found
