"""Table 2: this run's scores beside the paper's."""

import itertools
import json
from importlib import resources
from pathlib import Path

import pandas as pd

from lambdanet.config import Cell, Run

# What was measured of a cell, averaged over its seeds.
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


def read_scores(runs: list[Run]) -> dict[Cell, dict]:
    """The scores of those runs that have them, in their order.

    Raises:
        ValueError: a file is no JSON object.
    """
    return {run.cell: read_json(run.scores) for run in runs if run.scores.is_file()}


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
    """The paper's Table 2: noise, model, paper_psnr (dB), paper_ssim, paper_note."""
    with resources.files("lambdanet.report").joinpath("paper_table2.csv").open() as file:
        paper = pd.read_csv(file).rename(columns={"psnr": "paper_psnr", "ssim": "paper_ssim"})
    notes = [
        DOUBTS.get(pair, DNCNN_DOUBT if pair[1] == "dncnn" else "")
        for pair in zip(paper["noise"], paper["model"], strict=True)
    ]
    return paper.assign(paper_note=notes)


def table2(cells: list[Cell], scores: dict[Cell, dict]) -> pd.DataFrame:
    """One row per noise and model, averaged over the seeds, in the order of `cells`.

    Args:
        cells: all cells of the profile.
        scores: what `evaluate` wrote, of those that were run.

    Returns:
        noise, model, psnr (dB, pooled), ssim, parameters, paper_psnr, paper_ssim, psnr_difference
        and ssim_difference (ours minus the paper's), psnr_per_image (dB, mean), the same of the
        noisy input, images, seeds (how many were run), best (of its noise), paper_note; with more
        than one seed psnr_std, the standard deviation over them. Empty where nothing was run or
        the paper has no value.

    Raises:
        ValueError: cells of one noise were scored on different test images.
    """
    rows = []
    for noise, model in dict.fromkeys((cell.noise, cell.model) for cell in cells):
        found = [scores[c] for c in cells if (c.noise, c.model) == (noise, model) and c in scores]
        row = {"noise": noise, "model": model, "seeds": len(found)}
        if found:
            row |= {name: sum(score[name] for score in found) / len(found) for name in MEASURES}
            row |= {"parameters": found[0]["parameters"], "images": found[0]["images"]}
            row["psnr_std"] = pd.Series([score["psnr"] for score in found]).std()
        rows.append(row)
    for noise in dict.fromkeys(cell.noise for cell in cells):
        tests = {(s["clean_sha256"], s["noisy_sha256"]) for c, s in scores.items() if c.noise == noise}
        if len(tests) > 1:
            raise ValueError(f"the cells of {noise} were scored on different test images; run `dvc repro`")
    table = pd.DataFrame(rows).merge(paper_table2(), on=["noise", "model"], how="left")
    table["psnr_difference"] = table["psnr"] - table["paper_psnr"]
    table["ssim_difference"] = table["ssim"] - table["paper_ssim"]
    table["best"] = table["psnr"] == table.groupby("noise")["psnr"].transform("max")
    table["paper_note"] = table["paper_note"].fillna("")
    for name in ("parameters", "images"):
        table[name] = table[name].astype("Int64")
    order = ["noise", "model", "psnr", "ssim", "parameters"]
    order += ["paper_psnr", "paper_ssim", "psnr_difference", "ssim_difference"]
    order += [*MEASURES[2:], "images", "seeds", "best", "paper_note"]
    if (table["seeds"] > 1).any():
        order.insert(3, "psnr_std")
    return table[order]


def seed_sentences(table: pd.DataFrame) -> list[str]:
    """For each noise with several seeds of a model, which models' differences are larger than the spread.

    A difference counts where it exceeds twice the larger of both standard deviations; for two models of one
    training each, twice the largest of the noise's.
    """
    said = []
    if "psnr_std" not in table:
        return said
    for noise, rows in table[table["seeds"] > 0].groupby("noise", sort=False):
        largest = rows["psnr_std"].max()  # NaN where nothing was trained several times
        if pd.isna(largest) or len(rows) < 2:
            continue
        ordered = rows.sort_values("psnr", ascending=False).to_dict("records")
        unsure = [
            f"{a['model']} and {b['model']}"
            for a, b in itertools.pairwise(ordered)
            if a["psnr"] - b["psnr"] <= 2 * _spread(a, b, largest)
        ]
        names = " > ".join(row["model"] for row in ordered)
        end = (
            f"not told apart: {', '.join(unsure)}" if unsure else "each difference is larger than the spread"
        )
        if once := [row["model"] for row in ordered if row["seeds"] == 1]:
            end += f"; trained once, so judged by the others' spread: {', '.join(once)}"
        said.append(f"{noise}: {names}; {end}.")
    return said


