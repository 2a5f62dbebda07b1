"""MLflow's registry: a registered model for each noise, a version for each network that may be chosen."""

import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lambdanet import files
from lambdanet.cards import card
from lambdanet.inference import catalogue
from lambdanet.inference.catalogue import PINNED, REJECTED, RESERVED, Denoiser
from lambdanet.tracking import export
from lambdanet.tracking.mlflow_runs import WEIGHTS, Training, connect, sqlite_file

PREFIX = "denoiser-"
NUMBERS = {"psnr": float, "ssim": float, "parameters": int, "train_images": int, "seed": int}
TEXTS = ("noise", "model", "profile", "clean_sha256", "noisy_sha256", "weights_sha256")
MOST = 10_000  # versions of a noise that are looked at


def register(
    client: MlflowClient,
    denoiser: Denoiser,
    training: Training,
    model_id: str,
    builder: export.Builder,
    *,
    new: bool = True,
) -> ModelVersion | None:
    """Make a scored network a version of its noise's model, or bring its version up to date.

    Two processes that register the same weights at once leave one version, the lower one.

    Args:
        client: of `mlflow_runs.connect`.
        denoiser: what is known of the network.
        training: whose weights these are.
        model_id: its logged model.
        builder: of its program.
        new: whether a version may be made; else one is only brought up to date.

    Returns:
        The new version; None where there was one or none may be made.

    Raises:
        ValueError: the network cannot be traced for every size, or its name is an alias.
    """
    if denoiser.model in RESERVED:
        raise ValueError(f"a model cannot be named {denoiser.model}: it is an alias of the registry")
    name = PREFIX + denoiser.noise
    known = _find(client, name, denoiser)
    if known or not new:
        return _update(client, known, denoiser, training) if known else None
    run_id = client.get_logged_model(model_id).source_run_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        builder.build(training.weights, folder, run_id=run_id, model_id=model_id)
        _upload(client, model_id, folder)
    try:
        about = f"Denoisers for the noise {denoiser.noise}. {catalogue.RULE}\n\n{export.CONTRACT}"
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    description, tags = _card(denoiser, training), _tags(denoiser, training)
    made = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags, description=description, model_id=model_id
    )
    if int(_find(client, name, denoiser).version) < int(made.version):  # another process was faster
        client.delete_model_version(name, made.version)
        return None
    return made


def _upload(client: MlflowClient, model_id: str, folder: Path, attempts: int = 10) -> None:
    """Store a program; another process may store the same one, and MLflow then fails to make a folder."""
    try:
        client.log_model_artifacts(model_id, str(folder))
    except FileExistsError:
        if attempts == 1:
            raise
        _upload(client, model_id, folder, attempts - 1)


def _update(client: MlflowClient, known: ModelVersion, denoiser: Denoiser, training: Training) -> None:
    """The same weights may have been scored anew, or on the images of before."""
    if not training.record.get("data"):  # today's params.yaml must not rewrite what they were trained on
        denoiser = replace(denoiser, train_images=int(known.tags["train_images"]))
    tags = _tags(denoiser, training)
    decisive = catalogue.newest([_denoiser(version) for version in _versions(client, known.name)])
    if denoiser.train_images == decisive.train_images and denoiser.tests != decisive.tests:
        tags["published"] = _now()
    changed = {key: value for key, value in tags.items() if known.tags.get(key) != value}
    for key, value in changed.items():
        client.set_model_version_tag(known.name, known.version, key, value)
    if changed:
        client.update_model_version(known.name, known.version, _card(denoiser, training))


def assign_aliases(client: MlflowClient, noise: str) -> dict[str, Denoiser | None]:
    """Let the aliases of a noise's model follow `catalogue.RULE`.

    Returns:
        Those that moved, with what they stand for now: None where nothing qualifies any more.
    """
    name = PREFIX + noise
    if not (found := [_denoiser(version) for version in _versions(client, name)]):
        return {}  # none of its networks could be built
    present, wanted = client.get_registered_model(name).aliases, catalogue.aliases(found)
    ours = {*RESERVED, *(one.model for one in found)}  # users may have set others
    gone = [alias for alias in present if alias in ours and alias not in wanted]
    for alias in gone:
        client.delete_registered_model_alias(name, alias)
    moved = {alias: one for alias, one in wanted.items() if str(present.get(alias)) != str(one.version)}
    for alias, one in moved.items():
        client.set_registered_model_alias(name, alias, str(one.version))
    return moved | dict.fromkeys(gone)


def moved_line(noise: str, alias: str, one: Denoiser | None) -> str:
    """Say what an alias of a noise stands for now."""
    holder = f"version {one.version}: {one.model}, {one.profile}, {one.psnr:.2f} dB" if one else "none"
    return f"{PREFIX}{noise}@{alias} -> {holder}"


