"""Table 2: this run's scores beside the paper's; and how any table is written for readers."""

from importlib import resources
from pathlib import Path

import pandas as pd

from lambdanet import files
from lambdanet.config import Run as Planned
from lambdanet.config import RunKey
from lambdanet.report.runs import Row, sample
from lambdanet.report.settings import PAPERS_PARAMETERS, model_title
from lambdanet.report.statistics import mean_interval, signed

# What was measured of a run, averaged over its seeds.
MEASURES = (
    "psnr", "ssim", "psnr_per_image", "noisy_psnr", "noisy_ssim", "noisy_psnr_per_image",
)  # fmt: skip


# Entries of the paper's Table 2 that its authors' own weights contradict.
DOUBTS = {
    ("gaussian-02", "autoencoder"): "repeats the paper's auto-encoder row for speckle",
}
DNCNN_DOUBT = "0.4 to 8 dB under what the paper's released DnCNN weights give"


def read_scores(planned: list[Planned]) -> dict[RunKey, dict]:
    """The scores of those runs that have them, in their order.

    Raises:
        ValueError: a file is no JSON object.
    """
    return {run.key: files.read_json(run.scores) for run in planned if run.scores.is_file()}


def read_history(path: Path) -> pd.DataFrame:
    """Read one row an epoch: epoch, learning_rate, loss, monitored_psnr.

    Raises:
        ValueError: it is missing or lacks a column.
    """
    return read_columns(path, ("epoch", "learning_rate", "loss", "monitored_psnr"))