def _spread(a: dict, b: dict, otherwise: float) -> float:
    """The larger of two models' standard deviations."""
    return max((one["psnr_std"] for one in (a, b) if pd.notna(one["psnr_std"])), default=otherwise)


def run_row(run: Run) -> dict[str, object]:
    """One run beside the paper, for a person: its score, or before that its last epoch.

    Raises:
        ValueError: it was not trained here.
    """
    cell = run.cell
    row: dict[str, object] = {"noise": cell.noise, "model": cell.model, "seed": cell.seed}
    if not run.scores.is_file():
        last = read_history(run.history).iloc[-1]
        shown = {"epochs": int(last["epoch"]), "loss": round(float(last["loss"]), 6)}
        images = f"PSNR of {run.settings.monitored} test images (dB)"
        return row | shown | {images: round(float(last["monitored_psnr"]), 2)}
    found = table2([cell], {cell: read_json(run.scores)}).iloc[0]
    paper = {"paper": "paper_psnr", "paper's SSIM": "paper_ssim"}
    return row | {
        "PSNR (dB)": round(float(found["psnr"]), 2),
        "SSIM": round(float(found["ssim"]), 3),
        **{key: None if pd.isna(found[name]) else float(found[name]) for key, name in paper.items()},
        "noisy input (dB)": round(float(found["noisy_psnr"]), 2),
        "parameters": int(found["parameters"]),
        "images": int(found["images"]),
    }


def as_markdown(table: pd.DataFrame) -> str:
    """Ours beside the paper's, with the difference; the best PSNR of each noise in bold."""
    lines = [
        "| noise | model | parameters | PSNR (dB) | paper | difference | SSIM | paper | difference "
        "| noisy input |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in table.to_dict("records"):
        if not row["seeds"]:
            lines.append(f"| {row['noise']} | {row['model']} | | not run | {_paper(row)} | | | | | |")
            continue
        psnr = f"**{row['psnr']:.2f}**" if row["best"] else f"{row['psnr']:.2f}"
        if pd.notna(row.get("psnr_std")):
            psnr += f" ± {row['psnr_std']:.2f}"
        lines.append(
            f"| {row['noise']} | {row['model']} | {row['parameters']:,} "
            f"| {psnr} | {_paper(row)} | {_number(row['psnr_difference'], '+.2f')} "
            f"| {row['ssim']:.3f} | {_number(row['paper_ssim'], '.2f')} "
            f"| {_number(row['ssim_difference'], '+.3f')} | {row['noisy_psnr']:.2f} |"
        )
    images = sorted(set(table["images"].dropna()))
    seeds = sorted(set(table["seeds"]) - {0})
    trained = f"mean of {', '.join(map(str, seeds))} training(s) each"
    if len(seeds) == 2 and seeds[0] == 1:
        trained = f"mean and standard deviation of {seeds[1]} trainings, or one training where there is no ±"
    lines += [
        "",
        f"{', '.join(f'{count:,}' for count in images)} test images; {trained}. "
        "PSNR of the MSE pooled over the test set, SSIM with a Gaussian window, outputs clipped to [0, 1]; "
        "bold: the best of its noise.",
    ]
    if (table["paper_note"] != "").any():
        lines.append("† An entry of the paper that does not hold: see the deviations in the README.")
    return "\n".join(lines) + "\n"


def as_text(table: pd.DataFrame) -> str:
    """The same for a terminal."""
    show = pd.DataFrame({"noise": table["noise"].where(table["noise"] != table["noise"].shift(), "")})
    show["model"] = table["model"]
    show["parameters"] = [_number(value, ",.0f") for value in table["parameters"]]
    show["PSNR"] = [_number(value, ".2f") or "not run" for value in table["psnr"]]
    show["paper"] = [_number(value, ".2f") for value in table["paper_psnr"]]
    show["SSIM"] = [_number(value, ".3f") for value in table["ssim"]]
    show[" paper"] = [_number(value, ".2f") for value in table["paper_ssim"]]
    show["noisy input"] = [_number(value, ".2f") for value in table["noisy_psnr"]]
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


def _paper(row: dict) -> str:
    return _number(row["paper_psnr"], ".2f") + (" †" if row["paper_note"] else "")


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)
