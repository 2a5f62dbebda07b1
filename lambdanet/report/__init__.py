"""From the scores of a profile's cells to its tables, figures and page."""

from pathlib import Path

from lambdanet import files, records
from lambdanet.params import Cell
from lambdanet.report import tables


def write_report(
    cells: list[Cell], scores: Path, models: Path, panels: Path, logs: Path, folder: Path
) -> None:
    """Write a profile's results; cells without a score are shown as not run.

    Args:
        cells: the cells of the profile, in the order of the table.
        scores: folder with one JSON file a cell, from `evaluate`.
        models: folder with one folder a cell, from `train`; its history is used.
        panels: folder with one folder of photographs a cell, from `evaluate`.
        logs: folder with one JSON file a cell on how it was trained; may be incomplete or absent.
        folder: replaced as a whole: table2.csv, table2.md, report.html, digests.json (which data and
            weights each score is of), and the folders scores, histories and figures.

    Raises:
        ValueError: no cell has a score, or a file is not what it should be.
    """
    from lambdanet.report import figures, page  # here: who reads a table needs no matplotlib

    done = [cell for cell in cells if (scores / f"{cell.name}.json").is_file()]
    if not done:
        profile = cells[0].profile
        raise ValueError(f"{scores} holds no scores of profile {profile}; make them with `dvc repro` first")
    scored = {cell: tables.read_json(scores / f"{cell.name}.json") for cell in done}
    histories = {cell: tables.read_history(models / cell.name / "history.csv") for cell in done}
    logged = {
        cell: records.find_record(logs / f"{cell.name}.json", weights_sha256=scored[cell]["weights_sha256"])
        for cell in done
    }
    table = tables.table2(cells, scored)
    with files.new_folder(folder) as new:
        files.write_json(new / "digests.json", {cell.name: tables.digests(scored[cell]) for cell in done})
        for cell in done:
            # Names and digests would drown the numbers in `dvc metrics show`.
            numbers = {key: value for key, value in scored[cell].items() if isinstance(value, int | float)}
            del numbers["seed"]
            files.write_json(new / "scores" / f"{cell.name}.json", numbers)
            files.write_text(new / "histories" / f"{cell.name}.csv", histories[cell].to_csv(index=False))
        files.write_text(new / "table2.csv", table.to_csv(index=False, float_format="%.6f"))
        files.write_text(new / "table2.md", tables.as_markdown(table))
        figures.write_convergence(new / "figures" / "convergence.png", histories)
        figures.write_psnr(new / "figures" / "psnr.png", table)
        for noise in dict.fromkeys(cell.noise for cell in done):
            first_seed = {c.model: panels / c.name for c in reversed(done) if c.noise == noise}
            ordered = {c.model: first_seed[c.model] for c in done if c.noise == noise}
            figures.write_panel(new / "figures" / f"panel-{noise}.png", ordered)
        page.write_page(new / "report.html", table, scored, logged, new / "figures")
