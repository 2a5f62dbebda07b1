"""report.html: one self-contained page with the table, the figures and how they were made."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pandas as pd
from PIL import Image

from lambdanet import files
from lambdanet.config import RunKey
from lambdanet.report.findings import findings
from lambdanet.report.runs import STUDY_NOISE, Row
from lambdanet.report.studies import AUTHORS_BATCHES
from lambdanet.report.tables import as_rows, beside_paper, noted, signed

if TYPE_CHECKING:
    from lambdanet.report import Answers


def write_page(
    path: Path,
    table: pd.DataFrame,
    rows: list[Row],
    scores: dict[RunKey, dict],
    records: dict[RunKey, dict | None],
    figures: Path,
    answers: "Answers",
    own: list[dict],
    *,
    comparable: bool,
    images: int,
    stages: list[str],
) -> None:
    """Write the page; everything it shows is inside the file.

    Args:
        path: HTML file.
        table: of `tables.table2`.
        rows: of `runs.collect`.
        scores: of every run that was run: of the table, the studies and the sets.
        records: what each of their trainings left in the logs, or None.
        figures: folder of the PNG files.
        answers: what the studies found.
        own: sections on the sets of their own images.
        comparable: whether the table's images are the paper's.
        images: that the table's models are trained on.
        stages: names of DVC stages, as examples.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lambdanet.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["signed"] = signed
    shared, recipes = _recipes(answers.networks)
    text = environment.get_template("report.html.j2").render(
        profile=next(iter(scores)).profile,
        rows=as_rows(table),
        beside_paper=beside_paper(table),
        noted=noted(table),
        findings=findings(rows, comparable=comparable),
        comparable=comparable,
        images=images,
        epochs={row.name: row.epochs for row in rows if row.done and not row.study and not row.dataset},
        monitored=_monitored(rows),
        unrecorded=sum(run.scores is not None and not run.recorded for row in rows for run in row.runs),
        stages=stages,
        panels={p.stem.removeprefix("panel-"): _photographs(p) for p in sorted(figures.glob("panel-*.png"))},
        authors_batches=AUTHORS_BATCHES,
        study_noise=STUDY_NOISE,
        shared=shared,
        recipes=recipes,
        fronts=sorted({row["recipe"] for row in answers.networks if row["front"]}),
        answers=answers,
        own=own,
        pictures={p.stem: _shown(p) for p in figures.glob("*.png") if not p.stem.startswith("panel-")},
        provenance=_provenance(scores, records),
        digests=_digests(scores, {section["name"] for section in own}),
    )
    files.write_text(path, text)


def _recipes(networks: list[dict]) -> tuple[str, dict[str, str]]:
    """What all recipes share, and by letter the rest of each."""
    parts = {row["recipe"]: row["trained"].split(", ") for row in networks}
    shared = [one for one in next(iter(parts.values()), []) if all(one in other for other in parts.values())]
    rest = {letter: ", ".join(one for one in parts[letter] if one not in shared) for letter in parts}
    return ", ".join(shared), dict(sorted(rest.items(), key=lambda one: (len(one[0]), one[0])))


def _monitored(rows: list[Row]) -> str:
    """How many test images were monitored, of the table's trainings."""
    done = [run for row in rows if not row.study and not row.dataset for run in row.done]
    return " or ".join(
        map(str, sorted({min(run.training["monitored"], run.scores["images"]) for run in done}))
    )


def _provenance(scores: dict[RunKey, dict], records: dict[RunKey, dict | None]) -> list[dict]:
    """Group the runs by how they were trained: device, commit and versions."""
    groups: dict[tuple, list[str]] = {}
    for run_key in scores:
        record = records[run_key]
        if record is None:
            how = ("not recorded here: trained elsewhere or restored from a cache", "", "")
        else:
            versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            how = (record["device"], record["commit"], f"Python {record['python']}, {versions}")
        groups.setdefault(how, []).append(run_key.name)
    return [
        {"device": device, "commit": commit, "versions": versions, "runs": run_keys}
        for (device, commit, versions), run_keys in groups.items()
    ]


def _digests(scores: dict[RunKey, dict], sets: set[str]) -> dict[str, str]:
    """Of the test images, which the runs of a noise share; the runs of `sets` have clean ones too."""
    found = {}
    for run_key, score in scores.items():
        clean = f"clean test images of {run_key.noise}" if run_key.noise in sets else "clean test images"
        found[clean] = score["clean_sha256"]
        found[f"with {run_key.noise}"] = score["noisy_sha256"]
    return found


def _shown(path: Path) -> str:
    return _photographs(path) if path.stem.startswith("examples") else _inline(path)


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _photographs(path: Path) -> str:
    """The panel as JPEG: a quarter of the size, for the page only; the PNG lies beside it."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
