"""MLflow's registry: a registered model for each noise, a version for each trained network."""

import contextlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.entities import PagedList
from mlflow.types import Schema, TensorSpec
from torch.export import ExportedProgram

from lambdanet import files
from lambdanet.inference.catalogue import NO_REGISTRY, RESERVED, RULE, Denoiser, aliases, newest, tests
from lambdanet.models import load_weights, read_description
from lambdanet.tracking import export
from lambdanet.tracking.mlflow_runs import (
    Training,
    connect,
    experiment_id,
    moved_from,
    moved_line,
    sqlite_file,
)

PREFIX = "denoiser-"
WEIGHTS = "extra_files/weights.safetensors"
PROGRAM = "data/model.pt2"
NUMBERS = {"psnr": float, "ssim": float, "parameters": int, "train_images": int, "seed": int}
TEXTS = ("noise", "model", "profile", "clean_sha256", "noisy_sha256", "weights_sha256")


def build(weights: Path, folder: Path) -> ExportedProgram:
    """Trace a network into the folder of an MLflow model, of no run yet, and compare it with the network.

    Takes seconds.

    Args:
        weights: file of `save_weights`; goes along, for those who have this project.
        folder: made.

    Returns:
        The program, as it is in the folder.

    Raises:
        ValueError: the network cannot be traced for every size.
    """
    network, _ = load_weights(weights)
    signature = ModelSignature(*(Schema([TensorSpec(np.dtype("float32"), (-1, 3, -1, -1))]) for _ in "io"))
    with tempfile.TemporaryDirectory() as temporary, export.dynamic_sizes(network):
        copy = Path(temporary, "weights.safetensors")
        copy.write_bytes(weights.read_bytes())
        mlflow.pytorch.save_model(
            export.Portable(network),
            folder,
            signature=signature,
            input_example=export.example(),
            # Found out by MLflow itself this takes 20 times as long.
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            extra_files=[str(copy)],
            metadata={"contract": export.CONTRACT},
            serialization_format="pt2",
        )
    card = Model.load(str(folder))
    # A traced program stays on its device; without this `pyfunc` fails where there is a GPU.
    card.flavors["python_function"]["config"] = {"device": "cpu"}
    card.save(str(folder / "MLmodel"))
    program = torch.export.load(folder / PROGRAM)
    export.verify(program.module(), network)
    return program


class Builder:
    """Builds MLflow models: of each architecture one network is traced, the others take its program."""

    def __init__(self, place: Path) -> None:
        self._place, self._traced, self._count = place, {}, 0

    def build(self, weights: Path) -> Path:
        """Make the folder of a network's MLflow model, below `place`.

        Raises:
            ValueError: of `build`.
        """
        architecture = json.dumps(read_description(weights)["model"], sort_keys=True)
        self._count += 1
        folder = self._place / str(self._count)
        if architecture in self._traced:
            _build_like(*self._traced[architecture], weights, folder)
        else:
            self._traced[architecture] = build(weights, folder), folder
        return folder


def _build_like(program: ExportedProgram, traced: Path, weights: Path, folder: Path) -> None:
    """Copy the folder of a traced network, with another one's weights in it."""
    network, _ = load_weights(weights)
    export.exchange_weights(program, network)
    shutil.copytree(traced, folder, ignore=shutil.ignore_patterns(Path(PROGRAM).name))
    torch.export.save(program, folder / PROGRAM)
    (folder / WEIGHTS).write_bytes(weights.read_bytes())
    card = Model.load(str(folder))
    card.model_uuid, card.utc_time_created = uuid.uuid4().hex, str(datetime.now(UTC).replace(tzinfo=None))
    card.save(str(folder / "MLmodel"))
    export.verify(program.module(), network)


def has_versions(client: MlflowClient, noise: str) -> bool:
    """Whether there is a denoiser for a noise."""
    return bool(_versions(client, PREFIX + noise))


