"""report.html: one self-contained page with the verdicts, the tables, the figures and how they were made."""

import base64
import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pandas as pd
from PIL import Image

from lambdanet import files
from lambdanet.config import Config, RunKey
from lambdanet.report import settings, studies, tables
from lambdanet.report.findings import findings
from lambdanet.report.runs import STUDY_NOISE, Row, Study, is_papers

CSS_PIXELS = 96 / 150  # of a figure's pixel, which has figures.DPI


@dataclass(frozen=True)
class Chapter:
    """A study's part of the page; of one that was not run, the study alone."""

    study: Study
    said: list[str] = field(default_factory=list)
    table: pd.DataFrame | None = None
    shown: pd.DataFrame | None = None
    figures: list[str] = field(default_factory=list)
    noise: str = ""


def write_page(
    path: Path,
    config: Config,
    rows: list[Row],
    table: pd.DataFrame,
    scores: dict[RunKey, dict],
    logs: dict[RunKey, dict | None],
    chapters: list[Chapter],
    networks: pd.DataFrame,
    ends: pd.DataFrame,
    noises: dict[str, str],
) -> None:
    """Write the page; everything it shows is inside the file, the tables' files and figures lie beside it.

    Args:
        path: HTML file, beside the folder of the figures.
        config: of the profile.
        rows: of `runs.collect`.
        table: of `tables.table2`.
        scores: of every run that was run.
        logs: what each of their trainings left in the logs, or None.
        chapters: of all studies.
        networks: of `studies.pareto`.
        ends: of `studies.convergence`; may be empty.
        noises: their titles by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lambdanet.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    counters = {"Figure": itertools.count(1), "Table": itertools.count(1)}
    environment.globals["number"] = lambda kind: f"{kind} {next(counters[kind])}"
    comparable, download = is_papers(config), config.download()
    of_table = [row for row in rows if not row.study]
    text = environment.get_template("report.html.j2").render(
        profile=config.name,
        pipeline="" if config.pipeline == "dvc.yaml" else f" {config.pipeline}",
        comparable=comparable,
        dataset=download.dataset,
        images=download.train_images,
        tested=" or ".join(f"{count:,}" for count in sorted(set(table["images"].dropna()))),
        epochs={settings.model_title(row.name): row.epochs for row in of_table if row.done},
        seeds=sorted({len(row.done) for row in of_table if row.done}),
        findings=findings(rows, comparable=comparable),
        table2=_grid(tables.for_readers(table, noises), table["seeds"] > 0, table["best"]),
        beside_paper=table["paper_psnr"].notna().any(),
        doubts=[note for note in table["paper_note"].unique() if note],
        noted=tables.noted(table),
        missing=_missing(table, noises),
        unrecorded=sum(run.scores is not None and not run.recorded for row in rows for run in row.runs),
        monitored=_monitored(of_table),
        authors_batches=studies.AUTHORS_BATCHES,
        ends=len(ends) and _grid(tables.for_readers(ends, noises)),
        study_noise=noises.get(STUDY_NOISE, ""),
        networks=len(networks) and _grid(tables.for_readers(networks, {}), best=networks["front"]),
        recipes=dict(sorted(zip(networks["recipe"], networks["trained"], strict=True)))
        if len(networks)
        else {},
        fronts=sorted(set(networks.loc[networks["front"], "recipe"])) if len(networks) else [],
        chapters=[chapter for chapter in chapters if chapter.said],
        grid=lambda one: _grid(one.shown, one.table["seeds"] > 0),
        not_run=[chapter.study.title for chapter in chapters if not chapter.said],
        pictures={one.stem: _picture(one) for one in sorted((path.parent / "figures").glob("*.png"))},
        noises={name: noises[name] for name in dict.fromkeys(table["noise"])},
        provenance=_provenance(scores, logs),
        digests=_digests(scores, {row.name for row in rows if row.document}),
    )
    files.write_text(path, text)


TEXT = {"noise", "model", "network", "family", "entry", "differs in", "device"}


def _grid(shown: pd.DataFrame, done: Iterable[bool] = (), best: Iterable[bool] = ()) -> dict:
    """A table of text for the template: the columns, and of each row whether it was run and is the best."""
    rows = [
        {"cells": cells, "done": was_run, "best": is_best}
        for cells, was_run, is_best in itertools.zip_longest(
            shown.to_numpy().tolist(), list(done) or [True] * len(shown), list(best), fillvalue=False
        )
    ]
    return {"columns": [(name, name in TEXT) for name in shown], "rows": rows}


def _missing(table: pd.DataFrame, noises: dict[str, str]) -> list[str]:
    """What of Table 2 was not run, by model."""
    none = table[table["seeds"] == 0].groupby("model", sort=False)["noise"]
    every = table["noise"].nunique()
    return [
        f"{settings.model_title(model)} on "
        + ("every noise" if len(of) == every else ", ".join(noises[name] for name in of))
        for model, of in none
    ]


def _monitored(rows: list[Row]) -> str:
    """How many test images were monitored, of the table's trainings."""
    done = [run for row in rows for run in row.done]
    counts = {min(run.training["monitored"], run.scores["images"]) for run in done}
    return " or ".join(map(str, sorted(counts)))


def _provenance(scores: dict[RunKey, dict], logs: dict[RunKey, dict | None]) -> list[dict]:
    """Group the runs by how they were trained: device, backend, commit and versions."""
    groups: dict[tuple, list[str]] = {}
    for key in scores:
        if log := logs[key]:
            versions = ", ".join(f"{name} {version}" for name, version in log["versions"].items())
            backend = f", backend {log['computed_by']}" if "computed_by" in log else ""
            how = (f"{log['device']}{backend}", log["commit"], f"Python {log['python']}, {versions}")
        else:
            how = ("not recorded here: trained on another machine or restored from a cache", "", "")
        groups.setdefault(how, []).append(key.name)
    return [
        {"device": device, "commit": commit, "versions": versions, "runs": names}
        for (device, commit, versions), names in groups.items()
    ]


def _digests(scores: dict[RunKey, dict], documents: set[str]) -> dict[str, str]:
    """Of the test images, which the runs of a noise share; the runs of other documents have other ones."""
    found = {}
    for key, score in scores.items():
        of = f" of {key.model}" if key.model in documents else ""
        found[f"clean test images{of}"] = score["clean_sha256"]
        found[f"with {key.noise}{of}"] = score["noisy_sha256"]
    return found


def _picture(path: Path) -> dict:
    """A figure for the page and its width; photographs as JPEG, a quarter of the size."""
    with Image.open(path) as image:
        width, kind, content = round(image.width * CSS_PIXELS), "png", path.read_bytes()
        if path.stem.startswith(("panel", "strip")):
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=88)
            width, kind, content = image.width, "jpeg", buffer.getvalue()
    return {"width": width, "source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}"}
