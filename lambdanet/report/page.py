"""report.html: one self-contained page with the table, the figures and how they were made."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd
from PIL import Image

from lambdanet import files
from lambdanet.config import Cell
from lambdanet.report.findings import findings
from lambdanet.report.studies import AUTHORS_BATCHES
from lambdanet.report.tables import as_rows, seed_sentences

if TYPE_CHECKING:
    from lambdanet.report import Answers


def write_page(
    path: Path,
    table: pd.DataFrame,
    scores: dict[Cell, dict],
    records: dict[Cell, dict | None],
    figures: Path,
    answers: "Answers",
    own: list[dict],
    *,
    comparable: bool,
    scale: dict,
    stages: list[str],
) -> None:
    """Write the page; everything it shows is inside the file.

    Args:
        path: HTML file.
        table: of `tables.table2`.
        scores: of every cell that was run: of the table, the studies and the sets.
        records: what each of their trainings left in the logs, or None.
        figures: folder of the PNG files.
        answers: what the studies found.
        own: sections on the sets of their own images.
        comparable: whether the table's images are the paper's.
        scale: how long the table's models are trained: images, and epochs by model.
        stages: names of DVC stages, as examples.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lambdanet.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("report.html.j2").render(
        profile=next(iter(scores)).profile,
        rows=as_rows(table),
        seeds=seed_sentences(table),
        findings=findings(table, answers.networks, comparable=comparable),
        comparable=comparable,
        scale=scale,
        stages=stages,
        convergence=_inline(figures / "convergence.png"),
        psnr=_inline(figures / "psnr.png"),
        panels={p.stem.removeprefix("panel-"): _photographs(p) for p in sorted(figures.glob("panel-*.png"))},
        authors=_inline(figures / "authors.png") if (figures / "authors.png").is_file() else None,
        authors_batches=AUTHORS_BATCHES,
        pareto=_inline(figures / "pareto.png") if answers.networks else None,
        answers=answers,
        own=own,
        own_figures={
            name: _photographs(figures / f"{name}.png")
            if name.startswith("examples")
            else _inline(figures / f"{name}.png")
            for section in own
            for name in section["figures"]
        },
        study_figures={one["name"]: _inline(figures / f"study-{one['name']}.png") for one in answers.studies},
        provenance=_provenance(scores, records),
        digests=_digests(scores, {section["name"] for section in own}),
    )
    files.write_text(path, text)


def _provenance(scores: dict[Cell, dict], records: dict[Cell, dict | None]) -> list[dict]:
    """Group the cells by how they were trained: device, commit and versions."""
    groups: dict[tuple, list[str]] = {}
    for cell in scores:
        record = records[cell]
        if record is None:
            how = ("not recorded here: trained elsewhere or restored from a cache", "", "")
        else:
            versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            how = (record["device"], record["commit"], f"Python {record['python']}, {versions}")
        groups.setdefault(how, []).append(cell.name)
    return [
        {"device": device, "commit": commit, "versions": versions, "cells": cells}
        for (device, commit, versions), cells in groups.items()
    ]


def _digests(scores: dict[Cell, dict], sets: set[str]) -> dict[str, str]:
    """Of the test images, which the cells of a noise share; the cells of `sets` have clean ones too."""
    found = {}
    for cell, score in scores.items():
        clean = f"clean test images of {cell.noise}" if cell.noise in sets else "clean test images"
        found[clean] = score["clean_sha256"]
        found[f"with {cell.noise}"] = score["noisy_sha256"]
    return found


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _photographs(path: Path) -> str:
    """The panel as JPEG: a quarter of the size, for the page only; the PNG lies beside it."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