def pin(client: MlflowClient, noise: str, version: int) -> dict:
    """Give a version the aliases that it qualifies for, whatever the scores; it replaces an earlier pin.

    Args:
        client: of `open_registry`.
        noise: whose model it belongs to.
        version: its number.

    Returns:
        The aliases that moved, as of `assign_aliases`.

    Raises:
        ValueError: there is no such version.
    """
    for one in _having(client, noise, version):
        if one.tags.get("choice") == PINNED and int(one.version) != version:
            client.delete_model_version_tag(one.name, one.version, "choice")
    client.set_model_version_tag(PREFIX + noise, str(version), "choice", PINNED)
    return assign_aliases(client, noise)


def reject(client: MlflowClient, noise: str, version: int) -> dict:
    """Take a version's aliases away, whatever its scores; arguments, result and errors as of `pin`."""
    _having(client, noise, version)
    client.set_model_version_tag(PREFIX + noise, str(version), "choice", REJECTED)
    return assign_aliases(client, noise)


def unpin(client: MlflowClient, noise: str, version: int | None) -> dict:
    """Undo `pin` or `reject`; without a version, of all versions of the noise."""
    for one in _having(client, noise, version):
        if "choice" in one.tags and version in (None, int(one.version)):
            client.delete_model_version_tag(one.name, one.version, "choice")
    return assign_aliases(client, noise)


def _having(client: MlflowClient, noise: str, version: int | None) -> list[ModelVersion]:
    """The versions of a noise; an error if there are none or not this one."""
    if not (found := _versions(client, PREFIX + noise)):
        raise ValueError(f"there is no denoiser for the noise {noise!r}; see `lambdanet models list`")
    numbers = [int(one.version) for one in found]
    if version not in (None, *numbers):
        raise ValueError(f"{noise} has no version {version}; it has {', '.join(map(str, numbers))}")
    return found


def denoisers(client: MlflowClient) -> list[tuple[Denoiser, tuple[str, ...]]]:
    """All versions in the registry with their aliases, by noise and version."""
    found = []
    for model in client.search_registered_models(f"name LIKE '{PREFIX}%'", max_results=1000):
        for version in _versions(client, model.name):
            names = [alias for alias, number in model.aliases.items() if int(number) == int(version.version)]
            found.append((_denoiser(version), tuple(sorted(names))))
    return sorted(found, key=lambda pair: (pair[0].noise, pair[0].version))


def fetch(client: MlflowClient, denoiser: Denoiser, folder: Path) -> Path:
    """Download the weights file of a version, for `load_weights`.

    Raises:
        ValueError: it is not there, or is not the one that was registered.
    """
    name, version = PREFIX + denoiser.noise, str(denoiser.version)
    again = "delete this version in MLflow, then `lambdanet models sync` makes it again"
    try:
        source = client.get_model_version_download_uri(name, version)
        path = Path(mlflow.artifacts.download_artifacts(f"{source}/{WEIGHTS}", dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the files of {name} version {version} are missing ({reason}); {again}") from None
    if files.sha256(path) != denoiser.weights_sha256:
        raise ValueError(f"the weights of {name} version {version} are not those registered; {again}")
    return path


def open_registry() -> MlflowClient:
    """A client for reading; a SQLite file that is not there is not made.

    Raises:
        ValueError: there is no registry yet.
        UnreachableError: MLflow does not answer.
    """
    if (path := sqlite_file()) and not path.exists():
        raise ValueError(catalogue.NO_REGISTRY.replace("mlflow.db", path.name))
    return connect()


def _find(client: MlflowClient, name: str, denoiser: Denoiser) -> ModelVersion | None:
    """The lowest version with these weights."""
    versions = _versions(client, name)
    return next((one for one in versions if one.tags["weights_sha256"] == denoiser.weights_sha256), None)


def _tags(denoiser: Denoiser, training: Training) -> dict[str, str]:
    tags = {key: str(asdict(denoiser)[key]) for key in (*NUMBERS, *TEXTS, "mean_psnr")}
    return tags | ({"commit": training.commit} if training.commit else {})


def _card(denoiser: Denoiser, training: Training) -> str:
    about = card(
        training.description, training.scores,
        train_images=denoiser.train_images, dataset=training.dataset, commit=training.commit,
    )  # fmt: skip
    return f"{about}\n{export.CONTRACT}"


def _denoiser(version: ModelVersion) -> Denoiser:
    numbers = {key: kind(version.tags[key]) for key, kind in NUMBERS.items()}
    texts = {key: version.tags[key] for key in TEXTS}
    return Denoiser(
        **numbers, **texts, version=int(version.version), created=_now(version.creation_timestamp),
        mean_psnr=float(version.tags.get("mean_psnr", numbers["psnr"])),
        **{key: version.tags.get(key, "") for key in ("published", "choice")},
    )  # fmt: skip


def _now(milliseconds: int | None = None) -> str:
    moment = datetime.now(UTC) if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds")


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """The versions of a model that this project made, the lowest first; users may have added others."""
    found = client.search_model_versions(f"name='{name}'", max_results=MOST)
    ours = {*NUMBERS, *TEXTS}
    return sorted((v for v in found if ours <= set(v.tags)), key=lambda v: int(v.version))