def read_columns(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV file.

    Raises:
        ValueError: it is missing or lacks a column.
    """
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if missing := set(columns) - set(table.columns):
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    return table


def paper_table2() -> pd.DataFrame:
    """The paper's Table 2: noise, model, paper_psnr (dB), paper_ssim, paper_parameters, paper_note."""
    with resources.files("lambdanet.report").joinpath("paper_table2.csv").open() as file:
        paper = pd.read_csv(file).rename(columns={"psnr": "paper_psnr", "ssim": "paper_ssim"})
    paper["paper_parameters"] = paper["model"].map(PAPERS_PARAMETERS)
    notes = [
        DOUBTS.get(pair, DNCNN_DOUBT if pair[1] == "dncnn" else "")
        for pair in zip(paper["noise"], paper["model"], strict=True)
    ]
    return paper.assign(paper_note=notes)


def table2(rows: list[Row], *, comparable: bool) -> pd.DataFrame:
    """One row per noise and model, averaged over the seeds, in the order of `rows`.

    Args:
        rows: of `runs.of_table`.
        comparable: whether the images are the paper's; if not, its columns are empty.

    Returns:
        noise, model, psnr (dB, pooled), ssim, parameters, paper_psnr, paper_ssim, paper_parameters,
        psnr_difference and ssim_difference (ours minus the paper's), psnr_per_image (dB, mean), the same of
        the noisy input, images, seeds (how many were run), best (highest of its noise), paper_note, note
        (settings that are not those of the table), psnr_low and psnr_high (the interval of `statistics`;
        empty without a spread), hours (of its trainings together), device; with more than one seed psnr_std,
        the standard deviation over them. Empty where nothing was run or recorded or the paper has no value.

    Raises:
        ValueError: rows of one noise were scored on different test images.
    """
    table = pd.DataFrame([_table_row(row, rows) for row in rows])
    for noise in dict.fromkeys(row.noise for row in rows):
        tests = {
            (run.scores["clean_sha256"], run.scores["noisy_sha256"])
            for row in rows
            for run in row.done
            if row.noise == noise
        }
        if len(tests) > 1:
            raise ValueError(f"the runs of {noise} were scored on different test images; run `dvc repro`")
    paper = paper_table2()
    table = table.merge(paper if comparable else paper[:0], on=["noise", "model"], how="left")
    table["psnr_difference"] = table["psnr"] - table["paper_psnr"]
    table["ssim_difference"] = table["ssim"] - table["paper_ssim"]
    table["best"] = table["psnr"] == table.groupby("noise")["psnr"].transform("max")
    table["paper_note"] = table["paper_note"].fillna("")
    for name in ("parameters", "images", "paper_parameters"):
        table[name] = table[name].astype("Int64")
    order = ["noise", "model", "psnr", "ssim", "parameters"]
    order += ["paper_psnr", "paper_ssim", "paper_parameters", "psnr_difference", "ssim_difference"]
    order += [*MEASURES[2:], "images", "seeds", "best", "paper_note", "note", "psnr_low", "psnr_high"]
    order += ["hours", "device"]
    if (table["seeds"] > 1).any():
        order.insert(3, "psnr_std")
    return table.reindex(columns=order)


def _table_row(row: Row, rows: list[Row]) -> dict:
    shown = {"noise": row.noise, "model": row.name, "seeds": len(row.done), "note": row.outdated}
    shown |= dict.fromkeys((*MEASURES, "parameters", "images"))
    if row.done:
        interval = mean_interval(sample(row, rows))
        shown |= {name: row.mean(name) for name in MEASURES}
        shown |= {"parameters": row.parameters, "images": row.done[0].scores["images"]}
        shown |= {"psnr_std": pd.Series(row.values("psnr")).std(), "hours": row.hours, "device": row.device}
        shown |= {"psnr_low": interval.low, "psnr_high": interval.high}
    return shown


def noted(table: pd.DataFrame) -> list[str]:
    """Which models were trained with other settings than those of params.yaml, and with which."""
    noted = table[table["note"] != ""].groupby("note", sort=False)["model"]
    return [f"{', '.join(map(model_title, dict.fromkeys(models)))}: {note}" for note, models in noted]


# Every column that readers see, in this order: its heading, and how its numbers are written.
_COLUMNS = {
    "noise": ("noise", ""), "model": ("model", ""), "name": ("network", ""), "variation": ("entry", ""),
    "changes": ("differs in", ""), "family": ("family", ""), "recipe": ("recipe", ".0f"),
    "parameters": ("parameters", ",.0f"), "epochs": ("epochs", ".0f"), "psnr": ("PSNR (dB)", ".2f"),
    "psnr_low": ("interval", ".2f"), "paper_psnr": ("paper", ".2f"), "reference": ("document", ".2f"),
    "psnr_difference": ("difference", "+.2f"), "difference": ("to the base", "+.2f"),
    "low": ("its interval", "+.2f"), "ssim": ("SSIM", ".3f"), "paper_ssim": ("paper's SSIM", ".2f"),
    "ssim_difference": ("difference of SSIM", "+.3f"), "train_psnr": ("on training images", ".2f"),
    "loss": ("last loss", ".5f"), "authors_loss": ("the authors' last loss", ".5f"),
    "fluctuation": ("fluctuation", ".2%"), "authors_fluctuation": ("the authors' fluctuation", ".2%"),
    "noisy_psnr": ("noisy input", ".2f"), "hours": ("hours", ".1f"), "device": ("device", ""),
}  # fmt: skip
BESIDE = ("psnr_low", "hours", "device")  # columns that only the page shows
_TITLES = {"model": model_title, "name": model_title, "family": model_title}


def for_readers(table: pd.DataFrame, noises: dict[str, str], without: tuple[str, ...] = ()) -> pd.DataFrame:
    """A table as text, less its empty columns; with the marks † and ‡, and ± over several seeds.

    Args:
        table: of `table2`, `studies.table` or `studies.pareto`.
        noises: their titles by name; may lack any.
        without: columns of the table that are not shown.
    """
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    titles = _TITLES | {"noise": lambda name: noises.get(name, name)}
    shown = {}
    for name, (heading, form) in _COLUMNS.items():
        if name in table and name not in without:
            cells = [_cell(row, name, form) for row in rows]
            if any(cells):
                shown[heading] = [titles.get(name, str)(cell) for cell in cells]
    return pd.DataFrame(shown)


def _cell(row: dict, name: str, form: str) -> str:
    value = row[name]
    if name == "psnr":
        if value is None:
            return "not run"
        spread = row.get("psnr_std")
        marks = (f" ± {spread:.2f}" if spread is not None else "") + (" ‡" if row.get("note") else "")
        return f"{value:.2f}{marks}"
    if value is None or not form:
        return value or ""
    text = signed(value, int(form[2])) if form.startswith("+") else format(value, form)
    if name.endswith("low"):
        text += f" to {_cell(row, name.replace('low', 'high'), form)}"
    return f"{text} †" if name == "paper_psnr" and row["paper_note"] else text


def as_markdown(table: pd.DataFrame, noises: dict[str, str]) -> str:
    """`for_readers` in Markdown, the highest PSNR of each noise in bold, with its notes."""
    shown = for_readers(table, noises, without=BESIDE)
    bold = shown["PSNR (dB)"].str.replace(r"^(\S+)", r"**\1**", regex=True)
    shown["PSNR (dB)"] = bold.where(table["best"], shown["PSNR (dB)"])
    lines = [list(shown), ["---", "---", *["---:"] * (len(shown.columns) - 2)], *shown.to_numpy().tolist()]
    images = ", ".join(f"{count:,}" for count in sorted(set(table["images"].dropna())))
    trained = "one training each"
    if (most := table["seeds"].max()) > 1:
        trained = f"± is the standard deviation over up to {most} trainings, a number without it is of one"
    notes = [
        f"{images} test images; {trained}. PSNR of the MSE pooled over the test set, SSIM with a Gaussian "
        "window, outputs clipped to [0, 1]; bold: the highest of its noise."
    ]
    if doubts := [note for note in table["paper_note"].unique() if note]:
        notes.append(f"† An entry of the paper that does not hold: {'; '.join(doubts)}.")
    if noted(table):
        notes.append(f"‡ {'; '.join(noted(table))}.")
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes]) + "\n"


def as_latex(shown: pd.DataFrame) -> str:
    """A table of text as a LaTeX tabular, which needs the package booktabs."""
    return shown.to_latex(index=False, escape=True)


def as_text(table: pd.DataFrame) -> str:
    """Table 2 for a terminal, by the names that commands take."""
    shown = for_readers(table, {}, without=(*BESIDE, "psnr_difference", "ssim_difference"))
    shown["model"] = table["model"]
    shown["noise"] = table["noise"].where(table["noise"] != table["noise"].shift(), "")
    return shown.to_string(index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table2.csv.

    Raises:
        ValueError: it is not there.
    """
    try:
        table = pd.read_csv(path, dtype={"note": str, "paper_note": str})
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it with `dvc repro`") from None
    return table.fillna({"note": "", "paper_note": ""})
