"""Table 2: this run's scores beside the paper's."""

import json
from importlib import resources
from pathlib import Path

import pandas as pd

from lambdanet.config import Run as Planned
from lambdanet.config import RunKey
from lambdanet.report.runs import Row, sample
from lambdanet.report.settings import PAPERS_PARAMETERS
from lambdanet.report.statistics import mean_interval

# What was measured of a run, averaged over its seeds.
MEASURES = (
    "psnr", "ssim", "psnr_per_image", "noisy_psnr", "noisy_ssim", "noisy_psnr_per_image",
)  # fmt: skip

DIGESTS = ("clean_sha256", "noisy_sha256", "weights_sha256")

# Entries of the paper's Table 2 that its authors' own weights contradict.
DOUBTS = {
    ("gaussian-02", "autoencoder"): "repeats the paper's auto-encoder row for speckle",
}
DNCNN_DOUBT = "0.4 to 8 dB under what the paper's released DnCNN weights give"


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object")
    return content


def read_scores(planned: list[Planned]) -> dict[RunKey, dict]:
    """The scores of those runs that have them, in their order.

    Raises:
        ValueError: a file is no JSON object.
    """
    return {run.key: read_json(run.scores) for run in planned if run.scores.is_file()}


def as_rows(table: pd.DataFrame) -> list[dict]:
    """A table's rows as dicts, for a page: None where nothing is."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def digests(score: dict) -> dict[str, str]:
    """What a score is of: the digests of its clean and noisy test images and of the weights."""
    return {key.removesuffix("_sha256"): score[key] for key in DIGESTS}


def read_history(path: Path) -> pd.DataFrame:
    """Read one row an epoch: epoch, learning_rate, loss, monitored_psnr.

    Raises:
        ValueError: it is missing or has other columns.
    """
    try:
        history = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    missing = {"epoch", "learning_rate", "loss", "monitored_psnr"} - set(history.columns)
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    return history


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
        rows: of the table, those that were not run among them.
        comparable: whether the images are the paper's; if not, its columns are empty.

    Returns:
        noise, model, psnr (dB, pooled), ssim, parameters, paper_psnr, paper_ssim, paper_parameters,
        psnr_difference and ssim_difference (ours minus the paper's), psnr_per_image (dB, mean), the same of
        the noisy input, images, seeds (how many were run), best (highest of its noise), paper_note, note
        (settings that are not those of params.yaml), psnr_low and psnr_high (the interval of `statistics`;
        empty without a spread); with more than one seed psnr_std, the standard deviation over them. Empty
        where nothing was run or the paper has no value.

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
        shown |= {"psnr_std": pd.Series(row.psnrs).std()}
        shown |= {"psnr_low": interval.low, "psnr_high": interval.high}
    return shown


def run_row(run: Planned, *, comparable: bool) -> dict[str, object]:
    """One run for a person: its score beside the paper's, or before that its last epoch.

    Args:
        run: which.
        comparable: whether its images are the paper's.

    Raises:
        ValueError: it was not trained here.
    """
    run_key = run.key
    row: dict[str, object] = {"noise": run_key.noise, "model": run_key.model, "seed": run_key.seed}
    if not run.scores.is_file():
        last = read_history(run.history).iloc[-1]
        shown = {"epochs": int(last["epoch"]), "loss": round(float(last["loss"]), 6)}
        return row | shown | {"monitored PSNR (dB)": round(float(last["monitored_psnr"]), 2)}
    found = read_json(run.scores)
    row |= {"PSNR (dB)": round(found["psnr"], 2), "SSIM": round(found["ssim"], 3)}
    if comparable:
        paper = paper_table2().set_index(["noise", "model"])[["paper_psnr", "paper_ssim"]]
        known = paper.loc[place] if (place := (run_key.noise, run_key.model)) in paper.index else (None, None)
        row |= dict(zip(("paper", "paper's SSIM"), known, strict=True))
    return row | {
        "noisy input (dB)": round(found["noisy_psnr"], 2),
        "parameters": found["parameters"],
        "images": found["images"],
    }


def beside_paper(table: pd.DataFrame) -> bool:
    """Whether a table has values of the paper."""
    return bool(table["paper_psnr"].notna().any())


def noted(table: pd.DataFrame) -> list[str]:
    """Which models were trained with other settings than those of params.yaml, and with which."""
    noted = table[table["note"] != ""].groupby("note", sort=False)["model"]
    return [f"{', '.join(dict.fromkeys(models))}: {note}" for note, models in noted]


def as_markdown(table: pd.DataFrame) -> str:
    """Ours beside the paper's, with the difference; the highest PSNR of each noise in bold."""
    paper = beside_paper(table)
    columns = ["noise", "model", "parameters", "PSNR (dB)", *["paper", "difference"] * paper]
    columns += ["SSIM", *["paper", "difference"] * paper, "noisy input"]
    lines = [_line(columns), _line(["---", "---", *["---:"] * (len(columns) - 2)])]
    lines += [_line(_values(row, paper)) for row in table.to_dict("records")]
    images = sorted(set(table["images"].dropna()))
    seeds = sorted(set(table["seeds"]) - {0})
    trained = f"mean of {' or '.join(map(str, seeds))} training(s) each"
    if seeds[-1:] > [1]:
        trained += ", ± the standard deviation over several"
    lines += [
        "",
        f"{', '.join(f'{count:,}' for count in images)} test images; {trained}. "
        "PSNR of the MSE pooled over the test set, SSIM with a Gaussian window, outputs clipped to [0, 1]; "
        "bold: the highest of its noise.",
    ]
    if (table["paper_note"] != "").any():
        notes = table["paper_note"].loc[lambda note: note != ""].unique()
        lines.append(f"† An entry of the paper that does not hold: {'; '.join(notes)}.")
    if (table["note"] != "").any():
        lines.append("‡ " + "; ".join(noted(table)) + ".")
    return "\n".join(lines) + "\n"


