"""Put back what a committed report was made of, to make it again with one more training in it.

A clone has the reports in git, and the weights of their tables, but none of DVC's outputs. What is put back
are the same bytes but for photographs, which are denoised anew; nothing that is there is touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lambdanet import evaluation, files, records
from lambdanet.experiment import HISTORY, MODEL, WEIGHTS, describe
from lambdanet.models import load_weights, read_description
from lambdanet.noise import create_noise
from lambdanet.params import Cell, Params
from lambdanet.report import tables


@dataclass
class Restored:
    """How many were put back."""

    scores: int = 0
    trainings: int = 0
    photographs: int = 0


def restore(
    params: Params,
    profile: str,
    results: Path,
    weights: Path,
    *,
    scores: Path,
    models: Path,
    panels: Path,
    logs: Path,
) -> Restored:
    """Put back scores, logs, histories, weights and photographs of a profile's report, where they lack.

    Args:
        params: all of params.yaml.
        profile: whose report.
        results: folder of `report.write_report`.
        weights: folder of `experiment.export_weights`; trainings that it lacks get no weights.
        scores: folder with a JSON file a cell.
        models: folder with a folder of `train_cell` a cell.
        panels: folder with a folder of photographs a cell; those of the table's cells are denoised anew.
        logs: folder with a JSON file a cell.

    Raises:
        ValueError: the report is missing or says nothing of its trainings, or weights are not those scored.
    """
    kept, done = tables.read_json(results / records.TRAININGS), Restored()
    for kind, cell in _cells(params, profile):
        if (entry := kept.get(cell.name)) is None:
            continue
        score, place = entry["scores"], models / kind / cell.name
        if not (path := scores / kind / f"{cell.name}.json").exists():
            files.write_json(path, score)
            done.scores += 1
        _restore_log(logs / f"{cell.name}.json", entry["log"])
        stored = weights / kind / f"{cell.name}.safetensors"
        if stored.is_file() and files.sha256(stored) != score["weights_sha256"]:
            raise ValueError(f"{stored} is not what {results} scored")
        history = results / kind / "histories" / f"{cell.name}.csv"
        if not place.exists() and (stored.is_file() or history.is_file()):
            _restore_training(place, stored, history, _description(params, cell))
            done.trainings += 1
        if not (panel := panels / kind / cell.name).exists():
            done.photographs += _restore_panel(panel, results / kind / cell.name, stored, params, cell)
    return done


def _cells(params: Params, profile: str) -> Iterator[tuple[str, Cell]]:
    """Every training of a profile, with the folder that its outputs lie in below the profile's."""
    kinds = {"": params.cells, "studies": params.study_cells, "sets": params.set_cells}
    return ((kind, cell) for kind, cells in kinds.items() for cell in cells(profile))


def _restore_log(path: Path, record: dict | None) -> None:
    there = records.read_records(path)
    if record and not any(one.get("weights_sha256") == record["weights_sha256"] for one in there):
        files.write_json(path, [record, *there])


def _description(params: Params, cell: Cell) -> dict:
    settings = params.training(cell.profile, cell.model)
    return describe(cell, params.model(cell.profile, cell.model), params.training_noise(cell), settings)


def _restore_training(place: Path, stored: Path, history: Path, expected: dict) -> None:
    with files.new_folder(place) as new:
        if history.is_file():
            files.write_bytes(new / HISTORY, history.read_bytes())
        if stored.is_file():
            files.write_bytes(new / WEIGHTS, stored.read_bytes())
            found = read_description(stored)
            # Equal, but in the order in which the training wrote it; a header is sorted.
            files.write_json(new / MODEL, expected if expected == found else found)


def _restore_panel(panel: Path, kept: Path, stored: Path, params: Params, cell: Cell) -> bool:
    if kept.is_dir():
        with files.new_folder(panel) as new:
            for path in kept.iterdir():
                files.write_bytes(new / path.name, path.read_bytes())
        return True
    if cell.noise in params.noises and cell.model in params.models and stored.is_file():
        model, _ = load_weights(stored)
        noise = create_noise(**params.noise(cell.noise))
        evaluation.write_panel(model, noise, panel, device=torch.device("cpu"))
        return True
    return False