def register(
    client: MlflowClient,
    training: Training,
    run_id: str,
    weights: Path,
    train_images: int,
    builder: Builder,
) -> ModelVersion | None:
    """Register a scored network as a version of its noise's model, unless these weights are one.

    Call it within `tracking.reaching`, which lets one process at a time into a SQLite file.

    Args:
        client: of `tracking.connect`.
        training: scored.
        run_id: its run.
        weights: file of `save_weights`.
        train_images: how many it was trained on.
        builder: of the version's files, if they are missing.

    Returns:
        The new version; None where there was one.

    Raises:
        ValueError: the network cannot be traced for every size, or its name is an alias.
    """
    key = training.key
    if key.model in RESERVED:
        raise ValueError(f"a model cannot be named {key.model}: it is an alias of the registry")
    name = PREFIX + key.noise
    _make_registered_model(client, name, _about(key.noise))
    scores = training.scores
    versions = _versions(client, name)
    known = _find(versions, training.weights_sha256)
    logged = training.record.get("data", {}).get("train", {}).get("images")
    if known and not logged:  # today's params.yaml must not rewrite how many images it was trained on
        train_images = int(known.tags["train_images"])
    ours = Denoiser.of(key, scores, train_images, int(known.version) if known else 0)
    tags = {key: str(getattr(ours, key)) for key in (*NUMBERS, *TEXTS)}
    tags |= {"commit": training.record["commit"]} if "commit" in training.record else {}
    description = (
        f"{key.model} for {key.noise}, trained at the scale `{key.profile}` on {train_images:,} images: "
        f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.3f} on {scores['images']:,} test images "
        f"(noisy: {scores['noisy_psnr']:.2f} dB), {scores['parameters']:,} parameters."
        f"\n\n{export.CONTRACT}"
    )
    if known:
        if not _has_files(client, known):
            # `version.model_id` is empty in what a database gives back.
            _log_model(client, builder.build(weights), run_id, known.source.removeprefix("models:/"))
        decisive = newest([_denoiser(version) for version in versions])
        if ours.train_images == decisive.train_images and tests(ours) != tests(decisive):
            tags["published"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        _describe(client, known, tags, description)
        return None
    folder = builder.build(weights)  # first: what fails here leaves nothing in MLflow
    model = client.create_logged_model(
        experiment_id(client, key.profile),
        key.name,
        run_id,
        tags,
        {"model": key.model},
        "denoiser",
    )
    _log_model(client, folder, run_id, model.model_id)
    client.finalize_logged_model(model.model_id, "READY")
    if _find(_versions(client, name), training.weights_sha256):  # another process registered them just now
        client.delete_logged_model(model.model_id)
        return None
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return client.create_model_version(
        name, f"models:/{model.model_id}", run_id, tags, description=description, model_id=model.model_id
    )


def assign_aliases(client: MlflowClient, noise: str) -> dict[str, Denoiser | None]:
    """Let the aliases of a noise's model follow `catalogue.RULE`.

    Returns:
        Those that moved, with what they stand for now: None where nothing qualifies any more.
    """
    name = PREFIX + noise
    present = client.get_registered_model(name).aliases
    found = [_denoiser(version) for version in _versions(client, name)]
    wanted = aliases(found)
    ours = {*RESERVED, *(one.model for one in found)}  # a person may have set others
    gone = [alias for alias in present if alias in ours and alias not in wanted]
    for alias in gone:
        client.delete_registered_model_alias(name, alias)
    moved = {alias: one for alias, one in wanted.items() if str(present.get(alias)) != str(one.version)}
    for alias, one in moved.items():
        client.set_registered_model_alias(name, alias, str(one.version))
    return moved | dict.fromkeys(gone)


def denoisers(client: MlflowClient) -> list[tuple[Denoiser, tuple[str, ...]]]:
    """All versions in the registry with their aliases, by noise and version."""
    found, ours = [], f"name LIKE '{PREFIX}%'"
    for model in _all(lambda token: client.search_registered_models(ours, page_token=token)):
        holders = {}
        for alias, version in model.aliases.items():
            holders.setdefault(int(version), []).append(alias)
        for version in _versions(client, model.name):
            found.append((_denoiser(version), tuple(sorted(holders.get(int(version.version), [])))))
    return sorted(found, key=lambda pair: (pair[0].noise, pair[0].version))


def fetch(client: MlflowClient, denoiser: Denoiser, folder: Path) -> Path:
    """Download the weights file of a version, for `load_weights`.

    Raises:
        ValueError: it is not there, or is not the one that was registered.
    """
    name, version = PREFIX + denoiser.noise, str(denoiser.version)
    source = client.get_model_version_download_uri(name, version)
    try:
        path = Path(mlflow.artifacts.download_artifacts(f"{source}/{WEIGHTS}", dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        if there := moved_from(source):
            raise ValueError(moved_line(there)) from None
        raise ValueError(
            f"the files of {name} version {version} are not in MLflow's artifacts "
            f"({' '.join(str(error).split())[:200]}); `lambdanet models sync` brings them back"
        ) from None
    if files.sha256(path) != denoiser.weights_sha256:
        raise ValueError(f"the weights of {name} version {version} are not those that were registered")
    return path


def open_registry() -> MlflowClient:
    """A client for reading; a SQLite file that is not there is not made.

    Raises:
        ValueError: there is no registry yet.
        UnreachableError: MLflow does not answer.
    """
    if (path := sqlite_file()) and not path.exists():
        raise ValueError(NO_REGISTRY.replace("mlflow.db", path.name))
    return connect()


def _log_model(client: MlflowClient, folder: Path, run_id: str, model_id: str) -> None:
    card = Model.load(str(folder))
    card.run_id, card.model_id = run_id, model_id
    card.save(str(folder / "MLmodel"))
    client.log_model_artifacts(model_id, str(folder))


def _make_registered_model(client: MlflowClient, name: str, description: str) -> None:
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(versions: list[ModelVersion], weights_sha256: str) -> ModelVersion | None:
    return next((one for one in versions if one.tags["weights_sha256"] == weights_sha256), None)


def _describe(client: MlflowClient, version: ModelVersion, tags: dict[str, str], description: str) -> None:
    """Bring a version's tags up to date: the same weights may have been scored anew."""
    changed = {key: value for key, value in tags.items() if version.tags.get(key) != value}
    for key, value in changed.items():
        client.set_model_version_tag(version.name, version.version, key, value)
    if changed:
        client.update_model_version(version.name, version.version, description)


def _has_files(client: MlflowClient, version: ModelVersion) -> bool:
    source = client.get_model_version_download_uri(version.name, version.version)
    with contextlib.suppress(MlflowException, OSError):
        listed = [
            item.path.rpartition("/")[2]
            for folder in ("", "/data")
            for item in mlflow.artifacts.list_artifacts(artifact_uri=source + folder)
        ]
        if not {"MLmodel", Path(PROGRAM).name} <= set(listed):
            return False
    with tempfile.TemporaryDirectory() as temporary, contextlib.suppress(ValueError):
        fetch(client, _denoiser(version), Path(temporary))
        return True
    return False


def _denoiser(version: ModelVersion) -> Denoiser:
    created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    numbers = {key: kind(version.tags[key]) for key, kind in NUMBERS.items()}
    texts = {key: version.tags[key] for key in TEXTS}
    return Denoiser(
        **numbers, **texts, version=int(version.version), created=created.isoformat(timespec="milliseconds"),
        published=version.tags.get("published", ""),
    )  # fmt: skip


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """The versions of a model that this project made; a person may have added others."""
    found = _all(lambda token: client.search_model_versions(f"name='{name}'", page_token=token))
    ours = {*NUMBERS, *TEXTS}
    return sorted((v for v in found if ours <= set(v.tags)), key=lambda v: int(v.version))


def _all(search: Callable[[str | None], PagedList]) -> list:
    found, token = [], None
    while True:
        page = search(token)
        found += page
        token = page.token
        if not token:
            return found


def _about(noise: str) -> str:
    return f"Denoisers for the noise {noise}. {RULE}\n\n{export.CONTRACT}"