def _values(row: dict, paper: bool) -> list[str]:
    theirs = [_number(row["paper_psnr"], ".2f") + (" †" if row["paper_note"] else "")] if paper else []
    if not row["seeds"]:
        return [row["noise"], row["model"], "", "not run", *theirs, *[""] * (5 if paper else 2)]
    psnr = f"**{row['psnr']:.2f}**" if row["best"] else f"{row['psnr']:.2f}"
    if pd.notna(row.get("psnr_std")):
        psnr += f" ± {row['psnr_std']:.2f}"
    if row["note"]:
        psnr += " ‡"
    values = [row["noise"], row["model"], f"{row['parameters']:,}", psnr, *theirs]
    values += [_number(row["psnr_difference"], "+.2f")] * paper + [f"{row['ssim']:.3f}"]
    if paper:
        values += [_number(row["paper_ssim"], ".2f"), _number(row["ssim_difference"], "+.3f")]
    return [*values, f"{row['noisy_psnr']:.2f}"]


def _line(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def as_text(table: pd.DataFrame) -> str:
    """The same for a terminal."""
    show = pd.DataFrame({"noise": table["noise"].where(table["noise"] != table["noise"].shift(), "")})
    show["model"] = table["model"]
    columns = {"parameters": ("parameters", ",.0f"), "PSNR": ("psnr", ".2f"), "paper": ("paper_psnr", ".2f")}
    columns |= {
        "SSIM": ("ssim", ".3f"),
        " paper": ("paper_ssim", ".2f"),
        "noisy input": ("noisy_psnr", ".2f"),
    }
    for title, (name, form) in columns.items():
        if title.strip() != "paper" or beside_paper(table):
            show[title] = [_number(value, form) or "not run" * (name == "psnr") for value in table[name]]
    return show.to_string(index=False)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table2.csv.

    Raises:
        ValueError: it is not there.
    """
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it with `dvc repro`") from None


def _number(value: float, form: str) -> str:
    if pd.isna(value):
        return ""
    return signed(value, int(form[2])) if form.startswith("+") else format(value, form)


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, and no minus before zero."""
    return f"{round(value, digits) + 0:+.{digits}f}"
